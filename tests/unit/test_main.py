"""The console script as a process: without the service's packages, without room for its output, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def run_without(module: str, command: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.modules[sys.argv.pop(1)] = None; from recalld.__main__ import main; main()"
    return subprocess.run([sys.executable, "-c", code, module, command], capture_output=True, text=True)


@pytest.mark.parametrize(("module", "command"), [("click", "serve"), ("psycopg", "serve"), ("rich.console", "config")])
def test_it_says_in_one_line_what_to_install(module: str, command: str) -> None:
    done = run_without(module, command)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    remedy = "to run the service, in a clone of the repository: pip install '.[server]'"
    assert line == f"recalld: {module} is missing; {remedy}"


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


# --- output that goes nowhere


def run_command(
    *arguments: str, stdout: int | None = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "recalld", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


COMMANDS = [["config"], ["config", "--json"], ["version"], ["serve", "--help"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only some systems have it")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_full_disk_is_one_line(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_command(*command, stdout=full.fileno())
    assert (done.returncode, done.stderr) == (1, "recalld: cannot write the output: No space left on device\n")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_reader_that_goes_away_is_no_news(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = run_command(*command, stdout=write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_what_the_locale_cannot_show_is_shown_as_escapes() -> None:
    done = run_command("config", PYTHONIOENCODING="ascii", RECALLD_JWT_ISSUER="\u2192")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2192" in done.stdout


def test_an_argument_that_is_not_utf_8_is_one_line() -> None:
    for command in (["config", "\udcff"], ["keys", "revoke", "\udcff"], ["\udcff"]):
        done = run_command(*command)
        assert done.returncode == 2
        [line] = done.stderr.splitlines()
        assert line.startswith("recalld: ")


# --- signals while it starts


def signalled(number: signal.Signals, module: str, *arguments: str) -> tuple[int, str]:
    """The exit status and stderr of a command that gets a signal when it is about to import a module."""
    code = """if True:
        import builtins, os, signal, sys
        from recalld.__main__ import main
        # As in a terminal: what a shell has started in the background ignores it, and so does what that starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        number, module = int(sys.argv.pop(1)), sys.argv.pop(1)
        imported = builtins.__import__

        def import_and_be_signalled(name, *rest, **named):
            if name == module:
                builtins.__import__ = imported
                os.kill(os.getpid(), number)
            return imported(name, *rest, **named)

        builtins.__import__ = import_and_be_signalled
        main()
    """
    command = [sys.executable, "-c", code, str(int(number)), module, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stderr.strip()


SOON = ["recalld.cli", "click", "grpc"]
SERVE = ["serve", "--listen", "127.0.0.1:0", "--database-url", "postgresql://127.0.0.1:1/none"]


@pytest.mark.parametrize("module", SOON)
def test_a_server_that_is_stopped_while_it_starts_has_not_failed(module: str) -> None:
    assert signalled(signal.SIGTERM, module, *SERVE) == (0, "")


@pytest.mark.parametrize("module", SOON)
@pytest.mark.parametrize("command", [SERVE, ["version"]], ids=["serve", "version"])
def test_ctrl_c_while_a_command_starts_is_status_130_without_a_stack(command: list[str], module: str) -> None:
    assert signalled(signal.SIGINT, module, *command) == (130, "")


def test_a_command_that_is_terminated_while_it_starts_ends_by_the_signal() -> None:
    """The control of the test for the server: its SIGTERM comes in time."""
    assert signalled(signal.SIGTERM, "click", "version") == (-signal.SIGTERM, "")
