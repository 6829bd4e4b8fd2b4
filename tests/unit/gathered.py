"""Calls and work of tests that gather."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from recalld.domain import Call
from recalld.gathering import Gathering, Wish, gather
from tests.waiting import wait_until

DEADLINE = 30.0


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
    """Work that waits each time until it may go on, and remembers what it was for."""

    def __init__(self) -> None:
        self.groups: list[list[Wish]] = []
        self.go_on = threading.Semaphore(0)
        self.error: Exception | None = None

    def __call__(self, wishes: Sequence[Wish]) -> None:
        self.groups.append(list(wishes))
        assert self.go_on.acquire(timeout=DEADLINE)
        if self.error:
            raise self.error

    def begun(self, groups: int) -> None:
        wait_until(lambda: len(self.groups) == groups, f"not {groups} pieces of work")


def wishing(threads: Gathering, work: Callable[[Sequence[Wish]], None], call: Call | None = None) -> Future[Wish]:
    """A call that wants the work done, and then returns its wish."""

    def wants() -> Wish:
        wish = Wish(call or Asked())
        gather(work, wish)
        return wish

    return threads.submit(wants)
