"""Threads for work that would block those that gather."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

# Work for a spare thread. It returns a function that reports its end, called when the thread is free again.
Errand = Callable[[], Callable[[], None]]


class SpareThreads:
    """As many threads as there are errands at a time: no errand waits for one. Threads are kept for later errands.

    A ThreadPoolExecutor, with its Future for each errand, took a twentieth of the CPU time of an AddMemory.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0

    def run(self, errand: Errand) -> None:
        """Runs an errand, which must not raise, on a free thread or a new one."""
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
            # Before the report: whoever gets it may run the next errand.
            with self._lock:
                self._free += 1
            tell()
