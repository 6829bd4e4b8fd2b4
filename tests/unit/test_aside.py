"""What would hold up a thread that gathers: done aside, on spare threads, or waited for without one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from recalld.errors import Contention
from recalld.gathering import Gathering, ParkingCondition, aside, gathers
from recalld.spare_threads import SpareThreads
from tests.unit.gathered import DEADLINE
from tests.waiting import wait_until


def test_what_is_done_aside_holds_up_nobody_and_comes_back_or_raises(one_thread: Gathering) -> None:
    go_on = threading.Event()
    variable: ContextVar[str] = ContextVar("variable")

    def slow(fails: bool) -> str:
        assert go_on.wait(DEADLINE)
        if fails:
            raise Contention
        return variable.get()

    def call(fails: bool) -> str:
        variable.set(f"fails: {fails}")
        return aside(slow, fails)

    calls = [one_thread.submit(call, fails) for fails in (False, True)]
    assert one_thread.submit(lambda: 7).result(DEADLINE) == 7
    assert not any(call.done() for call in calls)
    go_on.set()
    assert calls[0].result(DEADLINE) == "fails: False"
    assert isinstance(calls[1].exception(DEADLINE), Contention)


@pytest.mark.parametrize("notify", [ParkingCondition.notify, ParkingCondition.notify_all])
def test_who_waits_for_a_condition_holds_up_nobody(
    notify: Callable[[ParkingCondition], None], one_thread: Gathering
) -> None:
    condition = ParkingCondition()
    there: list[int] = []

    def wait() -> int:
        with condition:
            while not there:
                condition.wait()
            return there[0]

    calls = [one_thread.submit(wait), one_thread.submit(wait)]
    assert one_thread.submit(lambda: 7).result(DEADLINE) == 7
    with condition:  # nobody has it
        notify(condition)  # in vain: they look, and wait again
    assert one_thread.submit(lambda: 8).result(DEADLINE) == 8
    assert not any(call.done() for call in calls)
    with condition:
        there.append(9)
        condition.notify_all()
    assert [call.result(DEADLINE) for call in calls] == [9, 9]


def test_elsewhere_it_is_a_condition_like_any() -> None:
    condition = ParkingCondition()
    with condition:
        assert not condition.wait(0.001)
    waits = threading.Event()

    def wait() -> None:
        with condition:
            waits.set()
            condition.wait()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert waits.wait(DEADLINE)
    with condition:  # that it can be had says that the other waits
        condition.notify()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_there_are_no_more_threads_for_errands_than_errands_at_a_time() -> None:
    spare = SpareThreads("spare")
    over, go_on = threading.Event(), threading.Event()

    def threads() -> int:
        return sum(thread.name.startswith("spare_") for thread in threading.enumerate())

    def one_of(left: int) -> Callable[[], Callable[[], None]]:
        """The next is begun by who hears of the end of this one."""
        return lambda: (lambda: spare.run(one_of(left - 1))) if left else over.set

    def slow() -> Callable[[], None]:
        assert go_on.wait(DEADLINE)
        return over.set

    spare.run(one_of(100))
    assert over.wait(DEADLINE)
    assert threads() == 1
    spare.run(slow)
    spare.run(slow)
    assert threads() == 2
    go_on.set()
    spare.close()
    wait_until(lambda: threads() == 0, "a thread stays")


def test_on_any_other_thread_nobody_gathers_and_what_is_done_aside_is_done_at_once() -> None:
    assert not gathers()
    assert aside(threading.current_thread) is threading.current_thread()
