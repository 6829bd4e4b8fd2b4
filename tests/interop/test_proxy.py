"""The proxy itself: what it loses, and that it changes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import GetSessionRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.client import Client
from tests.integration.conftest import connected, serving
from tests.interop.proxy import Fate, Proxy, dropping
from tests.served import served

CALLS = 200
TIMEOUT = 30.0


@pytest.fixture
def direct(database_url: str) -> Iterator[Client]:
    with serving(database_url) as server, connected(server) as client:
        yield client


def channel_to(proxy: Proxy) -> grpc.Channel:
    return grpc.insecure_channel(proxy.address, [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)])


def hello(number: int) -> AddMemoryRequest:
    return AddMemoryRequest(session_id="s", messages=[Message(role="user", content=f"hello {number}")])


def test_an_answer_and_an_error_with_its_details_come_through_as_they_are(direct: Client) -> None:
    with dropping(direct.channel, drop=0) as proxy, channel_to(proxy) as channel:
        added = MemoryServiceStub(channel).AddMemory(hello(0), timeout=TIMEOUT)
        [stored] = direct.memory.GetMemory(GetMemoryRequest(session_id="s")).messages
        assert (added.messages[0].message_id, added.messages[0].seq) == (stored.message_id, 1)
        with pytest.raises(grpc.RpcError) as raised:
            SessionServiceStub(channel).GetSession(GetSessionRequest(session_id="nobody"), timeout=TIMEOUT)
    status = rpc_status.from_call(raised.value)
    assert status is not None
    info = ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (raised.value.code(), info.reason) == (grpc.StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")


def test_what_is_lost_on_the_way_is_not_stored_and_what_is_unanswered_is(direct: Client) -> None:
    acknowledged = 0
    with dropping(direct.channel, drop=0.2) as proxy, channel_to(proxy) as channel:
        for number in range(CALLS):
            call = MemoryServiceStub(channel).AddMemory.future(hello(number), timeout=TIMEOUT)
            assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
            acknowledged += call.code() == grpc.StatusCode.OK
    memory = direct.memory.GetMemory(GetMemoryRequest(session_id="s"))
    assert proxy.fates.total() == CALLS
    assert min(proxy.fates[Fate.LOST], proxy.fates[Fate.UNANSWERED]) > 0
    assert acknowledged == proxy.fates[Fate.PASSED]
    assert memory.session.message_count == CALLS - proxy.fates[Fate.LOST]


def test_the_credential_and_the_deadline_of_the_caller_reach_the_server() -> None:
    seen: dict[str, Any] = {}

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.update(dict(context.invocation_metadata()), seconds=context.time_remaining())
        return request

    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Say": grpc.unary_unary_rpc_method_handler(answer)}
    upstream = grpc.server(ThreadPoolExecutor(1), handlers=[grpc.method_handlers_generic_handler("Echo", handlers)])
    with (
        served(upstream) as channel,
        dropping(channel, drop=0, edit=lambda method, request: method.encode() + request) as proxy,
        channel_to(proxy) as to_proxy,
    ):
        say: grpc.UnaryUnaryMultiCallable[bytes, bytes] = to_proxy.unary_unary("/Echo/Say")
        assert say(b"!", timeout=TIMEOUT, metadata=(("authorization", "Bearer key"),)) == b"/Echo/Say!"
    assert seen["authorization"] == "Bearer key"
    assert 0 < seen["seconds"] < TIMEOUT + 1  # gRPC rounds a little
