"""Bringing a database to the schema: once, all or nothing, by whoever comes first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import SimpleNamespace

import psycopg
import pytest
from psycopg import sql

from recalld.domain import LocalCall, NewMemory, SearchQuery
from recalld.errors import StorageUnavailable
from recalld.storage import MigrationError, PostgresStore, migrate
from recalld.storage.keys import session_key, user_key
from recalld.storage.migrate import newest_revision
from tests.contract.asking import said
from tests.migrations.test_sql import upgrade
from tests.postgres import Databases, open_database
from tests.waiting import wait_until

CALL = LocalCall("default")
STEPS = [
    "0001_initial",
    "0002_api_key",
    "0003_lease",
    "0004_group_append",
    "0005_given_ids",
    "0006_search",
    "0007_group_plan",
    "0008_group_update",
    "0009_search_terms",
    "0010_group_creation",
    "0011_namespace_hash",
    "0012_search_index",
    "0013_search_namespace",
    "0014_merge_patch",
]


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[str]:
    with databases.empty() as url:
        yield url


def test_an_empty_database_gets_every_step_and_a_second_run_finds_nothing_to_do(empty_url: str) -> None:
    assert migrate(empty_url, "english") == STEPS
    assert migrate(empty_url, "english") == []
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("select version_num from recalld.alembic_version").fetchall() == [
            (newest_revision(),)
        ]


def test_of_many_that_start_at_once_on_an_empty_database_one_migrates_and_all_succeed(empty_url: str) -> None:
    command = [sys.executable, "-m", "recalld", "migrate", "--database-url", empty_url]
    # Held here, the lock keeps all of them at the start line; each has seen the database empty by then.
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(hashtextextended('recalld.migrate', 0))")
        starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        asking = "select count(*) from pg_stat_activity where query ~* 'pg_try_advisory_lock|commit'"
        asking += " and application_name = 'recalld migrate' and datname = current_database()"
        wait_until(lambda: connection.execute(asking).fetchone() == (len(starters),), "not all ask for the lock")
    outputs = [starter.communicate(timeout=60)[0] for starter in starters]

    assert [starter.returncode for starter in starters] == [0] * 4
    assert (
        sorted(outputs)
        == ["".join(f"migrated: {step}\n" for step in STEPS)] + ["nothing to do: the database is up to date\n"] * 3
    )


def test_a_step_that_fails_leaves_nothing_behind(empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("create schema recalld")
        connection.execute("create table recalld.tombstone ()")  # in the way of a later statement of the same step

    with pytest.raises(MigrationError, match="tombstone"):
        migrate(empty_url, "english")

    with psycopg.connect(empty_url, autocommit=True) as connection:
        assert connection.execute("select to_regclass('recalld.session')").fetchone() == (None,)
        connection.execute("drop table recalld.tombstone")
    assert migrate(empty_url, "english") == STEPS


def test_steps_from_before_one_that_waited_for_a_lock_are_told_of_too(
    empty_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upgrade(empty_url, "0003")
    with psycopg.connect(empty_url) as holder:
        holder.execute("lock table recalld.message in access share mode")  # 0005 is the first to mind
        module = import_module("recalld.storage.migrate")
        monkeypatch.setattr(module, "_LOCK_TIMEOUT", 0.05)
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda _: holder.rollback()))

        assert migrate(empty_url, "german") == [*STEPS[3:], "search language german"]

    assert "others hold a lock" in caplog.text


def test_after_the_last_attempt_at_a_lock_migrate_fails_at_once_and_announces_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = import_module("recalld.storage.migrate")
    pauses: list[float] = []
    monkeypatch.setattr(module, "_LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(module, "time", SimpleNamespace(sleep=pauses.append))

    def held_up() -> list[str]:
        raise psycopg.errors.LockNotAvailable

    with pytest.raises(MigrationError, match="others hold a lock") as caught:
        module._patiently(held_up)

    assert isinstance(caught.value.__cause__, psycopg.errors.LockNotAvailable)
    assert caplog.messages == ["others hold a lock that a migration needs; attempt 2"]
    assert len(pauses) == 1


def test_a_step_that_loses_its_connection_while_it_builds_an_index_says_that_the_database_is_unavailable(
    empty_url: str,
) -> None:
    upgrade(empty_url, "0004")
    migrating = "select pid from pg_stat_activity where application_name = 'recalld migrate'"
    migrating += " and datname = current_database() and wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as thread, psycopg.connect(empty_url, autocommit=True) as watcher:
        with psycopg.connect(empty_url) as holder:
            holder.execute("lock table recalld.message in access share mode")  # 0005 waits for it
            running = thread.submit(migrate, empty_url, "english")
            wait_until(lambda: watcher.execute(migrating).fetchone(), "no step waits for a lock")
            watcher.execute(f"select pg_terminate_backend(pid) from ({migrating}) as m".encode())
            with pytest.raises(StorageUnavailable) as caught:
                running.result(30)
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)

    assert migrate(empty_url, "english") == STEPS[4:]


def test_a_newer_schema_that_leaves_this_version_working_is_served_with_a_warning(
    empty_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    migrate(empty_url, "english")
    with psycopg.connect(empty_url) as connection:
        connection.execute("update recalld.alembic_version set version_num = '9999'")

    assert migrate(empty_url, "english") == []
    assert "newer" in caplog.text


def test_a_newer_schema_that_breaks_this_version_stops_it(empty_url: str) -> None:
    migrate(empty_url, "english")
    with psycopg.connect(empty_url) as connection:
        connection.execute("update recalld.alembic_version set version_num = '9999'")
        connection.execute("create or replace function recalld.oldest_server() returns text language sql return '9998'")

    with pytest.raises(MigrationError, match=r"schema 9999, which needs a server that knows 9998; .* upgrade recalld"):
        migrate(empty_url, "english")


def test_a_database_that_cannot_be_reached_is_unavailable(empty_url: str) -> None:
    with pytest.raises(StorageUnavailable):
        migrate(empty_url.replace("/recalld_test_", "/no_such_"), "english")


def test_a_new_database_searches_in_the_language_that_is_set(empty_url: str) -> None:
    migrate(empty_url, "german")
    with open_database(empty_url) as database:
        store = PostgresStore(database)
        store.add_memory(CALL, NewMemory("s", [said("Die Häuser am Fluss")]))

        assert len(store.search_memory(CALL, SearchQuery("Haus", 10))) == 1


def test_the_language_of_a_database_changes_only_when_that_is_asked_for(empty_url: str) -> None:
    migrate(empty_url, "english")
    with open_database(empty_url) as database:
        store = PostgresStore(database)
        store.add_memory(CALL, NewMemory("s", [said("Die Häuser am Fluss")]))
        german = SearchQuery("Haus", 10)

        assert migrate(empty_url, "german") == []
        assert store.search_memory(CALL, german) == []

        assert migrate(empty_url, "german", change_language=True) == ["search language german"]
        assert len(store.search_memory(CALL, german)) == 1


def test_a_database_that_may_lose_writes_is_warned_of(empty_url: str, caplog: pytest.LogCaptureFixture) -> None:
    migrate(empty_url, "english")
    assert caplog.messages == []

    with psycopg.connect(empty_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter database {} set synchronous_commit = off").format(name))
    migrate(empty_url, "english")
    assert [message.split()[0] for message in caplog.messages] == ["synchronous_commit"]


@pytest.mark.parametrize("identifier", ["demo", "", "äöü 🍯", "x" * 256, "a'b\\c"])
def test_psql_derives_the_keys_that_the_server_does(database_url: str, identifier: str) -> None:
    keys = "select recalld.session_key(%(ns)s, %(id)s), recalld.user_key(%(ns)s, %(id)s)"
    with psycopg.connect(database_url) as connection:
        found = connection.execute(keys, {"ns": "a world", "id": identifier}).fetchone()
    assert found == (session_key("a world", identifier), user_key("a world", identifier))


def test_a_language_that_postgres_does_not_have_is_refused_by_name(empty_url: str) -> None:
    with pytest.raises(MigrationError, match="klingon"):
        migrate(empty_url, "klingon")
