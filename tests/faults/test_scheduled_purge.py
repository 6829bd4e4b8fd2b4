"""The purge on schedule: one server at a time, whatever becomes of that one, and never anything live."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.session_pb2 import DeleteSessionRequest
from recalld.client import Client
from recalld.domain import LocalCall, NewMemory
from recalld.purging import LEASE_TTL
from recalld.storage import PostgresStore
from tests.contract.asking import said
from tests.faults.cluster import free_port
from tests.faults.scraping import metric
from tests.integration.conftest import connected, serving
from tests.processes import DEADLINE, Process, running
from tests.waiting import wait_until

SESSIONS = 30
CALL = LocalCall("default")

_WAITING = """
    select query_start from pg_stat_activity
     where datname = current_database() and application_name = 'recalld' and wait_event_type = 'Lock'
"""


class Purging:
    """What happens in the database, which has deleted sessions, each with a message, that nobody can purge yet."""

    def __init__(self, observer: psycopg.Connection[Any], holder: psycopg.Connection[Any]) -> None:
        self._observer = observer
        self._holder = holder
        self._holder.execute("select from recalld.tombstone for update")

    def waiting(self) -> list[datetime]:
        """Since when a purge has waited, for each that waits."""
        return [since for (since,) in self._observer.execute(_WAITING)]

    def left(self) -> int:
        """How many sessions are left to purge."""
        row = self._observer.execute("select count(*) from recalld.tombstone").fetchone()
        assert row is not None
        return int(row[0])

    def lease(self, expression: str) -> Any:
        row = self._observer.execute(f"select {expression} from recalld.lease where name = 'purge'".encode()).fetchone()
        return row and row[0]

    def end_lease(self) -> None:
        """As if its time were up."""
        self._observer.execute("update recalld.lease set expire_time = clock_timestamp()")

    def allow(self) -> None:
        """Lets everything be purged."""
        self._holder.rollback()


@pytest.fixture
def purging(database_url: str, postgres_store: PostgresStore) -> Iterator[Purging]:
    for n in range(SESSIONS):
        postgres_store.add_memory(CALL, NewMemory(f"s{n}", [said("gone")]))
        postgres_store.delete_session(CALL, f"s{n}")
    with psycopg.connect(database_url, autocommit=True) as observer, psycopg.connect(database_url) as holder:
        yield Purging(observer, holder)


@contextmanager
def purger(directory: Path, url: str, *arguments: str) -> Iterator[Process]:
    """A server that purges everything deleted, all the time."""
    schedule = ["--retention", "0", "--purge-interval", "100ms", "--lock-timeout", "500ms"]
    with running(directory, ["--database-url", url, *schedule, *arguments]) as server:
        yield server


def test_of_two_servers_one_purges(purging: Purging, tmp_path: Path, database_url: str) -> None:
    ports = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    with (
        purger(tmp_path, database_url, "--metrics-listen", ports[0]) as first,
        purger(tmp_path, database_url, "--metrics-listen", ports[1]) as second,
    ):
        wait_until(lambda: len(purging.waiting()) == 1, "nobody purges")
        holder, since = purging.lease("holder"), datetime.now(UTC)
        most = 0

        def tried_again() -> bool:
            nonlocal most
            now = purging.waiting()
            most = max(most, len(now))
            return any(later > since + timedelta(seconds=4) for later in now)

        # Meanwhile the other has looked some forty times whether it is its turn.
        wait_until(tried_again, "it does not try again")
        assert (most, purging.left(), purging.lease("holder")) == (1, SESSIONS, holder)

        # The control: without the lease, the other does.
        purging.end_lease()
        wait_until(lambda: purging.lease("holder") != holder, "nobody takes over")
        wait_until(purging.waiting, "who took over does not purge")

        purging.allow()
        wait_until(lambda: purging.left() == 0, "not everything is purged")
        removed = [metric(port, "recalld_purged_total", kind="sessions") for port in ports]
        assert sum(removed) == SESSIONS
        wait_until(lambda: _logged(first) + _logged(second) == SESSIONS, "it is not logged")
        wait_until(
            lambda: max(metric(port, "recalld_purge_last_success_timestamp_seconds") for port in ports) > 0,
            "it does not count as done",
        )


def _logged(server: Process) -> int:
    """How many sessions it says it has purged."""
    return sum(int(number) for number in re.findall(r"purged (\d+) sessions", server.stderr))


def test_a_server_that_ends_hands_the_purge_on_at_once(purging: Purging, tmp_path: Path, database_url: str) -> None:
    with purger(tmp_path, database_url) as first:
        wait_until(lambda: len(purging.waiting()) == 1, "nobody purges")
        with purger(tmp_path, database_url):
            holder = purging.lease("holder")
            first.signal(signal.SIGTERM)
            assert first.wait() == 0
            # Long before the lease would have been up.
            half = LEASE_TTL.total_seconds() / 2
            wait_until(lambda: purging.lease("holder") != holder, "the other does not take over", within=half)
            purging.allow()
            wait_until(lambda: purging.left() == 0, "not everything is purged")


def test_a_server_that_is_killed_is_followed_when_its_lease_is_up(
    purging: Purging, tmp_path: Path, database_url: str
) -> None:
    with purger(tmp_path, database_url) as first:
        wait_until(lambda: len(purging.waiting()) == 1, "nobody purges")
        with purger(tmp_path, database_url) as second:
            holder = purging.lease("holder")
            first.signal(signal.SIGKILL)
            first.wait()
            purging.allow()
            # Its last statement may still have removed something; nobody goes on with the rest.
            assert purging.left() >= SESSIONS - 1
            assert purging.lease("holder") == holder
            assert purging.lease("expire_time > clock_timestamp()")
            purging.end_lease()
            wait_until(lambda: purging.left() == 0, "nobody takes over")
            wait_until(lambda: "purged" in second.stderr, "it is not logged")


def test_a_namespace_that_cannot_be_purged_keeps_no_other_waiting(
    purging: Purging, postgres_store: PostgresStore, tmp_path: Path, database_url: str
) -> None:
    # On either side of the one that is held up.
    for namespace in ("a", "z"):
        postgres_store.add_memory(LocalCall(namespace), NewMemory("s", [said("gone")]))
        postgres_store.delete_session(LocalCall(namespace), "s")
    with purger(tmp_path, database_url, "--lock-timeout", "100ms"):
        wait_until(lambda: purging.left() == SESSIONS, "the others are not purged")
        purging.allow()
        wait_until(lambda: purging.left() == 0, "it is not tried again")


@pytest.mark.faults
def test_the_lease_of_a_killed_server_is_up_in_time(purging: Purging, tmp_path: Path, database_url: str) -> None:
    """The same, without a hand on the clock."""
    with purger(tmp_path, database_url) as first:
        wait_until(lambda: len(purging.waiting()) == 1, "nobody purges")
        with purger(tmp_path, database_url):
            first.signal(signal.SIGKILL)
            first.wait()
            purging.allow()
            wait_until(lambda: purging.left() == 0, "nobody takes over", within=LEASE_TTL.total_seconds() + 10)


def test_a_session_that_is_deleted_and_revived_all_the_time_loses_nothing_to_the_purge(database_url: str) -> None:
    schedule: dict[str, Any] = {"retention": timedelta(0), "purge_interval": timedelta(milliseconds=10)}
    with serving(database_url, **schedule) as server, connected(server) as client, ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: _delete_and_revive(client, f"s{n}"), range(6)))
        purged = server.metrics.registry.get_sample_value("recalld_purged_total", {"kind": "messages"})
        assert purged, "nothing was purged meanwhile"


def _delete_and_revive(client: Client, session_id: str) -> None:
    for turn in range(60):
        message = Message(role="user", content=str(turn))
        client.memory.AddMemory(AddMemoryRequest(session_id=session_id, messages=[message]), timeout=DEADLINE)
        memory = client.memory.GetMemory(GetMemoryRequest(session_id=session_id), timeout=DEADLINE)
        assert [found.content for found in memory.messages] == [str(turn)]
        client.sessions.DeleteSession(DeleteSessionRequest(session_id=session_id), timeout=DEADLINE)


@pytest.mark.parametrize(("interval", "purgers"), [(timedelta(hours=1), 1), (timedelta(0), 0)])
def test_an_interval_of_zero_leaves_purging_to_requests(interval: timedelta, purgers: int, database_url: str) -> None:
    with serving(database_url, purge_interval=interval):
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("recalld-purge") == purgers
