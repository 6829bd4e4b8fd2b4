"""What can go wrong, in the words of the API.

Storage turns SQLSTATEs into these; one interceptor turns these into google.rpc.Status, but for calls that are turned
away before they are even decoded (services/overload.py). The table of codes and reasons is the contract with clients: a
reason never changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import ClassVar

DOMAIN = "recalld"


class Code(Enum):
    """The gRPC status codes that the service answers with, by name."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    INTERNAL = "INTERNAL"


class RecallError(Exception):
    """Base of every error that a client may see.

    Attributes:
        code: the gRPC status code.
        reason: ErrorInfo.reason, the machine-readable cause.
        message: one sentence for a developer; names no internals.
        metadata: ErrorInfo.metadata, the facts a program may act on.
        retry_after: seconds after which a retry is worth while (RetryInfo), or None when it is not.
    """

    code: ClassVar[Code]
    reason: str
    retry_after: float | None = None

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})


class InvalidField(RecallError):
    """A request field breaks a rule. `field` is its path, such as `messages[2].content`."""

    code = Code.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", {"field": field})
        self.field = field
        self.description = description


class InvalidPageToken(InvalidField):
    """A page or resume token that this server did not make for this call."""

    reason = "INVALID_PAGE_TOKEN"


class ResourceError(RecallError):
    """Something about one named resource. `resource_type` is `session`, `message` or `user`."""

    def __init__(
        self, resource_type: str, resource_name: str, message: str, metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, metadata)
        self.resource_type = resource_type
        self.resource_name = resource_name


class NotFound(ResourceError):
    code = Code.NOT_FOUND


class SessionNotFound(NotFound):
    reason = "SESSION_NOT_FOUND"

    def __init__(self, session_id: str) -> None:
        super().__init__("session", session_id, "no such session")


class MessageNotFound(NotFound):
    reason = "MESSAGE_NOT_FOUND"

    def __init__(self, message_id: str) -> None:
        super().__init__("message", message_id, "no such message in this session")


class UserNotFound(NotFound):
    reason = "USER_NOT_FOUND"

    def __init__(self, user_id: str) -> None:
        super().__init__("user", user_id, "no such user")


class AlreadyExists(ResourceError):
    code = Code.ALREADY_EXISTS


class SessionAlreadyExists(AlreadyExists):
    reason = "SESSION_ALREADY_EXISTS"

    def __init__(self, session_id: str) -> None:
        super().__init__("session", session_id, "the session exists already")


class UserAlreadyExists(AlreadyExists):
    reason = "USER_ALREADY_EXISTS"

    def __init__(self, user_id: str) -> None:
        super().__init__("user", user_id, "the user exists already")


class MessageIdConflict(AlreadyExists):
    """An id of AddMemory was used before, with other content or in another call."""

    reason = "MESSAGE_ID_CONFLICT"

    def __init__(self, message_id: str) -> None:
        super().__init__("message", message_id, "the message id was used before, with other content or in another call")


class UserMissing(ResourceError):
    """A session may only belong to a live user."""

    code = Code.FAILED_PRECONDITION
    reason = "USER_NOT_FOUND"

    def __init__(self, user_id: str) -> None:
        super().__init__("user", user_id, "the session's user does not exist or is deleted")


class NotDeleted(ResourceError):
    """Only what is deleted can be undeleted."""

    code = Code.FAILED_PRECONDITION
    reason = "NOT_DELETED"

    def __init__(self, resource_type: str, resource_name: str) -> None:
        super().__init__(resource_type, resource_name, f"the {resource_type} is not deleted")


class Aborted(RecallError):
    code = Code.ABORTED


class EtagMismatch(Aborted):
    reason = "ETAG_MISMATCH"

    def __init__(self) -> None:
        super().__init__("the etag is not the current one: read again, then decide")


class SeqMismatch(Aborted):
    reason = "SEQ_MISMATCH"

    def __init__(self, last_seq: int) -> None:
        super().__init__("expected_last_seq is not the session's last_seq", {"last_seq": str(last_seq)})
        self.last_seq = last_seq


class Contention(Aborted):
    """Concurrent calls kept getting in each other's way."""

    reason = "CONTENTION"
    retry_after = 0.1

    def __init__(self) -> None:
        super().__init__("concurrent calls got in each other's way: retry")


class ResourceExhausted(RecallError):
    code = Code.RESOURCE_EXHAUSTED


class LimitExceeded(ResourceExhausted):
    """The result of a valid request would be larger than a limit allows."""

    reason = "LIMIT_EXCEEDED"

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field}: {description}", {"field": field})
        self.field = field


class Overloaded(ResourceExhausted):
    reason = "OVERLOADED"
    retry_after = 1.0

    def __init__(self) -> None:
        super().__init__("too many calls at once: retry later")


class QuotaExceeded(ResourceExhausted):
    """The caller's namespace has used up its share; others go on.

    Args:
        quota: which of them: `calls_per_second` or `concurrent_calls`.
        allowed: how many of those the namespace may have.
        retry_after: seconds until another call has a chance.
    """

    reason = "LIMIT_EXCEEDED"

    def __init__(self, quota: str, allowed: float, retry_after: float) -> None:
        super().__init__(
            f"the namespace is at its quota of {allowed:g} {quota.replace('_', ' ')}: retry later",
            {"quota": quota, "allowed": f"{allowed:g}"},
        )
        self.retry_after = retry_after


class Unauthenticated(RecallError):
    code = Code.UNAUTHENTICATED


class CredentialMissing(Unauthenticated):
    reason = "CREDENTIAL_MISSING"

    def __init__(self) -> None:
        super().__init__("the call needs a credential, as metadata `authorization: Bearer …`")


class CredentialInvalid(Unauthenticated):
    """Unknown, revoked, forged, or for somebody else: which of them is not told."""

    reason = "CREDENTIAL_INVALID"

    def __init__(self) -> None:
        super().__init__("the credential is not valid here")


class CredentialExpired(Unauthenticated):
    """A genuine credential whose time is over."""

    reason = "CREDENTIAL_EXPIRED"

    def __init__(self) -> None:
        super().__init__("the credential has expired")


class ScopeMissing(RecallError):
    """The credential is good, but not for this method."""

    code = Code.PERMISSION_DENIED
    reason = "SCOPE_MISSING"

    def __init__(self, scope: str) -> None:
        super().__init__(f"the credential lacks the scope `{scope}`", {"scope": scope})


class Unavailable(RecallError):
    code = Code.UNAVAILABLE
    retry_after = 1.0


class StorageUnavailable(Unavailable):
    """The database did not answer. For a write the outcome is unknown: repeat it under the same ids."""

    reason = "STORAGE_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__("the database is not available: retry")


class ShuttingDown(Unavailable):
    reason = "SHUTTING_DOWN"

    def __init__(self) -> None:
        super().__init__("the server is shutting down: retry elsewhere")


class DeadlineExceeded(RecallError):
    """The call's time is over; its statement was stopped."""

    code = Code.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"

    def __init__(self, message: str = "the call's deadline has passed") -> None:
        super().__init__(message)


class Cancelled(RecallError):
    """The caller has gone away; its statement was stopped."""

    code = Code.CANCELLED
    reason = "CANCELLED"

    def __init__(self) -> None:
        super().__init__("the call was cancelled")


class Internal(RecallError):
    """A defect. `error_id` finds the whole story in the log."""

    code = Code.INTERNAL
    reason = "INTERNAL"

    def __init__(self, error_id: str) -> None:
        super().__init__(f"internal error {error_id}", {"error_id": error_id})


def reason_of(error: Exception) -> str:
    """What a log line may say of any error: its reason, else its type. Its text can quote what users wrote."""
    return error.reason if isinstance(error, RecallError) else type(error).__name__
