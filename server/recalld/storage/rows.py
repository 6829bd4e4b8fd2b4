"""What the subjects of the store share: the clock, etags, and rows as the domain's records."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from recalld import metadata
from recalld.domain import Message, Metadata, MetadataChange, Session, User
from recalld.errors import LimitExceeded
from recalld.limits import MAX_METADATA_BYTES
from recalld.storage.database import Database

Row = tuple[Any, ...]
Values = dict[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NEVER = (-1, _EPOCH)


def utc_now() -> datetime:
    return datetime.now(UTC)


class SubjectStore:
    """Base of the parts of PostgresStore.

    Args:
        database: where everything is kept.
        clock: the time that writes are stamped with. It is the server's, not the database's, so that one statement
            serves wherever it runs; no guarantee rests on it.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = database
        self._clock = clock

    def _times(self) -> Values:
        now = self._clock()
        return {"time": now, "minute": to_minute(now)}


def to_minute(time: datetime) -> datetime:
    """The minute of a time. Listings by update time are ordered by it: see session.active_time."""
    return time.replace(second=0, microsecond=0)


def session_of(row: Row) -> Session:
    session_id, user_id, document, message_count, last_seq, create_time, update_time, delete_time, version = row
    return Session(
        session_id,
        user_id or "",
        document,
        message_count,
        last_seq,
        create_time,
        update_time,
        delete_time,
        _etag(version, create_time),
    )


def message_of(row: Row) -> Message:
    message_id, seq, role, content, document, token_count, create_time, update_time = row
    return Message(
        message_id, seq, role, content, document or {}, token_count or 0, create_time, update_time or create_time
    )


def user_of(row: Row) -> User:
    user_id, email, first_name, last_name, document, create_time, update_time, delete_time, version = row
    return User(
        user_id,
        email,
        first_name,
        last_name,
        document,
        create_time,
        update_time,
        delete_time,
        _etag(version, create_time),
    )


def _etag(version: int, create_time: datetime) -> str:
    """The etag of a row. One that was purged and created again has the same first version, but another create time."""
    return f"{(create_time - _EPOCH) // _MICROSECOND:x}.{version:x}"


def etag_condition(etag: str) -> Values:
    """The parameters of the condition that an etag makes: none for "", one that never holds for a malformed etag."""
    if not etag:
        return {"version": None, "version_time": None}
    time, _, version = etag.partition(".")
    try:
        wanted = (int(version, 16), _EPOCH + int(time, 16) * _MICROSECOND)
    except (ValueError, OverflowError):
        wanted = _NEVER
    if _etag(*wanted) != etag or not 0 <= wanted[0] < 2**63:  # another spelling, such as "0A" for "a"
        wanted = _NEVER
    return {"version": wanted[0], "version_time": wanted[1]}


def metadata_change(change: MetadataChange | None) -> Values:
    """The parameters of a change of metadata; None leaves the metadata as it is."""
    if change is None:
        return {"metadata": None, "replace": False}
    return {"metadata": metadata.to_json(change.document), "replace": change.replace}


def check_merged(document: Metadata) -> None:
    """Raises LimitExceeded when a merge made the document too large. Call it in the transaction, to roll that back."""
    if metadata.size(document) > MAX_METADATA_BYTES:
        raise LimitExceeded("metadata", f"would be larger than {MAX_METADATA_BYTES} bytes after merging")
