"""Messages on Postgres."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from psycopg import Rollback

from recalld import errors, metadata
from recalld.domain import (
    INTERNAL_CALL,
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
from recalld.gathering import aside
from recalld.limits import MAX_PAGE_BYTES, MAX_SEARCHED_NEWEST, MAX_SEARCHED_RARE, MAX_SEARCHED_SESSIONS
from recalld.storage.appends import CREATED, UNDELETED, Append, Appends, append, message_values
from recalld.storage.arrays import array
from recalld.storage.database import Connection, Database
from recalld.storage.distribution import distributed
from recalld.storage.keys import seq_of, session_key
from recalld.storage.reads import Read, Reads
from recalld.storage.rows import (
    SubjectStore,
    Values,
    check_merged,
    message_of,
    metadata_change,
    utc_now,
)
from recalld.storage.sessions import ATTEMPTS, find, lock_session, lock_user, revive
from recalld.storage.sql import compose, statements

_SQL = statements("memory")

_LIST_ASCENDING, _LIST_DESCENDING = (
    compose(_SQL["list_messages"], columns=_SQL["columns"], range=_SQL[order], direction=direction)
    for order, direction in (("ascending", "asc"), ("descending", "desc"))
)
_GET, _UPDATE, _DELETE = (
    {
        where: compose(_SQL[name], columns=_SQL["columns"], by_id=_SQL[where])
        for where in ("by_given_id", "by_derived_id")
    }
    for name in ("get_message", "update_message", "delete_message")
)
_SEARCH = compose(_SQL["search"], columns=_SQL["columns"])
_REPLAYED, _REPLAYED_DERIVED = (
    compose(_SQL["replayed"], by_id=_SQL[where]) for where in ("replayed_by_given_id", "replayed_by_derived_id")
)


class MemoryStore(SubjectStore):
    """The part of recalld.domain.Store about messages."""

    def __init__(self, database: Database, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(database, clock)
        self._appends = Appends(database, clock)
        self._reads = Reads(database)

    def prepare(self) -> None:
        """Turns grouping off if sessions are spread over several nodes: a shared statement would go to all of them.

        To be called when the schema is there, before the first call. On a single node it may be left out. Raises
        StorageUnavailable.
        """
        with self._database.connection(INTERNAL_CALL) as connection:
            self._appends.grouping = self._reads.grouping = not distributed(connection)

    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        key = session_key(call.namespace, memory.session_id)
        documents = [metadata.to_json(message.metadata) if message.metadata else None for message in memory.messages]
        what = Append(call, key, memory, documents, create=not memory.user_id)
        derived = [seq_of(key, message.message_id) if message.message_id else None for message in memory.messages]
        # The common case is one statement: the session is live, or new and nobody's.
        if not any(derived) and (added := self._appends.append(what)):
            return added
        return aside(self._add_carefully, what, derived)

    def get_memory(self, call: Call, session_id: str, last_n: int, max_tokens: int, after_seq: int) -> Memory:
        return self._reads.read(Read(call, session_key(call.namespace, session_id), last_n, max_tokens, after_seq))

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
        messages = [message_of(row[:-1]) for row in rows if row[0] is not None]
        return MessagePage(messages, more=bool(messages and rows[-1][-1]))

    def get_message(self, call: Call, session_id: str, message_id: str) -> Message:
        where, values = _address(call, session_id, message_id)
        with self._database.connection(call) as connection:
            row = connection.execute(_GET[where], values).fetchone()
        if row is None:
            raise errors.MessageNotFound(message_id)
        return message_of(row)

    def update_message(self, call: Call, session_id: str, message_id: str, change: MessageChange) -> Message:
        where, address = _address(call, session_id, message_id)
        values = {
            **address,
            "content": change.content,
            "role": change.role,
            "token_count": change.token_count,
            **metadata_change(change.metadata),
            **self._times(),
        }
        with self._database.connection(call) as connection, connection.transaction():
            row = connection.execute(_UPDATE[where], values).fetchone()
            if row is None:
                raise errors.MessageNotFound(message_id)
            message = message_of(row)
            check_merged(message.metadata)
            return message

    def delete_message(self, call: Call, session_id: str, message_id: str) -> Message:
        where, address = _address(call, session_id, message_id)
        with self._database.connection(call) as connection:
            row = connection.execute(_DELETE[where], {**address, **self._times()}).fetchone()
            if row is None:
                raise errors.MessageNotFound(message_id)
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
            "most_sessions": MAX_SEARCHED_SESSIONS,
            "max_bytes": MAX_PAGE_BYTES,
        }
        with self._database.connection(call) as connection:
            rows = connection.execute(_SEARCH, values).fetchall()
        return [Match(row[0], message_of(row[1:-1]), row[-1]) for row in rows]

    # --- appends that the one statement does not do

    def _add_carefully(self, what: Append, derived: Sequence[int | None]) -> AddedMemory:
        with self._database.connection(what.call) as connection:
            for _ in range(ATTEMPTS):
                if replayed := self._replayed(connection, what, derived):
                    return replayed
                if added := self._append_carefully(connection, what):
                    return added
                if added := append(connection, what, self._clock()):
                    return added
        raise errors.Contention

    def _replayed(self, connection: Connection, what: Append, derived: Sequence[int | None]) -> AddedMemory | None:
        """The first call's result when this is a repetition of it; None when no id of the call is known.

        Args:
            derived: for each message the seq in its id, if that is a derived id of this session; else None.

        Raises MessageIdConflict when the ids belong to other messages or calls; InvalidField for a derived id without a
        message: such ids are reserved for messages to come, and for those that were purged.
        """
        messages = what.memory.messages
        values = {"session_key": what.session_key, "seqs": array(derived), **message_values([what])}
        rows = connection.execute(_REPLAYED, values).fetchall()
        if any(derived):
            rows = sorted(rows + connection.execute(_REPLAYED_DERIVED, values).fetchall())
        found = {row[0] for row in rows}
        for place, seq in enumerate(derived, 1):
            if seq is not None and place not in found:
                raise errors.InvalidField(f"messages[{place - 1}].message_id", "is reserved for another message")
        if not rows:
            return None
        first_seq = rows[0][1]
        for expected, (place, seq, _time, _outcome, same, _written) in enumerate(rows, 1):
            if not same or place != expected or seq != first_seq + expected - 1:
                raise errors.MessageIdConflict(str(messages[place - 1].message_id))
        if len(rows) < len(messages):
            raise errors.MessageIdConflict(str(messages[0].message_id))
        return AddedMemory(
            [AddedMessage(messages[place - 1].message_id, seq, time) for place, seq, time, *_ in rows],
            session_created=rows[0][3] == CREATED,
            session_undeleted=rows[0][3] == UNDELETED,
        )

    def _append_carefully(self, connection: Connection, what: Append) -> AddedMemory | None:
        """Does what the one statement does not: creates the session for a user, revives it, or says what is wrong.

        None when the session has changed since it was looked at. Raises SeqMismatch, UserMissing.
        """
        call, memory = what.call, what.memory
        session = find(connection, call, memory.session_id)
        last_seq = session.last_seq if session else 0
        if memory.expected_last_seq not in (None, last_seq):
            raise errors.SeqMismatch(last_seq)
        with connection.transaction():
            if session is None:
                lock_user(connection, call.namespace, memory.user_id)
                what = what._replace(create=True)
            else:
                if session.delete_time:
                    lock_user(connection, call.namespace, session.user_id)
                live = lock_session(connection, call, session)
                # From here on, others that would delete or revive the session wait for its lock.
                if live is None or (not live and session.delete_time is None):
                    return None
                if not live:
                    revive(connection, call, session, self._times())
                    what = what._replace(outcome=UNDELETED)
            if added := append(connection, what, self._clock()):
                return added
            raise Rollback
        return None


def _address(call: Call, session_id: str, message_id: str) -> tuple[str, Values]:
    """The name of the condition that finds a message by its id, and its values."""
    key = session_key(call.namespace, session_id)
    seq = seq_of(key, message_id)
    if seq is None:
        return "by_given_id", {"session_key": key, "message_id": message_id}
    return "by_derived_id", {"session_key": key, "seq": seq}
