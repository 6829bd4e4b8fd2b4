"""Appending messages: one statement for a call, or for as many calls as wait at the same time."""

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

# message.outcome: what the call did, to be told again to whoever repeats it.
CREATED: Final = 1
UNDELETED: Final = 2

# Calls in one statement for those that waited for a lock.
_MOST_CALLS: Final = 32

# The share of the connections that may wait for locked sessions, each for one of them: the rest is for everybody else.
_WAITING_SHARE: Final = 4

# What a call may be that shares a statement: a large one would only keep the others waiting.
_MOST_MESSAGES: Final = 8
MOST_CHARACTERS: Final = 16_384

# What one call of a group can bring about for all of it. The transaction has rolled back; each call tries by itself.
# Those who wait for one session together have all waited in vain when they get no lock.
_FAULT: Final = (pg.IntegrityError, pg.DataError, pg.ProgramLimitExceeded, pg.InternalError)
_CONTENTION: Final = (pg.LockNotAvailable, pg.DeadlockDetected, pg.SerializationFailure)
_FAULTS_OF_ONE: Final = {False: (*_FAULT, *_CONTENTION), True: _FAULT}

# Of a session in append_group: it is locked by somebody else.
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
    """One statement, all or nothing; None when it did nothing, be it that the call is a repetition."""
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
    """Appends for calls that may share a statement, which saves each most of a statement, of a commit, and of the wait.

    Those to a session that somebody has locked wait for the lock together, and for nobody else.

    Args:
        database: where to.
        clock: the time that messages are stamped with.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock
        # Off where one transaction on several sessions is dear: on Citus it spans shards.
        self.grouping = True
        # Of sessions that are locked: who waits, or will when those before have waited.
        self._waiting: dict[UUID, deque[_Wish]] = {}
        self._lock = Lock()
        waiting = max(1, database.size // _WAITING_SHARE)
        self._threads = ThreadPoolExecutor(waiting, thread_name_prefix="recalld-locked")

    def append(self, what: Append) -> AddedMemory | None:
        """None when nothing was done: the session is not there or not live, or the call is a repetition."""
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

    # --- sessions that somebody has locked

    def _joined(self, wish: _Wish) -> bool:
        """Lets a wish wait for its session when others do already. Called under the lock."""
        waiting = self._waiting.get(wish.what.session_key)
        if waiting is None:
            return False
        wish.pending = True
        waiting.append(wish)
        return True

    def _wait(self, wish: _Wish) -> None:
        """Lets a wish wait for its session."""
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
    """An append, and what came of it.

    Attributes:
        locked: nothing, since somebody has its session locked.
        alone: nothing, since one of the group failed: it may be this, or not.
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
    """The parameters of one statement for all.

    For each also the place of its session, and how many messages go before; for each session how many it gets.
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
    """The messages as parameters, an array for each of their attributes."""
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
