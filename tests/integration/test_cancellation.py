"""A call whose deadline has passed, or whose client has gone away, stops what it has running in Postgres."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    DeleteSessionResponse,
    GetSessionRequest,
    StreamSessionsRequest,
)
from recalld.app import Server
from recalld.client import Client
from recalld.services.call import RpcCall
from tests.integration.conftest import connected, serving
from tests.processes import DEADLINE
from tests.waiting import becomes

# Nothing but the end of its call stops a statement here.
PATIENT = {"lock_timeout": "1h", "statement_timeout": "1h"}

# Seconds that a call has, in which its statement is seen to run.
SHORT = 3.0


class Observer:
    """Looks at the database from outside the server, and gets in its way."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = psycopg.connect(url, autocommit=True)

    def statements(self) -> list[int]:
        """The backends that run a statement of the server's, or have left a transaction open."""
        rows = self._connection.execute(
            "select pid from pg_stat_activity where application_name = 'recalld' and state <> 'idle'"
            " and datname = current_database() and query <> 'select'"
        )
        return [pid for (pid,) in rows]

    def await_statement(self) -> int:
        """Returns when one statement of the server's runs: the backend that runs it."""
        found: list[int] = []

        def runs() -> bool:
            found[:] = self.statements()
            return len(found) == 1

        assert becomes(runs), "no statement runs"
        return found[0]

    @contextmanager
    def locked(self, session_id: str) -> Iterator[None]:
        """Holds the lock on a session's row, so that whoever wants to write it waits."""
        with psycopg.connect(self._url) as connection:
            connection.execute("select from recalld.session where session_id = %s for update", (session_id,))
            yield

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def observer(database_url: str) -> Iterator[Observer]:
    observer = Observer(database_url)
    yield observer
    observer.close()


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    with serving(database_url, **PATIENT) as server:
        yield server


def create(client: Client, session_id: str = "s") -> None:
    client.sessions.CreateSession(CreateSessionRequest(session_id=session_id), timeout=DEADLINE)


def blocked(client: Client, timeout: float | None) -> grpc._CallFuture[DeleteSessionResponse]:
    """A call that waits for the lock on the session."""
    return client.sessions.DeleteSession.future(DeleteSessionRequest(session_id="s"), timeout=timeout)


def test_a_statement_stops_when_the_deadline_passes(client: Client, observer: Observer) -> None:
    create(client)
    with observer.locked("s"):
        call = blocked(client, timeout=SHORT)
        observer.await_statement()
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert becomes(lambda: observer.statements() == [])

    assert client.sessions.GetSession(GetSessionRequest(session_id="s"), timeout=DEADLINE).session.session_id == "s"


def test_a_statement_stops_when_the_client_cancels(client: Client, observer: Observer) -> None:
    create(client)
    with observer.locked("s"):
        call = blocked(client, timeout=None)
        observer.await_statement()
        call.cancel()
        assert becomes(lambda: observer.statements() == [])


def test_a_statement_runs_on_where_nobody_stops_it(
    client: Client, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the two tests above: they can fail."""
    monkeypatch.setattr(RpcCall, "when_over", lambda self, callback: True)
    create(client)
    with observer.locked("s"):
        call = blocked(client, timeout=SHORT)
        observer.await_statement()
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        assert not becomes(lambda: observer.statements() == [], within=1)


def test_a_call_on_a_frozen_backend_ends_soon_after_its_deadline(database_url: str, observer: Observer) -> None:
    """A stopped process answers no cancel request: the connection is cut, and the only connection is replaced."""
    with serving(database_url, pool_size=1, **PATIENT) as server, connected(server) as client:
        create(client)
        with observer.locked("s"):
            call = blocked(client, timeout=SHORT)
            pid = observer.await_statement()
            try:
                os.kill(pid, signal.SIGSTOP)
            except (PermissionError, ProcessLookupError):
                pytest.skip("the database is not on this machine, or belongs to another user")
            try:
                assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                client.sessions.GetSession(GetSessionRequest(session_id="s"), timeout=DEADLINE)
            finally:
                os.kill(pid, signal.SIGCONT)


def test_a_stream_holds_no_connection_while_its_client_reads(database_url: str, observer: Observer) -> None:
    with serving(database_url, pool_size=1) as server, connected(server) as client:
        for n in range(5):
            create(client, f"s{n}")
        stream = client.sessions.StreamSessions(StreamSessionsRequest(chunk_size=1), timeout=30)
        first = next(stream)

        assert becomes(lambda: observer.statements() == [])
        client.sessions.GetSession(GetSessionRequest(session_id="s0"), timeout=DEADLINE)

        rest = [session.session_id for chunk in stream for session in chunk.sessions]
        assert [first.sessions[0].session_id, *rest] == [f"s{n}" for n in range(5)]


def test_a_storm_of_cancelled_calls_leaks_nothing(database_url: str, observer: Observer) -> None:
    with serving(database_url, pool_size=4) as server, connected(server) as client:
        create(client)

        def storm(seed: int) -> None:
            chance = random.Random(seed)
            for n in range(100):
                message = Message(role="user", content=f"{seed} {n}")
                add = AddMemoryRequest(session_id=f"s{n % 3}", messages=[message])
                get = GetMemoryRequest(session_id=f"s{n % 3}")
                client.memory.AddMemory.future(add, timeout=chance.uniform(0.001, 0.03)).exception()
                client.memory.GetMemory.future(get, timeout=chance.uniform(0.001, 0.03)).exception()

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(storm, range(8)))

        assert becomes(lambda: observer.statements() == [])
        # Every connection of the pool is there and works: as many calls at once as there are connections.
        with ThreadPoolExecutor(4) as threads:
            known = GetSessionRequest(session_id="s")
            found = threads.map(lambda _: client.sessions.GetSession(known, timeout=DEADLINE), range(16))
            assert len(list(found)) == 16
