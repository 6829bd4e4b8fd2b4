"""What is no call of the API: paths that nobody serves, bytes that are no gRPC, streams opened only to be reset."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import uuid4

import grpc
import psutil
import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, AddMemoryResponse, GetMemoryRequest, Message
from recall.v1.session_pb2 import GetSessionRequest, StreamSessionsRequest
from tests.fuzz import http2, oracle
from tests.fuzz.http2 import Connection, call_headers, frame, grpc_message, header_block
from tests.fuzz.methods import Method
from tests.fuzz.target import DEADLINE, Target, ask, attacked
from tests.waiting import wait_until

ADD = b"/recall.v1.MemoryService/AddMemory"
GET = b"/recall.v1.MemoryService/GetMemory"
STREAM = b"/recall.v1.SessionService/StreamSessions"
_GET = GetMemoryRequest(session_id="live").SerializeToString()
_GET_SESSION = GetSessionRequest(session_id="live").SerializeToString()
_ADD = AddMemoryRequest(session_id="by hand", messages=[Message(role="user")]).SerializeToString()

# Few, so that a single one that leaks is missed. Each thread can have a database connection.
THREADS = 8
CONCURRENT = 16


@pytest.fixture(scope="module")
def target(shared_database_url: str) -> Iterator[Target]:
    limits = {"threads": THREADS, "max_streams": THREADS // 2, "max_concurrent_calls": CONCURRENT, "pool_size": THREADS}
    with attacked(shared_database_url, **limits) as target:
        target.restock()
        yield target


@pytest.fixture
def connection(target: Target) -> Iterator[Connection]:
    with Connection(target.server.address, DEADLINE) as connection:
        yield connection


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def connections(target: Target) -> int:
    """How many TCP connections the server has open. The client's ends are in this process too, on other ports."""
    port = int(target.server.address.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in found)


def call(
    path: bytes, data: bytes = b"", *more: tuple[bytes, bytes], stream: int = 1, drop: bytes = b"", **changed: bytes
) -> bytes:
    """A whole call on a stream; without the header `drop`."""
    headers = [header for header in call_headers(path, *more, **changed) if header[0] != drop]
    block = header_block(headers)
    return frame(http2.HEADERS, http2.END_HEADERS, stream, block) + frame(
        http2.DATA, http2.END_STREAM, stream, grpc_message(data)
    )


# --- paths


@pytest.mark.parametrize(
    "path",
    [
        "/recall.v1.MemoryService/DropTables",
        "/recall.v1.MemoryService/addmemory",
        "/recall.v1.MemoryService/AddMemory/",
        "/recall.v1.MemoryService/../MemoryService/AddMemory",
        "/recall.v1.MemoryService/AddMemory?x=1",
        "/recall.v1.MemoryService/%41ddMemory",
        "/recall.v1.MemoryService/",
        "/recall.v1.memoryservice/AddMemory",
        "/recall.v2.MemoryService/AddMemory",
        "/MemoryService/AddMemory",
        "//recall.v1.MemoryService/AddMemory",
        "/",
        "/" + "x" * 4000,
        "/recall.v1.MemoryService/' or 1=1",
    ],
)
def test_a_method_that_does_not_exist_is_unimplemented(path: str, target: Target) -> None:
    request = AddMemoryRequest(session_id="nowhere", messages=[Message(role="user")]).SerializeToString()
    for streams in (False, True):
        method = Method(path, AddMemoryRequest, AddMemoryResponse, streams)
        answer = ask(target.channel, method, request)
        assert (answer.code, answer.message) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
    target.lives()


@pytest.mark.parametrize("count", [0, 2, 5])
def test_more_or_fewer_requests_than_one_do_no_harm(count: int, target: Target) -> None:
    """Of several, gRPC hands on the first."""
    several: Any = target.channel.stream_unary(GET.decode())
    code = code_of(lambda: several(iter([_GET] * count), timeout=DEADLINE))
    none = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}  # the latter by gRPC itself
    assert code in ({grpc.StatusCode.OK} if count else none)
    target.lives()


# --- calls that no client library makes


def test_a_call_made_by_hand_is_answered(connection: Connection) -> None:
    """What makes the refusals below mean something."""
    connection.open()
    connection.send(call(GET, GetMemoryRequest(session_id="live").SerializeToString()))
    answer = connection.answer(1)
    assert answer is not None
    assert b"grpc-status\x010" in answer
    assert b"tea" in answer


ODD_CALLS = {
    # gRPC's core takes any content type.
    "content type html": call(GET, _GET, content_type=b"text/html"),
    "content type json": call(GET, _GET, content_type=b"application/json"),
    "content type grpc web": call(GET, _GET, content_type=b"application/grpc-web+proto"),
    "no content type": call(GET, _GET, drop=b"content-type"),
    "no te": call(ADD, _ADD, drop=b"te"),
    "no path": call(ADD, _ADD, drop=b":path"),
    "no method": call(ADD, _ADD, drop=b":method"),
    "no authority": call(ADD, _ADD, drop=b":authority"),
    "two paths": call(GET, _GET, (b":path", b"/")),
    "method get": call(ADD, _ADD, method=b"GET"),
    "method put": call(ADD, _ADD, method=b"PUT"),
    "empty path": call(b"", _ADD),
    "path of bytes": call(b"/\xff\xfe/\x80", _ADD),
    "path with nul": call(b"/recall.v1.MemoryService/AddMemory\0", _ADD),
    "upper-case header": call(GET, _GET, (b"X-Upper", b"1")),
    "header of bytes": call(GET, _GET, (b"x-bytes", b"\xff\x00\x80")),
    "header with a newline": call(GET, _GET, (b"x-line", b"a\r\nauthorization: Bearer x")),
    "header without a name": call(GET, _GET, (b"", b"1")),
    "binary header that is no base64": call(GET, _GET, (b"x-odd-bin", b"!!!!\xff")),
    "credential with a tab": call(GET, _GET, (b"authorization", b"Bearer\tx")),
    "credential of bytes": call(GET, _GET, (b"authorization", b"Bearer \xff\xfe\x00")),
    "credential with a newline": call(GET, _GET, (b"authorization", b"Bearer x\ny")),
    "credential that is not utf-8": call(GET, _GET, (b"authorization", b"Bearer \xc3\x28")),
    "time-out of no kind": call(GET, _GET, grpc_timeout=b"soon"),
    "time-out below zero": call(GET, _GET, grpc_timeout=b"-1S"),
    "time-out past every clock": call(GET, _GET, grpc_timeout=b"99999999999999999999H"),
    "time-out of nothing": call(GET, _GET, grpc_timeout=b"0n"),
    "encoding unknown": call(GET, _GET, grpc_encoding=b"zip"),
    "encoding gzip of no gzip": call(GET, grpc_encoding=b"gzip").replace(b"\0" * 5, b"\1\0\0\0\0"),
    "compressed flag without encoding": call(GET, _GET).replace(grpc_message(_GET), b"\1" + grpc_message(_GET)[1:]),
    "length past the end": call(GET, _GET).replace(grpc_message(_GET), b"\0\0\0\xff\xff" + _GET),
    "length of 4 gib": call(GET, _GET).replace(grpc_message(_GET), b"\0\xff\xff\xff\xff" + _GET),
    "two messages": call(GET, _GET).replace(grpc_message(_GET), (grpc_message(_GET) * 2)[: len(grpc_message(_GET))]),
    "an even stream": call(GET, _GET, stream=2),
    "a stream twice": call(GET, _GET) + call(GET, _GET),
    "stream zero": call(GET, _GET, stream=0),
    "large headers": call(GET, _GET, *[(b"x-%d" % number, b"y" * 200) for number in range(60)]),
}
_GARBAGE = random.Random(20260301)
ODD_BYTES = {
    "nothing": b"",
    "http/1.1": b"POST /recall.v1.MemoryService/AddMemory HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi",
    "http/1.1 upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + _GARBAGE.randbytes(200),
    "half a preface": http2.PREFACE[:10],
    "a preface alone": http2.PREFACE,
    **{f"random bytes {number}": _GARBAGE.randbytes(2000) for number in range(5)},
    **{f"random bytes {number} behind the preface": http2.PREFACE + _GARBAGE.randbytes(2000) for number in range(5)},
    "no settings": http2.PREFACE + call(GET, _GET),
    **{
        f"frame of kind {kind}": http2.PREFACE + frame(http2.SETTINGS) + frame(kind, 0xFF, stream, b"\xff" * 11)
        for kind, stream in zip(
            [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200], [0, 1, 1, 1, 1, 0, 1, 0, 0, 1, 1, 1], strict=True
        )
    },
    "a frame too large": http2.PREFACE + frame(http2.SETTINGS) + frame(http2.DATA, 0, 1, b"x" * 20_000),
    "settings out of range": http2.PREFACE + frame(http2.SETTINGS, 0, 0, b"\x00\x04\xff\xff\xff\xff\x00\x05\0\0\0\1"),
    "headers that never end": http2.PREFACE + frame(http2.SETTINGS) + frame(1, 0, 1, b"\x10") + frame(9, 0, 1) * 3000,
    "an index out of range": http2.PREFACE + frame(http2.SETTINGS) + frame(1, 5, 1, b"\xff\xff\xff\xff\x7f"),
    "a table of 4 gib": http2.PREFACE + frame(http2.SETTINGS) + frame(1, 5, 1, b"\x3f\xff\xff\xff\xff\x0f"),
    "windows past their limit": http2.PREFACE + frame(http2.SETTINGS) + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "pings": http2.PREFACE + frame(http2.SETTINGS) + frame(http2.PING, 0, 0, b"x" * 8) * 3000,
    "settings again and again": http2.PREFACE + frame(http2.SETTINGS) * 3000,
    "resets of nothing": http2.PREFACE + frame(http2.SETTINGS) + frame(http2.RST_STREAM, 0, 1, b"\0\0\0\x08") * 3000,
}
ODD = {name: http2.PREFACE + frame(http2.SETTINGS) + sent for name, sent in ODD_CALLS.items()} | ODD_BYTES


@pytest.mark.parametrize("sent", ODD.values(), ids=ODD.keys())
def test_whatever_comes_over_the_socket_the_server_answers_others(
    sent: bytes, connection: Connection, target: Target
) -> None:
    """And the connection comes to an end, tells nothing from inside, and writes nothing."""
    connection.send(sent)
    connection.close_sending()
    received = connection.read_all().decode("latin-1")
    leaked = oracle.inside(received)
    assert leaked is None, f"{leaked!r} in {received!r}"
    target.lives()
    wait_until(lambda: connections(target) == 1, "the connection stays open")


_NO_GRPC = ["no te", "no path", "no method", "no authority", "method get", "path of bytes", "path with nul"]


@pytest.mark.parametrize("name", _NO_GRPC)
def test_a_call_that_is_no_grpc_writes_nothing(name: str, connection: Connection, target: Target) -> None:
    assert _ADD in ODD_CALLS[name]
    connection.open()
    connection.send(ODD_CALLS[name])
    answer = connection.answer(1)
    assert answer is None or b"grpc-status\x010" not in answer
    target.balance()


def test_a_call_made_by_hand_writes(connection: Connection, target: Target) -> None:
    """The control of those above."""
    request = AddMemoryRequest(session_id="by hand", messages=[Message(role="user")], request_id=str(uuid4()))
    connection.open()
    connection.send(call(ADD, request.SerializeToString()))
    answer = connection.answer(1)
    assert answer is not None
    assert b"grpc-status\x010" in answer
    with pytest.raises(AssertionError, match="by hand"):
        target.balance()
    target.call(request)  # which it repeats, and so enters
    target.balance()


# --- floods


def reset_at_once(connection: Connection, path: bytes, count: int) -> int:
    """Opens streams and resets each at once. How many, before the server had enough."""
    connection.open()
    block = header_block(call_headers(path))
    for number in range(count):
        stream = 2 * number + 1
        opened = frame(http2.HEADERS, http2.END_HEADERS, stream, block)
        body = frame(http2.DATA, http2.END_STREAM, stream, grpc_message(b""))
        if not connection.send(opened + body + frame(http2.RST_STREAM, 0, stream, b"\0\0\0\x08")):
            return number
    return count


@pytest.mark.parametrize("path", [ADD, STREAM, b"/recall.v1.MemoryService/Nothing"])
def test_streams_reset_as_soon_as_opened_leave_nothing_behind(path: bytes, target: Target, database_url: str) -> None:
    before = connections(target)
    for _ in range(3):
        with Connection(target.server.address, DEADLINE) as connection:
            assert reset_at_once(connection, path, 1000)
    wait_until(lambda: connections(target) == before, "connections stay open")
    is_free(target)
    target.lives()


def test_streams_that_nobody_reads_keep_nobody_waiting(target: Target) -> None:
    """Each has a thread, of which calls keep some, until its client is gone."""
    before = connections(target)
    with ExitStack() as opened:
        for _ in range(CONCURRENT - 1):
            connection = opened.enter_context(Connection(target.server.address, DEADLINE))
            connection.open(window=0)
            connection.send(call(STREAM, StreamSessionsRequest(chunk_size=1).SerializeToString()))
        target.lives()
    wait_until(lambda: connections(target) == before, "connections stay open")
    is_free(target)
    target.lives()


def test_connections_that_say_nothing_keep_nobody_waiting(target: Target) -> None:
    before = connections(target)
    with ExitStack() as opened:
        for number in range(100):
            connection = opened.enter_context(Connection(target.server.address, DEADLINE))
            connection.send(http2.PREFACE[: number % 30])
        wait_until(lambda: connections(target) == before + 100, "not all connections are accepted")
        target.lives()
    wait_until(lambda: connections(target) == before, "connections stay open")


def is_free(target: Target) -> None:
    """Fails unless soon nothing is left of earlier calls: no thread, no place in the queue, no database connection."""
    wait_until(lambda: takes_all_at_once(target), "something is left of earlier calls")


def takes_all_at_once(target: Target) -> bool:
    """Whether as many calls as the server takes are at work at the same time, held up by a lock."""
    get: Any = target.channel.unary_unary("/recall.v1.SessionService/GetSession")
    with psycopg.connect(target.database_url) as blocking:
        blocking.execute("lock table recalld.session in access exclusive mode")
        waiting = [get.future(_GET_SESSION, timeout=DEADLINE) for _ in range(CONCURRENT)]
        wait_until(
            lambda: any(each.done() for each in waiting) or target.active_statements() == THREADS,
            "the calls neither end nor are at work",
        )
    codes = {code_of(each.result) for each in waiting}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    return codes == {grpc.StatusCode.OK}


def test_a_single_call_that_does_not_end_is_noticed(target: Target) -> None:
    """The negative control."""
    with Connection(target.server.address, DEADLINE) as connection:
        connection.open(window=0)
        connection.send(call(STREAM, StreamSessionsRequest(chunk_size=1).SerializeToString()))
        next(connection.frames())
        wait_until(lambda: not takes_all_at_once(target), "nobody notices")
    is_free(target)
