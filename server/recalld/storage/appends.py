"""Appending messages: one statement for a call, or group commit: one for all calls that wait at the same time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Lock
from typing import Final, NamedTuple
from uuid import UUID

from psycopg import errors as pg

from recalld import metadata
from recalld.domain import AddedMemory, AddedMessage, Call, NewMemory
from recalld.gathering import Wish, aside, gather, gathers
from recalld.storage.arrays import array
from recalld.storage.database import Connection, Database
from recalld.storage.keys import message_id
from recalld.storage.rows import Values
from recalld.storage.sql import statements
from recalld.together import as_one

_SQL = statements("memory")

# message.outcome: what the call did, to be returned again when it is repeated.
CREATED: Final = 1
UNDELETED: Final = 2

# Calls that one statement takes of those that wait for a lock.
_MOST_CALLS: Final = 32

# One in so many connections may wait for locked sessions, each for one session. The others are for all other calls.
_WAITING_SHARE: Final = 4

# Limits of a call that shares a statement. A large call would keep the others waiting.
_MOST_MESSAGES: Final = 8
MOST_CHARACTERS: Final = 16_384

# Errors of a group that one of its calls can cause. The transaction has rolled back, and each call tries by itself. In
# a group that waits for a lock (True), contention is no such error: all have waited for the same session.
_FAULT: Final = (pg.IntegrityError, pg.DataError, pg.ProgramLimitExceeded, pg.InternalError)
_CONTENTION: Final = (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure)
_FAULTS_OF_ONE: Final = {False: (*_FAULT, *_CONTENTION), True: _FAULT}

# What append_group returns as last_seq of a session that another transaction has locked.
_LOCKED: Final = 0


class Append(NamedTuple):
    """What a call appends, and to which session.

    Attributes:
        metadatas: of the messages, as JSON; None for none.
        create: whether the session may be created.
        outcome: what the call did before it came to append.
    """

    call: Call
    session_key: UUID
    memory: NewMemory
    metadatas: Sequence[str | None]
    create: bool
    outcome: int | None = None


def append(connection: Connection, what: Append, time: datetime) -> AddedMemory | None:
    """Appends in one statement, all or nothing. None when it did nothing, which also happens to a repeated call."""
    memory = what.memory
    values = {
        "session_key": what.session_key,
        "namespace": what.call.namespace,
        "session_id": memory.session_id,
        "user_id": memory.user_id,
        "metadata": metadata.to_json(memory.metadata or {}),
        "create": what.create,
        "expected_last_seq": memory.expected_last_seq,
        "outcome": what.outcome,
        "time": time,
        **message_values([what]),
    }
    try:
        row = connection.execute(_SQL["append"], values).fetchone()
    except pg.UniqueViolation:
        return None
    if row is None or row[0] is None:
        return None
    last_seq, outcome = row
    return _added(what, last_seq - len(memory.messages) + 1, outcome, time)


class Appends:
    """Appends for calls that may share a statement, and with it a round trip and a commit.

    Calls to a session that is locked leave their group, and wait for the lock together.

    Args:
        database: where the messages go.
        clock: the time that messages are stamped with.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        # Turned off on Citus, where a transaction on several sessions spans shards.
        self.grouping = True
        # By locked session: the calls that wait for it but are in no statement yet.
        self._waiting: dict[UUID, deque[_Wish]] = {}
        self._lock = Lock()
        waiting = max(1, database.size // _WAITING_SHARE)
        self._threads = ThreadPoolExecutor(waiting, thread_name_prefix="recalld-locked")

    def append(self, what: Append) -> AddedMemory | None:
        """None when nothing was done: the session is missing or not live, or the call is a repetition."""
        if not self.grouping or not gathers() or not _small(what):
            return aside(self._append_alone, what)
        wish = _Wish(what)
        with self._database.span():
            gather(self._append, wish)
        return aside(self._append_alone, what) if wish.alone else wish.added

    def _append_alone(self, what: Append) -> AddedMemory | None:
        with self._database.connection(what.call) as connection:
            return append(connection, what, self._clock())

    def _append(self, wishes: Sequence[_Wish]) -> None:
        with self._lock:
            free = [wish for wish in wishes if not self._joined(wish)]
        if free:
            self._run(free, wait=False)
        for wish in free:
            if wish.locked:
                self._wait(wish)

    def _run(self, wishes: Sequence[_Wish], *, wait: bool) -> None:
        wishes, call = as_one(wishes)
        if not wishes:
            return
        time = self._clock()
        values, places, counts = _group_values([wish.what for wish in wishes], time, wait=wait)
        with self._database.connection(call, traced=False) as connection:
            try:
                row = connection.execute(_SQL["append_group"], values).fetchone()
            except _FAULTS_OF_ONE[wait]:
                for wish in wishes:
                    wish.alone = len(wishes) > 1
                return
        assert row is not None
        for wish, (number, before) in zip(wishes, places, strict=True):
            last_seq, outcome = row[0][number], row[1][number]
            wish.locked = last_seq == _LOCKED
            if last_seq:
                first_seq = last_seq - counts[number] + before + 1
                wish.added = _added(wish.what, first_seq, None if before else outcome, time)

    # --- locked sessions

    def _joined(self, wish: _Wish) -> bool:
        """Adds a wish to those that wait for its session, if any do. Called under the lock."""
        waiting = self._waiting.get(wish.what.session_key)
        if waiting is None:
            return False
        wish.pending = True
        waiting.append(wish)
        return True

    def _wait(self, wish: _Wish) -> None:
        """Has a wish wait for its session: with others, or on a thread that waits for that session."""
        key = wish.what.session_key
        with self._lock:
            if self._joined(wish):
                return
            wish.pending = True
            self._waiting[key] = deque([wish])
        self._threads.submit(self._run_waiting, key)

    def _run_waiting(self, key: UUID) -> None:
        while wishes := self._next_waiting(key):
            try:
                self._run(wishes, wait=True)
            except Exception as error:
                for wish in wishes:
                    wish.error = wish.error or error
            for wish in wishes:
                wish.resume()

    def _next_waiting(self, key: UUID) -> Sequence[_Wish]:
        with self._lock:
            waiting = self._waiting[key]
            if not waiting:
                del self._waiting[key]
            return [waiting.popleft() for _ in range(min(len(waiting), _MOST_CALLS))]


class _Wish(Wish):
    """An append, and its result.

    Attributes:
        added: what was appended; None when nothing was.
        locked: whether nothing was appended because another transaction has locked the session.
        alone: whether to repeat it by itself, because one of its group has failed.
    """

    def __init__(self, what: Append) -> None:
        super().__init__(what.call)
        self.what = what
        self.added: AddedMemory | None = None
        self.locked = False
        self.alone = False


def _small(what: Append) -> bool:
    messages = what.memory.messages
    return (
        what.memory.expected_last_seq is None
        and len(messages) <= _MOST_MESSAGES
        and sum(len(message.content) for message in messages) + sum(map(len, filter(None, what.metadatas)))
        <= MOST_CHARACTERS
    )


def _group_values(
    group: Sequence[Append], time: datetime, *, wait: bool
) -> tuple[Values, Sequence[tuple[int, int]], Sequence[int]]:
    """The parameters of one statement for a group.

    Returns also, for each append, the index of its session and how many messages of the group go before it there; and
    for each session, how many messages it gets.
    """
    firsts: dict[UUID, Append] = {}
    for what in group:
        firsts.setdefault(what.session_key, what)
    keys = sorted(firsts)
    number_of = {key: number for number, key in enumerate(keys)}
    counts = [0] * len(keys)
    places, sessions, seqs = [], [], []
    for what in group:
        number = number_of[what.session_key]
        places.append((number, counts[number]))
        for _ in what.memory.messages:
            counts[number] += 1
            sessions.append(number + 1)
            seqs.append(counts[number])
    sorted_firsts = [firsts[key] for key in keys]
    return (
        {
            "session_keys": array(keys),
            "namespaces": array(first.call.namespace for first in sorted_firsts),
            "session_ids": array(first.memory.session_id for first in sorted_firsts),
            "session_metadatas": array(metadata.to_json(first.memory.metadata or {}) for first in sorted_firsts),
            "creates": array(first.create for first in sorted_firsts),
            "counts": array(counts),
            "wait": wait,
            "time": time,
            "sessions": array(sessions),
            "places": array(seqs),
            **message_values(group),
        },
        places,
        counts,
    )


def message_values(group: Sequence[Append]) -> Values:
    """The messages of a group as parameters: an array for each column."""
    messages = [message for what in group for message in what.memory.messages]
    return {
        "message_ids": array(message.message_id for message in messages),
        "roles": array(message.role for message in messages),
        "contents": array(message.content for message in messages),
        "metadatas": array(document for what in group for document in what.metadatas),
        "token_counts": array(message.token_count or None for message in messages),
    }


def _added(what: Append, first_seq: int, outcome: int | None, time: datetime) -> AddedMemory:
    return AddedMemory(
        [
            AddedMessage(message.message_id or message_id(what.session_key, seq), seq, time)
            for seq, message in enumerate(what.memory.messages, first_seq)
        ],
        session_created=outcome == CREATED,
        session_undeleted=outcome == UNDELETED,
    )
