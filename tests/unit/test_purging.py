"""Purging on a schedule, on a clock of the test's: who holds the lease, how hard it works, and what stops it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from recalld import purging
from recalld.domain import Call, PurgeProgress, PurgeQuery
from recalld.errors import Contention, DeadlineExceeded, ShuttingDown, StorageUnavailable
from recalld.metrics import Metrics
from recalld.purging import LEASE_TTL, Purger

RETENTION = timedelta(days=30)
INTERVAL = timedelta(hours=1)
TTL = LEASE_TTL.total_seconds()


class World:
    """Time that passes only when somebody waits or works; what happened, in order; and an end of it all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends_at: float) -> None:
        self.now = 0.0
        self.ends_at = ends_at
        self.happened: list[str] = []
        self.waits: list[float] = []
        monkeypatch.setattr(purging, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(purging, "threading", SimpleNamespace(Event=lambda: Stopped(self), Thread=Inline))
        self.shuffles = 0
        monkeypatch.setattr(purging, "random", SimpleNamespace(shuffle=self._shuffle))

    def _shuffle(self, names: list[str]) -> None:
        """Leaves the first run's order as it is, and turns round every other's."""
        if self.shuffles % 2:
            names.reverse()
        self.shuffles += 1


class Stopped:
    """A threading.Event that is set when the world ends."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set or self._world.now >= self._world.ends_at

    def wait(self, seconds: float) -> bool:
        self._world.waits.append(seconds)
        self._world.now += seconds
        return self.is_set()


class Inline:
    """A thread that has run to its end when it has started."""

    def __init__(self, target: Callable[[], None], **_: object) -> None:
        self._target = target

    def start(self) -> None:
        self._target()

    def join(self, timeout: float) -> None:
        pass


class Store:
    """Removes a session with each step, in namespaces that are empty afterwards."""

    def __init__(self, world: World, steps: dict[str, int], *, seconds: float = 0.0) -> None:
        self.cutoffs: list[datetime] = []
        self.failures: list[Exception] = []  # of listing what is due
        self.failing: dict[str, Exception] = {}  # by namespace
        self.failing_takes = 0.0
        self._world = world
        self._steps = dict(steps)
        self._seconds = seconds

    def due_namespaces(self, cutoff: datetime) -> list[str]:
        self.cutoffs.append(cutoff)
        if self.failures:
            raise self.failures.pop()
        return list(self._steps)

    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        self._world.happened.append(f"purge {call.namespace}")
        if error := self.failing.get(call.namespace):
            self._world.now += self.failing_takes
            raise error
        for done in range(1, self._steps.pop(call.namespace) + 1):
            self._world.now += self._seconds
            yield PurgeProgress(done, 10 * done, 0)


class Lease:
    """A lease, by the world's clock, of which `others` may have the first seconds."""

    def __init__(self, world: World, *, others: float = 0.0) -> None:
        self._world = world
        self._next = others
        self.expires = 0.0
        self.overdue = False

    def take(self) -> bool:
        if self._world.now < self._next:
            return False
        self._world.happened.append("take")
        self.expires = self._world.now + TTL
        return True

    def renew(self) -> bool:
        if self._world.now >= self.expires:
            self.overdue = True
            return False
        self.expires = self._world.now + TTL
        return True

    def give_back(self, pause: timedelta) -> None:
        self._world.happened.append(f"give back for {pause.total_seconds():g} s")
        self._next = self._world.now + pause.total_seconds()


def run(
    store: Store, lease: Lease, *, busy: Callable[[], bool] = lambda: False, interval: timedelta = INTERVAL
) -> Metrics:
    metrics = Metrics()
    Purger(store, lease, busy, RETENTION, interval, metrics).start()
    return metrics


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_purges_every_namespace_once_an_interval(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=INTERVAL.total_seconds() + 60)
    with caplog.at_level(logging.INFO):
        metrics = run(Store(world, {"a": 2, "b": 3}), Lease(world))

    assert world.happened == ["take", "purge a", "purge b", "give back for 3600 s", "take", "give back for 3600 s"]
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "sessions"}) == 5
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "messages"}) == 50
    assert metrics.registry.get_sample_value("recalld_purge_last_success_timestamp_seconds") != 0
    assert [message.partition(" in ")[0] for message in caplog.messages] == ["purged 5 sessions, 50 messages, 0 users"]


def test_it_purges_only_what_was_deleted_before_the_retention(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=20)
    store = Store(world, {})
    before = datetime.now(UTC)
    run(store, Lease(world))
    [cutoff] = store.cutoffs
    assert before <= cutoff + RETENTION <= datetime.now(UTC)


def test_it_purges_nothing_while_it_is_another_servers_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=200)
    metrics = run(Store(world, {"a": 1}), Lease(world, others=1000))
    assert world.happened == []
    assert metrics.registry.get_sample_value("recalld_purge_last_success_timestamp_seconds") == 0


def test_it_looks_often_enough_to_take_over_soon_from_a_server_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=100)
    run(Store(world, {"a": 1}), Lease(world, others=TTL), interval=timedelta(days=7))
    assert world.happened[0] == "take"
    assert world.waits[:3] == [15, 15, 0]


def test_it_rests_after_each_step_for_as_long_as_the_step_took(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=60)
    run(Store(world, {"a": 3}, seconds=0.25), Lease(world))
    assert world.waits[1:4] == [0.25, 0.25, 0.25]


def test_it_stays_away_while_calls_wait_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=60)
    began = None

    def busy() -> bool:
        nonlocal began
        began = world.now if began is None else began
        return True

    metrics = run(Store(world, {"a": 2}), Lease(world), busy=busy)
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "sessions"}) == 2
    # The look, then for each of two steps its rest and the wait for calls to get through.
    assert began is not None
    assert world.waits.count(0.2) == 2 * 25


@pytest.mark.parametrize("steps", [{"a": 40}, dict.fromkeys("abcdefghij", 4)], ids=["one namespace", "many"])
def test_a_long_purge_keeps_its_turn(steps: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=400)
    lease = Lease(world)
    metrics = run(Store(world, steps, seconds=2), lease)
    assert not lease.overdue
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "sessions"}) == 40


def test_a_server_that_lost_its_turn_stops_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=60)  # before the next look
    lease = Lease(world)
    store = Store(world, {"a": 9}, seconds=TTL + 1)
    metrics = run(store, lease)
    assert lease.overdue
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "sessions"}) == 1
    assert metrics.registry.get_sample_value("recalld_purge_last_success_timestamp_seconds") == 0
    assert "lost its lease" in caplog.text
    assert not [event for event in world.happened if event.startswith("give back for 3600")]


def test_a_run_goes_on_after_failures_and_keeps_its_turn_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=120)
    store, lease = Store(world, {"a": 1}), Lease(world)
    store.failures = [StorageUnavailable() for _ in range(9)]
    metrics = run(store, lease)
    assert not lease.overdue
    assert world.happened == ["take", "purge a", "give back for 3600 s"]
    assert metrics.registry.get_sample_value("recalld_purge_last_success_timestamp_seconds") != 0


def test_a_run_that_cannot_even_begin_is_given_up_until_the_next_is_due(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=INTERVAL.total_seconds() + 100)
    store = Store(world, {"a": 1})
    store.failures = [StorageUnavailable() for _ in range(10)]
    run(store, Lease(world))
    assert warnings(caplog) == ["the purge is given up until its next run everywhere (STORAGE_UNAVAILABLE)"]
    assert world.happened == ["take", "give back for 3600 s", "take", "purge a", "give back for 3600 s"]


def test_a_namespace_whose_purge_fails_comes_after_the_others_and_is_given_up_at_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=100)
    store = Store(world, {"a": 1, "b": 2, "c": 3})
    store.failing = {"a": Contention()}
    metrics = run(store, Lease(world))
    assert world.happened == ["take", "purge a", "purge b", "purge c", *["purge a"] * 10, "give back for 3600 s"]
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "sessions"}) == 5
    # By which the alert of docs/operations.md knows.
    assert metrics.registry.get_sample_value("recalld_purge_last_success_timestamp_seconds") == 0
    assert warnings(caplog) == ["the purge is given up until its next run in 'a' (CONTENTION)"]


def test_what_one_run_has_given_up_the_next_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=2 * INTERVAL.total_seconds())
    store = Store(world, {"a": 1})
    store.failing = {"a": Contention()}
    lease = Lease(world)
    give_back = lease.give_back

    def repaired(pause: timedelta) -> None:
        give_back(pause)
        store.failing.clear()

    monkeypatch.setattr(lease, "give_back", repaired)
    metrics = run(store, lease)
    assert world.happened[-4:] == ["give back for 3600 s", "take", "purge a", "give back for 3600 s"]
    assert metrics.registry.get_sample_value("recalld_purge_last_success_timestamp_seconds") != 0


def test_however_many_namespaces_fail_those_behind_them_are_purged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=400)
    failing = [f"f{number}" for number in range(25)]
    store = Store(world, dict.fromkeys([*failing, "healthy"], 1))
    store.failing = dict.fromkeys(failing, Contention())
    run(store, Lease(world))
    assert world.happened.count("purge healthy") == 1
    assert max(map(world.happened.count, world.happened)) == 2, "one is tried again and again"
    [warning] = warnings(caplog)
    assert "'f9' (CONTENTION) and 15 more" in warning


@pytest.mark.parametrize(("messages", "given_up"), [(10, False), (0, True)])
def test_only_what_removes_something_is_progress(
    messages: int, given_up: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=300)
    store = Store(world, {"a": 1})
    left = iter(range(29, -1, -1))

    def a_step(call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        yield PurgeProgress(0, messages, 0)
        if next(left):
            raise Contention

    monkeypatch.setattr(store, "purge", a_step)
    run(store, Lease(world))
    assert bool(warnings(caplog)) == given_up


def test_a_namespace_whose_purge_costs_the_turn_does_not_keep_the_same_others_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, ends_at=120)
    store = Store(world, {"a": 1, "b": 1, "c": 1})
    store.failing = {"a": DeadlineExceeded()}
    store.failing_takes = TTL + 1
    run(store, Lease(world))
    assert world.happened[:5] == ["take", "purge a", "take", "purge c", "purge b"]


def test_a_defect_in_one_namespace_does_not_keep_the_others_from_being_purged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=100)
    store = Store(world, {"a": 1, "b": 1})
    store.failing = {"a": ZeroDivisionError()}
    run(store, Lease(world))
    assert world.happened == ["take", "purge a", "purge b", *["purge a"] * 10, "give back for 3600 s"]
    assert warnings(caplog) == ["the purge is given up until its next run in 'a' (ZeroDivisionError)"]
    assert "Traceback" in caplog.text


def test_a_server_that_stops_lets_another_go_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=18)
    metrics = run(Store(world, {"a": 9}, seconds=1), Lease(world))
    assert metrics.registry.get_sample_value("recalld_purged_total", {"kind": "sessions"}) == 2
    assert world.happened == ["take", "purge a", "give back for 0 s"]


def test_it_ends_when_the_pool_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, ends_at=1000)
    store = Store(world, {"a": 1})
    store.failures = [ShuttingDown()]
    run(store, Lease(world))
    assert world.now < 100


def test_a_defect_costs_one_look_and_not_the_schedule(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(monkeypatch, ends_at=100)
    lease = Lease(world)
    take = lease.take
    defects = [ZeroDivisionError()]

    def fails_once() -> bool:
        if defects:
            raise defects.pop()
        return take()

    monkeypatch.setattr(lease, "take", fails_once)
    run(Store(world, {"a": 1}), lease)
    assert "the purge failed" in caplog.text
    assert world.happened == ["take", "purge a", "give back for 3600 s"]
