"""Calls on few threads, whose wishes are fulfilled together: none is lost, held up, or fulfilled twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from contextlib import suppress
from time import sleep
from typing import Any

import pytest

from recalld.errors import Contention
from recalld.gathering import (
    _MOMENT,
    _MOST_MOMENTS,
    _PATIENCE,
    Gathering,
    Wish,
    aside,
    gather,
    gathers,
)
from recalld.spare_threads import SpareThreads
from tests.unit.gathered import DEADLINE, Asked, Work, wishing
from tests.waiting import wait_until


@pytest.fixture
def work() -> Work:
    return Work()


def test_a_call_alone_waits_for_no_company(work: Work, one_thread: Gathering) -> None:
    alone = wishing(one_thread, work)
    work.begun(1)
    work.go_on.release()
    assert work.groups == [[alone.result(DEADLINE)]]


def test_those_who_come_meanwhile_are_worked_for_together_in_their_order(work: Work, one_thread: Gathering) -> None:
    sizes: list[int] = []
    one_thread.grouped = sizes.append
    first = wishing(one_thread, work)
    work.begun(1)
    others = [wishing(one_thread, work) for _ in range(5)]
    work.go_on.release(3)
    results = [other.result(DEADLINE) for other in others]
    assert work.groups == [[first.result(DEADLINE)], results[:3], results[3:]]
    assert sizes == [1, 3, 2]


def test_a_call_that_is_on_its_way_is_waited_for(
    work: Work, one_thread: Gathering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recalld.gathering._MOST_MOMENTS", 10_000)
    arrives, is_here = threading.Event(), threading.Event()

    def comes() -> Wish:
        aside(arrives.wait, DEADLINE)
        wish = Wish(Asked())
        gather(work, wish)
        return wish

    def stays() -> Wish:
        is_here.set()
        wish = Wish(Asked())
        gather(work, wish)
        return wish

    coming, here = one_thread.submit(comes), one_thread.submit(stays)
    assert is_here.wait(DEADLINE)
    arrives.set()
    work.go_on.release()
    results = [here.result(DEADLINE), coming.result(DEADLINE)]
    assert work.groups == [results]


def test_a_call_that_does_not_come_is_not_waited_for_long(work: Work, one_thread: Gathering) -> None:
    arrives = threading.Event()
    coming = one_thread.submit(lambda: aside(arrives.wait, DEADLINE))
    work.go_on.release()
    wishing(one_thread, work).result(DEADLINE)
    assert not coming.done()
    arrives.set()
    assert coming.result(DEADLINE)


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Each time that a thread waits for company. It does so without taking the time."""
    waited: list[float] = []
    monkeypatch.setattr("recalld.gathering.sleep", lambda time: waited.append(time) if time == _MOMENT else sleep(time))
    return waited


def test_a_call_that_was_waited_for_in_vain_is_not_waited_for_again(
    work: Work, one_thread: Gathering, moments: list[float]
) -> None:
    arrives = threading.Event()

    def comes() -> Wish:
        aside(arrives.wait, DEADLINE)
        wish = Wish(Asked())
        gather(work, wish)
        return wish

    coming = [one_thread.submit(comes) for _ in range(2)]
    work.go_on.release(5)
    for _ in range(5):
        wishing(one_thread, work).result(DEADLINE)
    assert moments == [_MOMENT] * _MOST_MOMENTS
    # A new one is waited for again, as those who come after all are company like any.
    another = one_thread.submit(comes)
    work.go_on.release()
    wishing(one_thread, work).result(DEADLINE)
    assert moments == [_MOMENT] * 2 * _MOST_MOMENTS
    arrives.set()
    work.go_on.release(3)
    for call in (*coming, another):
        call.result(DEADLINE)


def test_a_call_whose_wish_is_pending_is_not_waited_for(
    work: Work, one_thread: Gathering, moments: list[float]
) -> None:
    waiting: list[Wish] = []

    def put_off(wishes: Sequence[Wish]) -> None:
        wishes[0].pending = True
        waiting.extend(wishes)

    pending = wishing(one_thread, put_off)
    wait_until(lambda: waiting, "it is not put off")
    work.go_on.release()
    wishing(one_thread, work).result(DEADLINE)
    assert not moments
    waiting[0].resume()
    pending.result(DEADLINE)


def test_while_one_thread_works_the_next_takes_on_calls(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recalld.gathering._PATIENCE", 60.0)
    threads = Gathering(2, most=8, aside=SpareThreads("test").run)
    calls = [wishing(threads, work)]
    work.begun(1)
    calls.append(wishing(threads, work))
    work.begun(2)
    calls += [wishing(threads, work) for _ in range(3)]
    work.go_on.release(3)
    first, second, *others = [call.result(DEADLINE) for call in calls]
    assert work.groups == [[first], [second], others]
    threads.shutdown()


def test_no_group_has_more_than_the_most_however_many_were_put_aside_before(work: Work, one_thread: Gathering) -> None:
    """Calls that were put aside come back all at once."""
    go_on = threading.Event()

    def wants(number: int) -> int:
        aside(go_on.wait, DEADLINE)
        gather(work, Wish(Asked()))
        return number

    calls = [one_thread.submit(wants, number) for number in range(8)]
    assert one_thread.submit(lambda: 7).result(DEADLINE) == 7
    go_on.set()
    for _ in calls:
        work.go_on.release()
    assert [call.result(DEADLINE) for call in calls] == list(range(8))
    assert max(map(len, work.groups)) <= 3


def test_different_wishes_are_fulfilled_apart(work: Work, one_thread: Gathering) -> None:
    other = Work()
    first = wishing(one_thread, work)
    work.begun(1)
    calls = [wishing(one_thread, work), wishing(one_thread, other), wishing(one_thread, work)]
    work.go_on.release(2)
    other.go_on.release()
    results = [call.result(DEADLINE) for call in calls]
    assert work.groups == [[first.result(DEADLINE)], [results[0], results[2]]]
    assert other.groups == [[results[1]]]


def test_an_error_is_everybodys_and_of_this_group_only(work: Work, one_thread: Gathering) -> None:
    first = wishing(one_thread, work)
    work.begun(1)
    group = [wishing(one_thread, work) for _ in range(3)]
    work.go_on.release()
    work.begun(2)
    work.error = Contention()
    work.go_on.release()
    assert {type(call.exception(DEADLINE)) for call in group} == {Contention}
    first.result(DEADLINE)
    work.error = None
    work.go_on.release()
    wishing(one_thread, work).result(DEADLINE)


def test_a_call_that_fails_before_it_wants_anything_fails_alone(work: Work, one_thread: Gathering) -> None:
    def fails() -> None:
        raise Contention

    first = wishing(one_thread, work)
    work.begun(1)
    failing, other = one_thread.submit(fails), wishing(one_thread, work)
    work.go_on.release(2)
    assert isinstance(failing.exception(DEADLINE), Contention)
    first.result(DEADLINE)
    other.result(DEADLINE)


def test_what_is_pending_goes_on_when_it_is_resumed_and_holds_up_nobody(one_thread: Gathering) -> None:
    waiting: list[Wish] = []

    def put_off(wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            wish.pending = True
        waiting.extend(wishes)

    pending = wishing(one_thread, put_off)
    wait_until(lambda: waiting, "it is not put off")
    assert one_thread.submit(lambda: 7).result(DEADLINE) == 7
    assert not pending.done()
    waiting[0].error = Contention()
    waiting[0].resume()
    assert isinstance(pending.exception(DEADLINE), Contention)


def test_on_such_a_thread_calls_gather(one_thread: Gathering) -> None:
    assert one_thread.submit(gathers).result(DEADLINE)


def test_a_call_that_somebody_tries_to_cancel_runs_nevertheless(work: Work, one_thread: Gathering) -> None:
    first = wishing(one_thread, work)
    work.begun(1)
    other = one_thread.submit(lambda: 7)
    assert not other.cancel()
    work.go_on.release()
    first.result(DEADLINE)
    assert other.result(DEADLINE) == 7


def test_after_the_shutdown_no_call_is_taken_on(one_thread: Gathering) -> None:
    assert one_thread.submit(lambda: 7).result(DEADLINE) == 7
    one_thread.shutdown()
    with pytest.raises(RuntimeError):
        one_thread.submit(lambda: 7)


def test_work_that_takes_too_long_does_not_keep_others_from_theirs_and_no_thread_too_many_stays(work: Work) -> None:
    threads = Gathering(1, most=8, aside=SpareThreads("test").run)
    stuck = [wishing(threads, work) for _ in range(1)]
    work.begun(1)
    stuck.append(wishing(threads, work))
    work.begun(2)  # on another thread
    assert wishing(threads, lambda _: None).result(DEADLINE)  # and on a third
    work.go_on.release(2)
    for call in stuck:
        call.result(DEADLINE)
    wait_until(lambda: len(threads._hubs) == len(threads._idle) == 1, "threads too many stay")
    assert threads.submit(lambda: 7).result(DEADLINE) == 7
    threads.shutdown()


def test_no_thread_is_started_for_calls_that_wait_when_all_have_been_told_to_end(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()

    def shut_down_meanwhile(seconds: float) -> None:
        if seconds == _PATIENCE / 2:
            threads.shutdown()
            looked.set()

    monkeypatch.setattr("recalld.gathering.sleep", shut_down_meanwhile)
    threads = Gathering(1, most=8, aside=SpareThreads("test").run, name="test-ending")
    calls = [wishing(threads, work)]
    work.begun(1)
    calls.append(wishing(threads, work))
    assert looked.wait(DEADLINE)
    work.go_on.release(2)
    for call in calls:
        call.result(DEADLINE)
    wait_until(lambda: not any(thread.name == "test-ending" for thread in threading.enumerate()), "a thread stays")


class LateInbox:
    """An inbox of a thread, which is told of calls only when it may be."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox
        self.get, self.get_nowait = inbox.get, inbox.get_nowait
        self.telling, self.may_tell = threading.Event(), threading.Event()

    def put(self, what: object) -> None:
        if what is None:
            self.telling.set()
            assert self.may_tell.wait(DEADLINE)
        self._inbox.put(what)


def test_a_thread_too_many_that_hears_late_of_a_call_it_has_taken_on_ends_once(
    work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    threads = Gathering(1, most=8, aside=SpareThreads("test").run, name="test-late")
    waiting: list[Wish] = []

    def put_off(wishes: Sequence[Wish]) -> None:
        wishes[0].pending = True
        waiting.extend(wishes)

    # Two threads rest, each with a call whose wish is pending.
    calls = [wishing(threads, put_off), wishing(threads, work)]
    work.begun(1)
    calls.append(wishing(threads, put_off))
    wait_until(lambda: len(waiting) == 2, "there is no second thread")
    work.go_on.release()
    wait_until(lambda: len(threads._idle) == 2, "they do not rest")

    told = threads._idle[-1]
    inbox = LateInbox(told.inbox)
    told.inbox = inbox  # type: ignore[assignment]
    runs, may_end = threading.Event(), threading.Event()

    def late() -> bool:
        runs.set()
        return may_end.wait(DEADLINE)

    submitting = threading.Thread(target=lambda: calls.append(threads.submit(late)))  # type: ignore[arg-type]
    submitting.start()
    assert inbox.telling.wait(DEADLINE)
    waiting.sort(key=lambda wish: wish._hub is not told)
    waiting[0].resume()
    runs.wait(0.2)  # it does if the thread takes it on before it is told
    inbox.may_tell.set()
    submitting.join(DEADLINE)
    may_end.set()
    calls[-1].result(DEADLINE)
    wait_until(lambda: len(threads._hubs) == len(threads._idle) == 1, "threads too many stay")
    waiting[1].resume()
    for call in calls:
        call.result(DEADLINE)
    threads.shutdown()
    wait_until(lambda: not any(thread.name == "test-late" for thread in threading.enumerate()), "a thread stays")
    assert not failures


# --- all at once


def test_in_a_storm_every_call_ends_once_with_its_own_result() -> None:
    chance = random.Random(7)
    put_off: list[Wish] = []

    def work(wishes: Sequence[Wish]) -> None:
        for wish in wishes:
            if chance.random() < 0.2:
                wish.pending = True
                threading.Thread(target=wish.resume).start()
        put_off.extend(wish for wish in wishes if wish.pending)
        if chance.random() < 0.1:
            raise Contention

    def call(number: int) -> int:
        for _ in range(3):
            with suppress(Contention):
                gather(work, Wish(Asked()))
            number = aside(int, number) if number % 5 == 0 else number
        return number

    threads = Gathering(3, most=8, aside=SpareThreads("test").run)
    calls = [threads.submit(call, number) for number in range(2000)]
    assert [call.result(60) for call in calls] == list(range(2000))
    assert put_off
    assert not threads._backlog
    wait_until(lambda: len(threads._idle) == len(threads._hubs) == 3, "a thread never rests")
    threads.shutdown()
