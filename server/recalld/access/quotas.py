"""Quotas: how much of the server one namespace may have, so that the others keep theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import random
from typing import Final

from recalld.errors import QuotaExceeded

# Namespaces above which idle ones are forgotten. More are kept if more have calls in progress.
_MOST_KNOWN: Final = 10_000

# Seconds after which a call that was turned away may try again, at least: of many that wait, one has its turn sooner.
_RETRY_AFTER: Final = 0.1


class _Use:
    """What one namespace uses: calls in progress, and what is left in its token bucket as of `time`."""

    __slots__ = ("calls", "left", "time")

    def __init__(self, left: float, time: float) -> None:
        self.calls = 0
        self.left = left
        self.time = time


class Quotas:
    """Counts the calls of each namespace, in this process.

    Args:
        rate: calls a second, by a token bucket that holds one second's worth; 0 for any number.
        concurrency: calls in progress at once; 0 for any number.
        clock: seconds that never go backwards.
    """

    def __init__(self, rate: float, concurrency: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = max(rate, 1.0)
        # Seconds after which an empty bucket is full again.
        self._refill = self._burst / rate if rate else 0.0
        self._concurrency = concurrency
        self._clock = clock
        self._uses: dict[str, _Use] = {}
        self._lock = threading.Lock()

    @property
    def limit_anything(self) -> bool:
        return bool(self._rate or self._concurrency)

    def enter(self, namespace: str) -> None:
        """Counts a call as begun; `leave` must follow. Raises QuotaExceeded, and then counts nothing."""
        with self._lock:
            now = self._clock()
            use = self._uses.get(namespace) or self._new(namespace, now)
            if self._concurrency and use.calls >= self._concurrency:
                raise QuotaExceeded("concurrent_calls", self._concurrency, _spread(_RETRY_AFTER))
            if self._rate:
                use.left = min(self._burst, use.left + (now - use.time) * self._rate)
                use.time = now
                if use.left < 1:
                    wait = max(_RETRY_AFTER, (1 - use.left) / self._rate)
                    raise QuotaExceeded("calls_per_second", self._rate, _spread(wait))
                use.left -= 1
            use.calls += 1

    def leave(self, namespace: str) -> None:
        """Counts a call as ended."""
        with self._lock:
            self._uses[namespace].calls -= 1

    def _new(self, namespace: str, now: float) -> _Use:
        if len(self._uses) >= _MOST_KNOWN:
            # Their buckets are full: to forget them changes nothing.
            idle = [name for name, use in self._uses.items() if not use.calls and now - use.time >= self._refill]
            for name in idle:
                del self._uses[name]
        use = self._uses[namespace] = _Use(self._burst, now)
        return use


def _spread(seconds: float) -> float:
    """A random time from this long to twice as long, so that callers refused together do not retry together."""
    return seconds * (1 + random())
