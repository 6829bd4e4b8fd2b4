"""Callers with credentials, every RPC in one round, and what a failed call said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
import psycopg
from google.protobuf import message_factory
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld.access import Scope
from recalld.app import Server
from recalld.storage import open_registry
from tests.integration.conftest import wait_until_serving
from tests.processes import DEADLINE

Metadata = tuple[tuple[str, str | bytes], ...]

_FILES: list[Any] = [session_pb2.DESCRIPTOR, memory_pb2.DESCRIPTOR, user_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR]
# By the full name of the request: each method has a request of its own.
_METHODS: dict[str, Any] = {
    method.input_type.full_name: method
    for file in _FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
METHODS = frozenset(method.name for method in _METHODS.values())


def create_key(database_url: str, namespace: str, *scopes: Scope) -> str:
    """A new API key, with all scopes unless some are given."""
    with open_registry(database_url) as registry:
        return registry.create(namespace, frozenset(scopes or Scope), "", None).text


def bearer(credential: str) -> Metadata:
    return (("authorization", f"Bearer {credential}"),)


def method_of(request: ProtoMessage) -> str:
    """The name of the one method that takes this request."""
    return str(_METHODS[request.DESCRIPTOR.full_name].name)


def path_of(request: ProtoMessage) -> str:
    """Its path as HTTP/2 has it."""
    return f"/{_METHODS[request.DESCRIPTOR.full_name].containing_service.full_name}/{method_of(request)}"


@dataclass(frozen=True)
class Caller:
    """Calls whatever method a request belongs to.

    Attributes:
        metadata: sent with each call, the credential among it.
    """

    channel: grpc.Channel
    metadata: Metadata = field(default=())

    def call(self, request: ProtoMessage, timeout: float = DEADLINE) -> list[Any]:
        """The response, or all responses of a stream. Raises grpc.RpcError."""
        if _METHODS[request.DESCRIPTOR.full_name].server_streaming:
            return list(self.open(request, timeout))
        call = self.channel.unary_unary(path_of(request), _serialized, _deserializer(request))
        return [call(request, timeout=timeout, metadata=self.metadata)]

    def begin(self, request: ProtoMessage, timeout: float = DEADLINE) -> Any:
        """A unary call that goes on while the caller does something else: a future of its response."""
        call = self.channel.unary_unary(path_of(request), _serialized, _deserializer(request))
        return call.future(request, timeout=timeout, metadata=self.metadata)

    def open(self, request: ProtoMessage, timeout: float = DEADLINE) -> Any:
        """A stream that is open, and can be cancelled."""
        call = self.channel.unary_stream(path_of(request), _serialized, _deserializer(request))
        return call(request, timeout=timeout, metadata=self.metadata)

    def code(self, request: ProtoMessage, timeout: float = DEADLINE) -> grpc.StatusCode:
        """How a call ends, well or not."""
        try:
            self.call(request, timeout)
        except grpc.RpcError as error:
            return Refusal(error).code
        return grpc.StatusCode.OK

    def refused(self, request: ProtoMessage, timeout: float = DEADLINE) -> Refusal:
        """What a call that must fail ended with."""
        try:
            answer = self.call(request, timeout)
        except grpc.RpcError as error:
            return Refusal(error)
        raise AssertionError(f"{method_of(request)} was answered: {answer}")


class Refusal:
    """An error as the client sees it."""

    def __init__(self, error: Any) -> None:
        self.code: grpc.StatusCode = error.code()
        self.trailing = dict(error.trailing_metadata() or ())
        self.status: status_pb2.Status = rpc_status.from_call(error)

    @property
    def reason(self) -> str:
        return str(self.info.reason)

    @property
    def info(self) -> Any:
        """The ErrorInfo, which every error of the service has."""
        found = self.detail(error_details_pb2.ErrorInfo)
        assert found is not None, self.status
        return found

    @property
    def retry_after(self) -> float | None:
        """Seconds, of the RetryInfo if there is one."""
        found = self.detail(error_details_pb2.RetryInfo)
        return None if found is None else found.retry_delay.ToTimedelta().total_seconds()

    def detail(self, kind: Any) -> Any:
        found = kind()
        return found if any(detail.Unpack(found) for detail in self.status.details) else None


@contextmanager
def calling(server: Server, credential: str | None = None) -> Iterator[Caller]:
    """A caller of the server on a connection of its own, with a bearer credential or none."""
    with grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        wait_until_serving(channel)
        yield Caller(channel, bearer(credential) if credential else ())


def with_credential(caller: Caller, credential: str) -> Caller:
    """The same connection, used by somebody else."""
    return Caller(caller.channel, bearer(credential))


def in_a_new_namespace(caller: Caller, database_url: str, *scopes: Scope) -> Caller:
    """The same connection, used by somebody with a namespace of their own; with all scopes unless some are given."""
    return with_credential(caller, create_key(database_url, f"n-{uuid4().hex}", *scopes))


def a_round(mark: str = "apple") -> list[ProtoMessage]:
    """Every RPC at least once, in an order in which all succeed on an empty namespace.

    Args:
        mark: stands in every text that is not an id.
    """
    document = Struct()
    document.update({"mark": mark})
    message_id = "00000000-0000-4000-8000-000000000001"
    added = memory_pb2.Message(message_id=message_id, role="user", content=f"one {mark}", metadata=document)
    search = memory_pb2.SearchMemoryRequest
    return [
        user_pb2.CreateUserRequest(user_id="u", first_name=mark, metadata=document),
        session_pb2.CreateSessionRequest(session_id="s", user_id="u", metadata=document),
        memory_pb2.AddMemoryRequest(session_id="s", messages=[added]),
        memory_pb2.AddMemoryRequest(session_id="s2", user_id="u", messages=[added]),
        session_pb2.GetSessionRequest(session_id="s"),
        session_pb2.UpdateSessionRequest(session_id="s", metadata=document),
        session_pb2.ListSessionsRequest(),
        session_pb2.ListSessionsRequest(filter=session_pb2.SessionFilter(metadata=document), show_deleted=True),
        session_pb2.ListSessionsRequest(filter=session_pb2.SessionFilter(user_id="u")),
        session_pb2.StreamSessionsRequest(),
        memory_pb2.GetMemoryRequest(session_id="s"),
        memory_pb2.ListMessagesRequest(session_id="s"),
        memory_pb2.GetMessageRequest(session_id="s", message_id=message_id),
        memory_pb2.UpdateMessageRequest(session_id="s", message_id=message_id, content=f"two {mark}s"),
        search(query=mark),
        search(query="two one", session_id="s"),
        search(query="two one", user_id="u"),
        memory_pb2.DeleteMessageRequest(session_id="s", message_id=message_id),
        memory_pb2.ClearMemoryRequest(session_id="s2"),
        user_pb2.GetUserRequest(user_id="u"),
        user_pb2.UpdateUserRequest(user_id="u", last_name=mark),
        user_pb2.ListUsersRequest(),
        user_pb2.StreamUsersRequest(),
        session_pb2.DeleteSessionRequest(session_id="s"),
        session_pb2.UndeleteSessionRequest(session_id="s"),
        user_pb2.DeleteUserRequest(user_id="u"),
        user_pb2.UndeleteUserRequest(user_id="u"),
        session_pb2.ListSessionsRequest(show_deleted=True),
        admin_pb2.PurgeRequest(older_than=Duration(), dry_run=True),
        admin_pb2.PurgeRequest(older_than=Duration(), session_id="s"),
        admin_pb2.PurgeRequest(older_than=Duration(), user_id="u"),
        admin_pb2.PurgeRequest(older_than=Duration()),
        session_pb2.ListSessionsRequest(show_deleted=True),
    ]


def one_of_each() -> list[ProtoMessage]:
    """A request to every method, in alphabetical order."""
    requests = {method_of(request): request for request in a_round()}
    return [requests[name] for name in sorted(requests)]


@contextmanager
def row_locked(database_url: str, namespace: str, session_id: str) -> Iterator[Callable[[], int]]:
    """Holds the lock on a session's row; what is yielded counts the statements of servers that wait for a lock."""
    with lock_waits(database_url) as waiting, psycopg.connect(database_url) as holding:
        held = holding.execute(
            "select session_id from recalld.session where namespace = %s and session_id = %s for update",
            (namespace, session_id),
        ).fetchall()
        assert held == [(session_id,)]
        yield waiting


@contextmanager
def lock_waits(database_url: str) -> Iterator[Callable[[], int]]:
    """What is yielded counts the statements of servers that wait for a lock."""
    with psycopg.connect(database_url, autocommit=True) as watching:

        def waiting() -> int:
            row = watching.execute(
                "select count(*) from pg_stat_activity where application_name = 'recalld'"
                " and datname = current_database() and wait_event_type = 'Lock'"
            ).fetchone()
            assert row is not None
            return int(row[0])

        yield waiting


def _serialized(request: ProtoMessage) -> bytes:
    return request.SerializeToString()


def _deserializer(request: ProtoMessage) -> Callable[[bytes], ProtoMessage]:
    response = message_factory.GetMessageClass(_METHODS[request.DESCRIPTOR.full_name].output_type)
    return response.FromString
