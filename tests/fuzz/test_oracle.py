"""Negative controls: what the suite must find, it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import psycopg
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message, UpdateMessageRequest
from recall.v1.session_pb2 import CreateSessionRequest
from recall.v1.user_pb2 import CreateUserRequest
from recalld import errors
from recalld.services.status import status_of
from tests.fuzz import oracle
from tests.fuzz.methods import METHODS, Method
from tests.fuzz.oracle import Answer
from tests.fuzz.target import Target, ask, attacked
from tests.served import served
from tests.unit.rpc import struct

DSN = "postgresql://recalld:hunter2@db.internal/recalld"
HOSTILE_ID = "select * from s; psycopg.Error"
Codes = grpc.StatusCode


def answer_to(error: errors.RecallError) -> Answer:
    status = status_of(error)
    code = next(code for code in Codes if code.value[0] == status.code)
    return Answer(code, status.message, status.SerializeToString())


def without_status(code: grpc.StatusCode, message: str = "") -> Answer:
    return Answer(code, message)


def changed(error: errors.RecallError, change: Callable[[Any], object]) -> Answer:
    answer = answer_to(error)
    status = answer.status
    change(status)
    return Answer(answer.code, answer.message, status.SerializeToString())


def with_info(**fields: str) -> Answer:
    def change(status: Any) -> None:
        info = error_details_pb2.ErrorInfo(**{"domain": "recalld", "reason": "SESSION_NOT_FOUND"} | fields)
        status.details[0].Pack(info)

    return changed(errors.SessionNotFound("s"), change)


def add_detail(kind: Any) -> Callable[[Any], None]:
    return lambda status: status.details.add().Pack(kind)


GOOD = {
    "no error": Answer(Codes.OK),
    "a field": answer_to(errors.InvalidField("messages[3].content", "must not contain NUL")),
    "a resource": answer_to(errors.SessionNotFound("s")),
    "the caller's own words": answer_to(errors.SessionNotFound(HOSTILE_ID)),
    "an id that was derived": answer_to(errors.MessageIdConflict("00000000-0000-0000-0000-000000000001")),
    "a reason": answer_to(errors.EtagMismatch()),
    "a fact": answer_to(errors.SeqMismatch(3)),
    "a limit": answer_to(errors.LimitExceeded("metadata", "too large after merging")),
}
_STORED = "00000000-0000-0000-0000-00000000000a"
BAD = {
    "unknown": without_status(Codes.UNKNOWN, "Exception calling application: no"),
    "internal": answer_to(errors.Internal("0" * 32)),
    "unavailable": answer_to(errors.StorageUnavailable()),
    "timed out": without_status(Codes.DEADLINE_EXCEEDED),
    "not of the table": answer_to(errors.CredentialMissing()),
    "no status": without_status(Codes.NOT_FOUND, "no such session"),
    "a status that is none": Answer(Codes.NOT_FOUND, "no", b""),
    "another code in the status": replace(answer_to(errors.SessionNotFound("s")), code=Codes.ABORTED),
    "another message in the status": replace(answer_to(errors.SessionNotFound("s")), message="gone"),
    "another reason": with_info(reason="ETAG_MISMATCH"),
    "another domain": with_info(domain="example.com"),
    "no details": changed(errors.SessionNotFound("s"), lambda status: status.ClearField("details")),
    "no field": changed(errors.InvalidField("f", "no"), lambda status: status.details.pop()),
    "a detail twice": changed(errors.EtagMismatch(), add_detail(error_details_pb2.ErrorInfo())),
    "a detail of another kind": changed(errors.EtagMismatch(), add_detail(error_details_pb2.DebugInfo())),
    "a detail that is nothing": changed(errors.EtagMismatch(), lambda status: status.details.append(AnyMessage())),
    "a resource that nobody named": answer_to(errors.SessionNotFound("somebody else's")),
    "a stack": answer_to(errors.LimitExceeded("f", "Traceback (most recent call last)")),
    "a driver's error": answer_to(errors.LimitExceeded("f", "psycopg.errors.UniqueViolation")),
    "a statement": answer_to(errors.InvalidField("f", "in SELECT session_key")),
    "a table": answer_to(errors.InvalidField("f", 'relation "session" does not exist')),
    "a path": answer_to(errors.InvalidField("f", "in /usr/lib/python3/recalld")),
    "an object": answer_to(errors.InvalidField("f", "<Struct object at 0x7f00aa11bb22>")),
    "the dsn": answer_to(errors.InvalidField("f", "cannot connect to db.internal")),
    "a secret in the metadata": Answer(Codes.OK, metadata=[("x-host", "db.internal")]),
    "internals in the metadata": Answer(Codes.OK, metadata=[("x-debug-bin", b"ValueError: 1")]),
    "a status with OK": replace(answer_to(errors.EtagMismatch()), code=Codes.OK),
    "too much": answer_to(errors.SessionNotFound("s" * 300)),
}


def check(answer: Answer) -> None:
    oracle.check(answer, ["s", HOSTILE_ID], secrets=["db.internal"])


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD.keys())
def test_an_answer_of_the_contract_passes(answer: Answer) -> None:
    check(answer)


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD.keys())
def test_any_other_does_not(answer: Answer) -> None:
    with pytest.raises(AssertionError):
        check(answer)


def test_a_refused_credential_passes_only_where_credentials_are_checked() -> None:
    refused = answer_to(errors.CredentialInvalid())
    oracle.check(refused, [], refusals=True)
    with pytest.raises(AssertionError):
        oracle.check(refused, [])


# --- a server that gives itself away


@contextmanager
def raising() -> Iterator[grpc.Channel]:
    """A channel to a server whose methods all fail, with nobody to turn their errors into statuses."""

    def fail(request: bytes, context: grpc.ServicerContext) -> bytes:
        raise psycopg.OperationalError(f"connection to {DSN} failed")

    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        for method in METHODS:
            make = grpc.unary_stream_rpc_method_handler if method.streams else grpc.unary_unary_rpc_method_handler
            service = method.path.split("/")[1]
            handlers: Any = {method.name: make(fail)}
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        with served(server) as channel:
            yield channel


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_method_that_lets_an_exception_through_is_found(method: Method) -> None:
    with raising() as channel:
        answer = ask(channel, method, b"")
    assert DSN in answer.message
    with pytest.raises(AssertionError, match="UNKNOWN"):
        check(answer)


# --- a database that does not hold what was acknowledged


@pytest.fixture(scope="module")
def target(shared_database_url: str) -> Iterator[Target]:
    with attacked(shared_database_url) as target:
        message = Message(message_id=_STORED, role="user", content="tea", metadata=struct(a=1))
        target.call(AddMemoryRequest(session_id="s", messages=[message, Message(role="user")]))
        target.call(CreateSessionRequest(session_id="t", metadata=struct(a=1)))
        target.call(CreateUserRequest(user_id="ada", email="a@b.example"))
        yield target


@pytest.mark.parametrize(
    "tampering",
    [
        "delete from recalld.message where seq = 2",
        "update recalld.message set content = content || ' ' where seq = 1",
        "update recalld.message set role = 'User'",
        "update recalld.message set seq = 3 where seq = 2",
        "update recalld.message set metadata = '{}'",
        "update recalld.message set session_key = gen_random_uuid()",
        "insert into recalld.message (session_key, seq, create_time, message_id, role, content)"
        " select session_key, 3, create_time, gen_random_uuid(), role, content from recalld.message where seq = 2",
        "update recalld.session set last_seq = 3 where session_id = 's'",
        "update recalld.session set metadata = '{}' where session_id = 't'",
        "update recalld.session set user_id = 'eve' where session_id = 't'",
        "update recalld.session set session_id = 'u' where session_id = 't'",
        "delete from recalld.session where session_id = 't'",
        "update recalld.app_user set email = ''",
        "delete from recalld.app_user",
    ],
)
def test_a_row_that_nobody_wrote_is_found(tampering: str, target: Target) -> None:
    with psycopg.connect(target.database_url) as connection:
        target.account.balance(connection)
        assert connection.execute(tampering.encode()).rowcount
        with pytest.raises(AssertionError):
            target.account.balance(connection)
        connection.rollback()


def test_an_update_that_gives_back_something_else_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    key, (seq, role, _, metadata) = next(iter(target.account.messages.items()))
    monkeypatch.setitem(target.account.messages, key, (seq, role, "coffee", metadata))
    with pytest.raises(AssertionError):
        target.call(UpdateMessageRequest(session_id="s", message_id=_STORED, token_count=1))


def test_a_defect_is_reported_with_its_request_and_the_servers_log(database_url: str) -> None:
    with attacked(database_url) as target:
        with psycopg.connect(database_url) as connection:
            connection.execute("alter table recalld.session rename to gone")
            connection.execute("create view recalld.session as select * from recalld.gone where 1 / 0 = 1")
        with pytest.raises(AssertionError) as raised:
            target.call(GetMemoryRequest(session_id="the one"))
    story = "\n".join([str(raised.value), *raised.value.__notes__])
    assert "INTERNAL" in story
    assert "the one" in story
    assert "psycopg.errors.DivisionByZero" in story
