"""What a call gets when there is no connection for it."""

from __future__ import annotations

import pytest

from recalld.domain import LocalCall
from recalld.errors import Overloaded, ShuttingDown, StorageUnavailable
from recalld.storage import Database, PostgresStore

CALL = LocalCall("default")


def test_when_all_connections_are_busy_a_call_is_turned_away_as_overload(database_url: str) -> None:
    database = Database(database_url, size=1, timeout=0.1)
    database.open()
    try:
        store = PostgresStore(database)
        with database.connection(CALL), pytest.raises(Overloaded):
            store.get_memory(CALL, "s", 12, 0, 0)
        assert store.get_memory(CALL, "s", 12, 0, 0).messages == []
    finally:
        database.close()


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
    database = Database(database_url, size=1, timeout=1)
    database.open()
    try:
        with database.connection(CALL):
            database.ping()
    finally:
        database.close()
