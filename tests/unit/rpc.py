"""The four services over a store, called in-process: servicers and error handling as in the server, no socket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import grpc
import grpc_testing  # type: ignore[import-untyped]
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld.access.quotas import Quotas
from recalld.domain import Store
from recalld.metrics import Metrics
from recalld.services.admin import AdminServicer
from recalld.services.admission import Admission
from recalld.services.interceptors import interceptors, stream_answering_errors, unary_answering_errors
from recalld.services.memory import MemoryServicer
from recalld.services.observing import observing
from recalld.services.session import SessionServicer
from recalld.services.user import UserServicer
from recalld.services.wrapping import Behaviour

RETENTION = timedelta(days=30)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
DETAILS_KEY = "grpc-status-details-bin"


def struct(**document: Any) -> Struct:
    """The document as a request carries it."""
    made = Struct()
    made.update(document)
    return made


def around(
    *, most_streams: int, admission: Admission | None = None, quotas: Quotas | None = None
) -> list[grpc.ServerInterceptor]:
    """The interceptors of a server, by default without authentication and quotas."""
    return interceptors(
        observe=observing(Metrics(), None, log_calls=False),
        admission=admission,
        quotas=quotas or Quotas(0, 0),
        most_streams=most_streams,
        draining=lambda: False,
    )


class RpcFailed(Exception):
    """A call that ended with an error."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status

    @property
    def code(self) -> str:
        return next(code.name for code in grpc.StatusCode if code.value[0] == self.status.code)

    @property
    def reason(self) -> str:
        return str(self.detail(error_details_pb2.ErrorInfo).reason)

    @property
    def field(self) -> str:
        """The field that is to blame."""
        (violation,) = self.detail(error_details_pb2.BadRequest).field_violations
        return str(violation.field)

    def detail(self, kind: Any) -> Any:
        """The detail of this kind; an empty one when the status has none."""
        return detail(self.status, kind)


def detail(status: status_pb2.Status, kind: Any) -> Any:
    found = kind()
    for each in status.details:
        if each.Unpack(found):
            break
    return found


class Services:
    """Calls methods by their requests: each method has a request type of its own."""

    def __init__(self, store: Any, clock: Callable[[], datetime] = lambda: NOW) -> None:
        servicers: dict[Any, Any] = {
            session_pb2.DESCRIPTOR.services_by_name["SessionService"]: SessionServicer(store, RETENTION),
            memory_pb2.DESCRIPTOR.services_by_name["MemoryService"]: MemoryServicer(store, RETENTION),
            user_pb2.DESCRIPTOR.services_by_name["UserService"]: UserServicer(store, RETENTION),
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"]: AdminServicer(store, RETENTION, clock),
        }
        self._methods = {method.input_type: method for service in servicers for method in service.methods}
        self._server = grpc_testing.server_from_dictionary(
            {service: _answering(service, servicer) for service, servicer in servicers.items()},
            grpc_testing.strict_real_time(),
        )

    def call(self, request: Message, timeout: float | None = None) -> Any:
        """The response of a unary method. Raises RpcFailed."""
        rpc = self._server.invoke_unary_unary(self._methods[request.DESCRIPTOR], (), request, timeout)
        response, metadata, code, _ = rpc.termination()
        _raise_unless_ok(metadata, code)
        return response

    def stream(self, request: Message, timeout: float | None = None) -> list[Any]:
        """The responses of a streaming method. Raises RpcFailed."""
        rpc = self._server.invoke_unary_stream(self._methods[request.DESCRIPTOR], (), request, timeout)
        metadata, code, _ = rpc.termination()
        _raise_unless_ok(metadata, code)
        return list(_responses(rpc))


def _responses(rpc: Any) -> Iterator[Any]:
    while True:
        try:
            yield rpc.take_response()
        except ValueError:  # no more
            return


def _raise_unless_ok(metadata: Any, code: grpc.StatusCode) -> None:
    if code is not grpc.StatusCode.OK:
        raise RpcFailed(status_pb2.Status.FromString(dict(metadata)[DETAILS_KEY]))


def _answering(service: Any, servicer: Any) -> SimpleNamespace:
    def behaviour(method: Any) -> Behaviour:
        plain = getattr(servicer, method.name)
        if method.server_streaming:
            return _stream_keeping_status(stream_answering_errors(plain))
        return _unary_keeping_status(unary_answering_errors(plain))

    return SimpleNamespace(**{method.name: behaviour(method) for method in service.methods})


# grpcio-testing knows no abort_with_status, and its abort drops the trailing metadata that carries the details.


class _Aborted(Exception):
    pass


class _StatusContext:
    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def abort_with_status(self, status: Any) -> None:
        self._context.set_trailing_metadata(status.trailing_metadata)
        self._context.set_code(status.code)
        self._context.set_details(status.details)
        raise _Aborted


def _unary_keeping_status(behaviour: Behaviour) -> Behaviour:
    def answer(request: Any, context: Any) -> Any:
        keeping: Any = _StatusContext(context)
        try:
            return behaviour(request, keeping)
        except _Aborted:
            return None

    return answer


def _stream_keeping_status(behaviour: Behaviour) -> Behaviour:
    def answer(request: Any, context: Any) -> Iterator[Any]:
        keeping: Any = _StatusContext(context)
        try:
            yield from behaviour(request, keeping)
        except _Aborted:
            return

    return answer


class RecordingStore:
    """Passes every call on to another store, and keeps its arguments but for the Call."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def record(call: Any, *arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            return method(call, *arguments, **named)

        return record
