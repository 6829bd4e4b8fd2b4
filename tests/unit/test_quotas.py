"""Quotas: what a namespace may have, when it may have more, and that the others never notice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from recalld.access import quotas
from recalld.access.quotas import Quotas
from recalld.errors import QuotaExceeded
from tests.access import Clock

THREADS = 16


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is drawn to spread callers, in turn; without an entry 0: nobody waits longer than must be."""
    numbers: list[float] = []
    monkeypatch.setattr(quotas, "random", lambda: numbers.pop() if numbers else 0.0)
    return numbers


def passing(counted: Quotas, namespace: str = "n", most: int = 1000) -> int:
    """How many calls, one after the other, pass before one is turned away."""
    for number in range(most):
        try:
            counted.enter(namespace)
        except QuotaExceeded:
            return number
        counted.leave(namespace)
    return most


def refusal(counted: Quotas, namespace: str = "n") -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        counted.enter(namespace)
    return caught.value


def test_without_quotas_everything_passes(clock: Clock) -> None:
    unlimited = Quotas(0, 0, clock)
    assert not unlimited.limit_anything
    assert passing(unlimited) == 1000


@pytest.mark.parametrize(("rate", "concurrency"), [(1, 0), (0, 1), (0.5, 0)])
def test_one_quota_limits_something(rate: float, concurrency: int) -> None:
    assert Quotas(rate, concurrency).limit_anything


# --- the rate


@pytest.mark.parametrize(("rate", "burst"), [(10, 10), (1, 1), (0.1, 1), (2.5, 2)])
def test_a_burst_is_a_second_s_worth_and_at_least_one_call(clock: Clock, rate: float, burst: int) -> None:
    assert passing(Quotas(rate, 0, clock)) == burst


def test_in_the_long_run_the_rate_passes_and_no_more(clock: Clock) -> None:
    counted = Quotas(10, 0, clock)
    passed = 0
    for _ in range(600):
        passed += passing(counted)
        clock.advance(0.1)
    assert passed == pytest.approx(10 * 60 + 10, abs=3)


def test_the_bucket_holds_no_more_than_a_second_s_worth(clock: Clock) -> None:
    counted = Quotas(10, 0, clock)
    passing(counted)
    clock.advance(3600)
    assert passing(counted) == 10


def test_callers_that_are_turned_away_together_are_told_different_times(clock: Clock, drawn: list[float]) -> None:
    counted = Quotas(1, 0, clock)
    passing(counted)
    drawn[:] = [0.5, 0.25]
    assert [refusal(counted).retry_after, refusal(counted).retry_after] == [1.25, 1.5]


def test_however_high_the_rate_nobody_is_told_to_come_back_at_once(clock: Clock) -> None:
    counted = Quotas(1000, 0, clock)
    passing(counted, most=2000)
    assert refusal(counted).retry_after == 0.1


@pytest.mark.parametrize("rate", [0.1, 1, 3, 7])
def test_retry_after_is_when_a_call_passes_again(clock: Clock, rate: float) -> None:
    counted = Quotas(rate, 0, clock)
    passing(counted, most=2000)
    wait = refusal(counted).retry_after
    assert wait is not None
    assert 0 < wait <= 1 / rate
    clock.advance(wait * 0.99)
    assert passing(counted) == 0
    clock.advance(wait * 0.02)
    assert passing(counted) == 1


def test_a_refused_call_costs_nothing(clock: Clock) -> None:
    counted = Quotas(10, 0, clock)
    passing(counted)
    for _ in range(100):
        refusal(counted)
    clock.advance(0.5)
    assert passing(counted) == 5


def test_a_refusal_says_which_quota_and_how_much_it_is(clock: Clock) -> None:
    counted = Quotas(2.5, 0, clock)
    passing(counted)
    refused = refusal(counted)
    assert refused.reason == "LIMIT_EXCEEDED"
    assert refused.metadata == {"quota": "calls_per_second", "allowed": "2.5"}
    assert refused.message == "the namespace is at its quota of 2.5 calls per second: retry later"


# --- calls at once


def test_as_many_calls_as_allowed_are_in_progress_and_one_more_is_refused(clock: Clock) -> None:
    counted = Quotas(0, 3, clock)
    for _ in range(3):
        counted.enter("n")
    refused = refusal(counted)
    assert refused.metadata == {"quota": "concurrent_calls", "allowed": "3"}
    assert refused.retry_after
    counted.leave("n")
    counted.enter("n")
    refusal(counted)


def test_a_call_refused_for_one_quota_is_not_counted_for_the_other(clock: Clock) -> None:
    counted = Quotas(2, 1, clock)
    counted.enter("n")
    for _ in range(5):
        assert refusal(counted).metadata["quota"] == "concurrent_calls"
    counted.leave("n")
    counted.enter("n")
    counted.leave("n")
    for _ in range(5):
        assert refusal(counted).metadata["quota"] == "calls_per_second"
    clock.advance(0.5)
    counted.enter("n")


# --- namespaces


def test_namespaces_are_independent(clock: Clock) -> None:
    counted = Quotas(5, 2, clock)
    assert passing(counted, "noisy") == 5
    counted.enter("quiet")
    counted.enter("quiet")
    assert refusal(counted, "quiet").metadata["quota"] == "concurrent_calls"
    assert refusal(counted, "noisy").metadata["quota"] == "calls_per_second"
    assert passing(counted, "third") == 5


@pytest.mark.parametrize("rate", [0, 0.1, 1, 100])
def test_what_is_known_of_idle_namespaces_is_bounded(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr(quotas, "_MOST_KNOWN", 8)
    counted = Quotas(rate, 1, clock)
    for number in range(100):
        counted.enter(f"n{number}")
        counted.leave(f"n{number}")
        clock.advance(20)
    assert len(counted._uses) <= 8


@pytest.mark.parametrize("rate", [0.1, 1, 100])
def test_a_namespace_gains_nothing_by_being_forgotten(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr(quotas, "_MOST_KNOWN", 1)
    counted, alone = Quotas(rate, 0, clock), Quotas(rate, 0, clock)
    together = separate = 0
    for number in range(50):
        passing(counted, f"n{number}")  # whose coming has others forgotten
        together += passing(counted)
        separate += passing(alone)
        clock.advance(0.9 / rate)
    assert together == separate


def test_a_namespace_with_calls_in_progress_is_not_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "_MOST_KNOWN", 2)
    counted = Quotas(0, 1, clock)
    counted.enter("busy")
    for number in range(10):
        clock.advance(100)
        passing(counted, f"n{number}", most=1)
    refusal(counted, "busy")
    counted.leave("busy")
    counted.enter("busy")


# --- threads


def test_threads_never_exceed_what_is_allowed_together() -> None:
    counted = Quotas(0, 3)
    lock, start = threading.Lock(), threading.Barrier(THREADS)
    inside = most = 0

    def work(_: int) -> int:
        nonlocal inside, most
        passed = 0
        start.wait(30)
        for _ in range(500):
            try:
                counted.enter("n")
            except QuotaExceeded:
                continue
            with lock:
                inside += 1
                most = max(most, inside)
            with lock:
                inside -= 1
            counted.leave("n")
            passed += 1
        return passed

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) > 0
    assert most <= 3
    for _ in range(3):
        counted.enter("n")
    refusal(counted)
