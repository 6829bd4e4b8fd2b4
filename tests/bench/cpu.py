"""CPU time of processes and all that they start."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil


class Tree:
    """A process and its descendants, those too that have ended and been waited for."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)

    def seconds(self) -> float:
        """CPU time used so far."""
        return sum(self._seconds(process) for process in self._processes())

    def resident(self) -> int:
        """Bytes of memory held now; pages that processes share count for each."""
        total = 0
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    @staticmethod
    def _seconds(process: psutil.Process) -> float:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            return float(times.user + times.system + times.children_user + times.children_system)
        return 0.0


def postmaster(data_directory: Path) -> Tree:
    """The Postgres that runs on a data directory: each backend is a child of its first process."""
    return Tree(int((data_directory / "postmaster.pid").read_text().splitlines()[0]))
