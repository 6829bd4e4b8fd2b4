"""Time that moves when the test says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_START = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)
_TICK = timedelta(milliseconds=1)


class Clock:
    """Each reading is a millisecond after the one before, so that no two events have the same time."""

    def __init__(self) -> None:
        self._time = _START

    def __call__(self) -> datetime:
        self._time += _TICK
        return self._time

    def advance(self, **duration: float) -> datetime:
        """Moves on by a timedelta's arguments and returns the new time."""
        self._time += timedelta(**duration)
        return self()
