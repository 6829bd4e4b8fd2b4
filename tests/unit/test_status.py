"""Every error that a client may see has the code and reason of the contract, and the details that go with them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from recalld import errors
from recalld.services.status import status_of
from tests.unit.rpc import detail

CASES = [
    (errors.InvalidField("messages[2].content", "too long"), "INVALID_ARGUMENT", "INVALID_FIELD"),
    (errors.InvalidPageToken("page_token", "damaged"), "INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"),
    (errors.SessionNotFound("s"), "NOT_FOUND", "SESSION_NOT_FOUND"),
    (errors.MessageNotFound("m"), "NOT_FOUND", "MESSAGE_NOT_FOUND"),
    (errors.UserNotFound("u"), "NOT_FOUND", "USER_NOT_FOUND"),
    (errors.SessionAlreadyExists("s"), "ALREADY_EXISTS", "SESSION_ALREADY_EXISTS"),
    (errors.UserAlreadyExists("u"), "ALREADY_EXISTS", "USER_ALREADY_EXISTS"),
    (errors.MessageIdConflict("m"), "ALREADY_EXISTS", "MESSAGE_ID_CONFLICT"),
    (errors.UserMissing("u"), "FAILED_PRECONDITION", "USER_NOT_FOUND"),
    (errors.NotDeleted("session", "s"), "FAILED_PRECONDITION", "NOT_DELETED"),
    (errors.EtagMismatch(), "ABORTED", "ETAG_MISMATCH"),
    (errors.SeqMismatch(7), "ABORTED", "SEQ_MISMATCH"),
    (errors.Contention(), "ABORTED", "CONTENTION"),
    (errors.LimitExceeded("metadata", "too large"), "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
    (errors.QuotaExceeded("calls_per_second", 5, 0.2), "RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
    (errors.CredentialMissing(), "UNAUTHENTICATED", "CREDENTIAL_MISSING"),
    (errors.CredentialInvalid(), "UNAUTHENTICATED", "CREDENTIAL_INVALID"),
    (errors.CredentialExpired(), "UNAUTHENTICATED", "CREDENTIAL_EXPIRED"),
    (errors.ScopeMissing("read"), "PERMISSION_DENIED", "SCOPE_MISSING"),
    (errors.Overloaded(), "RESOURCE_EXHAUSTED", "OVERLOADED"),
    (errors.StorageUnavailable(), "UNAVAILABLE", "STORAGE_UNAVAILABLE"),
    (errors.ShuttingDown(), "UNAVAILABLE", "SHUTTING_DOWN"),
    (errors.DeadlineExceeded(), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"),
    (errors.Cancelled(), "CANCELLED", "CANCELLED"),
    (errors.Internal("4f2a"), "INTERNAL", "INTERNAL"),
]


def with_subclasses(kind: type[errors.RecallError]) -> Iterator[type[errors.RecallError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from with_subclasses(subclass)


def test_the_table_names_every_error_that_has_a_reason() -> None:
    assert {type(error) for error, _, _ in CASES} == {
        kind for kind in with_subclasses(errors.RecallError) if "reason" in vars(kind)
    }


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=[type(error).__name__ for error, _, _ in CASES])
def test_an_error_has_the_code_and_reason_of_the_contract(error: errors.RecallError, code: str, reason: str) -> None:
    status = status_of(error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (status.code, status.message) == (grpc.StatusCode[code].value[0], error.message)
    assert (info.reason, info.domain, dict(info.metadata)) == (reason, "recalld", error.metadata)


@pytest.mark.parametrize(("error", "code", "reason"), CASES, ids=[type(error).__name__ for error, _, _ in CASES])
def test_an_error_carries_the_details_of_its_kind_and_no_others(
    error: errors.RecallError, code: str, reason: str
) -> None:
    status = status_of(error)
    kinds = {each.TypeName().removeprefix("google.rpc.") for each in status.details}
    expected = {"ErrorInfo"}
    if code == "INVALID_ARGUMENT":
        expected.add("BadRequest")
    if code in ("NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"):
        expected.add("ResourceInfo")
    if reason in ("CONTENTION", "OVERLOADED", "STORAGE_UNAVAILABLE", "SHUTTING_DOWN") or "quota" in error.metadata:
        expected.add("RetryInfo")
    assert kinds == expected


def test_bad_request_names_the_field() -> None:
    bad_request = detail(status_of(errors.InvalidField("filter.user_id", "bad")), error_details_pb2.BadRequest)
    assert [(each.field, each.description) for each in bad_request.field_violations] == [("filter.user_id", "bad")]


def test_resource_info_names_the_resource() -> None:
    info = detail(status_of(errors.SessionNotFound("chat-1")), error_details_pb2.ResourceInfo)
    assert (info.resource_type, info.resource_name) == ("session", "chat-1")


def test_retry_info_gives_the_delay() -> None:
    info = detail(status_of(errors.Contention()), error_details_pb2.RetryInfo)
    assert info.retry_delay.ToTimedelta() == timedelta(seconds=0.1)


def test_the_longest_id_is_given_whole() -> None:
    session_id = "\N{SLIGHTLY SMILING FACE}" * 256
    info = detail(status_of(errors.SessionNotFound(session_id)), error_details_pb2.ResourceInfo)
    assert info.resource_name == session_id


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidField("é" * 10_000, "é" * 10_000),
        errors.ResourceError("session", "é" * 10_000, "é" * 10_000, {"a": "é" * 10_000, "b": "é" * 10_000}),
    ],
    ids=["field", "resource"],
)
def test_details_stay_small_whatever_they_quote(error: errors.RecallError, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors.ResourceError, "code", errors.Code.NOT_FOUND, raising=False)
    monkeypatch.setattr(errors.ResourceError, "reason", "TEST", raising=False)
    status = status_of(error)
    assert isinstance(status, status_pb2.Status)
    assert status.ByteSize() < 4096
