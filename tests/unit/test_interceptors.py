"""What stands around every call: errors become statuses, and nothing else of them reaches a client or the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from recall.v1 import session_pb2
from recalld.domain import Call, Position, Session, SessionPage, SessionQuery
from recalld.errors import Overloaded
from recalld.services import add_services
from recalld.services.health import HealthServicer
from recalld.services.interceptors import answer_errors
from recalld.services.wrapping import HandlerInterceptor
from tests.reference import ReferenceStore
from tests.served import served
from tests.unit.rpc import DETAILS_KEY, NOW, RpcFailed, Services, around, detail

SECRET = "what a user wrote"
ECHO = "/recall.v1.EchoService/Echo"


class BrokenStore(ReferenceStore):
    """Fails with what no store should fail with."""

    def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
        try:
            raise KeyError(SECRET)
        except KeyError as error:
            raise ValueError(f"cannot read {SECRET}") from error


class BreakingStore(ReferenceStore):
    """Lists one session, then is overloaded."""

    def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
        if after is not None:
            raise Overloaded
        session = self.create_session(call, "only", "", {})
        position = Position(NOW, next(iter(super().list_sessions(call, query, None, 1).sessions))[1].key)
        return SessionPage([(session, position)], position)


def test_a_defect_answers_internal_with_nothing_but_an_id() -> None:
    with pytest.raises(RpcFailed) as raised:
        Services(BrokenStore()).call(session_pb2.GetSessionRequest(session_id="s"))
    info = raised.value.detail(error_details_pb2.ErrorInfo)
    assert (raised.value.code, info.reason) == ("INTERNAL", "INTERNAL")
    assert raised.value.status.message == f"internal error {info.metadata['error_id']}"
    assert SECRET.encode() not in raised.value.status.SerializeToString()


def test_a_defect_is_logged_with_its_id_and_stack_but_not_its_text(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(RpcFailed) as raised:
        Services(BrokenStore()).call(session_pb2.GetSessionRequest(session_id="s"))
    info = raised.value.detail(error_details_pb2.ErrorInfo)
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    logged = record.getMessage()
    assert info.metadata["error_id"] in logged
    assert "in get_session" in logged
    assert logged.index("builtins.KeyError") < logged.index("which led to") < logged.index("builtins.ValueError")
    assert SECRET not in logged


def test_an_error_in_the_middle_of_a_stream_ends_it_with_its_status() -> None:
    with pytest.raises(RpcFailed) as raised:
        Services(BreakingStore()).stream(session_pb2.StreamSessionsRequest())
    assert (raised.value.code, raised.value.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")


def test_a_stream_that_the_client_leaves_is_closed() -> None:
    closed: list[bool] = []

    def behaviour(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield request
        finally:
            closed.append(True)

    wrapped = answer_errors(ECHO, grpc.unary_stream_rpc_method_handler(behaviour, bytes, bytes))
    assert wrapped.unary_stream is not None
    stream: Any = wrapped.unary_stream(b"", None)  # type: ignore[arg-type]
    next(stream)
    stream.close()
    assert closed == [True]


# --- which handlers are wrapped


def details(method: str) -> Any:
    return SimpleNamespace(method=method, invocation_metadata=())


def echo_handler() -> Any:
    return grpc.unary_unary_rpc_method_handler(lambda request, context: request, bytes, bytes)


def test_a_method_is_wrapped_once() -> None:
    asked: list[str] = []

    def continuation(called: grpc.HandlerCallDetails) -> Any:
        asked.append(called.method)
        return echo_handler()

    interceptor = HandlerInterceptor(answer_errors)
    first = interceptor.intercept_service(continuation, details(ECHO))
    assert first is interceptor.intercept_service(continuation, details(ECHO))
    assert asked == [ECHO]


@pytest.mark.parametrize("handler", [None, echo_handler()], ids=["unknown", "known"])
def test_methods_of_other_services_pass_untouched(handler: Any) -> None:
    interceptor = HandlerInterceptor(answer_errors)
    assert interceptor.intercept_service(lambda _: handler, details("/grpc.health.v1.Health/Check")) is handler


def test_unknown_methods_are_asked_for_again() -> None:
    answers = iter([None, echo_handler()])
    interceptor = HandlerInterceptor(answer_errors)
    assert interceptor.intercept_service(lambda _: next(answers), details(ECHO)) is None
    assert interceptor.intercept_service(lambda _: next(answers), details(ECHO)) is not None


# --- over a real connection


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(2), interceptors=around(most_streams=1))
    add_services(server, ReferenceStore(), timedelta(days=30))
    health = HealthServicer()
    health.set([""], health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    with served(server) as channel:
        yield channel


def failure(call: Callable[[], Any]) -> tuple[status_pb2.Status, grpc.Call]:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    return rpc_status.from_call(error), error


@pytest.mark.parametrize("data", [b"\xff\xff", b"\x0a\x02\xff\xfe"], ids=["no message", "no UTF-8"])
@pytest.mark.parametrize("streaming", [False, True], ids=["unary", "stream"])
def test_bytes_that_are_no_request_are_an_invalid_argument(channel: grpc.Channel, data: bytes, streaming: bool) -> None:
    if streaming:
        stream: Any = channel.unary_stream("/recall.v1.AdminService/Purge")
        status, _ = failure(lambda: list(stream(data.replace(b"\x0a", b"\x12"))))
    else:
        unary: Any = channel.unary_unary("/recall.v1.SessionService/GetSession")
        status, _ = failure(lambda: unary(data))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert detail(status, error_details_pb2.ErrorInfo).reason == "INVALID_FIELD"
    assert detail(status, error_details_pb2.BadRequest).field_violations[0].field == "request"


def test_an_error_arrives_with_its_details(channel: grpc.Channel) -> None:
    get: Any = channel.unary_unary("/recall.v1.SessionService/GetSession")
    request = session_pb2.GetSessionRequest(session_id="unknown")
    status, error = failure(lambda: get(request.SerializeToString()))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert detail(status, error_details_pb2.ErrorInfo).reason == "SESSION_NOT_FOUND"
    assert [key for key, _ in error.trailing_metadata() or ()] == [DETAILS_KEY]


def test_other_services_and_unknown_methods_answer_as_ever(channel: grpc.Channel) -> None:
    check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert check.status == health_pb2.HealthCheckResponse.SERVING
    nothing: Any = channel.unary_unary("/recall.v1.SessionService/Nothing")
    with pytest.raises(grpc.RpcError) as raised:
        nothing(b"")
    error: Any = raised.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
