"""What the programs of peers have in common: appending for a while when told to, on stdin, by so many at a time.

A program is started with a libpq connection string, a file of texts in JSON, and the first and the end of the numbers
of the sessions that are its own, and perhaps arguments. On a first line it makes its tables, or finds them, and says
`ready`; then it answers each line `WRITERS SECONDS` with one of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Appends a text to the session of this number.
AsyncAppend = Callable[[int, str], Awaitable[Any]]
Append = Callable[[int, str], Any]

# The most writers that a program is ever told to have.
MOST_WRITERS = 32


class Share:
    """What the program was started with."""

    def __init__(self) -> None:
        sys.stdin.readline()
        self.url, texts, first, end, *self.arguments = sys.argv[1:]
        self.sessions = range(int(first), int(end))
        self._texts: list[str] = json.loads(Path(texts).read_text())
        self._next = itertools.count()

    def next(self) -> tuple[int, str]:
        """The next session and text. Neighbours in time are never the same session, so nobody waits for a lock."""
        number = next(self._next)
        session = self.sessions[number % len(self.sessions)]
        return session, self._texts[session % len(self._texts)]


async def answer_async(share: Share, append: AsyncAppend) -> None:
    """Does as told, with writers that are tasks."""
    for writers, seconds in _orders():
        took: list[float] = []
        end = time.monotonic() + seconds

        async def write(end: float = end, took: list[float] = took) -> None:
            while (before := time.monotonic()) < end:
                await append(*share.next())
                took.append(time.monotonic() - before)

        begun = time.monotonic()
        await asyncio.gather(*(write() for _ in range(writers)))
        _report(took, time.monotonic() - begun)


def answer(share: Share, make: Callable[[], Append]) -> None:
    """Does as told, with writers that are threads; `make` gives each its own."""
    appends = [make() for _ in range(MOST_WRITERS)]
    with ThreadPoolExecutor(MOST_WRITERS) as threads:
        for writers, seconds in _orders():
            took: list[float] = []
            end = time.monotonic() + seconds

            def write(append: Append, end: float = end, took: list[float] = took) -> None:
                while (before := time.monotonic()) < end:
                    append(*share.next())
                    took.append(time.monotonic() - before)

            begun = time.monotonic()
            list(threads.map(write, appends[:writers]))
            _report(took, time.monotonic() - begun)


def _orders() -> Any:
    print("ready", flush=True)
    for line in sys.stdin:
        writers, seconds = line.split()
        yield int(writers), float(seconds)


def _report(took: list[float], seconds: float) -> None:
    print(json.dumps({"seconds": seconds, "took": took}), flush=True)
