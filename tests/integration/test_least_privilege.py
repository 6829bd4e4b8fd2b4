"""A server whose database role may do no more than a server needs: it serves everything, and can harm little."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from secrets import token_hex
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from recall.v1.memory_pb2 import GetMemoryRequest
from recalld.cli import run
from recalld.storage import migrate
from recalld.storage.migrate import _TO_BE_REBUILT
from tests.integration import test_conversations as suite
from tests.integration.callers import a_round, calling, create_key, with_credential
from tests.integration.conftest import connected, serving
from tests.postgres import LANGUAGE, Databases


@contextmanager
def role_of(owner_url: str) -> Iterator[tuple[str, str]]:
    """A role that may do nothing yet, and the URL by which it connects."""
    role, password = f"recalld_test_{token_hex(6)}", token_hex(16)
    with psycopg.connect(owner_url, autocommit=True) as owner:
        create = "create role {} login nosuperuser nocreatedb nocreaterole password {}"
        owner.execute(sql.SQL(create).format(sql.Identifier(role), sql.Literal(password)))
    parts = urlsplit(owner_url)
    try:
        yield role, parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
    finally:
        with psycopg.connect(owner_url, autocommit=True) as owner:
            for statement in ("drop owned by {}", "drop role {}"):
                owner.execute(sql.SQL(statement).format(sql.Identifier(role)))


@pytest.fixture(scope="module")
def owner_url(databases: Databases) -> Iterator[str]:
    """A database as its owner sees it, with a neighbour's table in it."""
    with databases.copy() as url:
        with psycopg.connect(url) as owner:
            if owner.execute("select rolsuper from pg_roles where rolname = current_user").fetchone() != (True,):
                pytest.skip("TEST_DATABASE_URL names no superuser, who could make roles")
            owner.execute("create schema neighbour create table secret (word text)")
        yield url


@pytest.fixture(scope="module")
def role_url(owner_url: str) -> Iterator[str]:
    """The same database as a role sees it that was granted what a server needs."""
    with role_of(owner_url) as (role, url):
        assert run(["migrate", "--database-url", owner_url, "--grant-to", role]) == 0
        yield url


def test_every_rpc_works_under_the_role(owner_url: str, role_url: str) -> None:
    with serving(role_url, auth=True) as server, calling(server, create_key(owner_url, "n")) as caller:
        for request in a_round():
            caller.call(request)
        forged = with_credential(caller, "recalld_0123456789ab_" + "x" * 43)
        assert forged.refused(GetMemoryRequest(session_id="s")).reason == "CREDENTIAL_INVALID"


# Whole conversations too, by the tests of tests/integration/test_conversations.py on the role's database.

client = suite.client
test_every_message_is_read_back = suite.test_every_message_is_read_back_equal_and_in_order
test_memory_is_the_newest_messages = suite.test_memory_is_the_newest_messages_oldest_first
test_sessions_are_listed = suite.test_a_user_s_sessions_are_listed_in_pages_and_in_chunks
test_a_conversation_is_deleted_revived_and_purged = suite.test_a_conversation_is_deleted_revived_and_purged


@pytest.fixture(scope="module")
def shared_database_url(role_url: str) -> str:
    return role_url


@pytest.fixture(scope="module")
def conversations() -> list[suite.Conversation]:
    return [suite.load(file) for file in sorted(suite.OURS.glob("*.json"))]


_FORBIDDEN = {
    "create table recalld.mine ()",
    "create table public.mine ()",
    "create schema mine",
    "create function recalld.mine() returns int language sql return 1",
    "create role mine",
    "create database mine",
    "create extension pg_trgm",
    "create index on recalld.message (role)",
    "alter table recalld.session add column mine text",
    "alter role current_user superuser",
    "alter function recalld.search_language() owner to current_user",
    "drop table recalld.tombstone",
    "drop schema recalld cascade",
    "truncate recalld.message",
    "insert into recalld.api_key values ('k', '', 'n', '{admin}', '', now())",
    "update recalld.api_key set scopes = '{admin}'",
    "delete from recalld.api_key",
    "update recalld.alembic_version set version_num = '9999'",
    "select * from neighbour.secret",
    "select * from pg_catalog.pg_authid",
    "copy recalld.message to program 'cat'",
}


@pytest.mark.parametrize("statement", sorted(_FORBIDDEN))
def test_the_role_can_change_no_schema_no_key_and_see_nothing_else(role_url: str, statement: str) -> None:
    with psycopg.connect(role_url, autocommit=True) as role, pytest.raises(psycopg.errors.InsufficientPrivilege):
        role.execute(statement.encode())


@pytest.mark.parametrize("statement", sorted(_FORBIDDEN - {"create role mine", "create database mine"}))
def test_the_owner_can(owner_url: str, statement: str) -> None:
    """The control of the test above: it is the privilege that the statements lack."""
    with psycopg.connect(owner_url) as owner:
        owner.execute(statement.encode(), prepare=False)
        owner.rollback()


def test_granting_again_changes_nothing(owner_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with role_of(owner_url) as (role, url):
        for _ in range(2):
            assert run(["migrate", "--database-url", owner_url, "--grant-to", role]) == 0
            assert capsys.readouterr().out == f"migrated: grants to {role}\n"
        with psycopg.connect(url) as connection:
            assert connection.execute("select count(*) from recalld.api_key").fetchone() is not None


def test_several_that_grant_at_once_succeed(owner_url: str) -> None:
    with role_of(owner_url) as (role, _), ThreadPoolExecutor(8) as threads:
        granting = [threads.submit(migrate, owner_url, LANGUAGE, grant_to=role) for _ in range(24)]
        assert [each.result(30) for each in granting] == [[f"grants to {role}"]] * len(granting)


@pytest.mark.usefixtures("owner_url")
@pytest.mark.parametrize("schema", ["none", "older"])
def test_a_server_that_may_not_migrate_says_so_in_one_line_and_ends(databases: Databases, schema: str) -> None:
    with databases.empty() if schema == "none" else databases.copy() as owner_url, role_of(owner_url) as (role, url):
        if schema == "older":
            assert run(["migrate", "--database-url", owner_url, "--grant-to", role]) == 0
            with psycopg.connect(owner_url) as owner:
                owner.execute("drop table recalld.api_key")
                owner.execute("update recalld.alembic_version set version_num = '0001'")

        command = [sys.executable, "-m", "recalld", "serve", "--listen", "127.0.0.1:0", "--log-level", "ERROR"]
        ended = subprocess.run(
            [*command, "--database-url", url], capture_output=True, text=True, timeout=30, check=False
        )

    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith("recalld: the database's role may not do that: run `recalld migrate` as the schema's owner")


@pytest.mark.usefixtures("owner_url")
@pytest.mark.parametrize("broken_off", [False, True])
def test_a_server_that_may_not_change_the_search_language_of_an_empty_database_serves_all_the_same(
    databases: Databases, broken_off: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with databases.copy() as owner_url, role_of(owner_url) as (role, url):
        assert run(["migrate", "--database-url", owner_url, "--grant-to", role]) == 0
        if broken_off:
            with psycopg.connect(owner_url) as owner:
                mark = sql.SQL("comment on index recalld.message_by_text is {}").format(sql.Literal(_TO_BE_REBUILT))
                owner.execute(mark)
        with serving(url, search_language="german") as server, connected(server):
            assert "searching in english, not german: `recalld migrate` changes it" in caplog.messages
            assert broken_off == any("a change of the search language" in message for message in caplog.messages)


def test_granting_to_a_role_that_there_is_not_is_one_line(owner_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["migrate", "--database-url", owner_url, "--grant-to", "nobody_at_all"]) == 1
    assert capsys.readouterr().err == 'recalld: role "nobody_at_all" does not exist\n'
