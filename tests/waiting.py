"""Waiting for something to come true."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.processes import DEADLINE


def wait_until(condition: Callable[[], object], what: str, within: float = DEADLINE) -> None:
    """Returns when the condition holds; fails with the words of `what` when it does not `within` so many seconds."""
    assert becomes(condition, within), what


def becomes(condition: Callable[[], object], within: float = DEADLINE) -> bool:
    """Whether the condition comes to hold `within` so many seconds; returns as soon as it does."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
