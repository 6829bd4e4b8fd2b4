"""What each step of a purge removes: at most a batch, whatever the clocks of the servers that deleted it said."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from itertools import zip_longest
from typing import Any

import psycopg
import pytest

from recalld.domain import LocalCall, PurgeProgress, PurgeQuery, SessionQuery
from recalld.storage import Database, PostgresStore
from tests.contract.asking import purge, read, session_ids, write
from tests.contract.clock import Clock
from tests.postgres import open_database

CALL = LocalCall("default")
BATCH = 3
AHEAD = timedelta(days=2)

Rows = tuple[int, int, int]


class Servers:
    """Two servers on one database, of which one has a clock that is two days ahead, and the rows that there are."""

    def __init__(self, url: str, database: Database) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._database = database
        self.clock = Clock()
        self.store = PostgresStore(database, clock=self.clock)
        self.ahead = self.off_by(AHEAD)

    def close(self) -> None:
        self._connection.close()

    def off_by(self, skew: timedelta) -> PostgresStore:
        """A further server."""
        return PostgresStore(self._database, clock=lambda: self.clock() + skew)

    def rows(self) -> Rows:
        """Sessions, messages, tombstones."""
        counts = [f"(select count(*) from recalld.{name})" for name in ("session", "message", "tombstone")]
        row: Any = self._connection.execute(f"select {', '.join(counts)}".encode()).fetchone()
        return tuple(row)

    def steps(self, query: PurgeQuery) -> Generator[Rows]:
        """Purges; the rows that each step removed, by counting those that are left."""
        before = self.rows()
        for _ in self.store.purge(CALL, query):
            after = self.rows()
            sessions, messages, tombstones = (was - there for was, there in zip(before, after, strict=True))
            yield sessions, messages, tombstones
            before = after


@pytest.fixture
def servers(database_url: str) -> Iterator[Servers]:
    with open_database(database_url) as database, closing(Servers(database_url, database)) as both:
        yield both


def cleared(servers: Servers) -> None:
    write(servers.store, CALL, "s", *map(str, range(10)))
    servers.ahead.clear_memory(CALL, "s")


def cleared_twice(servers: Servers) -> None:
    write(servers.store, CALL, "s", *map(str, range(4)))
    servers.ahead.clear_memory(CALL, "s")
    write(servers.store, CALL, "s", *map(str, range(6)))
    servers.ahead.clear_memory(CALL, "s")


def deleted_and_undeleted(servers: Servers) -> None:
    write(servers.store, CALL, "s", *map(str, range(10)))
    servers.ahead.delete_session(CALL, "s")
    servers.store.undelete_session(CALL, "s")


def deleted_singly_and_cleared(servers: Servers) -> None:
    added = write(servers.store, CALL, "s", *map(str, range(10)))
    for message in added.messages[::2]:
        servers.ahead.delete_message(CALL, "s", message.message_id)
    servers.ahead.clear_memory(CALL, "s")


def in_order(servers: Servers) -> None:
    """The control: no clock is ahead."""
    write(servers.store, CALL, "s", *map(str, range(10)))
    servers.store.clear_memory(CALL, "s")


# What the server ahead does to ten messages.
WAYS: list[Callable[[Servers], None]] = [
    cleared,
    cleared_twice,
    deleted_and_undeleted,
    deleted_singly_and_cleared,
    in_order,
]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
MORE = ("ten", "eleven")
# Before the time that the server ahead gave, and after it.
waits = pytest.mark.parametrize("wait", [timedelta(0), 2 * AHEAD], ids=["at once", "later"])


def deleted(servers: Servers, way: Callable[[Servers], None], more: tuple[str, ...], wait: timedelta) -> PurgeQuery:
    """The session after that, deleted by the server in time; and how to purge it."""
    way(servers)
    if more:
        write(servers.store, CALL, "s", *more)
    servers.store.delete_session(CALL, "s")
    return PurgeQuery(servers.clock.advance(seconds=wait.total_seconds()), batch_size=BATCH)


@ways
@waits
@pytest.mark.parametrize("more", [(), MORE], ids=["nothing more", "and more"])
def test_no_step_removes_more_than_a_batch_and_together_they_remove_everything(
    servers: Servers, way: Callable[[Servers], None], more: tuple[str, ...], wait: timedelta
) -> None:
    query = deleted(servers, way, more, wait)
    expected = PurgeProgress(1, 10 + len(more), 0)
    dry = purge(servers.store, CALL, replace(query, dry_run=True))

    steps = list(servers.steps(query))

    assert max(messages for _, messages, _ in steps) <= BATCH
    assert servers.rows() == (0, 0, 0)
    assert sum(messages for _, messages, _ in steps) == expected.messages
    assert dry == expected


@ways
@waits
def test_a_purge_that_is_killed_after_any_step_is_ended_by_the_next(
    servers: Servers, way: Callable[[Servers], None], wait: timedelta
) -> None:
    query = deleted(servers, way, MORE, wait)
    removed = []
    while servers.rows() != (0, 0, 0):
        with closing(servers.steps(query)) as steps:
            removed.append(next(steps))
        assert len(removed) < 30
    assert max(messages for _, messages, _ in removed) <= BATCH
    assert sum(messages for _, messages, _ in removed) == 10 + len(MORE)


@ways
@waits
def test_what_is_written_to_the_session_meanwhile_stays(
    servers: Servers, way: Callable[[Servers], None], wait: timedelta
) -> None:
    query = deleted(servers, way, MORE, wait)
    steps = servers.steps(query)
    next(steps)
    write(servers.store, CALL, "s", "live", "live too")

    assert max((messages for _, messages, _ in steps), default=0) <= BATCH

    assert read(servers.store, CALL, "s") == ["live", "live too"]
    # Whatever was left of what had been deleted goes when that is due.
    rest = servers.steps(replace(query, cutoff=servers.clock.advance(days=9)))
    assert max((messages for _, messages, _ in rest), default=0) <= BATCH
    assert servers.rows() == (1, 2, 0)
    assert session_ids(servers.store, CALL) == ["s"]


def test_a_session_that_is_deleted_again_during_its_purge_is_kept_for_the_retention(servers: Servers) -> None:
    query = deleted(servers, cleared, (), timedelta(0))
    steps = servers.steps(query)
    next(steps)
    servers.store.undelete_session(CALL, "s")
    servers.store.delete_session(CALL, "s")

    list(steps)

    assert session_ids(servers.store, CALL, SessionQuery(show_deleted=True)) == ["s"]
    later = replace(query, cutoff=servers.clock())
    assert purge(servers.store, CALL, later).sessions == 1
    assert servers.rows() == (0, 0, 0)


@ways
@waits
def test_two_purges_at_once_remove_everything_once(
    servers: Servers, way: Callable[[Servers], None], wait: timedelta
) -> None:
    query = deleted(servers, way, MORE, wait)
    both = [servers.store.purge(CALL, query), servers.store.purge(CALL, query)]
    last = [PurgeProgress(0, 0, 0)] * 2
    # By turns, a step of the one and a step of the other.
    for one, other in zip_longest(*both):
        last = [step or before for step, before in zip((one, other), last, strict=True)]
    assert sum(progress.messages for progress in last) == 10 + len(MORE)
    assert sum(progress.sessions for progress in last) == 1
    assert servers.rows() == (0, 0, 0)


def test_what_a_server_whose_clock_is_behind_clears_during_a_purge_goes_in_batches_too(servers: Servers) -> None:
    for session_id in ("r", "s"):
        write(servers.store, CALL, session_id, *map(str, range(10)))
    servers.store.delete_session(CALL, "r")
    query = PurgeQuery(servers.clock() + AHEAD, batch_size=BATCH)
    steps = servers.steps(query)
    removed = [next(steps)]
    # The purge has come to where "r" is: the first of these lies behind it, the second before it.
    servers.off_by(-timedelta(days=20)).clear_memory(CALL, "s")
    servers.store.delete_session(CALL, "s")

    removed += steps

    assert max(messages for _, messages, _ in removed) <= BATCH
