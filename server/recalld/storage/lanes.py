"""Group commit: calls that wait at the same time are worked on together, on the thread of one of them.

Whoever comes while a leader is wanted leads at once: it works on all who wait by then, itself the first, and when that
is done it makes the next who waits the leader. So nobody ever waits for company, and the longer the work takes the more
calls share it. Work that takes too long, such as waiting for a lock, no longer keeps the others from leading.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Generic, TypeVar

from recalld import errors
from recalld.domain import Call

M = TypeVar("M", bound="Member")


class Member:
    """A call in a lane.

    Attributes:
        call: when it is over before it is worked on, it leaves; when that happens later, nobody waits for it.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self._group: Group | None = None
        self._leads = False
        self._over = False
        self._woken = threading.Lock()
        self._woken.acquire()

    def _wake(self) -> None:
        with suppress(RuntimeError):  # it is awake
            self._woken.release()


class Group:
    """Who is worked on together: for whatever the work needs it is one call, which is over when all of theirs are."""

    namespace = ""

    def __init__(self, members: Sequence[Member], lock: threading.Lock) -> None:
        self.since = monotonic()
        self.done = False
        self.error: Exception | None = None
        self._calls = [member.call for member in members]
        self._left = len(members)
        self._lock = lock
        self._callback: Callable[[], None] | None = None

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
            if not self._left:
                return False
            self._callback = callback
            return True

    def one_is_over(self) -> Callable[[], None] | None:
        """Called under the lock; returns what is to be called without it."""
        self._left -= 1
        return None if self._left else self._callback


class Lane(Generic[M]):
    """Where calls wait to be worked on.

    Args:
        work: works on some members at once, for as long as `Group` as a call lasts. What it raises, all of them raise.
        leaders: how many groups are worked on at a time.
        most: members of a group.
        patience: seconds after which a group that is worked on does not count among `leaders` any more; None for never.
    """

    def __init__(
        self,
        work: Callable[[Sequence[M], Call], None],
        *,
        leaders: int,
        most: int,
        patience: float | None = None,
    ) -> None:
        self._work = work
        self._patience = -1 if patience is None else patience
        self._groups: list[Group] = []
        self._free = leaders
        self._leaders = leaders
        self._most = most
        self._waiting: deque[M] = deque()
        self._lock = threading.Lock()

    @property
    def idle(self) -> bool:
        """Whether nobody is here."""
        return self._free == self._leaders

    def run(self, member: M) -> None:
        """Returns when the member was worked on.

        Raises what the work raised; DeadlineExceeded or Cancelled when the member's call was over before.
        """
        with self._lock:
            self._waiting.append(member)
            leads = self._free > 0
            if leads:
                self._free -= 1
        if leads or self._comes_to_lead(member):
            self._lead(member)
        group = member._group
        if group is None or not group.done:
            raise errors.DeadlineExceeded if member.call.remaining() == 0 else errors.Cancelled
        if group.error is not None:
            raise group.error

    def _comes_to_lead(self, member: M) -> bool:
        """Waits until the member is to lead, or was worked on, or its call is over."""
        if not member.call.when_over(lambda: self._end(member)):
            self._end(member)
        while not member._woken.acquire(timeout=self._patience):
            if self._takes_over(member):
                return True
        with self._lock:
            if member._over and not member._leads:
                with suppress(ValueError):  # it was taken, or passed over
                    self._waiting.remove(member)
            return member._leads

    def _takes_over(self, member: M) -> bool:
        """Makes the member a leader when it is the next, in place of one who has been at it for too long."""
        with self._lock:
            if member._leads or not self._waiting or self._waiting[0] is not member:
                return member._leads
            if not self._groups or monotonic() - self._groups[0].since < self._patience:
                return False
            del self._groups[0]
            member._leads = True
            return True

    def _end(self, member: M) -> None:
        """The member's call is over, most often because it was answered."""
        group = member._group
        if group is not None and group.done:
            return
        with self._lock:
            group = member._group
            if member._over or (group is not None and group.done):
                return
            member._over = True
            last_words = group.one_is_over() if group is not None else None
        member._wake()
        if last_words is not None:
            last_words()

    def _lead(self, leader: M) -> None:
        members, group = self._take()
        try:
            if len(members) == 1:
                self._work(members, members[0].call)
            elif members:
                if not leader.call.when_over(lambda: self._end(leader)):
                    self._end(leader)
                self._work(members, group)
        except Exception as error:
            group.error = error
        finally:
            self._hand_over(group)
            for member in members:
                if member is not leader:
                    member._wake()

    def _take(self) -> tuple[Sequence[M], Group]:
        members: list[M] = []
        with self._lock:
            while self._waiting and len(members) < self._most:
                member = self._waiting.popleft()
                if not member._over:
                    members.append(member)
            group = Group(members, self._lock)
            for member in members:
                member._group = group
            self._groups.append(group)
        return members, group

    def _hand_over(self, group: Group) -> None:
        with self._lock:
            group.done = True
            if group not in self._groups:
                return  # it took too long, and somebody else leads in its place
            self._groups.remove(group)
            if self._waiting:
                following = self._waiting[0]
                following._leads = True
                following._wake()
            else:
                self._free += 1
