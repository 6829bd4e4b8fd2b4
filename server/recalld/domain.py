"""The domain: what the service keeps, what a caller can ask of it, and the store that keeps it.

Nothing here knows gRPC or Postgres. Services translate requests into these calls; a store carries them out. Two stores
implement `Store`: Postgres (recalld.storage) and the reference model of the tests, held to one contract suite.

Times are aware datetimes in UTC with microsecond precision. Metadata is a JSON object of dict, list, str, bool, int,
float and None. An empty `user_id` means nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID

from recalld.limits import DEFAULT_PURGE_BATCH

Metadata = dict[str, Any]


# --- what is kept


class Session(NamedTuple):
    """One conversation. `message_count` counts live messages; `last_seq` is the newest seq ever assigned."""

    session_id: str
    user_id: str
    metadata: Metadata
    message_count: int
    last_seq: int
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    etag: str


class Message(NamedTuple):
    """One turn. `token_count` is 0 when the caller did not count."""

    message_id: str
    seq: int
    role: str
    content: str
    metadata: Metadata
    token_count: int
    create_time: datetime
    update_time: datetime


class User(NamedTuple):
    """A person or other principal that sessions belong to."""

    user_id: str
    email: str
    first_name: str
    last_name: str
    metadata: Metadata
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None
    etag: str


# --- who asks


class Call(Protocol):
    """One caller's request, as far as a store must know it."""

    @property
    def namespace(self) -> str:
        """The isolated world that the call may touch. It comes from the caller's credential."""

    def remaining(self) -> float | None:
        """Seconds until the call's deadline, never negative; None when it has none."""

    def when_over(self, callback: Callable[[], None]) -> bool:
        """Has `callback` run, on any thread, when the call ends, however it ends.

        Returns False, without keeping the callback, when the call is over already.
        """


@dataclass(frozen=True, slots=True)
class LocalCall:
    """A call that the server makes itself. It has no deadline and is never cancelled."""

    namespace: str

    def remaining(self) -> float | None:
        return None

    def when_over(self, callback: Callable[[], None]) -> bool:
        return True


# For what the server does in no namespace, or across all of them.
INTERNAL_CALL: Final = LocalCall("")


# --- what is asked


class NewMessage(NamedTuple):
    """A message to append. With an id, repeating the call is safe; without one the store makes it."""

    message_id: str | None
    role: str
    content: str
    metadata: Metadata
    token_count: int


@dataclass(frozen=True, slots=True)
class NewMemory:
    """The arguments of one AddMemory.

    Attributes:
        messages: what to append, oldest first; not empty. Either all have ids, which are distinct, or none has.
        user_id, metadata: for a session that this call creates.
        expected_last_seq: append only if the session's last_seq is this; None to append in any case.
    """

    session_id: str
    messages: Sequence[NewMessage]
    user_id: str = ""
    metadata: Metadata | None = None
    expected_last_seq: int | None = None


class AddedMessage(NamedTuple):
    message_id: str
    seq: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class AddedMemory:
    """The result of AddMemory; for a repeated call, that of the first."""

    messages: Sequence[AddedMessage]
    session_created: bool
    session_undeleted: bool


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """A JSON Merge Patch (RFC 7396), or with `replace` a whole new document."""

    document: Metadata
    replace: bool = False


@dataclass(frozen=True, slots=True)
class SessionChange:
    """Changes to a session; None leaves a field as it is. `user_id` "" detaches the session from its user."""

    metadata: MetadataChange | None = None
    user_id: str | None = None
    etag: str = ""


@dataclass(frozen=True, slots=True)
class MessageChange:
    """Changes to a message; None leaves a field as it is."""

    content: str | None = None
    role: str | None = None
    token_count: int | None = None
    metadata: MetadataChange | None = None


@dataclass(frozen=True, slots=True)
class UserChange:
    """Changes to a user; None leaves a field as it is."""

    email: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    metadata: MetadataChange | None = None
    etag: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """What a new user is created with."""

    email: str = ""
    first_name: str = ""
    last_name: str = ""
    metadata: Metadata | None = None


class SessionOrder(Enum):
    CREATE_TIME_ASC = "create_time_asc"
    CREATE_TIME_DESC = "create_time_desc"
    UPDATE_TIME_ASC = "update_time_asc"
    UPDATE_TIME_DESC = "update_time_desc"


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """Which sessions to list, and in which order. Time ranges are half-open: from <= time < to."""

    order: SessionOrder = SessionOrder.CREATE_TIME_ASC
    show_deleted: bool = False
    user_id: str = ""
    metadata: Metadata | None = None
    create_time_from: datetime | None = None
    create_time_to: datetime | None = None
    update_time_from: datetime | None = None
    update_time_to: datetime | None = None


class Position(NamedTuple):
    """A place in a listing: behind the row with this time and key."""

    time: datetime
    key: UUID


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Sessions with the position behind each, and where the next page begins: None after the last one.

    `next` can lie behind the last session of the page: what lies between was examined and does not match.
    """

    sessions: Sequence[tuple[Session, Position]]
    next: Position | None


@dataclass(frozen=True, slots=True)
class UserPage:
    """Users with the position behind each, and where the next page begins: None after the last one."""

    users: Sequence[tuple[User, Position]]
    next: Position | None


@dataclass(frozen=True, slots=True)
class Memory:
    """A session's newest messages, oldest first. No session: it is unknown or deleted."""

    session: Session | None
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Messages in the order asked for; `more` when others follow."""

    messages: Sequence[Message]
    more: bool


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A search in one session, in one user's sessions, or with both empty in the whole namespace."""

    query: str
    limit: int
    session_id: str = ""
    user_id: str = ""
    roles: Sequence[str] = ()
    metadata: Metadata | None = None
    create_time_from: datetime | None = None
    create_time_to: datetime | None = None


class Match(NamedTuple):
    session_id: str
    message: Message
    score: float


@dataclass(frozen=True, slots=True)
class PurgeQuery:
    """What to remove for good: all that was deleted at or before `cutoff`, in one session, of one user, or with both
    empty in the whole namespace, at most `batch_size` messages a transaction."""

    cutoff: datetime
    session_id: str = ""
    user_id: str = ""
    dry_run: bool = False
    batch_size: int = DEFAULT_PURGE_BATCH


class PurgeProgress(NamedTuple):
    """What a purge has removed so far (or in a dry run, would have)."""

    sessions: int
    messages: int
    users: int


# --- who keeps it


class Store(Protocol):
    """Keeps users, sessions and messages, each namespace by itself.

    Every method may raise StorageUnavailable, Overloaded, Contention, DeadlineExceeded and Cancelled besides what its
    own docstring names. No method leaves anything half done. A store checks no limits but those of merged metadata
    (LimitExceeded): its callers do.
    """

    # sessions

    def create_session(self, call: Call, session_id: str, user_id: str, metadata: Metadata) -> Session:
        """Creates a session, or starts a deleted one afresh. Raises SessionAlreadyExists, UserMissing."""

    def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
        """Raises SessionNotFound."""

    def update_session(self, call: Call, session_id: str, change: SessionChange) -> Session:
        """Raises SessionNotFound, UserMissing, EtagMismatch, LimitExceeded."""

    def delete_session(self, call: Call, session_id: str, *, etag: str = "") -> Session:
        """Deletes the session and all its messages. Raises SessionNotFound, EtagMismatch."""

    def undelete_session(self, call: Call, session_id: str) -> Session:
        """Raises SessionNotFound, NotDeleted, UserMissing when the session's user is deleted."""

    def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
        """The next `limit` sessions behind `after`, or fewer."""

    # memory

    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        """Appends all messages or none; repeating a call returns the first call's result and stores nothing.

        Raises MessageIdConflict, SeqMismatch, UserMissing.
        """

    def get_memory(self, call: Call, session_id: str, last_n: int, max_tokens: int, after_seq: int) -> Memory:
        """The newest messages with a seq above `after_seq`: at most `last_n`, in `max_tokens` (0: any) tokens."""

    def list_messages(
        self, call: Call, session_id: str, after_seq: int | None, limit: int, *, descending: bool = False
    ) -> MessagePage:
        """The next `limit` messages behind `after_seq` (None: from the start), or fewer. Raises SessionNotFound."""

    def get_message(self, call: Call, session_id: str, message_id: str) -> Message:
        """Raises MessageNotFound."""

    def update_message(self, call: Call, session_id: str, message_id: str, change: MessageChange) -> Message:
        """Raises MessageNotFound, LimitExceeded."""

    def delete_message(self, call: Call, session_id: str, message_id: str) -> Message:
        """Raises MessageNotFound."""

    def clear_memory(self, call: Call, session_id: str) -> Session:
        """Deletes all messages and keeps the session. Raises SessionNotFound."""

    def search_memory(self, call: Call, query: SearchQuery) -> Sequence[Match]:
        """The best matches, best first."""

    # users

    def create_user(self, call: Call, user_id: str, profile: Profile) -> User:
        """Creates a user, or starts a deleted one afresh. Raises UserAlreadyExists."""

    def get_user(self, call: Call, user_id: str, *, show_deleted: bool = False) -> User:
        """Raises UserNotFound."""

    def update_user(self, call: Call, user_id: str, change: UserChange) -> User:
        """Raises UserNotFound, EtagMismatch, LimitExceeded."""

    def delete_user(self, call: Call, user_id: str, *, etag: str = "") -> User:
        """Deletes the user, its sessions and their messages. Raises UserNotFound, EtagMismatch."""

    def undelete_user(self, call: Call, user_id: str) -> User:
        """Makes the user live again, not its sessions. Raises UserNotFound, NotDeleted."""

    def list_users(self, call: Call, after: Position | None, limit: int, *, show_deleted: bool = False) -> UserPage:
        """The next `limit` users behind `after` by create time, or fewer."""

    # purge

    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        """Removes step by step, yielding the totals after each step; what was yielded is committed.

        A deleted user goes when no session, live or deleted, is left of it.
        """
