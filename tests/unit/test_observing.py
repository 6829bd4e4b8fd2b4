"""What is told of every call: one line with its facts, and nothing of what users wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NoReturn

import grpc
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import GetSessionRequest, StreamSessionsRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.access import Principal, Scope
from recalld.errors import CredentialMissing
from recalld.metrics import Metrics
from tests.unit.observed import DEADLINE, observed
from tests.waiting import wait_until

SHOP = Principal("shop", frozenset(Scope), "1f2e3d4c5b6a")
HELLO = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="what a user wrote")])


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    with observed(Metrics()) as channel:
        yield channel


@pytest.fixture(autouse=True)
def _at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "recalld.services.observing")


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The facts of every call that has a line."""
    return [vars(record) for record in caplog.records if record.getMessage() == "call"]


def test_a_call_has_one_line_with_its_facts(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE, metadata=(("x-request-id", "theirs"),))
    [line] = lines(caplog)
    assert (line["method"], line["code"], line["reason"]) == ("recall.v1.MemoryService/AddMemory", "OK", "")
    assert (line["namespace"], line["caller"], line["request_id"]) == ("default", "", "theirs")
    assert 0 < line["ms"] < DEADLINE * 1000
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert line["trace_id"] == ""
    assert "what a user wrote" not in str(line)


def test_a_failed_call_tells_its_code_and_reason(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(grpc.RpcError):
        SessionServiceStub(channel).GetSession(GetSessionRequest(session_id="nobody"), timeout=DEADLINE)
    [line] = lines(caplog)
    assert (line["code"], line["reason"]) == ("NOT_FOUND", "SESSION_NOT_FOUND")


def test_the_caller_is_named_as_the_credential_says(caplog: pytest.LogCaptureFixture) -> None:
    with observed(Metrics(), admission=lambda context: SHOP) as channel:
        MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
    [line] = lines(caplog)
    assert (line["namespace"], line["caller"]) == ("shop", "1f2e3d4c5b6a")


def test_a_caller_without_a_credential_has_a_line_too(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(context: grpc.ServicerContext) -> NoReturn:
        raise CredentialMissing

    with observed(Metrics(), admission=refuse) as channel, pytest.raises(grpc.RpcError):
        MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
    [line] = lines(caplog)
    assert (line["code"], line["reason"]) == ("UNAUTHENTICATED", "CREDENTIAL_MISSING")
    assert (line["namespace"], line["caller"]) == ("", "")


def test_a_caller_whose_credential_lacks_the_scope_is_named(caplog: pytest.LogCaptureFixture) -> None:
    limited = Principal("shop", frozenset({Scope.ADMIN}), "1f2e3d4c5b6a")
    with observed(Metrics(), admission=lambda context: limited) as channel:
        with pytest.raises(grpc.RpcError):
            MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
        with pytest.raises(grpc.RpcError):
            next(SessionServiceStub(channel).StreamSessions(StreamSessionsRequest(), timeout=DEADLINE))
    for line in lines(caplog):
        assert (line["code"], line["reason"]) == ("PERMISSION_DENIED", "SCOPE_MISSING")
        assert (line["namespace"], line["caller"]) == ("shop", "1f2e3d4c5b6a")
    assert len(lines(caplog)) == 2


def test_calls_without_a_request_id_get_one_each(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
    ids = {line["request_id"] for line in lines(caplog)}
    assert len(ids) == 3
    assert all(len(one) == 16 for one in ids)


def test_a_long_request_id_is_cut(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE, metadata=(("x-request-id", "a" * 500),))
    [line] = lines(caplog)
    assert line["request_id"] == "a" * 128


def test_a_stream_has_one_line_at_its_end(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
    list(SessionServiceStub(channel).StreamSessions(StreamSessionsRequest(), timeout=DEADLINE))
    assert [line["method"].partition("/")[2] for line in lines(caplog)] == ["AddMemory", "StreamSessions"]
    assert lines(caplog)[1]["code"] == "OK"


def test_a_stream_that_its_reader_leaves_is_cancelled(channel: grpc.Channel, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(300):
        request = AddMemoryRequest(session_id=f"{number}-{'x' * 200}", messages=HELLO.messages)
        MemoryServiceStub(channel).AddMemory(request, timeout=DEADLINE)
    caplog.clear()
    stream: Any = SessionServiceStub(channel).StreamSessions(StreamSessionsRequest(chunk_size=1), timeout=DEADLINE)
    next(stream)
    assert lines(caplog) == []  # far more is left than gRPC sends ahead
    stream.cancel()
    wait_until(lambda: lines(caplog), "the stream has no line")
    assert [line["code"] for line in lines(caplog)] == ["CANCELLED"]


def test_no_call_has_a_line_where_that_is_turned_off(caplog: pytest.LogCaptureFixture) -> None:
    with observed(Metrics(), log_calls=False) as channel:
        MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
    assert lines(caplog) == []
