"""How much one call and one connection may carry."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recalld import transport
from recalld.client import Client
from recalld.limits import KIB, MAX_CALL_METADATA_BYTES, MAX_CONTENT_BYTES, MAX_REQUEST_BYTES
from recalld.storage.appends import MOST_CHARACTERS
from tests.fuzz.http2 import Connection
from tests.integration.callers import Caller, calling, row_locked
from tests.integration.conftest import serving
from tests.processes import DEADLINE, running
from tests.waiting import becomes

READ = GetMemoryRequest(session_id="s")
WRITE = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="hi")])
# Too large to share a statement: each waits for itself.
LARGE = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="x" * (MOST_CHARACTERS + 1))])


# --- one call


def request_of(size: int) -> AddMemoryRequest:
    """A valid request of this many bytes, about 4 MiB."""
    request = AddMemoryRequest(session_id="s")
    while size - request.ByteSize() > MAX_CONTENT_BYTES + 100:
        request.messages.add(role="user", content="x" * (MAX_CONTENT_BYTES - KIB))
    last = request.messages.add(role="user", content="x")
    # Longer by more than what the lengths before it grow by: so in two steps.
    for _ in range(2):
        last.content += "x" * (size - request.ByteSize() - (0 if len(last.content) > 1 else 8))
    assert request.ByteSize() == size
    return request


def test_a_request_of_4_mib_is_accepted_and_one_of_a_byte_more_is_not(client: Client) -> None:
    assert MAX_REQUEST_BYTES == 4 * 1024 * KIB
    largest = request_of(MAX_REQUEST_BYTES)

    added = client.memory.AddMemory(largest, timeout=30)

    assert len(added.messages) == len(largest.messages)
    with pytest.raises(grpc.RpcError) as raised:
        client.memory.AddMemory(request_of(MAX_REQUEST_BYTES + 1), timeout=30)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    stored = client.memory.GetMemory(GetMemoryRequest(session_id="s", last_n=1), timeout=30)
    assert stored.session.message_count == len(largest.messages)


def test_call_metadata_has_one_limit_below_which_no_call_is_refused_and_above_which_all_are(client: Client) -> None:
    """gRPC's own two limits leave room between them, in which calls are refused at random."""

    def is_refused(size: int) -> bool:
        call = client.memory.GetMemory.future(READ, metadata=(("filler", "x" * size),), timeout=30)
        assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
        return call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED

    # In steps, since the deadline goes along too, as a number of digits that vary. The rest, below a KiB, is the
    # method's path, the client's name and the like.
    sizes = range(MAX_CALL_METADATA_BYTES - KIB, MAX_CALL_METADATA_BYTES, 16)
    edge = bisect.bisect_left(sizes, True, key=is_refused)
    assert 0 < edge < len(sizes)
    assert [is_refused(sizes[edge - 1] - 16) for _ in range(20)] == [False] * 20
    assert [is_refused(sizes[edge] + 16) for _ in range(5)] == [True] * 5


# --- one connection


def test_a_client_holds_back_what_is_more_than_a_connection_carries_and_no_call_fails(database_url: str) -> None:
    with serving(database_url, max_calls_per_connection=2) as server, calling(server) as caller:
        caller.call(WRITE)
        with row_locked(database_url, "default", "s") as waiting:
            calls = [caller.begin(LARGE) for _ in range(5)]
            assert becomes(lambda: waiting() == 2)
            # Another connection has its own, and what it is answered shows that no third call has come by the first.
            with calling(server) as another:
                another.call(READ)
            assert waiting() == 2
            assert not any(call.done() for call in calls)
        seqs = sorted(call.result().messages[0].seq for call in calls)
        assert seqs == [2, 3, 4, 5, 6]


def test_without_that_limit_they_all_come(database_url: str) -> None:
    """The control of the test above."""
    with serving(database_url) as server, calling(server) as caller:
        caller.call(WRITE)
        with row_locked(database_url, "default", "s") as waiting:
            calls = [caller.begin(LARGE) for _ in range(5)]
            assert becomes(lambda: waiting() == 5)
        for call in calls:
            call.result()


def test_a_busy_client_keeps_a_connection_full_and_no_call_fails(database_url: str) -> None:
    with serving(database_url, max_calls_per_connection=4) as server, calling(server) as caller:
        for _ in range(10):
            calls = [caller.begin(READ) for _ in range(50)]
            assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_with_grpcs_own_protection_calls_fail_there(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: why the server does without it."""
    others = [(name, value) for name, value in transport._OPTIONS if name != "grpc.http.overload_protection"]
    monkeypatch.setattr(transport, "_OPTIONS", others)
    with serving(database_url, max_calls_per_connection=4) as server, calling(server) as caller:

        def codes() -> set[grpc.StatusCode]:
            calls = [caller.begin(READ) for _ in range(50)]
            return {call.code() for call in calls}

        assert becomes(lambda: grpc.StatusCode.UNAVAILABLE in codes())


# --- all connections


@contextmanager
def idle(address: str, number: int) -> Iterator[Sequence[bool]]:
    """So many connections that say nothing more; of each, whether it was taken."""
    with ExitStack() as opened:
        connections = [opened.enter_context(Connection(address, DEADLINE)) for _ in range(number)]
        for connection in connections:
            connection.open()
        # Who is taken is greeted, who is not is sent away.
        yield [next(connection.frames(), None) is not None for connection in connections]


def test_more_connections_than_the_most_are_closed_at_once_and_those_who_have_one_are_served(
    database_url: str,
) -> None:
    with serving(database_url, max_connections=20) as server, calling(server) as caller:
        with idle(server.address, 50) as taken:
            assert sum(taken) == 19
            caller.call(WRITE)
            with idle(server.address, 1) as one_more:
                assert not any(one_more)

        # Whoever leaves makes room.
        def is_taken() -> bool:
            with idle(server.address, 1) as another:
                return all(another)

        assert becomes(is_taken)


def test_a_flood_of_connections_leaves_a_process_files_for_its_database_and_its_metrics(
    database_url: str, tmp_path: Path
) -> None:
    arguments = ["--database-url", database_url, "--metrics-listen", "127.0.0.1:0", "--lock-timeout", "1m"]
    with running(tmp_path, arguments, files=200) as process, grpc.insecure_channel(process.address) as channel:
        caller = Caller(channel)
        caller.call(WRITE)
        with idle(process.address, 200) as taken, row_locked(database_url, "default", "s") as waiting:
            assert 0 < sum(taken) < 100
            calls = [caller.begin(LARGE) for _ in range(8)]
            assert becomes(lambda: waiting() == 8)  # each on a connection to the database
            [metrics] = re.findall(r"http://\S+/metrics", process.stderr)
            assert b"recalld_build_info" in urlopen(metrics, timeout=DEADLINE).read()
        assert sorted(call.result().messages[0].seq for call in calls) == list(range(2, 10))
