"""What concurrent callers asked of sessions and were answered, recorded so that it can be checked afterwards.

The contract's rules 5 to 11 are about order: who saw what after whose write was acknowledged. So each call is kept with
two moments, when it was invoked and when it returned; what it did happened between them. `tests.faults.linearizability`
looks for an order of all calls of a session that explains every answer.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

# --- what callers ask


@dataclass(frozen=True, slots=True)
class Add:
    """AddMemory of `count` messages, whose contents are `request/0`, `request/1` and so on."""

    request: str
    count: int
    expected_last_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Get:
    """GetMemory of all messages above a seq."""

    after_seq: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """DeleteSession."""


@dataclass(frozen=True, slots=True)
class Undelete:
    """UndeleteSession."""


@dataclass(frozen=True, slots=True)
class Purge:
    """Purge of the session, of whatever was deleted before."""


Operation: TypeAlias = Add | Get | Delete | Undelete | Purge

# --- what they are answered


@dataclass(frozen=True, slots=True)
class Added:
    first_seq: int
    count: int
    created: bool
    undeleted: bool


@dataclass(frozen=True, slots=True)
class Memory:
    """`last_seq` is None when there is no session; `messages` are (seq, content), oldest first."""

    last_seq: int | None
    message_count: int = 0
    messages: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The session that a delete or an undelete answered with."""

    last_seq: int


@dataclass(frozen=True, slots=True)
class Purged:
    sessions: int
    messages: int


@dataclass(frozen=True, slots=True)
class Refused:
    """An error that says for certain that nothing was done. `last_seq` comes with SEQ_MISMATCH."""

    reason: str
    last_seq: int | None = None


Answer: TypeAlias = Added | Memory | Done | Purged | Refused

# --- the record


@dataclass(slots=True)
class Call:
    """One call.

    Attributes:
        invoked, returned: places in the order of all moments of the history; `returned` is None while the call is open.
        answer: None when its outcome is unknown, as after a lost connection: it may have happened, or may yet, until
            the history is next at rest.
    """

    number: int
    caller: int
    session_id: str
    operation: Operation
    invoked: int
    returned: int | None = None
    answer: Answer | None = None

    def __str__(self) -> str:
        answer = "outcome unknown" if self.answer is None else str(self.answer)
        return f"[{self.invoked}-{self.returned or ''}] caller {self.caller}: {self.operation} -> {answer}"


@dataclass
class History:
    """Calls, and moments at which none was open and nothing was going on in the database either."""

    calls: list[Call] = field(default_factory=list)
    rests: list[int] = field(default_factory=list)
    _moments: Iterator[int] = field(default_factory=lambda: count(1))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def recorded(self, caller: int, session_id: str, operation: Operation) -> Iterator[Call]:
        """Around the call itself, which sets `answer` on what this gives. For any thread."""
        with self._lock:
            call = Call(len(self.calls), caller, session_id, operation, next(self._moments))
            self.calls.append(call)
        try:
            yield call
        finally:
            with self._lock:
                call.returned = next(self._moments)

    def rest(self) -> None:
        """Says that whatever was going to happen because of the calls so far has happened."""
        self.rests.append(next(self._moments))

    def sessions(self) -> dict[str, list[Call]]:
        """The calls of each session, in the order in which they were invoked."""
        found = defaultdict(list)
        for call in self.calls:
            found[call.session_id].append(call)
        return found
