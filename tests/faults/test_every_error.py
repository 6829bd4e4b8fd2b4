"""Every error that a store may raise, at every method: the client gets the status that the contract names for it.

Likewise one step below: every SQLSTATE that a fault brings, as the error of the store.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld import errors
from recalld.domain import LocalCall
from recalld.services import add_services
from recalld.storage import Database
from tests.faults.cluster import cluster
from tests.served import served
from tests.unit.rpc import around, detail
from tests.unit.test_status import CASES

DEADLINE = 30.0
ID = str(UUID(int=1))
SECRET = "what nobody is to see"

DEFECTS: list[Exception] = [
    ValueError(SECRET),
    KeyError(SECRET),
    RecursionError(SECRET),
    StopIteration(SECRET),
    psycopg.errors.UniqueViolation(SECRET),
    psycopg.OperationalError(SECRET),
    grpc.RpcError(SECRET),
]

# A valid request of each method.
REQUESTS: list[Message] = [
    session_pb2.CreateSessionRequest(session_id="s"),
    session_pb2.GetSessionRequest(session_id="s"),
    session_pb2.UpdateSessionRequest(session_id="s", user_id="u"),
    session_pb2.DeleteSessionRequest(session_id="s"),
    session_pb2.UndeleteSessionRequest(session_id="s"),
    session_pb2.ListSessionsRequest(),
    session_pb2.StreamSessionsRequest(),
    memory_pb2.AddMemoryRequest(session_id="s", messages=[memory_pb2.Message(role="user", content="hello")]),
    memory_pb2.GetMemoryRequest(session_id="s"),
    memory_pb2.ListMessagesRequest(session_id="s"),
    memory_pb2.GetMessageRequest(session_id="s", message_id=ID),
    memory_pb2.UpdateMessageRequest(session_id="s", message_id=ID, content="hello"),
    memory_pb2.DeleteMessageRequest(session_id="s", message_id=ID),
    memory_pb2.ClearMemoryRequest(session_id="s"),
    memory_pb2.SearchMemoryRequest(query="hello"),
    user_pb2.CreateUserRequest(user_id="u"),
    user_pb2.GetUserRequest(user_id="u"),
    user_pb2.UpdateUserRequest(user_id="u", email="u@example.com"),
    user_pb2.DeleteUserRequest(user_id="u"),
    user_pb2.UndeleteUserRequest(user_id="u"),
    user_pb2.ListUsersRequest(),
    user_pb2.StreamUsersRequest(),
    admin_pb2.PurgeRequest(session_id="s"),
]

METHODS: dict[Any, Any] = {
    method.input_type: method
    for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class FailingStore:
    """Raises the same error whatever it is asked, and counts."""

    def __init__(self) -> None:
        self.error: Exception = AssertionError("no error was chosen")
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> Any:
            self.asked += 1
            raise self.error

        return fail


class Failing:
    """The services on a socket, over a store that fails."""

    def __init__(self, store: FailingStore, channel: grpc.Channel) -> None:
        self.store = store
        self._channel = channel

    def status_of(self, request: Message, error: Exception) -> tuple[str, status_pb2.Status]:
        """The code and the google.rpc.Status that a call ends with when the store raises the error."""
        self.store.error = error
        method = METHODS[request.DESCRIPTOR]
        path = f"/{method.containing_service.full_name}/{method.name}"
        kind: Any = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        stub = kind(path, type(request).SerializeToString, GetMessageClass(method.output_type).FromString)
        asked = self.store.asked
        with pytest.raises(grpc.RpcError) as raised:
            _all(stub(request, timeout=DEADLINE))
        assert self.store.asked == asked + 1, "the method did not ask the store, or asked again"
        return raised.value.code().name, rpc_status.from_call(raised.value)


def _all(answer: Any) -> list[Any]:
    """The responses, also of a method that has one."""
    return list(answer) if isinstance(answer, Iterator) else [answer]


@pytest.fixture(scope="module")
def failing() -> Iterator[Failing]:
    store: Any = FailingStore()
    server = grpc.server(ThreadPoolExecutor(4), interceptors=around(most_streams=4))
    add_services(server, store, timedelta(days=30))
    with served(server) as channel:
        yield Failing(store, channel)


def name(value: object) -> str:
    return value.DESCRIPTOR.name if isinstance(value, Message) else type(value).__name__


def test_the_lists_here_are_complete() -> None:
    def concrete(kind: type[errors.RecallError]) -> Iterator[type[errors.RecallError]]:
        if hasattr(kind, "reason"):
            yield kind
        for more in kind.__subclasses__():
            yield from concrete(more)

    assert {type(error) for error, _, _ in CASES} == set(concrete(errors.RecallError))
    assert [request.DESCRIPTOR.full_name for request in REQUESTS] == [each.full_name for each in METHODS]


@pytest.mark.parametrize("request_", REQUESTS, ids=name)
def test_every_error_of_the_store_has_its_status_at_every_method(request_: Message, failing: Failing) -> None:
    for error, code, reason in CASES:
        seen, status = failing.status_of(request_, error)
        info = detail(status, error_details_pb2.ErrorInfo)
        assert (seen, info.reason, info.domain) == (code, reason, "recalld")
        assert dict(info.metadata) == error.metadata
        assert status.message == error.message
        retry = detail(status, error_details_pb2.RetryInfo).retry_delay.ToTimedelta().total_seconds()
        assert retry == (error.retry_after or 0)
        resource = detail(status, error_details_pb2.ResourceInfo).resource_name
        assert resource == (error.resource_name if isinstance(error, errors.ResourceError) else "")


@pytest.mark.parametrize("request_", REQUESTS, ids=name)
def test_a_defect_is_internal_at_every_method_and_shows_nothing(request_: Message, failing: Failing) -> None:
    for error in DEFECTS:
        seen, status = failing.status_of(request_, error)
        assert (seen, detail(status, error_details_pb2.ErrorInfo).reason) == ("INTERNAL", "INTERNAL")
        assert SECRET.encode() not in status.SerializeToString()


# --- from the database to the store


SQLSTATES: dict[str, type[errors.RecallError] | None] = {
    "08000": errors.StorageUnavailable,  # the connection
    "08001": errors.StorageUnavailable,
    "08003": errors.StorageUnavailable,
    "08004": errors.StorageUnavailable,
    "08006": errors.StorageUnavailable,
    "08P01": errors.StorageUnavailable,
    "25006": errors.StorageUnavailable,  # read-only
    "25P03": errors.StorageUnavailable,  # ended by a timeout of the database's own
    "25P04": errors.DeadlineExceeded,
    "28000": errors.StorageUnavailable,  # who we are is not believed any more
    "28P01": errors.StorageUnavailable,
    "3F000": errors.StorageUnavailable,  # not there yet
    "42P01": errors.StorageUnavailable,
    "42703": errors.StorageUnavailable,
    "42883": errors.StorageUnavailable,
    "40001": errors.Contention,
    "40P01": errors.Contention,
    "55P03": errors.Contention,
    "53000": errors.StorageUnavailable,  # resources
    "53100": errors.StorageUnavailable,
    "53200": errors.StorageUnavailable,
    "53300": errors.StorageUnavailable,
    "53400": errors.StorageUnavailable,
    "57014": errors.DeadlineExceeded,
    "57P01": errors.StorageUnavailable,  # shutting down, crashed, starting
    "57P02": errors.StorageUnavailable,
    "57P03": errors.StorageUnavailable,
    "57P04": errors.StorageUnavailable,
    "57P05": errors.StorageUnavailable,
    "58000": errors.StorageUnavailable,  # outside Postgres
    "58030": errors.StorageUnavailable,
    "22P02": None,  # defects
    "22021": None,
    "23502": None,
    "23505": None,
    "42501": None,
    "54001": None,
    "XX000": None,
    "XX001": None,
}


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with cluster() as postgres:
        database = Database(postgres.url, size=1)
        database.open()
        try:
            yield database
        finally:
            database.close()


@pytest.mark.parametrize("sqlstate", SQLSTATES)
def test_every_sqlstate_that_a_fault_brings_is_an_error_of_the_store(sqlstate: str, database: Database) -> None:
    kind = psycopg.errors.lookup(sqlstate)
    with pytest.raises(SQLSTATES[sqlstate] or kind), database.connection(LocalCall("default")) as connection:
        connection.execute(f"do $$ begin raise sqlstate '{sqlstate}'; end $$".encode())
