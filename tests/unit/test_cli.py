"""The command line, as far as it needs no server."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from recalld import __version__
from recalld.cli import run
from recalld.settings import Settings, flag, variable


def test_config_lists_every_setting_with_its_source(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECALLD_MAX_CONCURRENT_CALLS", "7")
    monkeypatch.setenv("RECALLD_DATABASE_URL", "postgresql://me:hunter2@db/memory")
    assert run(["config", "--json", "--pool-size", "9"]) == 0
    out = capsys.readouterr().out
    shown = json.loads(out)
    assert shown.keys() == Settings.model_fields.keys()
    assert (shown["max_concurrent_calls"]["value"], shown["max_concurrent_calls"]["source"]) == ("7", "environment")
    assert (shown["pool_size"]["value"], shown["pool_size"]["source"]) == ("9", "flag")
    assert (shown["retention"]["value"], shown["retention"]["source"]) == ("30d", "default")
    assert "hunter2" not in out


def test_the_table_of_config_has_every_variable(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config"]) == 0
    first_words = {line.split(" ")[0] for line in capsys.readouterr().out.splitlines()}
    assert {variable(name) for name in Settings.model_fields} <= first_words


def test_serve_has_a_flag_for_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for name in Settings.model_fields:
        assert flag(name) in out
        assert variable(name) in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"recalld {__version__}"
    assert [line.split()[0] for line in lines[1:]] == ["python", "grpcio", "protobuf", "psycopg"]


@pytest.mark.parametrize("command", ["serve", "migrate", "config"])
def test_a_wrong_setting_is_one_line_and_status_2(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECALLD_SEARCH_LANGUAGE", "42")
    assert run([command]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("recalld: RECALLD_SEARCH_LANGUAGE: ")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["frobnicate"], "frobnicate"),
        (["serve", "--frobnicate"], "--frobnicate"),
        (["purge", "--older-than", "soon"], "--older-than"),
        (["purge", "--session", "a", "--user", "b"], "--session"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("recalld: ")
    assert named in line


def test_a_misspelt_variable_is_a_warning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALLD_LISTN", ":0")
    assert run(["config"]) == 0
    [line] = capsys.readouterr().err.splitlines()
    assert line == "recalld: warning: RECALLD_LISTN: no such setting, did you mean RECALLD_LISTEN?"


def test_a_purge_without_a_server_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["purge", "--target", "127.0.0.1:1"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("recalld: UNAVAILABLE: ")


def test_config_needs_neither_grpc_nor_alembic() -> None:
    code = "import sys, recalld.cli as cli; cli.run(['config']); print({'alembic', 'grpc'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
