"""What the reference store keeps, and the rules of it that need no store.

They too prefer being obviously right to being fast.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from recalld import errors, limits, metadata
from recalld.domain import (
    AddedMemory,
    AddedMessage,
    Message,
    Metadata,
    MetadataChange,
    NewMessage,
    PurgeProgress,
    PurgeQuery,
    Session,
    User,
)
from recalld.storage.keys import message_id, seq_of

# --- the rules of metadata


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON Merge Patch, in the words of RFC 7396 section 2."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def contains(document: Any, pattern: Any) -> bool:
    """Whether `document` contains `pattern` as Postgres's `jsonb @>` has it."""
    if isinstance(pattern, dict):
        return isinstance(document, dict) and all(
            name in document and contains(document[name], value) for name, value in pattern.items()
        )
    if isinstance(pattern, list):
        return isinstance(document, list) and all(any(contains(each, value) for each in document) for value in pattern)
    # In Python True == 1; in JSON it is not.
    return isinstance(document, bool) is isinstance(pattern, bool) and bool(document == pattern)


def changed(document: Metadata, change: MetadataChange | None) -> Metadata:
    """The document after the change. Raises LimitExceeded."""
    if change is None:
        return document
    if change.replace:
        return change.document
    merged: Metadata = merge_patch(document, change.document)
    if metadata.size(merged) > limits.MAX_METADATA_BYTES:
        raise errors.LimitExceeded("metadata", "too large after merging")
    return merged


# --- the rules of etags, messages and times


def new_etag() -> str:
    return uuid4().hex


def check_etag(given: str, current: str) -> None:
    if given and given != current:
        raise errors.EtagMismatch


def as_sent(message: NewMessage) -> str:
    return json.dumps([message.role, message.content, message.metadata, message.token_count], sort_keys=True)


def tokens(message: Message) -> int:
    return message.token_count or math.ceil(len(message.content.encode()) / 4)


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def within(time: datetime, start: datetime | None, end: datetime | None) -> bool:
    return (start is None or start <= time) and (end is None or time < end)


# --- what is kept


@dataclass
class KeptMessage:
    """A message, live until `delete_time` is set.

    Attributes:
        message: as it is now.
        sent: as it was first sent; what a repeated call is known by.
        session_created, session_undeleted: what the call did whose first message this is.
    """

    message: Message
    sent: str
    session_created: bool
    session_undeleted: bool
    delete_time: datetime | None = None


@dataclass
class KeptSession:
    session: Session
    key: UUID
    messages: list[KeptMessage] = field(default_factory=list)  # in order of seq, purged ones gone

    @property
    def live(self) -> bool:
        return self.session.delete_time is None

    def live_messages(self) -> list[Message]:
        return [kept.message for kept in self.messages if kept.delete_time is None]

    def delete_messages(self, time: datetime) -> None:
        for kept in self.messages:
            kept.delete_time = kept.delete_time or time

    def delete(self, time: datetime) -> None:
        self.delete_messages(time)
        self.set(time, message_count=0, delete_time=time, etag=new_etag())

    def set(self, time: datetime, **fields: Any) -> Session:
        self.session = self.session._replace(update_time=time, **fields)
        return self.session

    def first_result(self, messages: Sequence[NewMessage]) -> AddedMemory | None:
        """The first call's result if this call repeats it, None if none of its ids was used.

        Raises MessageIdConflict.
        """
        by_id: dict[str | None, KeptMessage] = {each.message.message_id: each for each in self.messages}
        for place, new in enumerate(messages):
            if new.message_id and new.message_id not in by_id and seq_of(self.key, new.message_id):
                raise errors.InvalidField(f"messages[{place}].message_id", "is reserved for another message")
        used = [(place, new, by_id[new.message_id]) for place, new in enumerate(messages) if new.message_id in by_id]
        if not used:
            return None
        _, _, first = used[0]
        for expected_place, (place, new, old) in enumerate(used):
            in_place = place == expected_place and old.message.seq == first.message.seq + place
            if not in_place or old.sent != as_sent(new):
                raise errors.MessageIdConflict(str(new.message_id))
        if len(used) < len(messages):
            raise errors.MessageIdConflict(str(messages[0].message_id))
        return AddedMemory(
            [AddedMessage(old.message.message_id, old.message.seq, old.message.create_time) for _, _, old in used],
            session_created=first.session_created,
            session_undeleted=first.session_undeleted,
        )

    def append(
        self, messages: Sequence[NewMessage], time: datetime, *, session_created: bool, session_undeleted: bool
    ) -> AddedMemory:
        added = []
        for place, new in enumerate(messages):
            seq = self.session.last_seq + 1 + place
            id_ = new.message_id or message_id(self.key, seq)
            message = Message(id_, seq, new.role, new.content, new.metadata, new.token_count, time, time)
            first = place == 0
            self.messages.append(
                KeptMessage(message, as_sent(new), first and session_created, first and session_undeleted)
            )
            added.append(AddedMessage(id_, seq, time))
        self.set(
            time,
            last_seq=self.session.last_seq + len(messages),
            message_count=self.session.message_count + len(messages),
        )
        return AddedMemory(added, session_created, session_undeleted)


@dataclass
class Namespace:
    sessions: dict[str, KeptSession] = field(default_factory=dict)
    users: dict[str, User] = field(default_factory=dict)

    def live_session(self, session_id: str) -> KeptSession:
        kept = self.sessions.get(session_id)
        if kept is None or not kept.live:
            raise errors.SessionNotFound(session_id)
        return kept

    def live_message(self, session_id: str, message_id: str) -> tuple[KeptSession, KeptMessage]:
        if (session := self.sessions.get(session_id)) is not None:
            for kept in session.messages:
                if kept.message.message_id == message_id and kept.delete_time is None:
                    return session, kept
        raise errors.MessageNotFound(str(message_id))

    def live_user(self, user_id: str) -> User:
        user = self.users.get(user_id)
        if user is None or user.delete_time is not None:
            raise errors.UserNotFound(user_id)
        return user

    def check_user(self, user_id: str) -> None:
        """A session may belong to nobody or to a live user."""
        if user_id and (user_id not in self.users or self.users[user_id].delete_time is not None):
            raise errors.UserMissing(user_id)

    def sessions_of(self, user_id: str) -> list[KeptSession]:
        return [kept for kept in self.sessions.values() if kept.session.user_id == user_id]

    def purge(self, query: PurgeQuery) -> PurgeProgress:
        def due(delete_time: datetime | None) -> bool:
            return delete_time is not None and delete_time <= query.cutoff

        sessions = messages = users = 0
        for session_id, kept in list(self.sessions.items()):
            if query.session_id not in ("", session_id) or query.user_id not in ("", kept.session.user_id):
                continue
            before = len(kept.messages)
            kept.messages = [each for each in kept.messages if not due(each.delete_time)]
            messages += before - len(kept.messages)
            if due(kept.session.delete_time):
                del self.sessions[session_id]
                sessions += 1
        for user_id, user in list(self.users.items()):
            if query.session_id or query.user_id not in ("", user_id):
                continue
            if due(user.delete_time) and not self.sessions_of(user_id):
                del self.users[user_id]
                users += 1
        return PurgeProgress(sessions, messages, users)
