"""Reading the newest messages: one statement for a call, or for as many calls as come at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final, LiteralString, NamedTuple
from uuid import UUID

from psycopg import errors as pg

from recalld.domain import Call, Memory, Message, Session
from recalld.gathering import Wish, aside, gather, gathers
from recalld.limits import MAX_PAGE_BYTES
from recalld.storage.arrays import array
from recalld.storage.database import Database
from recalld.storage.rows import message_of, session_of
from recalld.storage.sql import compose, statements
from recalld.together import as_one

_SESSION_SQL = statements("session")
_SQL = statements("memory")

# Limits of a call that shares a statement: the messages that it asks for, and the bytes of its answer. A large call
# would keep the others waiting.
_MOST_MESSAGES: Final = 100
_MOST_BYTES: Final = 128 * 1024

_SESSION_END = 2 + _SESSION_SQL["columns"].count(",")


def _statement(wanted: str, session_key: str) -> LiteralString:
    return compose(
        _SQL["get_memory"],
        wanted=_SQL[wanted],
        session_key=session_key,
        columns=_SQL["columns"],
        session_columns=_SESSION_SQL["columns"],
        no_session=", ".join(["null"] * (_SESSION_SQL["columns"].count(",") + 1)),
        no_message=", ".join(["null"] * (_SQL["columns"].count(",") + 1)),
    )


_OF_ONE = _statement("of_one", "%(session_key)s")
_OF_SEVERAL = _statement("of_several", "s.session_key")


class Read(NamedTuple):
    """A read of a session: the newest `last_n` messages with a seq above `after_seq`, within `max_tokens` (0: any)."""

    call: Call
    session_key: UUID
    last_n: int
    max_tokens: int
    after_seq: int


class Reads:
    """Reads for calls that may share a statement.

    Args:
        database: where from.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        # Turned off on Citus, where a statement on several sessions goes to all shards.
        self.grouping = True

    def read(self, what: Read) -> Memory:
        if self.grouping and gathers() and what.last_n <= _MOST_MESSAGES:
            wish = _Wish(what)
            with self._database.span():
                gather(self._read, wish)
            if not (wish.alone or wish.large):
                return wish.memory
        return aside(self._read_alone, what)

    def _read_alone(self, what: Read) -> Memory:
        _call, *values = what
        parameters = dict(zip(Read._fields[1:], values, strict=True))
        with self._database.connection(what.call) as connection:
            rows = connection.execute(_OF_ONE, {**parameters, "max_bytes": MAX_PAGE_BYTES}).fetchall()
        return _memory(rows)

    def _read(self, wishes: Sequence[_Wish]) -> None:
        wishes, call = as_one(wishes)
        if not wishes:
            return
        wanted = [wish.what for wish in wishes]
        values = {
            "session_keys": array(what.session_key for what in wanted),
            "last_ns": array(what.last_n for what in wanted),
            "max_tokens": array(what.max_tokens for what in wanted),
            "after_seqs": array(what.after_seq for what in wanted),
            "max_bytes": _MOST_BYTES,
        }
        with self._database.connection(call, traced=False) as connection:
            try:
                rows = connection.execute(_OF_SEVERAL, values).fetchall()
            except (pg.DataError, pg.InternalError):
                # A message that cannot be read, as on a damaged page, must only fail the call that asks for it.
                for wish in wishes:
                    wish.alone = True
                return
        found: list[list[Any]] = [[] for _ in wishes]
        for row in rows:
            found[row[0] - 1].append(row)
        for wish, its_rows in zip(wishes, found, strict=True):
            wish.rows = its_rows


class _Wish(Wish):
    """A read, and its result.

    Attributes:
        alone: whether to repeat it by itself, because one of its group has failed.
    """

    def __init__(self, what: Read) -> None:
        super().__init__(what.call)
        self.what = what
        self.rows: Sequence[Any] = ()
        self.alone = False

    @property
    def large(self) -> bool:
        """Whether there may be more than a shared statement reads."""
        return any(row[-1] >= _MOST_BYTES for row in self.rows)

    @property
    def memory(self) -> Memory:
        return _memory(self.rows)


def _memory(rows: Sequence[Any]) -> Memory:
    session: Session | None = None
    messages: list[Message] = []
    for row in rows:
        if row[1] is not None:
            session = session_of(row[1:_SESSION_END])
        else:
            messages.append(message_of(row[_SESSION_END:-1]))
    messages.sort(key=attrgetter("seq"))
    return Memory(session, messages)
