"""What an answer may look like, whatever was asked: a status of the contract's table, and nothing from inside."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import StatusCode

INVALID = StatusCode.INVALID_ARGUMENT
UNAUTHENTICATED = StatusCode.UNAUTHENTICATED

# The contract's table, less what a healthy, quiet server has no cause to answer: among them INTERNAL.
REASONS = {
    INVALID: {"INVALID_FIELD", "INVALID_PAGE_TOKEN"},
    StatusCode.NOT_FOUND: {"SESSION_NOT_FOUND", "MESSAGE_NOT_FOUND", "USER_NOT_FOUND"},
    StatusCode.ALREADY_EXISTS: {"SESSION_ALREADY_EXISTS", "USER_ALREADY_EXISTS", "MESSAGE_ID_CONFLICT"},
    StatusCode.FAILED_PRECONDITION: {"USER_NOT_FOUND", "NOT_DELETED"},
    StatusCode.ABORTED: {"ETAG_MISMATCH", "SEQ_MISMATCH"},
    StatusCode.RESOURCE_EXHAUSTED: {"LIMIT_EXCEEDED"},
}
# To be added where credentials are checked.
REFUSALS = {
    UNAUTHENTICATED: {"CREDENTIAL_MISSING", "CREDENTIAL_INVALID", "CREDENTIAL_EXPIRED"},
    StatusCode.PERMISSION_DENIED: {"SCOPE_MISSING"},
}

_DETAILS: list[Any] = [
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.ResourceInfo,
    error_details_pb2.RetryInfo,
]

# Words that our own texts never use: of Postgres and its driver, of Python, of file systems.
_INSIDE = re.compile(
    r"""psycopg|postgres|libpq|sqlstate|traceback|exception|\w+Error\b|errno|grpc\.|google\.|recalld\.\w|__\w+__
    | \.py\b|site-packages|/(?:home|root|usr|tmp|var|work|opt|srv|etc)/|\bobject\ at\b|<class
    | \bselect\s|\binsert\s|\bupdate\s\w+\sset\b|\bdelete\sfrom\b|\brelation\b|\bconstraint\b|\bcolumn\b|\btuple\b
    | syntax\ error|byte\ sequence|unicode\ escape|deseriali|\bpassword\b|\bdsn\b""",
    re.IGNORECASE | re.VERBOSE,
)

# A client accepts 8 KiB of metadata; a status that takes more would arrive as another one.
_MAX_STATUS_BYTES = 8000


@dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
        details: the serialised google.rpc.Status, None if there was none.
        responses: as bytes; before an error a stream may have sent some.
        metadata: initial and trailing, but for the status.
    """

    code: StatusCode
    message: str = ""
    details: bytes | None = None
    responses: list[bytes] = field(default_factory=list)
    metadata: list[tuple[str, str | bytes]] = field(default_factory=list)

    @property
    def status(self) -> status_pb2.Status:
        assert self.details is not None, f"{self.code.name} without a google.rpc.Status: {self.message}"
        return status_pb2.Status.FromString(self.details)

    @property
    def reason(self) -> str:
        return str(_unpacked(self.status, error_details_pb2.ErrorInfo).reason)

    @property
    def violation(self) -> str:
        """The field that is to blame."""
        return str(_unpacked(self.status, error_details_pb2.BadRequest).field_violations[0].field)


def check(answer: Answer, sent: Collection[str], *, secrets: Collection[str] = (), refusals: bool = False) -> None:
    """Passes what the contract has. Raises AssertionError.

    Args:
        sent: the strings of the request; a status may name one of them as the resource, as it is.
        secrets: strings that must appear nowhere.
        refusals: whether the call's credential may be refused.
    """
    for key, value in answer.metadata:
        _check_text(f"{key}: {value if isinstance(value, str) else value.decode('latin-1')}", secrets)
    if answer.code is StatusCode.OK:
        assert answer.details is None
        return
    table = REASONS | REFUSALS if refusals else REASONS
    assert answer.code in table, f"{answer.code.name} is no answer of a healthy server: {answer.message}"
    status = answer.status
    assert (status.code, status.message) == (answer.code.value[0], answer.message)
    info = _unpacked(status, error_details_pb2.ErrorInfo)
    assert info.domain == "recalld"
    assert info.reason in table[answer.code], f"{answer.code.name} with reason {info.reason}"
    assert len(answer.details or b"") + len(answer.message) < _MAX_STATUS_BYTES
    _check_details(answer.code, status, sent)
    for text in (status.message, *_texts(status)):
        _check_text(text, secrets)


def _check_details(code: StatusCode, status: status_pb2.Status, sent: Collection[str]) -> None:
    kinds = {detail.type_url.rpartition(".")[2] for detail in status.details}
    assert len(kinds) == len(status.details), f"details twice: {status}"
    if code is INVALID:
        [violation] = _unpacked(status, error_details_pb2.BadRequest).field_violations
        assert violation.field
        assert violation.description
    if code in (StatusCode.NOT_FOUND, StatusCode.ALREADY_EXISTS):
        assert "ResourceInfo" in kinds
    if "ResourceInfo" in kinds:
        name = _unpacked(status, error_details_pb2.ResourceInfo).resource_name
        assert name in sent or _is_uuid(name), f"names {name!r}, which nobody asked for"


def _unpacked(status: status_pb2.Status, kind: Any) -> Any:
    found = kind()
    assert any(detail.Unpack(found) for detail in status.details), f"no {kind.DESCRIPTOR.name}: {status}"
    return found


def _texts(status: status_pb2.Status) -> list[str]:
    """Every text of the details but the resource's name, which is the caller's own."""
    texts: list[str] = []
    for detail in status.details:
        kind = next((kind for kind in _DETAILS if detail.Is(kind.DESCRIPTOR)), None)
        assert kind is not None, f"a detail of no kind that the contract has: {detail.type_url}"
        found = kind()
        detail.Unpack(found)
        if isinstance(found, error_details_pb2.ResourceInfo):
            found.resource_name = ""
        texts += strings(found)
    return texts


def inside(text: str) -> str | None:
    """The first words in a text that only the inside of the server uses, or None."""
    found = _INSIDE.search(text)
    return found and found[0]


def _check_text(text: str, secrets: Collection[str]) -> None:
    leaked = inside(text)
    assert leaked is None, f"{leaked!r} in {text!r}"
    for secret in secrets:
        assert secret not in text, f"a secret in {text!r}"


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


def strings(message: Message) -> list[str]:
    """Every string in a message, keys of maps too."""
    found: list[str] = []
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
            found += value
            parts = list(value.values())
        else:
            parts = list(value) if descriptor.is_repeated else [value]
        for part in parts:
            if isinstance(part, str):
                found.append(part)
            elif isinstance(part, Message):
                found += strings(part)
    return found
