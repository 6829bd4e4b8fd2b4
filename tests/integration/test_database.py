"""What a call gets when there is no connection for it, or not all of the schema."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import urlsplit

import psycopg
import pytest

from recalld.cli import run
from recalld.cli.doctor import Finding, examine
from recalld.domain import LocalCall, NewMemory
from recalld.errors import DeadlineExceeded, Overloaded, ShuttingDown, StorageUnavailable
from recalld.settings import Settings
from recalld.storage import Database, MigrationError, PostgresStore, check_schema
from tests.contract.asking import said
from tests.postgres import Databases, open_database, url_of
from tests.processes import DEADLINE

CALL = LocalCall("default")


def test_when_all_connections_are_busy_a_call_is_turned_away_as_overload(database_url: str) -> None:
    # Time enough to connect, which is waited for in the same way.
    database = Database(database_url, size=1, timeout=3)
    database.open()
    try:
        store = PostgresStore(database)
        with database.connection(CALL), pytest.raises(Overloaded):
            store.get_memory(CALL, "s", 12, 0, 0)
        assert store.get_memory(CALL, "s", 12, 0, 0).messages == []
    finally:
        database.close()


class Until:
    """A call with a deadline, which nobody cancels.

    Args:
        seconds: to its deadline, now.
    """

    namespace = "default"

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def remaining(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def when_over(self, callback: Callable[[], None]) -> bool:
        return True


def test_a_call_waits_for_a_connection_until_its_deadline_only(database_url: str) -> None:
    database = Database(database_url, size=1, timeout=60)
    database.open()
    try:
        begun = time.monotonic()
        with database.connection(CALL), pytest.raises(DeadlineExceeded), database.connection(Until(0.2)):
            pytest.fail("there is no connection for it")
        assert 0.2 <= time.monotonic() - begun < 30
        assert database.usage().waiting == 0
    finally:
        database.close()


def test_a_call_whose_deadline_has_passed_runs_nothing_though_there_are_connections(database_url: str) -> None:
    with open_database(database_url) as database:
        with database.connection(Until(30)) as connection:
            connection.execute("select")
        with pytest.raises(DeadlineExceeded), database.connection(Until(0)):
            pytest.fail("it is too late")


def test_when_the_database_is_away_a_call_is_told_so(database_url: str) -> None:
    database = Database(database_url.replace("/recalld_test_", "/no_such_"), timeout=0.1)
    database.open()
    try:
        with pytest.raises(StorageUnavailable):
            PostgresStore(database).get_memory(CALL, "s", 12, 0, 0)
        with pytest.raises(StorageUnavailable):
            database.ping()
    finally:
        database.close()


def test_after_closing_a_call_is_told_that_the_server_shuts_down(database_url: str) -> None:
    database = Database(database_url)
    database.open()
    database.ping()
    database.close()

    with pytest.raises(ShuttingDown):
        PostgresStore(database).get_memory(CALL, "s", 12, 0, 0)


def test_a_busy_pool_does_not_make_the_database_look_dead(database_url: str) -> None:
    database = Database(database_url, size=1, timeout=DEADLINE)
    database.open()
    try:
        with database.connection(CALL):
            database.ping()
    finally:
        database.close()


@pytest.mark.parametrize(
    "missing",
    [
        "schema recalld cascade",
        "table recalld.message cascade",
        "function recalld.append",
        "function recalld.message_id cascade",
    ],
)
def test_before_all_migrations_are_done_a_call_is_told_to_come_back(missing: str, database_url: str) -> None:
    """A server that has just started takes calls while it migrates, and each step is there when it is done."""
    with psycopg.connect(database_url) as connection:
        connection.execute(f"drop {missing}".encode())
    with open_database(database_url) as database, pytest.raises(StorageUnavailable):
        PostgresStore(database).add_memory(CALL, NewMemory("s", [said("hello")]))


def test_a_server_that_falls_silent_keeps_no_lock_for_long(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that is frozen, or whose machine is gone."""
    monkeypatch.setattr("recalld.storage.database._LONGEST_SILENCE", 0.5)
    with open_database(database_url) as silent, open_database(database_url) as working:
        store = PostgresStore(working)
        store.add_memory(CALL, NewMemory("s", [said("hello")]))

        def fall_silent() -> None:
            with silent.connection(CALL) as connection, connection.transaction():
                connection.execute("select from recalld.session for update")
                assert store.add_memory(CALL, NewMemory("s", [said("hello")])).messages[0].seq == 2
                connection.execute("select from recalld.session")

        with pytest.raises(StorageUnavailable):
            fall_silent()


def test_a_connection_that_is_lost_before_a_rollback_is_told_of_as_lost(database_url: str) -> None:
    """psycopg lets its Rollback out of a transaction that it cannot roll back."""
    with open_database(database_url) as database, psycopg.connect(database_url, autocommit=True) as other:

        def lose() -> None:
            with database.connection(CALL) as connection, connection.transaction():
                other.execute("select pg_terminate_backend(%s, 10000)", [connection.info.backend_pid])
                raise psycopg.Rollback

        with pytest.raises(StorageUnavailable):
            lose()
        with database.connection(CALL) as connection:
            assert connection.execute("select 1").fetchone() == (1,)


def test_every_text_is_kept_whatever_encoding_the_environment_asks_for(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with open_database(database_url) as database:
        store = PostgresStore(database)
        store.add_memory(CALL, NewMemory("s", [said("→")]))
        assert [message.content for message in store.get_memory(CALL, "s", 12, 0, 0).messages] == ["→"]


def test_a_database_in_another_encoding_is_refused_with_what_to_do(
    databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    with databases.empty() as url:
        name = urlsplit(url).path.removeprefix("/") + "_latin"
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"create database {name} encoding 'LATIN1' locale 'C' template template0".encode())
            try:
                latin = url_of(url, name)
                assert run(["migrate", "--database-url", latin]) == 1
                told = "the database's encoding is LATIN1"
                remedy = "make one with createdb --encoding UTF8 --template template0"
                assert capsys.readouterr().err == f"recalld: {told}: {remedy}\n"
                with pytest.raises(MigrationError, match=told):  # how a server that does not migrate looks at it
                    check_schema(latin)
                found = list(examine(Settings.load({"listen": ":0", "database_url": latin})))
                assert found[-1] == Finding("error", "database", told, remedy)
            finally:
                connection.execute(f"drop database {name} with (force)".encode())


def test_before_a_column_is_there_a_call_is_told_to_come_back(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("alter table recalld.message drop column token_count")
    with open_database(database_url) as database, pytest.raises(StorageUnavailable):
        PostgresStore(database).list_messages(CALL, "s", None, 10)
