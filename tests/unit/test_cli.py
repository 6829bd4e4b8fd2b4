"""The command line, as far as it needs no server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any, Final, NoReturn

import pytest

from recalld import __version__
from recalld.cli import _announce, run
from recalld.cli.options import database_remedy
from recalld.settings import Settings, flag, variable

# What grpcurl takes where it cannot ask the server.
PROTO: Final = "-import-path protos -proto recall/v1/memory.proto"


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
        (["config", "--data-dir", ""], "--data-dir"),
        (["migrate", "--database-url", ""], "--database-url"),
        (["migrate", "--grant-to", ""], "--grant-to"),
        (["migrate", "--grant-to", "\udcff"], "--grant-to"),
        (["purge", "--older-than", "soon"], "--older-than"),
        (["purge", "--older-than", "-1d"], "--older-than"),
        (["purge", "--older-than", "36501d"], "--older-than"),
        (["purge", "--older-than", "99999999999d"], "--older-than"),
        (["purge", "--batch-size", "-1"], "--batch-size"),
        (["purge", "--batch-size", "99999999999"], "--batch-size"),
        (["purge", "--session", "a", "--user", "b"], "--session"),
        (["purge", "--session", ""], "--session"),
        (["purge", "--session", "\udcff"], "--session"),
        (["purge", "--user", "\udcff"], "--user"),
        (["purge", "--target", ""], "--target"),
        (["purge", "--target", "\udcff"], "--target"),
        (["purge", "--api-key", "\udcff"], "--api-key"),
        (["purge", "--api-key", "a key"], "api_key"),
        (["purge", "--api-key", "key", "--target", "example.org:1"], "--tls"),
        (["purge", "--ca-file", "/nowhere/at/all"], "--ca-file"),
        (["purge", "--ca-file", "/dev"], "--ca-file"),
        (["purge", "--ca-file", "/dev/null"], "/dev/null"),
        (["purge", "--key-file", "/dev/null"], "--cert-file"),
        (["health", "--service", "\udcff"], "--service"),
        (["health", "--timeout", "99999999999d"], "--timeout"),
        (["keys", "revoke", "\udcff"], "KEY_ID"),
        (["keys", "revoke", ""], "KEY_ID"),
        (["keys", "list", "--namespace", ""], "--namespace"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("recalld: ")
    assert named in line


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RECALLD_DATA_DIR", "")
    monkeypatch.setenv("RECALLD_API_KEY", "")
    assert run(["config"]) == 0
    assert run(["purge", "--target", "127.0.0.1:1"]) == 1  # asked, without a key
    assert capsys.readouterr().err.startswith("recalld: UNAVAILABLE: ")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('FATAL: database "shop" does not exist', "create it: createdb shop"),
        ('FATAL: role "shop" does not exist', "create the role, or name another one in RECALLD_DATABASE_URL"),
        (
            'FATAL: password authentication failed for user "shop"',
            "correct the user or the password in RECALLD_DATABASE_URL",
        ),
        ("session is read-only", "name the host that takes writes in RECALLD_DATABASE_URL"),
        ("Connection refused", "check RECALLD_DATABASE_URL, the network, Postgres"),
    ],
)
def test_of_a_database_that_does_not_answer_it_is_told_what_to_do(words: str, remedy: str) -> None:
    assert database_remedy(words) == remedy


def test_a_defect_is_one_line_unless_the_stack_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise ZeroDivisionError("of a\nkind")

    monkeypatch.setattr(Settings, "load", broken)
    assert run(["config"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"recalld: internal error at cli/options\.py:\d+: ZeroDivisionError: of a kind", line)
    monkeypatch.setenv("RECALLD_LOG_LEVEL", "debug")
    with pytest.raises(ZeroDivisionError):
        run(["config"])


@pytest.mark.parametrize(
    ("flags", "address", "line"),
    [
        ({}, "127.0.0.1:5", "-plaintext -d '…' 127.0.0.1:5"),
        ({"listen": "0.0.0.0:5"}, "0.0.0.0:5", f"-plaintext {PROTO} -d '…' 127.0.0.1:5"),
        ({"listen": "0.0.0.0:5", "reflection": True}, "0.0.0.0:5", "-plaintext -d '…' 127.0.0.1:5"),
        (
            {"tls_cert_file": __file__, "tls_client_ca_file": __file__, "auth": True},
            "127.0.0.1:5",
            "-cacert ca.pem -cert client.pem -key client.key -H 'authorization: Bearer recalld_…' -d '…' 127.0.0.1:5",
        ),
    ],
    ids=["on loopback", "on all addresses", "with reflection", "with all that is asked for"],
)
def test_the_line_to_try_reaches_the_server_and_has_what_it_asks_for(
    flags: dict[str, Any], address: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _announce(Settings.load(flags), address)
    shown = re.sub(r"-d '\{.*\}'", "-d '…'", capsys.readouterr().out.splitlines()[-1])
    assert shown == f"try:  grpcurl {line} recall.v1.MemoryService/AddMemory"


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
