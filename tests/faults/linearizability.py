"""Whether an order of calls explains a history: each call at one moment between its invocation and its return.

Sessions do not depend on each other, so each is searched by itself, as Lowe's just-in-time linearization does it: go
through the history's moments with a configuration, which is a state of the session and the set of open calls that have
already taken effect in it. When a call returns, let calls that are open take effect until it has, with the answer that
it gave. Where that cannot be, go back to the latest choice. When no choice is left, no order explains the history.

A purge takes effect in steps rather than in one: see `_Purging`. Contents are the caller's, ids are not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from tests.faults.history import (
    Add,
    Added,
    Answer,
    Call,
    Delete,
    Done,
    Get,
    History,
    Memory,
    Purge,
    Purged,
    Refused,
    Undelete,
)

# A history with more than this to be kept in mind at one moment is not one that this search is made for.
_MOST_CONFIGURATIONS: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Stored:
    """One AddMemory that is stored. `tombstone`: the last seq of the deletion that it fell to, 0 while it is live."""

    request: str
    first_seq: int
    count: int
    created: bool
    undeleted: bool
    tombstone: int = 0


@dataclass(frozen=True, slots=True)
class _Session:
    """What is known of a session. `deletion` is the number of the call that deleted it, None while it is live."""

    exists: bool = False
    last_seq: int = 0
    deletion: int | None = None
    stored: tuple[_Stored, ...] = ()

    @property
    def tombstones(self) -> frozenset[int]:
        return frozenset(each.tombstone for each in self.stored if each.tombstone)


@dataclass(frozen=True, slots=True)
class _Purging:
    """An open purge, and what it will answer, None when its answer was lost.

    It removes what it finds, one tombstone after the other, each in a transaction of its own; others may write between
    them. What had been deleted before it was invoked it owes to remove, unless the session comes back to life.
    """

    call: int
    answer: Purged | None
    owed: frozenset[int]
    owed_deletion: int | None

    def owes(self, session: _Session) -> bool:
        return bool(self.owed & session.tombstones) or (
            self.owed_deletion is not None and session.deletion == self.owed_deletion
        )


# Any number of purges of unknown outcome: they owe nothing, and nobody asks what they did.
_SOME_PURGE: Final = _Purging(-1, None, frozenset(), None)


class _Removal(NamedTuple):
    """A step that one of these open purges made. Which, is left open until one of them must have: each choice doubles
    what is to be tried."""

    purges: tuple[int, ...]
    sessions: int
    messages: int


@dataclass(frozen=True, slots=True)
class _Configuration:
    """A state that the answers so far allow, the open calls that have taken effect in it, the open purges and what
    they have removed, in order of its size."""

    session: _Session = _Session()
    effective: frozenset[int] = frozenset()
    purges: tuple[_Purging, ...] = ()
    removals: tuple[_Removal, ...] = ()


def contradictions(history: History) -> dict[str, str]:
    """For each session whose answers no order explains, the first answer that cannot be, and what it follows."""
    found = {}
    for session_id, calls in history.sessions().items():
        if problem := _contradiction(calls, history.rests):
            found[session_id] = problem
    return found


# --- one call


def _effect(session: _Session, call: Call) -> tuple[_Session, Answer]:
    """What a call does to a session, and answers, when it takes effect at once."""
    operation = call.operation
    match operation:
        case Add():
            return _add(session, operation)
        case Get():
            return session, _memory(session, operation.after_seq)
        case Delete():
            if not session.exists or session.deletion is not None:
                return session, Refused("SESSION_NOT_FOUND")
            stored = tuple(
                each if each.tombstone else replace(each, tombstone=session.last_seq) for each in session.stored
            )
            return replace(session, deletion=call.number, stored=stored), Done(session.last_seq)
        case Undelete():
            if not session.exists:
                return session, Refused("SESSION_NOT_FOUND")
            if session.deletion is None:
                return session, Refused("NOT_DELETED")
            return replace(session, deletion=None), Done(session.last_seq)
        case Purge():
            raise AssertionError("a purge takes effect in steps")


def _add(session: _Session, add: Add) -> tuple[_Session, Answer]:
    for each in session.stored:
        if each.request == add.request:
            return session, Added(each.first_seq, each.count, each.created, each.undeleted)
    if add.expected_last_seq not in (None, session.last_seq):
        return session, Refused("SEQ_MISMATCH", session.last_seq)
    stored = _Stored(
        add.request,
        first_seq=session.last_seq + 1,
        count=add.count,
        created=not session.exists,
        undeleted=session.deletion is not None,
    )
    after = _Session(
        exists=True, last_seq=session.last_seq + add.count, deletion=None, stored=(*session.stored, stored)
    )
    return after, Added(stored.first_seq, stored.count, stored.created, stored.undeleted)


def _memory(session: _Session, after_seq: int) -> Memory:
    if not session.exists or session.deletion is not None:
        return Memory(None)
    messages = [
        (seq, f"{each.request}/{place}")
        for each in session.stored
        if not each.tombstone
        for place, seq in enumerate(range(each.first_seq, each.first_seq + each.count))
    ]
    return Memory(session.last_seq, len(messages), tuple(each for each in messages if each[0] > after_seq))


# --- the steps of purges


def _purge_steps(configuration: _Configuration) -> Iterator[_Configuration]:
    """What the open purges may do next."""
    if not configuration.purges:
        return
    session = configuration.session
    for tombstone in session.tombstones:
        kept = tuple(each for each in session.stored if each.tombstone != tombstone)
        removed = _removed(configuration, 0, _count(session.stored) - _count(kept))
        if removed is not None:
            yield replace(removed, session=replace(session, stored=kept))
    if session.deletion is not None:
        removed = _removed(configuration, 1, _count(session.stored))
        if removed is not None:
            # Nobody owes anything any more: should the session be written again, it is another one.
            settled = (replace(each, owed=frozenset(), owed_deletion=None) for each in removed.purges)
            yield replace(removed, session=_Session(), purges=tuple(settled))


def _removed(configuration: _Configuration, sessions: int, messages: int) -> _Configuration | None:
    """With one removal more; None when that is more than all purges will have made when they have answered."""
    purges, removals = configuration.purges, configuration.removals
    if purges == (_SOME_PURGE,):
        return configuration
    removal = _Removal(tuple(sorted(each.call for each in purges)), sessions, messages)
    removals = tuple(sorted((*removals, removal)))
    answers = [each.answer for each in purges if each.answer is not None]
    if _SOME_PURGE not in purges and (
        sum(each.sessions for each in removals) > sum(each.sessions for each in answers)
        or sum(each.messages for each in removals) > sum(each.messages for each in answers)
    ):
        return None
    return replace(configuration, removals=removals)


def _shares(call: int, rest: tuple[_Removal, ...], sessions: int, messages: int) -> Iterator[tuple[_Removal, ...]]:
    """What is left of removals when a purge has made so many of them, for each way to choose these."""
    if not rest:
        if sessions == messages == 0:
            yield ()
        return
    [first, *others] = rest
    if call in first.purges and first.sessions <= sessions and first.messages <= messages:
        yield from _shares(call, tuple(others), sessions - first.sessions, messages - first.messages)
    remaining = tuple(each for each in first.purges if each != call)
    if remaining:
        kept = () if remaining == (_SOME_PURGE.call,) else (first._replace(purges=remaining),)
        yield from ((*kept, *left) for left in _shares(call, tuple(others), sessions, messages))


def _count(stored: tuple[_Stored, ...]) -> int:
    return sum(each.count for each in stored)


# --- the search

_Kind = Literal["invoked", "returned", "rest"]


class _Moment(NamedTuple):
    """Something that happened, while calls other than purges were `open`. There is no call when all came to rest."""

    kind: _Kind
    call: Call | None
    open: tuple[Call, ...]


def _contradiction(calls: list[Call], rests: list[int]) -> str | None:
    """The first answer that no order explains; found by trying them, deepest first, none twice."""
    moments = _moments(calls, rests)
    # What the configuration before each moment may be, as far as it was not tried yet.
    untried: list[Iterator[_Configuration]] = [iter([_Configuration()])]
    tried: set[tuple[int, _Configuration]] = set()
    while untried:
        place = len(untried) - 1
        configuration = next(untried[-1], None)
        if configuration is None:
            untried.pop()
        elif place == len(moments):
            return None
        elif (place, configuration) not in tried:
            tried.add((place, configuration))
            assert len(tried) < _MOST_CONFIGURATIONS, "the history is too entangled to be checked"
            untried.append(_after(configuration, moments[place]))
    stuck = max(place for place, _ in tried)
    return _story(moments[: stuck + 1], [configuration for place, configuration in tried if place == stuck])


def _moments(calls: list[Call], rests: list[int]) -> list[_Moment]:
    """Everything that happened, in order. A call of unknown outcome never returns; a read that failed is nothing."""
    times: list[tuple[int, _Kind, Call | None]] = [(moment, "rest", None) for moment in rests]
    for call in calls:
        if call.answer is not None:
            assert call.returned is not None
            times.append((call.returned, "returned", call))
        if call.answer is not None or not isinstance(call.operation, Get):
            times.append((call.invoked, "invoked", call))
    moments = []
    pending: dict[int, Call] = {}
    for _, kind, what in sorted(times, key=lambda each: each[0]):
        moments.append(_Moment(kind, what, tuple(pending.values())))
        if what is None:
            pending.clear()
        elif kind == "returned":
            pending.pop(what.number, None)
        elif not isinstance(what.operation, Purge):
            pending[what.number] = what
    return moments


def _after(configuration: _Configuration, moment: _Moment) -> Iterator[_Configuration]:
    """What a configuration may have become right after a moment."""
    call = moment.call
    if call is None:
        # Calls of unknown outcome, the only ones that are open, have taken effect by now or never will.
        for reached in _reachable(configuration, moment.open):
            yield _Configuration(session=reached.session)
    elif moment.kind == "returned":
        for reached in _reachable(configuration, moment.open, until=call):
            yield from _over(reached, call)
    elif isinstance(call.operation, Purge):
        yield _with_purge(configuration, call)
    else:
        yield configuration


def _with_purge(configuration: _Configuration, call: Call) -> _Configuration:
    session = configuration.session
    if call.answer is None:
        purge = _SOME_PURGE
    else:
        assert isinstance(call.answer, Purged)
        purge = _Purging(call.number, call.answer, session.tombstones, session.deletion)
    if purge in configuration.purges:
        return configuration
    return replace(configuration, purges=(*configuration.purges, purge))


def _reachable(
    configuration: _Configuration, pending: Iterable[Call], until: Call | None = None
) -> Iterator[_Configuration]:
    """What open calls and purges may lead to, the least first; what comes after the end of a call can wait.

    It cannot after that of a purge: another may have made the step that it would answer for, and it a later one.
    """
    seen = {configuration}
    work = deque(seen)
    while work:
        reached = work.popleft()
        yield reached
        if until is not None and until.number in reached.effective:
            continue
        for following in _next(reached, pending):
            if following not in seen:
                seen.add(following)
                work.append(following)
        assert len(seen) < _MOST_CONFIGURATIONS, "the history is too entangled to be checked"


def _next(configuration: _Configuration, pending: Iterable[Call]) -> Iterator[_Configuration]:
    """What may happen next: an open call takes effect, or a purge makes a step."""
    for call in pending:
        if call.number not in configuration.effective:
            after, answer = _effect(configuration.session, call)
            # What may not have happened at all need not be tried where it would change nothing.
            if call.answer == answer or (call.answer is None and after != configuration.session):
                yield replace(configuration, session=after, effective=configuration.effective | {call.number})
    yield from _purge_steps(configuration)


def _over(configuration: _Configuration, call: Call) -> Iterator[_Configuration]:
    """What the configuration may be without a call that has returned; nothing when the call cannot have."""
    if not isinstance(call.operation, Purge):
        if call.number in configuration.effective:
            yield replace(configuration, effective=configuration.effective - {call.number})
        return
    assert isinstance(call.answer, Purged)
    [purge] = [each for each in configuration.purges if each.call == call.number]
    if not purge.owes(configuration.session):
        purges = tuple(each for each in configuration.purges if each is not purge)
        answer = call.answer
        for removals in set(_shares(call.number, configuration.removals, answer.sessions, answer.messages)):
            yield replace(configuration, purges=purges, removals=tuple(sorted(removals)))


def _story(moments: list[_Moment], configurations: list[_Configuration]) -> str:
    """The answer that cannot be, what came before it, and what could have been instead."""
    returned = [f"  {moment.call}" for moment in moments if moment.kind == "returned"]
    before = "\n".join(returned[-12:-1])
    states = "\n".join(f"  {_shown(each.session)}" for each in configurations[:4])
    return f"no order explains\n{returned[-1]}\nafter\n{before}\nwhen the session could be\n{states}"


def _shown(session: _Session) -> str:
    if not session.exists:
        return "unknown"
    live = [f"{each.request}@{each.first_seq}+{each.count}" for each in session.stored if not each.tombstone]
    return f"{'live' if session.deletion is None else 'deleted'}, last_seq {session.last_seq}, with {live[-6:]}"
