"""Which threads calls are given that may gather."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from recalld.gathering import Gathering, gathers
from recalld.metrics import Metrics
from recalld.services.overload import CallThreads, GatheredCalls, QuickCalls
from recalld.spare_threads import SpareThreads
from tests.waiting import wait_until

DEADLINE = 30.0


@pytest.fixture
def gathered() -> Iterator[GatheredCalls]:
    calls = CallThreads(8)
    threads = GatheredCalls(calls, SpareThreads("test"), Metrics().group_sizes("/test/Test"))
    yield threads
    threads.shutdown()
    calls.shutdown()


def runs_where_calls_gather(_run: Any, _event: Any, _state: Any) -> bool:
    """What gRPC submits, as far as it matters here."""
    return gathers()


def test_a_call_whose_request_can_be_waited_for_aside_gathers(gathered: GatheredCalls) -> None:
    before = threading.Condition()
    state = SimpleNamespace(condition=before)
    assert gathered.submit(runs_where_calls_gather, None, None, state).result(DEADLINE)
    assert state.condition is not before


@pytest.mark.parametrize("state", [None, SimpleNamespace(), SimpleNamespace(condition="unknown")])
def test_one_that_would_hold_up_others_has_a_thread_of_its_own(state: Any, gathered: GatheredCalls) -> None:
    """So it would be if a gRPC to come kept its calls' state elsewhere."""
    assert not gathered.submit(runs_where_calls_gather, None, None, state).result(DEADLINE)
    assert not gathered.submit(gathers).result(DEADLINE)


# --- quick calls


class Opened:
    """A call as gRPC submits it: it waits for its request, and ends when it is cancelled."""

    def __init__(self) -> None:
        self.call = self
        self.condition: Any = threading.Condition()
        self.request_came = False
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        self.notify()

    def come(self) -> None:
        self.request_came = True
        self.notify()

    def notify(self) -> None:
        with self.condition:
            self.condition.notify_all()

    def begin(self, threads: QuickCalls) -> Future[bool]:
        """What it returns tells whether its request came."""
        return threads.submit(lambda _run, _event, _state: self.wait(), None, self, self)

    def wait(self) -> bool:
        with self.condition:
            while not (self.request_came or self.cancelled):
                self.condition.wait()
        return self.request_came


@pytest.fixture
def quick() -> Iterator[QuickCalls]:
    threads = QuickCalls(SpareThreads("test"), "test-quick", most=2)
    yield threads
    threads.shutdown()


def test_of_too_many_quick_calls_whose_requests_do_not_come_the_oldest_is_cancelled(quick: QuickCalls) -> None:
    calls = [Opened() for _ in range(4)]
    futures = [call.begin(quick) for call in calls]
    assert [futures[number].result(DEADLINE) for number in (0, 1)] == [False, False]
    assert [call.cancelled for call in calls] == [True, True, False, False]
    calls[2].come()
    assert futures[2].result(DEADLINE)
    # It waits no more, so there is room for another.
    calls.append(Opened())
    futures.append(calls[-1].begin(quick))
    for call in (calls[3], calls[4]):
        call.come()
    assert [futures[number].result(DEADLINE) for number in (3, 4)] == [True, True]


def test_a_quick_call_that_need_not_wait_any_more_is_cancelled_by_no_other(
    quick: QuickCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recalld.gathering._PATIENCE", 60.0)
    begun, go_on = threading.Event(), threading.Event()

    def is_answered(_run: Any, _event: Any, _state: Any) -> bool:
        begun.set()
        return go_on.wait(DEADLINE)

    answered = Opened()
    first = quick.submit(is_answered, None, answered, answered)
    assert begun.wait(DEADLINE)
    others = [Opened() for _ in range(8)]
    for other in others:
        other.come()
    futures = [other.begin(quick) for other in others]
    go_on.set()
    assert first.result(DEADLINE)
    assert all(future.result(DEADLINE) for future in futures)
    assert not any(call.cancelled for call in (answered, *others))


def test_a_watcher_that_is_told_something_does_not_count_among_those_that_wait(quick: QuickCalls) -> None:
    """It has its own bound, see HealthServicer.cancel_stalled."""
    tellers = Gathering(1, most=1, aside=lambda errand: errand()(), name="test-tellers")
    watchers = [Opened() for _ in range(4)]
    for watcher in watchers:
        watcher.come()
        assert watcher.begin(quick).result(DEADLINE)
        watcher.request_came = False
    telling = [tellers.submit(watcher.wait) for watcher in watchers]
    wait_until(lambda: all(watcher.condition._parked for watcher in watchers), "they are not told")
    assert not any(watcher.cancelled for watcher in watchers)
    for watcher in watchers:
        watcher.come()
    assert all(told.result(DEADLINE) for told in telling)
    tellers.shutdown()
