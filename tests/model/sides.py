"""The same servers over two stores: what one answers, the other must answer too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    memory_pb2,
    memory_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    user_pb2,
    user_pb2_grpc,
)
from recalld import limits
from recalld.domain import Store
from recalld.services.admin import AdminServicer
from recalld.services.memory import MemoryServicer
from recalld.services.session import SessionServicer
from recalld.services.user import UserServicer
from tests.served import served
from tests.unit.rpc import around

METHODS: dict[str, MethodDescriptor] = {
    method.name: method
    for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

_TIMEOUT = 30  # seconds; for a server that hangs


class Clock:
    """Time that stands still until it is moved, so that both stores give the same times to the same things."""

    def __init__(self) -> None:
        self._time = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self._time

    def advance(self, by: timedelta) -> None:
        self._time += by


@dataclass(frozen=True)
class Answer:
    """What a call ended with, as far as all servers must agree."""

    code: grpc.StatusCode
    reason: str = ""
    details: tuple[str, ...] = ()
    responses: Sequence[Any] = field(default=(), compare=False)


class Side:
    """One of the servers, as a client that remembers the etags it has seen."""

    def __init__(self, channel: grpc.Channel) -> None:
        stubs: list[Any] = [
            session_pb2_grpc.SessionServiceStub(channel),
            memory_pb2_grpc.MemoryServiceStub(channel),
            user_pb2_grpc.UserServiceStub(channel),
            admin_pb2_grpc.AdminServiceStub(channel),
        ]
        self._methods = {name: getattr(stub, name) for stub in stubs for name in METHODS if hasattr(stub, name)}
        self._etags: defaultdict[str, list[str]] = defaultdict(list)

    def ask(self, method: str, request: Message) -> Answer:
        """Calls the method. A response of a stream is one of `responses`, that of any other method is the only one."""
        try:
            if METHODS[method].server_streaming:
                responses = list(self._methods[method](request, timeout=_TIMEOUT))
            else:
                responses = [self._methods[method](request, timeout=_TIMEOUT)]
        except grpc.RpcError as error:
            return _answer_of(error)
        return Answer(grpc.StatusCode.OK, responses=responses)

    def forget(self) -> None:
        self._etags.clear()

    def etag(self, resource: str, which: str) -> str:
        """An etag to send: none, the `first` or `latest` that was seen of the resource, or a `wrong` one."""
        seen = self._etags[resource] or ["unseen"]
        return {"": "", "first": seen[0], "latest": seen[-1], "wrong": "wrong"}[which]

    def number_etags(self, responses: Sequence[Message]) -> None:
        """Replaces each etag by its number among those of its resource: both servers must change them alike."""
        for response in responses:
            if isinstance(response, (session_pb2.Session, user_pb2.User)):
                seen = self._etags[resource_of(response)]
                if response.etag not in seen:
                    seen.append(response.etag)
                response.etag = str(seen.index(response.etag))
            for descriptor, value in response.ListFields():
                if descriptor.message_type is not None and descriptor.message_type.file.package == "recall.v1":
                    self.number_etags(value if descriptor.is_repeated else [value])


def resource_of(message: session_pb2.Session | user_pb2.User) -> str:
    if isinstance(message, session_pb2.Session):
        return f"session {message.session_id}"
    return f"user {message.user_id}"


def _answer_of(error: grpc.RpcError) -> Answer:
    status = rpc_status.from_call(error)
    if status is None:
        return Answer(error.code(), reason="no google.rpc.Status", details=(str(error.details()),))
    reason = ""
    details: list[str] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason = info.reason
            details.append(f"{info.domain} {sorted(info.metadata.items())}")
        elif detail.Is(error_details_pb2.ResourceInfo.DESCRIPTOR):
            resource = error_details_pb2.ResourceInfo.FromString(detail.value)
            details.append(f"{resource.resource_type} {resource.resource_name}")
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            details.append(f"fields {[violation.field for violation in bad.field_violations]}")
    return Answer(error.code(), reason, tuple(details))


@contextmanager
def side_of(store: Store, clock: Callable[[], datetime]) -> Iterator[Side]:
    """A server over the store, behind the interceptors and a channel of the real one."""
    with ThreadPoolExecutor(4) as executor:
        server = grpc.server(executor, interceptors=around(most_streams=4))
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(store, limits.DEFAULT_RETENTION), server)
        memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryServicer(store, limits.DEFAULT_RETENTION), server)
        user_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(store, limits.DEFAULT_RETENTION), server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(store, limits.DEFAULT_RETENTION, clock), server)
        with served(server) as channel:
            yield Side(channel)
