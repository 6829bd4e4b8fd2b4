"""The languages as fixtures, and a summary of which of them a run has tried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.languages import LANGUAGES, Language, Program, build
from tests.interop.server import Endpoint, serving


@pytest.fixture(scope="session", params=LANGUAGES, ids=[language.name for language in LANGUAGES])
def program(request: pytest.FixtureRequest) -> Program:
    """Each language's program in turn, built."""
    return built(request.param)


@pytest.fixture(scope="session")
def python_program() -> Program:
    [python] = [language for language in LANGUAGES if language.name == "python"]
    return built(python)


@pytest.fixture
def endpoint(database_url: str, tmp_path: Path) -> Iterator[Endpoint]:
    """A server process on a fresh database."""
    log = tmp_path / "server.log"
    with serving(database_url, log) as endpoint:
        yield endpoint
    assert "Traceback" not in log.read_text()


def built(language: Language) -> Program:
    if missing := language.missing_tools:
        pytest.skip(f"{language.name} (no {', no '.join(missing)})")
    return build(language)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says which languages were run and which were not, so that a pass is not taken for more than it is."""
    name = re.compile(rf"\[({'|'.join(language.name for language in LANGUAGES)})\]$")
    passed: set[str] = set()
    failed: set[str] = set()
    skipped: dict[str, str] = {}
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            found = name.search(getattr(report, "nodeid", ""))
            if found is None or outcome == "deselected":
                continue
            if outcome == "skipped":
                skipped[found[1]] = report.longrepr[2].removeprefix("Skipped: ")
            elif outcome == "passed" and report.when == "call":
                passed.add(found[1])
            elif outcome in ("failed", "error"):
                failed.add(found[1])
    if passed or failed or skipped:
        terminalreporter.section("languages")
        for what, names in [("passed", passed - failed), ("failed", failed), ("skipped", skipped.values())]:
            terminalreporter.write_line(f"{what}: {', '.join(sorted(names)) or 'none'}")
