"""Leases: at most one holder at a time, and never none for longer than the lease is good for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from recalld.storage import Database, Lease
from tests.postgres import open_database

TTL = timedelta(minutes=1)
NO_PAUSE = timedelta(0)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as database:
        yield database


@pytest.fixture
def holder(database: Database) -> Lease:
    return Lease(database, "work", TTL)


@pytest.fixture
def other(database: Database) -> Lease:
    return Lease(database, "work", TTL)


def let_pass(database_url: str, time: timedelta) -> None:
    """Has leases believe that so much time has passed."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "update recalld.lease set expire_time = expire_time - %(time)s, next_time = next_time - %(time)s",
            {"time": time},
        )


def test_only_one_has_it(holder: Lease, other: Lease) -> None:
    assert holder.take()
    assert not other.take()
    assert holder.renew()
    assert not other.renew()


def test_of_many_who_try_at_once_one_gets_it(database: Database) -> None:
    leases = [Lease(database, "work", TTL) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(Lease.take, leases)) == [False] * 7 + [True]


def test_leases_of_other_names_are_others(database: Database, holder: Lease) -> None:
    assert holder.take()
    assert Lease(database, "other work", TTL).take()


def test_one_that_is_not_renewed_expires_and_is_not_its_holders_any_more(
    database_url: str, holder: Lease, other: Lease
) -> None:
    assert holder.take()
    let_pass(database_url, TTL - timedelta(seconds=20))
    assert not other.take()
    let_pass(database_url, timedelta(seconds=20))
    assert not holder.renew()
    holder.give_back(timedelta(hours=1))
    assert other.take()
    assert not holder.renew()
    holder.give_back(NO_PAUSE)
    assert not holder.take()
    assert other.renew()


def test_one_that_is_renewed_holds_for_as_long_again(database_url: str, holder: Lease, other: Lease) -> None:
    assert holder.take()
    for _ in range(3):
        let_pass(database_url, TTL - timedelta(seconds=20))
        assert holder.renew()
    let_pass(database_url, TTL - timedelta(seconds=20))
    assert not other.take()


def test_one_that_is_given_back_is_free_at_once_or_after_the_pause(
    database_url: str, holder: Lease, other: Lease
) -> None:
    assert holder.take()
    holder.give_back(NO_PAUSE)
    assert not holder.renew()
    assert other.take()
    other.give_back(timedelta(hours=1))
    let_pass(database_url, timedelta(minutes=59))
    assert not holder.take()
    assert not other.take()
    let_pass(database_url, timedelta(minutes=1))
    assert holder.take()
