"""The console script where the service's packages are not installed, as with `pip install recalld` alone."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run_without(module: str, command: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules[sys.argv.pop(1)] = None; from recalld.__main__ import main; main()"
    return subprocess.run([sys.executable, "-c", code, module, command], capture_output=True, text=True)


@pytest.mark.parametrize(("module", "command"), [("click", "serve"), ("psycopg", "serve"), ("rich.console", "config")])
def test_it_says_in_one_line_what_to_install(module: str, command: str) -> None:
    done = run_without(module, command)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line == f"recalld: {module} is missing; to run the service: pip install 'recalld[server]'"


def test_a_module_of_its_own_that_is_missing_is_a_defect() -> None:
    done = run_without("recalld.cli", "serve")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_process_whose_calls_do_not_end_ends_with_its_status() -> None:
    code = """if True:
        import threading
        from recalld.gathering import Gathering
        from recalld.serving import end_process
        begun = threading.Event()
        threads = Gathering(1, most=1, aside=lambda errand: None)
        threads.submit(lambda: (begun.set(), threading.Event().wait()))
        begun.wait()
        threads.shutdown()
        end_process(3)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (3, "")
