"""Several calls as one, for the statement that they share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from recalld import errors
from recalld.domain import Call
from recalld.gathering import Wish

W = TypeVar("W", bound=Wish)


class Together:
    """A Call that stands for several. It is over when all of them are."""

    namespace: Final = ""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        self._lock = threading.Lock()
        self._callback: Callable[[], None] | None = None
        self._calls = [wish.call for wish in wishes]
        self._left = len(wishes)

    def remaining(self) -> float | None:
        longest = 0.0
        for call in self._calls:
            remaining = call.remaining()
            if remaining is None:
                return None
            longest = max(longest, remaining)
        return longest

    def when_over(self, callback: Callable[[], None]) -> bool:
        with self._lock:
            self._callback = callback
            return self._left > 0

    def one_is_over(self) -> None:
        with self._lock:
            self._left -= 1
            callback = None if self._left else self._callback
        if callback is not None:
            callback()


def as_one(wishes: Sequence[W]) -> tuple[Sequence[W], Call]:
    """The wishes whose calls are not over yet, and one Call for them. The others get the error that ended them."""
    if len(wishes) == 1:
        return wishes, wishes[0].call
    together = Together(wishes)
    lasting = []
    for wish in wishes:
        if wish.call.when_over(together.one_is_over):
            lasting.append(wish)
        else:
            together.one_is_over()
            wish.error = errors.DeadlineExceeded() if wish.call.remaining() == 0 else errors.Cancelled()
    return lasting, together
