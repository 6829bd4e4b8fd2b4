"""The checker of histories, on histories that are made up: it must accept what may happen, and reject what may not."""

from __future__ import annotations

import pytest

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
    Operation,
    Purge,
    Purged,
    Refused,
    Undelete,
)
from tests.faults.linearizability import contradictions

NO_SESSION = Memory(None)


def added(first_seq: int, count: int = 1, *, created: bool = False, undeleted: bool = False) -> Added:
    return Added(first_seq, count, created, undeleted)


def memory(*requests: str, last_seq: int | None = None, first_seq: int = 1) -> Memory:
    """The memory of a session that holds one message of each of the requests."""
    messages = tuple((first_seq + place, f"{request}/0") for place, request in enumerate(requests))
    return Memory(last_seq or first_seq + len(requests) - 1, len(requests), messages)


FIRST = (Add("a", 1), added(1, created=True))
SECOND = (Add("b", 1), added(2))


def one_after_the_other(*calls: tuple[Operation, Answer | None]) -> History:
    history = History()
    for number, (operation, answer) in enumerate(calls):
        history.calls.append(Call(number, 0, "s", operation, 2 * number + 1, 2 * number + 2, answer))
    return history


def at(*calls: tuple[int, int, Operation, Answer | None], rest: int | None = None) -> History:
    """Calls with the moments of their invocation and return."""
    history = History(rests=[] if rest is None else [rest])
    for number, (invoked, returned, operation, answer) in enumerate(calls):
        history.calls.append(Call(number, number, "s", operation, invoked, returned, answer))
    return history


POSSIBLE = {
    "a life in order": one_after_the_other(
        (Get(), NO_SESSION),
        FIRST,
        (Add("b", 2), added(2, 2)),
        (Get(), Memory(3, 3, ((1, "a/0"), (2, "b/0"), (3, "b/1")))),
        (Get(after_seq=2), Memory(3, 3, ((3, "b/1"),))),
        (Add("c", 1, expected_last_seq=2), Refused("SEQ_MISMATCH", 3)),
        (Undelete(), Refused("NOT_DELETED")),
        (Delete(), Done(3)),
        (Delete(), Refused("SESSION_NOT_FOUND")),
        (Get(), NO_SESSION),
        (Add("c", 1, expected_last_seq=3), added(4, undeleted=True)),
        (Get(), memory("c", first_seq=4)),
        (Delete(), Done(4)),
        (Undelete(), Done(4)),
        (Get(), Memory(4, 0)),
        (Purge(), Purged(0, 4)),
        (Delete(), Done(4)),
        (Purge(), Purged(1, 0)),
        (Undelete(), Refused("SESSION_NOT_FOUND")),
        (Add("c", 1), added(1, created=True)),
    ),
    "two appends at once, the later invoked first in order": at(
        (1, 4, Add("a", 1), added(2)), (2, 3, Add("b", 1), added(1, created=True)), (5, 6, Get(), memory("b", "a"))
    ),
    "a read during an append that sees it, and one that does not": at(
        (1, 6, *FIRST), (2, 5, Get(), memory("a")), (3, 4, Get(), NO_SESSION)
    ),
    "a lost answer, and the message is there": one_after_the_other((FIRST[0], None), (Get(), memory("a"))),
    "a lost answer, and the message is not there": one_after_the_other((FIRST[0], None), (Get(), NO_SESSION)),
    "a lost answer, and the message comes later": one_after_the_other(
        (FIRST[0], None), (Get(), NO_SESSION), (Get(), memory("a"))
    ),
    "a repeated call, answered as the first": one_after_the_other(FIRST, SECOND, FIRST, (Get(), memory("a", "b"))),
    "a call repeated after its answer was lost": one_after_the_other((FIRST[0], None), FIRST, (Get(), memory("a"))),
    "a repeated call whose message is deleted revives nothing": one_after_the_other(
        FIRST, (Delete(), Done(1)), FIRST, (Get(), NO_SESSION)
    ),
    "a message repeated between the steps of a purge": at(
        (1, 2, *FIRST),
        (3, 4, Delete(), Done(1)),
        (5, 6, Add("b", 1), added(2, undeleted=True)),
        (7, 8, Delete(), Done(2)),
        (9, 12, Purge(), Purged(0, 2)),
        (10, 11, Add("a", 1), added(3, undeleted=True)),
        (13, 14, Get(), memory("a", first_seq=3)),
    ),
    "a purge whose answer was lost, and which goes on later": one_after_the_other(
        FIRST,
        (Delete(), Done(1)),
        (Purge(), None),
        (Undelete(), Done(1)),
        (Delete(), Done(1)),
        (Undelete(), Refused("SESSION_NOT_FOUND")),
    ),
    "two purges at once share the work": at(
        (1, 2, *FIRST), (3, 4, Delete(), Done(1)), (5, 8, Purge(), Purged(0, 0)), (6, 7, Purge(), Purged(1, 1))
    ),
}

IMPOSSIBLE = {
    "a stale read": one_after_the_other(FIRST, SECOND, (Get(), memory("a"))),
    "a stale read after another caller saw more": at(
        (1, 8, *FIRST), (2, 3, Get(), memory("a")), (4, 5, Get(), NO_SESSION)
    ),
    "a lost acknowledged write": one_after_the_other(FIRST, (Add("b", 1), added(1, created=True))),
    "an acknowledged write that no read finds": one_after_the_other(FIRST, (Get(), NO_SESSION)),
    "a message that vanishes although its call's answer was lost": one_after_the_other(
        (FIRST[0], None), (Get(), memory("a")), (Get(), NO_SESSION)
    ),
    "a lost answer's message that comes after everything has come to rest": at(
        (1, 2, FIRST[0], None), (4, 5, Get(), NO_SESSION), (6, 7, Get(), memory("a")), rest=3
    ),
    "a doubled replay": one_after_the_other(FIRST, (Add("a", 1), added(2))),
    "a doubled replay that only a reader sees": one_after_the_other(FIRST, FIRST, (Get(), memory("a", "a"))),
    "a half call": one_after_the_other((Add("a", 2), None), (Get(), Memory(1, 1, ((1, "a/0"),)))),
    "a gap that a reader sees": one_after_the_other(FIRST, SECOND, (Get(), Memory(2, 2, ((2, "b/0"),)))),
    "a gap in what is assigned": one_after_the_other(FIRST, (Add("b", 1), added(3))),
    "a message found below one that was seen": one_after_the_other(
        (Add("a", 1), None), (Get(), Memory(2, 2, ((2, "b/0"),))), (Get(), memory("a", "b"))
    ),
    "a count of messages that is not that of the messages": one_after_the_other(
        FIRST, (Get(), Memory(1, 2, ((1, "a/0"),)))
    ),
    "reordered seqs": one_after_the_other(FIRST, SECOND, (Get(), memory("b", "a"))),
    "seqs in another order than that of the calls": one_after_the_other(
        (Add("b", 1), added(2)), (Add("a", 1), added(1, created=True))
    ),
    "two writers with one seq": at((1, 3, *FIRST), (2, 4, Add("b", 1), added(1, created=True))),
    "two compare-and-appends on one seq": at(
        (1, 2, *FIRST),
        (3, 5, Add("b", 1, expected_last_seq=1), added(2)),
        (4, 6, Add("c", 1, expected_last_seq=1), added(3)),
    ),
    "a mismatch with a seq that never was": one_after_the_other(
        FIRST, (Add("b", 1, expected_last_seq=4), Refused("SEQ_MISMATCH", 2))
    ),
    "a deleted message resurrected by a write": one_after_the_other(
        FIRST, (Delete(), Done(1)), (Add("b", 1), added(2, undeleted=True)), (Get(), memory("a", "b"))
    ),
    "a deleted message resurrected by an undelete": one_after_the_other(
        FIRST, (Delete(), Done(1)), (Undelete(), Done(1)), (Get(), memory("a"))
    ),
    "a deleted session that is still read": one_after_the_other(FIRST, (Delete(), Done(1)), (Get(), memory("a"))),
    "a session deleted twice": one_after_the_other(FIRST, (Delete(), Done(1)), (Delete(), Done(1))),
    "a purge of a live message": one_after_the_other(FIRST, (Purge(), Purged(0, 1))),
    "a purge of a live message that only a reader sees": one_after_the_other(
        FIRST, SECOND, (Purge(), Purged(0, 0)), (Get(), memory("b", first_seq=2))
    ),
    "a purge of a session that was revived before": at(
        (1, 2, *FIRST),
        (3, 4, Delete(), Done(1)),
        (5, 6, Undelete(), Done(1)),
        (7, 8, Purge(), Purged(1, 1)),
    ),
    "a purge of a session that was revived, seen by a reader": one_after_the_other(
        FIRST,
        (Delete(), Done(1)),
        (Add("b", 1), added(2, undeleted=True)),
        (Purge(), Purged(0, 1)),
        (Get(), NO_SESSION),
    ),
    "a purge that leaves what was deleted": one_after_the_other(
        FIRST, (Delete(), Done(1)), (Purge(), Purged(0, 0)), (Undelete(), Done(1))
    ),
    "a purge that counts what another removed": at(
        (1, 2, *FIRST), (3, 4, Delete(), Done(1)), (5, 8, Purge(), Purged(1, 1)), (6, 7, Purge(), Purged(1, 1))
    ),
}


@pytest.mark.parametrize("name", POSSIBLE)
def test_it_accepts(name: str) -> None:
    assert contradictions(POSSIBLE[name]) == {}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_it_rejects(name: str) -> None:
    assert "no order explains" in contradictions(IMPOSSIBLE[name])["s"]


def test_many_purges_of_many_deletions_can_be_checked() -> None:
    """Which of them removed what is not tried out one by one: there are 6 ** 9 ways."""
    lives = range(1, 10)
    history = one_after_the_other(
        *(
            call
            for seq in lives
            for call in (
                (Add(f"m{seq}", 1), added(seq, created=seq == 1, undeleted=seq > 1)),
                (Delete(), Done(seq)),
            )
        )
    )
    purges = [Purged(0, 2), Purged(0, 0), Purged(0, 3), Purged(1, 1), Purged(0, 2), None]
    for answer in purges:
        number = len(history.calls)
        history.calls.append(Call(number, number, "s", Purge(), 100 + number, 200 - number, answer))
    assert contradictions(history) == {}

    history.calls[-2].answer = Purged(0, 4)
    assert "no order explains" in contradictions(history)["s"]


def test_sessions_are_judged_apart() -> None:
    history = one_after_the_other(FIRST, (Get(), NO_SESSION))
    history.calls[1].session_id = "another"
    assert contradictions(history) == {}


def test_a_read_whose_answer_was_lost_says_nothing() -> None:
    assert contradictions(one_after_the_other(FIRST, (Get(), None), (Get(), memory("a")))) == {}
