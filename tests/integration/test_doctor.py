"""`recalld doctor`: what it finds wrong, what it says to do about it, and its exit status."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from recalld.cli import run
from recalld.cli.doctor import Finding, examine
from recalld.settings import Settings
from recalld.storage.migrate import newest_revision
from tests.certificates import Authority
from tests.postgres import Databases

# By its name in `recalld.cli` it is the command.
MODULE = sys.modules[examine.__module__]

ISSUER = {"auth": "true", "jwt_issuer": "https://issuer.example", "jwt_audience": "recalld"}


def found(url: str, **settings: str) -> list[Finding]:
    """Everything that it finds, by an address that is free unless one is given."""
    return list(examine(Settings.load({"listen": "127.0.0.1:0", "database_url": url, **settings})))


def troubles(url: str, **settings: str) -> list[tuple[str, str]]:
    """The verdict and subject of what is not well. Each has a remedy."""
    findings = [finding for finding in found(url, **settings) if finding.verdict != "ok"]
    assert all(finding.text and finding.remedy for finding in findings)
    return [(finding.verdict, finding.subject) for finding in findings]


def change(url: str, statement: str) -> None:
    """Runs a statement, in which {name} is the database's name."""
    name = sql.Identifier(urlsplit(url).path.removeprefix("/"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(name=name))


def test_all_is_well_on_a_migrated_database(database_url: str) -> None:
    findings = found(database_url)
    assert {finding.verdict for finding in findings} == {"ok"}
    assert [finding.subject for finding in findings] == [
        *("configuration", "address", "database", "connections", "clock", "schema")
    ]
    assert not any(finding.remedy for finding in findings)


def test_it_says_so_line_by_line_with_status_0(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--database-url", database_url, "--listen", "127.0.0.1:0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok      ") for line in lines)
    assert f"ok      schema: {newest_revision()}, as this version needs it" in lines


def test_an_error_has_its_remedy_below_it_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--database-url", "postgresql://me:hunter2@127.0.0.1:1/none", "--listen", ":0"]) == 1
    out = capsys.readouterr().out
    error, remedy = out.splitlines()[-2:]
    assert error.startswith("error   database: does not answer: ")
    assert remedy == "        → check RECALLD_DATABASE_URL, the network, Postgres"
    assert "hunter2" not in out


def test_warnings_alone_are_status_0(
    database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECALLD_POOLSIZE", "9")
    assert run(["doctor", "--database-url", database_url, "--listen", "127.0.0.1:0"]) == 0
    assert "warning configuration: RECALLD_POOLSIZE: no such setting, did you mean RECALLD_POOL_SIZE?" in (
        capsys.readouterr().out.splitlines()
    )


def test_a_setting_that_cannot_be_read_is_a_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--pool-size", "many"]) == 2
    assert capsys.readouterr().err.startswith("recalld: --pool-size: ")


# --- configuration, address, files


def test_settings_that_would_keep_the_server_from_starting_are_errors(database_url: str) -> None:
    assert troubles(database_url, listen="0.0.0.0:0") == [("error", "configuration")] * 2
    assert troubles(database_url, listen="0.0.0.0:0", insecure="true") == [("warning", "configuration")]


def test_an_address_in_use_is_a_warning(database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert troubles(database_url, listen=f"127.0.0.1:{taken.getsockname()[1]}") == [("warning", "address")]


@pytest.mark.parametrize(
    ("lifetime", "verdicts"),
    [
        (timedelta(days=90), ["ok"]),
        (timedelta(days=13), ["warning"]),
        (timedelta(minutes=-5), ["error"]),
    ],
    ids=["fresh", "soon", "expired"],
)
def test_a_certificate_is_looked_at_for_its_end(
    lifetime: timedelta, verdicts: list[str], database_url: str, tmp_path: Path
) -> None:
    issued = Authority(tmp_path).issue("server", lifetime=lifetime)
    files = {"tls_cert_file": str(issued.cert_file), "tls_key_file": str(issued.key_file)}
    assert [finding.verdict for finding in found(database_url, **files) if finding.subject == "tls"] == verdicts


def test_a_key_of_another_certificate_is_an_error(database_url: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = {
        "tls_cert_file": str(authority.issue("server").cert_file),
        "tls_key_file": str(authority.issue("other").key_file),
    }
    assert troubles(database_url, **files) == [("error", "tls")]


def test_identities_that_cannot_be_read_are_an_error(database_url: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    issued = authority.issue("server")
    identities = tmp_path / "identities.toml"
    identities.write_text("[broken")
    files = {
        "tls_cert_file": str(issued.cert_file),
        "tls_key_file": str(issued.key_file),
        "tls_client_ca_file": str(authority.cert_file),
        "tls_identities_file": str(identities),
    }
    assert troubles(database_url, auth="true", **files) == [("error", "tls")]


def test_keys_for_tokens_are_read(database_url: str, tmp_path: Path) -> None:
    key_set = tmp_path / "keys.json"
    key_set.write_text("{}")
    assert troubles(database_url, jwt_jwks_file=str(key_set), **ISSUER) == [("error", "tokens")]


def test_traces_that_cannot_be_sent_are_an_error(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    assert ("ok", "traces") in [finding[:2] for finding in found(database_url)]
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    assert troubles(database_url) == [("error", "traces")]


# --- the database


def test_a_database_without_a_schema_is_a_warning_that_says_who_makes_it(databases: Databases) -> None:
    with databases.empty() as url:
        for migrates, remedy in (("true", "the server migrates at start"), ("false", "run `recalld migrate`")):
            schema = found(url, migrate=migrates)[-1]
            assert (schema.verdict, schema.subject, schema.remedy) == ("warning", "schema", remedy)


@pytest.mark.parametrize(
    ("revision", "oldest", "verdict"),
    [("0001", "0001", "warning"), ("9999", "0001", "warning"), ("9999", "9998", "error")],
    ids=["older", "newer, and compatible", "newer, and not"],
)
def test_a_schema_of_another_version_is_named(revision: str, oldest: str, verdict: str, database_url: str) -> None:
    change(database_url, f"update recalld.alembic_version set version_num = '{revision}'")
    change(
        database_url,
        "create or replace function recalld.oldest_server() returns text"
        f" language sql immutable parallel safe return '{oldest}'",
    )
    assert troubles(database_url) == [(verdict, "schema")]


def test_a_database_that_takes_no_writes_is_an_error(database_url: str) -> None:
    change(database_url, "alter database {name} set default_transaction_read_only = on")
    assert troubles(database_url) == [("error", "database")]


def test_a_database_that_may_lose_writes_is_a_warning(database_url: str) -> None:
    change(database_url, "alter database {name} set synchronous_commit = off")
    assert troubles(database_url) == [("warning", "durability")]


def test_more_connections_than_there_are_is_an_error(database_url: str) -> None:
    assert troubles(database_url, workers="200", pool_size="100") == [("error", "connections")]


def test_a_database_that_is_too_old_is_an_error(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "_LEAST_POSTGRES", 990000)
    assert troubles(database_url) == [("error", "database")]


def test_clocks_that_are_apart_are_a_warning(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = MODULE._ask

    def ask_a_late_clock(connection: Any, statement: str) -> tuple[Any, ...]:
        answer = ask(connection, statement)
        return (answer[0] - timedelta(seconds=60),) if statement == "clock" else answer

    monkeypatch.setattr(MODULE, "_ask", ask_a_late_clock)
    assert troubles(database_url) == [("warning", "clock")]


def test_a_role_without_rights_is_an_error(database_url: str) -> None:
    with role(database_url) as url:
        assert troubles(url) == [("error", "database")]


def test_a_role_that_cannot_make_the_schema_is_an_error(databases: Databases) -> None:
    with databases.empty() as url, role(url) as powerless:
        assert troubles(powerless) == [("error", "schema")]


def test_a_database_that_is_not_there_is_an_error_that_says_how_to_make_it(database_url: str) -> None:
    missing = found(database_url.replace("/recalld_test_", "/recalld_missing_"))[-1]
    assert missing.verdict == "error"
    assert missing.remedy.startswith("create it: createdb recalld_missing_")


@contextmanager
def role(url: str) -> Iterator[str]:
    """The database's URL, as a new role that may do nothing."""
    name = f"recalld_test_{uuid4().hex}"
    change(url, f"create role {name} login password 'secret'")
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    try:
        yield parts._replace(netloc=f"{name}:secret@{host}").geturl()
    finally:
        change(url, f"drop role {name}")
