"""The server under attack: how it is asked, what its answers are held against, what it logs meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

import grpc
import psycopg
from google.protobuf import message as protobuf
from google.protobuf.duration_pb2 import Duration

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.session_pb2 import DeleteSessionRequest
from recall.v1.user_pb2 import CreateUserRequest, DeleteUserRequest
from recalld.app import Server
from tests.fuzz import oracle, values
from tests.fuzz.account import Account, parsed
from tests.fuzz.methods import Method, method_of
from tests.fuzz.oracle import Answer
from tests.integration.conftest import connected, serving, wait_until_serving

# Seconds; a quiet server takes milliseconds, so whatever takes this long hangs.
DEADLINE = 30.0

_ACTIVE = """
    select count(*) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
       and state <> 'idle' and query not ilike '%access exclusive%'
"""

DETAILS_KEY = "grpc-status-details-bin"
Metadata = Sequence[tuple[str, str | bytes]]


def ask(channel: grpc.Channel, method: Method, data: bytes, metadata: Metadata = ()) -> Answer:
    """The answer to a request's bytes, sent as they are. Raises ValueError for metadata that grpcio does not send."""
    call: Any
    responses: list[bytes] = []
    # Without serializers bytes go out, and come back, as they are.
    opened: Any = channel.unary_stream(method.path) if method.streams else channel.unary_unary(method.path)
    try:
        if method.streams:
            call = opened(data, timeout=DEADLINE, metadata=metadata)
            responses.extend(call)
        else:
            response, call = opened.with_call(data, timeout=DEADLINE, metadata=metadata)
            responses.append(response)
    except grpc.RpcError as error:
        call = error
    received = [*(call.initial_metadata() or ()), *(call.trailing_metadata() or ())]
    return Answer(
        code=call.code(),
        message=call.details() or "",
        details=next((value for key, value in received if key == DETAILS_KEY), None),
        responses=responses,
        metadata=[(key, value) for key, value in received if key != DETAILS_KEY],
    )


class Target:
    """A server with a database of its own, and the account of what was written to it."""

    def __init__(self, server: Server, channel: grpc.Channel, database_url: str, log: list[str]) -> None:
        self.server = server
        self.channel = channel
        self.account = Account()
        self.database_url = database_url
        self._log = log
        url = urlsplit(database_url)
        self._secrets = [part for part in (url.path[1:], url.password, unquote(url.hostname or "")) if part]

    def ask(self, method: Method, data: bytes, metadata: Metadata = ()) -> Answer:
        """Asks, holds the answer against the contract, and enters what it acknowledges. Raises AssertionError."""
        data = bytes(data)
        request = parsed(method.request, data)
        answer = ask(self.channel, method, data, metadata)
        try:
            oracle.check(answer, oracle.strings(request) if request else [], secrets=self._secrets)
            assert not self._log, "the server logged an error"
            assert (request is None) == self._refused_as_bytes(answer)
            if answer.code is grpc.StatusCode.OK:
                assert request is not None
                self.account.enter(request, [method.response.FromString(each) for each in answer.responses])
        except AssertionError as error:
            error.add_note(f"{method} {data[:1000]!r} ({len(data)} bytes), which is {str(request)[:2000]}")
            error.add_note("\n".join(self._log) or "the server logged nothing")
            self._log.clear()
            raise
        return answer

    def call(self, request: protobuf.Message, metadata: Metadata = ()) -> Answer:
        """Asks the method that takes requests of this type."""
        return self.ask(method_of(request), request.SerializeToString(), metadata)

    def restock(self) -> None:
        """Makes sure that what plausible requests name is there, live and deleted."""
        self.call(PurgeRequest(older_than=Duration()))  # a deleted message's id is not free before
        for user_id in values.USERS:
            self.call(CreateUserRequest(user_id=user_id))
        for session_id in values.SESSIONS:
            self.call(AddMemoryRequest(session_id=session_id, messages=[_tea()]))
            for message_id in values.MESSAGE_IDS:
                self.call(AddMemoryRequest(session_id=session_id, messages=[_tea(message_id)]))
        self.call(DeleteUserRequest(user_id="gone"))
        self.call(DeleteSessionRequest(session_id="deleted"))

    def lives(self) -> None:
        """Raises AssertionError unless the server is healthy, still answers a plain call, and wrote what it said."""
        wait_until_serving(self.channel)
        assert self.call(GetMemoryRequest(session_id="live")).code is grpc.StatusCode.OK
        self.balance()

    def balance(self) -> None:
        """Raises AssertionError unless the database holds what was acknowledged."""
        with psycopg.connect(self.database_url) as connection:
            self.account.balance(connection)

    def active_statements(self) -> int:
        """How many statements of the server the database is working on."""
        with psycopg.connect(self.database_url) as connection:
            [(count,)] = connection.execute(_ACTIVE).fetchall()
        return int(count)

    @staticmethod
    def _refused_as_bytes(answer: Answer) -> bool:
        return answer.code is oracle.INVALID and answer.violation == "request"


def _tea(message_id: str = "") -> Message:
    return Message(message_id=message_id, role="user", content="tea % or 'x' & y")


class _Errors(logging.Handler):
    """Keeps the errors that the server logs; those of gRPC's own too, which are about what got past our handling."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # gRPC's own complaint about a header that is not UTF-8; the call goes on, with bytes for a value.
        if record.getMessage().startswith("Invalid encoding on"):
            return
        self.lines.append(logging.Formatter().format(record))


@contextmanager
def attacked(database_url: str, **settings: Any) -> Iterator[Target]:
    """A target, for as long as the context lasts."""
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    try:
        with serving(database_url, **settings) as server, connected(server) as client:
            yield Target(server, client.channel, database_url, errors.lines)
    finally:
        logging.getLogger().removeHandler(errors)
