"""Calls that wait together and are worked on together: none is lost, held up, or worked on twice."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from recalld.domain import Call
from recalld.errors import Cancelled, Contention, DeadlineExceeded
from recalld.storage.lanes import Lane, Member
from tests.faults.waiting import wait_until

DEADLINE = 10.0


class Asked:
    """A call that a test ends."""

    namespace = "default"

    def __init__(self) -> None:
        self.over = False
        self.left: float | None = None
        self.callbacks: list[Callable[[], None]] = []

    def remaining(self) -> float | None:
        return self.left

    def when_over(self, callback: Callable[[], None]) -> bool:
        if not self.over:
            self.callbacks = [callback]
        return not self.over

    def end(self) -> None:
        self.over = True
        for callback in self.callbacks:
            callback()


class Work:
    """What a lane does: each piece waits until it is let go on, and is remembered."""

    def __init__(self) -> None:
        self.groups: list[list[Member]] = []
        self.calls: list[Call] = []
        self.go_on = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(self, members: Sequence[Member], call: Call) -> None:
        self.groups.append(list(members))
        self.calls.append(call)
        assert self.go_on.acquire(timeout=DEADLINE)
        if self.error:
            raise self.error


class Crowd:
    """Members of one lane, each on a thread."""

    def __init__(self, lane: Lane[Member], threads: ThreadPoolExecutor) -> None:
        self.lane = lane
        self.threads = threads
        self.members: list[Member] = []

    def comes(self, call: Call | None = None) -> Member:
        """One more member; returns when it is at work, or waits, or has left."""
        member = Member(call or Asked())
        self.members.append(member)
        member.result = run = self.threads.submit(self.lane.run, member)  # type: ignore[attr-defined]
        wait_until(lambda: member._group or member in self.lane._waiting or run.done(), "it is nowhere")
        return member


def result(member: Member) -> None:
    member.result.result(DEADLINE)  # type: ignore[attr-defined]


def error(member: Member) -> BaseException | None:
    return member.result.exception(DEADLINE)  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def crowd(work: Work) -> Crowd:
    return Crowd(Lane(work, leaders=1, most=3), ThreadPoolExecutor(16))


def test_whoever_finds_nobody_at_work_works_at_once_and_for_its_own_call(work: Work, crowd: Crowd) -> None:
    alone = crowd.comes()
    wait_until(lambda: work.groups == [[alone]], "it waits for something")
    assert work.calls == [alone.call]
    work.go_on.release()
    result(alone)
    assert crowd.lane.idle


def test_those_who_come_meanwhile_are_worked_on_together_in_their_order(work: Work, crowd: Crowd) -> None:
    members = [crowd.comes() for _ in range(6)]
    for _ in range(3):
        work.go_on.release()
    for member in members:
        result(member)
    assert work.groups == [members[:1], members[1:4], members[4:]]
    assert crowd.lane.idle


def test_as_many_lead_at_a_time_as_may(work: Work) -> None:
    crowd = Crowd(Lane(work, leaders=2, most=8), ThreadPoolExecutor(8))
    first, second, *others = [crowd.comes() for _ in range(5)]
    wait_until(lambda: work.groups == [[first], [second]], "the second does not lead")
    for _ in range(3):
        work.go_on.release()
    for member in crowd.members:
        result(member)
    assert work.groups[2:] == [others]


def test_an_error_is_everybodys_and_of_this_group_only(work: Work, crowd: Crowd) -> None:
    alone, *group = [crowd.comes() for _ in range(4)]
    work.go_on.release()
    result(alone)
    work.error = Contention()
    work.go_on.release()
    assert {type(error(member)) for member in group} == {Contention}
    work.error = None
    work.go_on.release()
    result(crowd.comes())


@pytest.mark.parametrize(("left", "expected"), [(0.0, DeadlineExceeded), (None, Cancelled), (5.0, Cancelled)])
def test_who_gives_up_waiting_leaves_at_once_and_is_not_worked_on(
    work: Work, crowd: Crowd, left: float | None, expected: type[Exception]
) -> None:
    working, hasty, patient = crowd.comes(), crowd.comes(call := Asked()), crowd.comes()
    call.left = left
    call.end()
    assert isinstance(error(hasty), expected)
    work.go_on.release(2)
    result(working)
    result(patient)
    assert work.groups == [[working], [patient]]


def test_whose_call_is_over_before_it_comes_is_not_worked_on_where_it_had_to_wait(work: Work, crowd: Crowd) -> None:
    working = crowd.comes()
    call = Asked()
    call.end()
    assert isinstance(error(crowd.comes(call)), Cancelled)
    work.go_on.release()
    result(working)
    assert work.groups == [[working]]


def test_who_gives_up_while_it_is_worked_on_leaves_and_the_others_go_on(work: Work, crowd: Crowd) -> None:
    working, leader, hasty = crowd.comes(), crowd.comes(), crowd.comes(call := Asked())
    work.go_on.release()
    wait_until(lambda: len(work.groups) == 2, "the next group does not begin")
    ended: list[bool] = []
    assert work.calls[1].when_over(lambda: ended.append(True))
    call.end()
    assert isinstance(error(hasty), Cancelled)
    assert ended == []
    work.go_on.release()
    result(working)
    result(leader)


def test_work_that_nobody_waits_for_any_more_is_told_so(work: Work, crowd: Crowd) -> None:
    crowd.comes()
    calls = [Asked(), Asked()]
    leader, hasty = (crowd.comes(call) for call in calls)
    work.go_on.release()
    wait_until(lambda: len(work.groups) == 2, "the next group does not begin")
    ended: list[bool] = []
    assert work.calls[1].when_over(lambda: ended.append(True))
    for call in calls:
        call.end()
    assert ended == [True]
    assert not work.calls[1].when_over(lambda: None)
    work.error = Cancelled()
    work.go_on.release()
    assert isinstance(error(leader), Cancelled)
    assert isinstance(error(hasty), Cancelled)


def test_a_group_has_as_long_as_the_most_patient_of_its_calls(work: Work, crowd: Crowd) -> None:
    crowd.comes()
    calls = [Asked(), Asked()]
    for call in calls:
        crowd.comes(call)
    work.go_on.release()
    wait_until(lambda: len(work.groups) == 2, "the next group does not begin")
    calls[0].left, calls[1].left = 1.0, 2.0
    assert work.calls[1].remaining() == 2.0
    calls[1].left = None
    assert work.calls[1].remaining() is None
    work.go_on.release()


def test_work_that_takes_too_long_does_not_keep_others_from_leading(work: Work) -> None:
    crowd = Crowd(Lane(work, leaders=1, most=8, patience=0.01), ThreadPoolExecutor(8))
    stuck = crowd.comes()
    following = crowd.comes()
    wait_until(lambda: work.groups == [[stuck], [following]], "it waits for the one that is stuck")
    work.go_on.release(2)
    result(stuck)
    result(following)
    # There are no more leaders than before.
    assert crowd.lane.idle


def test_without_that_they_wait(work: Work, crowd: Crowd) -> None:
    """The control of the test above."""
    stuck, following = crowd.comes(), crowd.comes()
    time.sleep(0.1)  # ten times the patience of that test
    assert work.groups == [[stuck]]
    work.go_on.release(2)
    result(following)


def test_in_a_storm_with_callers_who_give_up_each_is_worked_on_once_and_none_waits_for_ever() -> None:
    chance = random.Random(7)
    worked: list[Member] = []

    def work(members: Sequence[Member], call: Call) -> None:
        worked.extend(members)
        if chance.random() < 0.1:
            raise Contention

    lane = Lane(work, leaders=2, most=4, patience=0.001)
    fates: list[str] = []

    def caller(number: int) -> None:
        for _ in range(100):
            call = Asked()
            member = Member(call)
            killer = threading.Thread(target=call.end)
            if number % 4 == 0:
                killer.start()
            try:
                lane.run(member)
                fates.append("done")
            except Contention:
                fates.append("error")
            except Cancelled:
                fates.append("gone")
            if number % 4 == 0:
                killer.join(DEADLINE)

    with ThreadPoolExecutor(16) as threads:
        for ending in [threads.submit(caller, number) for number in range(16)]:
            ending.result(60)
    assert len(fates) == 1600
    assert len(set(worked)) == len(worked) >= fates.count("done") + fates.count("error") >= 1200
    assert lane.idle
    assert not lane._waiting
    assert not lane._groups
