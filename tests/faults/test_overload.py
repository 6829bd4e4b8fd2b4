"""More calls than the server can work on: some are served as ever, the others told at once to come back later."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message as ProtoMessage
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from recall.v1.memory_pb2 import AddMemoryRequest, DeleteMessageRequest, GetMemoryRequest, ListMessagesRequest, Message
from recall.v1.session_pb2 import StreamSessionsRequest
from recalld.app import Server
from recalld.client import Client
from recalld.domain import LocalCall
from recalld.limits import MIB
from recalld.services import interceptors, overload
from recalld.services.replies import Replies
from recalld.storage import PostgresStore
from recalld.storage.appends import MOST_CHARACTERS
from tests.faults.waiting import tables_locked
from tests.fuzz.http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    Connection,
    call_headers,
    frame,
    grpc_message,
    header_block,
)
from tests.integration.conftest import connected, serving
from tests.processes import DEADLINE, SERVING
from tests.waiting import wait_until

MOST = 8
TEN_TIMES = 10 * MOST
ADD = "/recall.v1.MemoryService/AddMemory"
GET = "/recall.v1.MemoryService/GetMemory"
LIST = "/recall.v1.MemoryService/ListMessages"

# Fewer than a connection may have.
CALLS_A_CONNECTION = 200

# Seconds in which an idle server would answer many times over, on a machine with much else to do. What does not answer
# at once here does not answer at all.
PROMPT = 10.0


def hello(session_id: str = "s", size: int = 1) -> AddMemoryRequest:
    return AddMemoryRequest(session_id=session_id, messages=[Message(role="user", content="x" * size)])


def refusal(call: Any) -> tuple[Any, ...]:
    """What a call that was turned away says: code, reason, and whether it says twice when to come back."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    details = rpc_status.from_call(call).details
    found = [detail.Unpack(info) or detail.Unpack(retry) for detail in details]
    pushback = [int(value) for key, value in call.trailing_metadata() if key == "grpc-retry-pushback-ms"]
    return call.code().name, info.reason, all(found), pushback == [round(retry.retry_delay.ToMilliseconds())]


OVERLOADED = ("RESOURCE_EXHAUSTED", "OVERLOADED", True, True)


@contextmanager
def full(database_url: str) -> Iterator[tuple[Server, Client, list[Any]]]:
    """A server all of whose threads are taken, a client of it, and the calls that have them; they end well."""
    limits = {"max_concurrent_calls": MOST, "pool_size": MOST, "lock_timeout": timedelta(minutes=1)}
    with serving(database_url, **limits) as server, connected(server) as client:
        with tables_locked(database_url) as wait_for:
            # Too large to share a statement: each waits for itself.
            large = hello(size=MOST_CHARACTERS + 1)
            accepted = [client.memory.AddMemory.future(large, timeout=DEADLINE) for _ in range(MOST)]
            wait_for(MOST)
            yield server, client, accepted
            assert not any(call.done() for call in accepted)
        seqs = sorted(call.result().messages[0].seq for call in accepted)
        assert seqs == list(range(1, MOST + 1))


def counted(server: Server) -> int:
    return int(server.metrics.registry.get_sample_value("recalld_calls_refused_total") or 0)


def test_what_is_accepted_is_served_and_the_rest_turned_away_at_once(database_url: str) -> None:
    with full(database_url) as (server, client, _):
        began = time.monotonic()
        refused = [client.memory.AddMemory.future(hello(), timeout=DEADLINE) for _ in range(TEN_TIMES)]
        assert Counter(refusal(call.exception()) for call in refused) == {OVERLOADED: TEN_TIMES}
        assert time.monotonic() - began < PROMPT
        assert counted(server) == TEN_TIMES


def test_a_server_that_is_not_full_turns_nobody_away(database_url: str) -> None:
    """The control of the test above."""
    limits = {"max_concurrent_calls": MOST + TEN_TIMES, "pool_size": MOST}
    with serving(database_url, **limits) as server, connected(server) as client:
        calls = [client.memory.AddMemory.future(hello(), timeout=DEADLINE) for _ in range(MOST + TEN_TIMES)]
        assert sorted(call.result().messages[0].seq for call in calls) == list(range(1, MOST + TEN_TIMES + 1))
        assert counted(server) == 0


def test_a_full_server_has_no_more_threads_than_it_may_and_tells_its_health(database_url: str) -> None:
    with full(database_url) as (_, client, _), ThreadPoolExecutor() as threads:
        stopped = threading.Event()

        def storm() -> int:
            turned_away = 0
            while not stopped.is_set():
                turned_away += client.memory.AddMemory.future(hello(), timeout=DEADLINE).exception() is not None
            return turned_away

        storms = [threads.submit(storm) for _ in range(4)]
        try:
            for _ in range(20):
                began = time.monotonic()
                answer = HealthStub(client.channel).Check(HealthCheckRequest(), timeout=DEADLINE)
                assert answer.status == SERVING
                assert time.monotonic() - began < PROMPT
            # Those of a server before this one may take a moment to end.
            wait_until(lambda: taken() == MOST, f"there are {taken()} threads")
            wait_until(lambda: max(threads_named("recalld-quick"), threads_named("recalld-health-call")) <= 2, "more")
        finally:
            stopped.set()
        assert sum(storm.result(DEADLINE) for storm in storms) > 0


def threads_named(name: str) -> int:
    """How many threads of a pool there are."""
    return sum(thread.name.rpartition("_")[0] == name for thread in threading.enumerate())


def taken() -> int:
    """How many threads there are for calls."""
    return threads_named("recalld-call") + threads_named("recalld-aside")


def send_nonsense(client: Client) -> None:
    """Sends bytes that are no request."""
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary(ADD)
    method(b"no message of any kind", timeout=DEADLINE)


def test_a_call_that_is_turned_away_is_not_even_decoded(database_url: str) -> None:
    with full(database_url) as (server, client, _):
        with pytest.raises(grpc.RpcError) as refused:
            send_nonsense(client)
        assert refusal(refused.value) == OVERLOADED
        assert counted(server) == 1
    # The control: one that is accepted is.
    with serving(database_url) as server, connected(server) as client:
        with pytest.raises(grpc.RpcError) as invalid:
            send_nonsense(client)
        assert invalid.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@contextmanager
def half_calls(server: Server, number: int, *methods: str) -> Iterator[None]:
    """Calls that have begun, and whose requests never come: so many of each method, AddMemory and GetMemory if none."""
    calls = (methods or (ADD, GET)) * number
    with ExitStack() as opened:
        for first in range(0, len(calls), CALLS_A_CONNECTION):
            connection = opened.enter_context(Connection(server.address, DEADLINE))
            connection.open()
            for call, method in enumerate(calls[first : first + CALLS_A_CONNECTION]):
                headers = header_block(call_headers(method.encode()))
                connection.send(frame(HEADERS, END_HEADERS, 2 * call + 1, headers))
        yield


def _add_and_get(client: Client, timeout: float = PROMPT) -> None:
    for _ in range(20):
        client.memory.AddMemory(hello(), timeout=timeout)
        client.memory.GetMemory(GetMemoryRequest(session_id="s"), timeout=timeout)


def test_a_call_whose_request_does_not_come_holds_up_no_other(database_url: str) -> None:
    with serving(database_url) as server, connected(server) as client, half_calls(server, 4):
        _add_and_get(client)


def test_calls_whose_requests_do_not_come_keep_no_threads(database_url: str) -> None:
    """But for the first few: calls do not gather before they have company."""
    with serving(database_url, max_concurrent_calls=MOST) as server, half_calls(server, MOST):
        wait_until(lambda: counted(server) == MOST, "not all are there")
        wait_until(lambda: taken() <= 4, "they keep threads")


HEALTH = "/grpc.health.v1.Health/Check"
GET_SESSION = "/recall.v1.SessionService/GetSession"


def test_calls_of_health_whose_requests_do_not_come_silence_nobody(database_url: str) -> None:
    """Anybody may call it."""
    limits = {"max_concurrent_calls": 8}
    with serving(database_url, **limits) as server, connected(server) as client, half_calls(server, 1200, HEALTH):
        check = HealthStub(client.channel).Check
        # While they come it may be that gRPC takes on no more.
        wait_until(lambda: check.future(HealthCheckRequest(), timeout=PROMPT).exception() is None, "they silence it")
        for _ in range(3):
            assert check(HealthCheckRequest(), timeout=PROMPT).status == SERVING


def test_calls_of_health_that_come_all_at_once_are_all_answered(database_url: str) -> None:
    with serving(database_url) as server, connected(server) as client:
        check = HealthStub(client.channel).Check
        calls = [check.future(HealthCheckRequest(), timeout=DEADLINE) for _ in range(400)]
        assert Counter(call.code() for call in calls) == {grpc.StatusCode.OK: 400}


def test_watchers_of_health_that_take_nothing_keep_no_other_from_being_told(database_url: str) -> None:
    with (
        serving(database_url) as server,
        connected(server) as client,
        unread_calls(server, 60, "/grpc.health.v1.Health/Watch", HealthCheckRequest()),
    ):
        for _ in range(3):
            watch = HealthStub(client.channel).Watch(HealthCheckRequest(), timeout=PROMPT)
            assert next(watch).status == SERVING
            watch.cancel()


def test_calls_turned_away_whose_requests_do_not_come_keep_no_other_from_being_told(database_url: str) -> None:
    with (
        serving(database_url, max_concurrent_calls=MOST) as server,
        connected(server) as client,
        half_calls(server, 2 * MOST, GET_SESSION),
    ):
        wait_until(lambda: counted(server) == MOST, "not all are there")
        for _ in range(3):
            refused = client.memory.AddMemory.future(hello(), timeout=PROMPT)
            assert refusal(refused.exception()) == OVERLOADED


def test_it_would_if_it_were_waited_for_where_calls_gather(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(overload, "ParkingCondition", threading.Condition)
    with serving(database_url) as server, connected(server) as client, half_calls(server, 4):
        with pytest.raises(grpc.RpcError) as stuck:
            _add_and_get(client, timeout=3)
        assert stuck.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@contextmanager
def unread_calls(server: Server, number: int, method: str, request: ProtoMessage) -> Iterator[None]:
    """So many calls on one connection whose client takes no reply."""
    with Connection(server.address, DEADLINE) as connection:
        connection.open(window=0)
        for call in range(number):
            headers = header_block(call_headers(method.encode()))
            connection.send(frame(HEADERS, END_HEADERS, 2 * call + 1, headers))
            connection.send(frame(DATA, END_STREAM, 2 * call + 1, grpc_message(request.SerializeToString())))
        yield


def test_replies_that_nobody_reads_are_held_up_to_a_bound_and_leave_room_for_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "Replies", partial(Replies, most=20 * MIB, most_of_one=10 * MIB))
    large = ListMessagesRequest(session_id="large")

    def answered(server: Server, code: str) -> float:
        labels = {"method": "MemoryService/ListMessages", "code": code}
        return server.metrics.registry.get_sample_value("recalld_calls_total", labels) or 0

    with serving(database_url) as server, connected(server) as client:
        client.memory.AddMemory(hello("large", MIB - 1024), timeout=DEADLINE)
        with unread_calls(server, 15, LIST, large):
            wait_until(lambda: answered(server, "OK") == 10, "they are not answered")
            wait_until(lambda: answered(server, "RESOURCE_EXHAUSTED") == 5, "they are not turned away")
            assert client.memory.ListMessages(large, timeout=DEADLINE).messages
            with unread_calls(server, 15, LIST, large):
                wait_until(lambda: answered(server, "RESOURCE_EXHAUSTED") == 10, "they are not turned away")
                # They are full together: what has waited longest gives way to those who read.
                for _ in range(25):
                    (message,) = client.memory.ListMessages(large, timeout=DEADLINE).messages
                delete = DeleteMessageRequest(session_id="large", message_id=message.message_id)
                assert client.memory.DeleteMessage(delete, timeout=DEADLINE).message == message


def test_a_stream_is_turned_away_like_any_call(database_url: str) -> None:
    with full(database_url) as (_, client, _):
        stream = client.sessions.StreamSessions(StreamSessionsRequest(), timeout=DEADLINE)
        with pytest.raises(grpc.RpcError) as refused:
            next(stream)
        assert refusal(refused.value) == OVERLOADED


def test_slow_readers_cost_no_connection_and_no_other_call_its_time(
    database_url: str, postgres_store: PostgresStore
) -> None:
    for n in range(200):  # more than gRPC takes for a client that does not read
        postgres_store.create_session(LocalCall("default"), f"s{n}", "", {"large": "x" * 60_000})
    limits = {"max_concurrent_calls": MOST, "pool_size": 1, "max_streams": 4}
    request = StreamSessionsRequest(chunk_size=1)
    with serving(database_url, **limits) as server, connected(server) as client:
        streams = [client.sessions.StreamSessions(request, timeout=120) for _ in range(4)]
        for stream in streams:
            next(stream)
        progress = server.metrics.registry
        wait_until(lambda: progress.get_sample_value("recalld_calls_in_progress") == 4, "a stream has ended")
        began = time.monotonic()
        for n in range(20):
            client.memory.AddMemory(hello(f"other-{n}"), timeout=DEADLINE)
            client.memory.GetMemory(GetMemoryRequest(session_id=f"other-{n}"), timeout=DEADLINE)
        assert time.monotonic() - began < 2 * PROMPT
        with pytest.raises(grpc.RpcError) as refused:
            next(client.sessions.StreamSessions(request, timeout=DEADLINE))
        assert refusal(refused.value) == OVERLOADED
        assert progress.get_sample_value("recalld_calls_in_progress") == 4
        # Whoever leaves makes room.
        streams.pop().cancel()
        wait_until(lambda: progress.get_sample_value("recalld_calls_in_progress") == 3, "a stream goes on unread")
        next(client.sessions.StreamSessions(request, timeout=DEADLINE))
        rest = [session.session_id for chunk in streams[0] for session in chunk.sessions]
        assert len(rest) >= 199
