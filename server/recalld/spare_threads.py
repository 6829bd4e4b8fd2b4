"""Threads for what would hold up those that have better to do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

# What is done aside; it returns what tells of its end.
Errand = Callable[[], Callable[[], None]]


class SpareThreads:
    """As many threads as there are errands at a time: nothing waits for one, and each is kept for what comes later.

    With an executor's, a Future for each errand, a twentieth of the CPU time of an AddMemory went here.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0

    def run(self, errand: Errand) -> None:
        """Has it run; it raises nothing."""
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self._name}_{self._threads}", daemon=True).start()
        self._errands.put(errand)

    def close(self) -> None:
        """Lets the threads end once they have nothing to do."""
        with self._lock:
            for _ in range(self._threads):
                self._errands.put(None)

    def _work(self) -> None:
        while (errand := self._errands.get()) is not None:
            tell = errand()
            # First: who hears of the end may come with the next errand.
            with self._lock:
                self._free += 1
            tell()
