"""What accepted calls wrote, kept beside the database, which must hold exactly that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld.metadata import from_json

# A repeated call answers with the create_time of the first one, and a purged message may be written again: only
# together do these name one row.
MessageKey = tuple[str, str, datetime]

_MESSAGES = """
    select s.session_id, m.message_id::text, m.create_time, m.seq, m.role, m.content, m.metadata::text
      from recalld.message as m left join recalld.session as s using (session_key)
"""
_SESSIONS = "select session_id, last_seq, user_id, metadata::text from recalld.session"
_USERS = "select user_id, email, first_name, last_name, metadata::text from recalld.app_user"


@dataclass
class Account:
    """One database's worth of acknowledged writes.

    Attributes:
        messages: every one ever acknowledged, with seq, role, content and metadata.
        sessions: last_seq, user_id and metadata of every id that was ever written to, as last answered.
        users: names and metadata, likewise.
    """

    messages: dict[MessageKey, tuple[Any, ...]] = field(default_factory=dict)
    sessions: dict[str, list[Any]] = field(default_factory=dict)
    users: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    purged_messages: int = 0
    purged_sessions: int = 0
    purged_users: int = 0

    def enter(self, request: Any, responses: Sequence[Any]) -> None:
        """Enters a call that was answered with OK, and checks that the answer gives back what was sent."""
        match request:
            case memory_pb2.AddMemoryRequest():
                self._added(request, responses[0])
            case memory_pb2.UpdateMessageRequest():
                self._updated(request, responses[0].message)
            case admin_pb2.PurgeRequest() if not request.dry_run:
                self.purged_sessions += responses[-1].sessions
                self.purged_messages += responses[-1].messages
                self.purged_users += responses[-1].users
            case session_pb2.CreateSessionRequest() | session_pb2.UpdateSessionRequest():
                self._wrote_session(request, responses[0].session)
            case user_pb2.CreateUserRequest() | user_pb2.UpdateUserRequest():
                self._wrote_user(request, responses[0].user)

    def _added(self, request: memory_pb2.AddMemoryRequest, response: memory_pb2.AddMemoryResponse) -> None:
        first = response.messages[0].seq
        assert [added.seq for added in response.messages] == list(range(first, first + len(request.messages)))
        repeated = False
        for sent, added in zip(request.messages, response.messages, strict=True):
            key = (request.session_id, added.message_id, moment(added.create_time))
            repeated = key in self.messages
            if repeated:
                assert self.messages[key][0] == added.seq
            else:
                self.messages[key] = (added.seq, sent.role, sent.content, plain(sent.metadata))
        if repeated:
            return
        if response.session_created:
            self.sessions[request.session_id] = [0, request.user_id, plain(request.metadata)]
        self.sessions[request.session_id][0] = response.messages[-1].seq

    def _updated(self, request: memory_pb2.UpdateMessageRequest, message: memory_pb2.Message) -> None:
        key = (message.session_id, message.message_id, moment(message.create_time))
        seq, role, content, _ = self.messages[key]
        assert message.seq == seq
        assert message.role in (role, request.role)
        assert message.content in (content, request.content)
        self.messages[key] = (seq, message.role, message.content, plain(message.metadata))

    def _wrote_session(self, request: Any, session: session_pb2.Session) -> None:
        if isinstance(request, session_pb2.CreateSessionRequest):
            assert request.session_id in ("", session.session_id)
            assert (session.user_id, plain(session.metadata)) == (request.user_id, plain(request.metadata))
        self.sessions[session.session_id] = [session.last_seq, session.user_id, plain(session.metadata)]

    def _wrote_user(self, request: Any, user: user_pb2.User) -> None:
        if isinstance(request, user_pb2.CreateUserRequest):
            assert request.user_id in ("", user.user_id)
            assert _profile(user) == _profile(request)
        self.users[user.user_id] = _profile(user)

    def balance(self, connection: psycopg.Connection[Any]) -> None:
        """Raises AssertionError unless the database holds what was acknowledged, less what was purged."""
        messages = connection.execute(_MESSAGES).fetchall()
        sessions = connection.execute(_SESSIONS).fetchall()
        users = connection.execute(_USERS).fetchall()
        for session_id, message_id, time, *row, metadata in messages:
            kept = self.messages.get((session_id, message_id, time))
            assert (*row, _document(metadata)) == kept, f"message {message_id} of {session_id!r}: {row} is not {kept}"
        assert len(messages) == len(self.messages) - self.purged_messages
        for session_id, last_seq, user_id, metadata in sessions:
            assert [last_seq, user_id or "", _document(metadata)] == self.sessions.get(session_id), session_id
        assert len(self.sessions) - len(sessions) <= self.purged_sessions
        for user_id, *names, metadata in users:
            assert (*names, _document(metadata)) == self.users.get(user_id), user_id
        assert len(self.users) - len(users) <= self.purged_users


def _profile(message: Any) -> tuple[Any, ...]:
    return message.email, message.first_name, message.last_name, plain(message.metadata)


def plain(struct: Struct) -> Any:
    """The document with every number a double, as it is on the wire."""
    return MessageToDict(struct)


def _document(text: str | None) -> Any:
    return _doubles(from_json(text)) if text else {}


def _doubles(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _doubles(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_doubles(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def moment(timestamp: Timestamp) -> datetime:
    return timestamp.ToDatetime(UTC)


def parsed(kind: type[Message], data: bytes) -> Message | None:
    """The message that the bytes are, or None if they are none."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None
