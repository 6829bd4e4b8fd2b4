"""Messages on Postgres."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from uuid import UUID

from psycopg import Rollback
from psycopg import errors as pg

from recalld import errors, metadata
from recalld.domain import (
    AddedMemory,
    AddedMessage,
    Call,
    Match,
    Memory,
    Message,
    MessageChange,
    MessagePage,
    NewMemory,
    SearchQuery,
)
from recalld.limits import MAX_EXAMINED, MAX_PAGE_BYTES, MAX_SEARCHED_NEWEST, MAX_SEARCHED_RARE
from recalld.storage.database import Connection
from recalld.storage.keys import session_key
from recalld.storage.rows import SubjectStore, Values, check_merged, message_of, metadata_change, session_of
from recalld.storage.sessions import ATTEMPTS, find, lock_session, lock_user, revive
from recalld.storage.sql import compose, statements

_SESSION_SQL = statements("session")
_SQL = statements("memory")

# message.outcome: what the call did, to be told again to whoever repeats it.
_CREATED = 1
_UNDELETED = 2

_SESSION_WIDTH = _SESSION_SQL["columns"].count(",") + 1
_MESSAGE_WIDTH = _SQL["columns"].count(",") + 1

_GET_MEMORY = compose(
    _SQL["get_memory"],
    columns=_SQL["columns"],
    session_columns=_SESSION_SQL["columns"],
    no_session=", ".join(["null"] * _SESSION_WIDTH),
    no_message=", ".join(["null"] * _MESSAGE_WIDTH),
)
_LIST_ASCENDING, _LIST_DESCENDING = (
    compose(_SQL["list_messages"], columns=_SQL["columns"], range=_SQL[order], direction=direction)
    for order, direction in (("ascending", "asc"), ("descending", "desc"))
)
_GET, _UPDATE, _DELETE, _SEARCH = (
    compose(_SQL[name], columns=_SQL["columns"])
    for name in ("get_message", "update_message", "delete_message", "search")
)


class MemoryStore(SubjectStore):
    """The part of recalld.domain.Store about messages."""

    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        values = self._append_values(call, memory)
        with self._database.connection(call) as connection:
            for _ in range(ATTEMPTS):
                # The common case is this one statement: the session is live, or new and nobody's.
                if added := self._append(connection, memory, values):
                    return added
                if replayed := self._replayed(connection, memory, values):
                    return replayed
                if added := self._append_carefully(connection, call, memory, values):
                    return added
        raise errors.Contention

    def get_memory(self, call: Call, session_id: str, last_n: int, max_tokens: int, after_seq: int) -> Memory:
        values = {
            "session_key": session_key(call.namespace, session_id),
            "last_n": last_n,
            "max_tokens": max_tokens,
            "after_seq": after_seq,
            "max_bytes": MAX_PAGE_BYTES,
        }
        with self._database.connection(call) as connection:
            rows = connection.execute(_GET_MEMORY, values).fetchall()
        session = None
        messages = []
        for row in rows:
            if row[0] is not None:
                session = session_of(row[:_SESSION_WIDTH])
            else:
                messages.append(message_of(row[_SESSION_WIDTH:]))
        messages.sort(key=attrgetter("seq"))
        return Memory(session, messages)

    def list_messages(
        self, call: Call, session_id: str, after_seq: int | None, limit: int, *, descending: bool = False
    ) -> MessagePage:
        values = {
            "session_key": session_key(call.namespace, session_id),
            "after_seq": after_seq,
            "limit": limit,
            "max_bytes": MAX_PAGE_BYTES,
        }
        with self._database.connection(call) as connection:
            rows = connection.execute(_LIST_DESCENDING if descending else _LIST_ASCENDING, values).fetchall()
        if not rows:
            raise errors.SessionNotFound(session_id)
        messages = [message_of(row[:_MESSAGE_WIDTH]) for row in rows if row[0] is not None]
        return MessagePage(messages, more=bool(messages and rows[-1][_MESSAGE_WIDTH]))

    def get_message(self, call: Call, session_id: str, message_id: UUID) -> Message:
        values = {"session_key": session_key(call.namespace, session_id), "message_id": message_id}
        with self._database.connection(call) as connection:
            row = connection.execute(_GET, values).fetchone()
        if row is None:
            raise errors.MessageNotFound(str(message_id))
        return message_of(row)

    def update_message(self, call: Call, session_id: str, message_id: UUID, change: MessageChange) -> Message:
        values = {
            "session_key": session_key(call.namespace, session_id),
            "message_id": message_id,
            "content": change.content,
            "role": change.role,
            "token_count": change.token_count,
            **metadata_change(change.metadata),
            **self._times(),
        }
        with self._database.connection(call) as connection, connection.transaction():
            row = connection.execute(_UPDATE, values).fetchone()
            if row is None:
                raise errors.MessageNotFound(str(message_id))
            message = message_of(row)
            check_merged(message.metadata)
            return message

    def delete_message(self, call: Call, session_id: str, message_id: UUID) -> Message:
        values = {
            "session_key": session_key(call.namespace, session_id),
            "message_id": message_id,
            **self._times(),
        }
        with self._database.connection(call) as connection:
            row = connection.execute(_DELETE, values).fetchone()
            if row is None:
                raise errors.MessageNotFound(str(message_id))
            return message_of(row)

    def search_memory(self, call: Call, query: SearchQuery) -> Sequence[Match]:
        values = {
            "namespace": call.namespace,
            "session_key": session_key(call.namespace, query.session_id) if query.session_id else None,
            "user_id": query.user_id or None,
            "query": query.query,
            "roles": list(query.roles) or None,
            "metadata": None if query.metadata is None else metadata.to_json(query.metadata),
            "create_from": query.create_time_from,
            "create_to": query.create_time_to,
            "limit": query.limit,
            "newest": MAX_SEARCHED_NEWEST,
            "rare": MAX_SEARCHED_RARE,
            "most_sessions": MAX_EXAMINED,
            "max_bytes": MAX_PAGE_BYTES,
        }
        with self._database.connection(call) as connection:
            rows = connection.execute(_SEARCH, values).fetchall()
        return [Match(row[0], message_of(row[1:-1]), row[-1]) for row in rows]

    # --- appending

    def _append_values(self, call: Call, memory: NewMemory) -> Values:
        messages = memory.messages
        return {
            "session_key": session_key(call.namespace, memory.session_id),
            "namespace": call.namespace,
            "session_id": memory.session_id,
            "user_id": memory.user_id,
            "metadata": metadata.to_json(memory.metadata or {}),
            "create": not memory.user_id,
            "expected_last_seq": memory.expected_last_seq,
            "outcome": None,
            "time": self._clock(),
            "message_ids": [message.message_id for message in messages],
            "roles": [message.role for message in messages],
            "contents": [message.content for message in messages],
            "metadatas": [metadata.to_json(message.metadata) if message.metadata else None for message in messages],
            "token_counts": [message.token_count or None for message in messages],
        }

    def _append(self, connection: Connection, memory: NewMemory, values: Values) -> AddedMemory | None:
        """One statement, all or nothing; None when it did nothing, be it that the call is a repetition."""
        try:
            row = connection.execute(_SQL["append"], values).fetchone()
        except pg.UniqueViolation:
            return None
        if row is None or row[0] is None:
            return None
        last_seq, outcome = row
        first_seq = last_seq - len(memory.messages) + 1
        return AddedMemory(
            [
                AddedMessage(message.message_id, seq, values["time"])
                for seq, message in enumerate(memory.messages, first_seq)
            ],
            session_created=outcome == _CREATED,
            session_undeleted=outcome == _UNDELETED,
        )

    def _replayed(self, connection: Connection, memory: NewMemory, values: Values) -> AddedMemory | None:
        """The first call's result when this is a repetition of it; None when no id of the call is known.

        Raises MessageIdConflict when the ids are known from something else.
        """
        rows = connection.execute(_SQL["replayed"], values).fetchall()
        if not rows:
            return None
        first_seq = rows[0][1]
        for expected, (place, seq, _time, _outcome, same) in enumerate(rows, 1):
            if not same or place != expected or seq != first_seq + expected - 1:
                raise errors.MessageIdConflict(str(memory.messages[place - 1].message_id))
        if len(rows) < len(memory.messages):
            raise errors.MessageIdConflict(str(memory.messages[0].message_id))
        return AddedMemory(
            [
                AddedMessage(message.message_id, seq, time)
                for message, (_place, seq, time, _outcome, _same) in zip(memory.messages, rows, strict=True)
            ],
            session_created=rows[0][3] == _CREATED,
            session_undeleted=rows[0][3] == _UNDELETED,
        )

    def _append_carefully(
        self, connection: Connection, call: Call, memory: NewMemory, values: Values
    ) -> AddedMemory | None:
        """Does what the one statement does not: creates the session for a user, revives it, or says what is wrong.

        None when the session has changed since it was looked at. Raises SeqMismatch, UserMissing.
        """
        session = find(connection, call, memory.session_id)
        last_seq = session.last_seq if session else 0
        if memory.expected_last_seq not in (None, last_seq):
            raise errors.SeqMismatch(last_seq)
        with connection.transaction():
            if session is None:
                lock_user(connection, call.namespace, memory.user_id)
                values = {**values, "create": True}
            else:
                if session.delete_time:
                    lock_user(connection, call.namespace, session.user_id)
                live = lock_session(connection, call, session)
                # Others may delete and revive it all the time; from here on they wait.
                if live is None or (not live and session.delete_time is None):
                    return None
                if not live:
                    revive(connection, call, session, self._times())
                    values = {**values, "outcome": _UNDELETED}
            if added := self._append(connection, memory, values):
                return added
            raise Rollback
        return None
