"""Batching of concurrent calls: few threads serve many calls, and do the same work for several of them at once.

Each call runs in a greenlet. In `gather` it hands in a `Wish` for work and is parked, and its thread takes on the next
call. When there are no more, the thread does the work for all wishes together, and then resumes each call. It waits a
moment for calls that it knows to be on their way here; a call that is alone does not wait. `aside` runs what would
block the thread on another one.

A thread for each call would do too, but took a third more time: waking the threads one by one, and their contention
for the interpreter's lock, cost more than the rest of a small call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from queue import Empty, SimpleQueue
from time import monotonic, sleep
from typing import Any, Final, ParamSpec, TypeVar, cast
from weakref import WeakSet

from greenlet import getcurrent, greenlet

from recalld.domain import INTERNAL_CALL, Call
from recalld.spare_threads import Errand

P = ParamSpec("P")
R = TypeVar("R")
W = TypeVar("W", bound="Wish")

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]

# Seconds of work after which a thread counts as blocked, and another may be started.
_PATIENCE: Final = 0.05

# How often, and for how many seconds each time, a thread waits for calls that are on their way.
_MOST_MOMENTS: Final = 3
_MOMENT: Final = 0.0005

# Put into a hub's inbox to end it.
_STOP: Final = object()

# All threads that gather.
_threads: Final = WeakSet[threading.Thread]()

# The hub that runs on this thread, if any.
_here = threading.local()


class Wish:
    """What a call wants done, and the result.

    Attributes:
        call: whose wish it is.
        pending: set by the work when it is not done yet when it returns; then the call waits until `resume`.
        error: what `gather` raises in the call.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.pending = False
        self.error: Exception | None = None
        self._hub: _Hub | None = None
        self._greenlet: greenlet | None = None

    def resume(self) -> None:
        """Lets the call of a pending wish go on. Called once, on any thread."""
        assert self._hub is not None
        self._hub.inbox.put(self)


def gather(work: Callable[[Sequence[W]], None], wish: W) -> None:
    """Has `work` done for the wish, together with the wishes of other calls for the same work at this moment.

    Only in a call on a thread that gathers. Raises the wish's error, or what the work raises.
    """
    hub = _hub()
    assert hub is not None, "nobody gathers here"
    wish._hub, wish._greenlet = hub, getcurrent()
    hub.greenlet.switch((work, wish))
    if wish.error is not None:
        raise wish.error


def aside(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Calls a function that may block. If this thread gathers, another runs it, and this one takes on other calls."""
    hub = _hub()
    if hub is None:
        return function(*arguments, **options)
    errand = hub.wish_of_nobody()
    context = copy_context()
    result: list[R] = []

    def run() -> Callable[[], None]:
        try:
            result.append(context.run(function, *arguments, **options))
        except Exception as error:
            errand.error = error
        return errand.resume

    hub.threads.aside(run)
    hub.greenlet.switch()
    if errand.error is not None:
        raise errand.error
    return result[0]


class ParkingCondition(threading.Condition):
    """A condition that does not block a thread that gathers: a call that waits for it there is parked."""

    def __init__(self) -> None:
        super().__init__()
        self._parked: list[Wish] = []

    def wait(self, timeout: float | None = None) -> bool:
        hub = _hub()
        if hub is None or timeout is not None:
            return super().wait(timeout)
        self._parked.append(hub.wish_of_nobody())
        self.release()
        try:
            hub.greenlet.switch()
        finally:
            self.acquire()
        return True

    def notify(self, n: int = 1) -> None:
        """Resumes all parked calls, whatever `n` is: a wait may always end early. `notify_all` calls this too."""
        parked, self._parked = self._parked, []
        for wish in parked:
            wish.resume()
        super().notify(n)


def all_end(within: float) -> bool:
    """Whether all threads of the process that gather end `within` so many seconds. They must have been told to.

    The interpreter can crash if it shuts down while greenlets of calls exist.
    """
    deadline = monotonic() + within
    for thread in list(_threads):
        thread.join(max(0.0, deadline - monotonic()))
    return not any(thread.is_alive() for thread in _threads)


def gathers(threads: Gathering | None = None) -> bool:
    """Whether this is a call on a thread that gathers: on one of `threads`, if given."""
    hub = _hub()
    return hub is not None and threads in (None, hub.threads)


class Gathering(ThreadPoolExecutor):
    """Threads that gather. A call's Future cannot be cancelled.

    A ThreadPoolExecutor by name only: gRPC takes no other kind for the threads of a method.

    Args:
        threads: how many; each works for some calls while the others take on the next. More are started while the
            work of all of them takes long, as with a lock, or a database that does not answer.
        most: calls that work is done for at once, and that a thread takes on before it works for them.
        aside: runs an errand on another thread.
        grouped: called with the number of calls, each time that work is done.
        name: of each thread.
    """

    def __init__(
        self,
        threads: int,
        *,
        most: int,
        aside: Callable[[Errand], None],
        grouped: Callable[[int], None] = lambda _calls: None,
        name: str = "recalld-gather",
    ) -> None:
        super().__init__(threads)
        self._name = name
        self.aside = aside
        self.grouped = grouped
        self._usual = threads
        self.most = most
        self._backlog: deque[_Task] = deque()
        self._hubs: list[_Hub] = []
        self._idle: list[_Hub] = []
        self._lock = threading.Lock()
        self._closed = False
        # Whether calls wait.
        self._crowded = threading.Event()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        task = (Future[R](), fn, args, kwargs)
        task[0].set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot take on calls after shutdown")
            self._backlog.append(task)
            hub = self._idle.pop() if self._idle else None
            if hub is None and len(self._hubs) < self._usual:
                hub = self._started()
            if hub is not None:
                # Under the lock: otherwise the thread could take on the call, and be idle and told to end, before this.
                hub.inbox.put(None)
        if hub is None and not self._crowded.is_set():
            self._crowded.set()
        return task[0]

    def _started(self) -> _Hub:
        """One more thread. Called under the lock."""
        if not self._hubs:
            threading.Thread(target=self._relieve, name="recalld-relieve", daemon=True).start()
        hub = _Hub(self)
        self._hubs.append(hub)
        thread = threading.Thread(target=hub.run, name=self._name, daemon=True)
        _threads.add(thread)
        thread.start()
        return hub

    def _relieve(self) -> None:
        """Starts another thread when calls wait and all threads have been working for long."""
        while not self._closed:
            self._crowded.wait()
            self._crowded.clear()
            while self._backlog and not self._closed:
                sleep(_PATIENCE / 2)
                with self._lock:
                    long_ago = monotonic() - _PATIENCE
                    if self._backlog and not self._closed and all(hub.since < long_ago for hub in self._hubs):
                        self._started()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Tells the threads to end once they have nothing to do, without waiting for them."""
        with self._lock:
            self._closed = True
            hubs, self._hubs = self._hubs, []
        self._crowded.set()
        for hub in hubs:
            hub.inbox.put(_STOP)

    def take(self, most: int) -> Sequence[_Task]:
        """Takes up to `most` calls out of the backlog."""
        tasks: list[_Task] = []
        try:
            while len(tasks) < most:
                tasks.append(self._backlog.popleft())
        except IndexError:
            pass
        return tasks

    def calls_wait(self) -> bool:
        """Whether calls wait to be taken on."""
        return bool(self._backlog)

    def rests(self, hub: _Hub) -> bool:
        """Notes that a hub is idle; False if calls wait. Tells it to end when there are enough idle ones."""
        with self._lock:
            if self._backlog:
                return False
            if len(self._idle) >= self._usual and not hub.parked and not self._closed:
                self._hubs.remove(hub)
                hub.inbox.put(_STOP)
                return True
            self._idle.append(hub)
            return True

    def works(self, hub: _Hub) -> None:
        """Notes that a hub is not idle any more; `submit` may have noted it already."""
        with self._lock:
            if hub in self._idle:
                self._idle.remove(hub)


class _Hub:
    """One thread that gathers: its calls, and what they want."""

    def __init__(self, threads: Gathering) -> None:
        self.threads = threads
        # Wishes to resume; None when there are calls to take on; _STOP at the end.
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.greenlet = cast("greenlet", None)
        # When its current work began (monotonic); infinite while there is none.
        self.since = float("inf")
        # How many calls are parked.
        self.parked = 0
        # Parked calls that may still hand in a wish, and that _await_company has not waited for in vain.
        self._coming: set[greenlet] = set()
        self._wanted: dict[Callable[[Sequence[Any]], None], list[Wish]] = {}

    def wish_of_nobody(self) -> Wish:
        """A wish without work or caller: the current call, when parked, goes on when it is resumed."""
        wish = Wish(INTERNAL_CALL)
        wish._hub, wish._greenlet = self, getcurrent()
        return wish

    def run(self) -> None:
        _here.hub = self
        self.greenlet = getcurrent()
        stopping = False
        while not stopping:
            self._go_on_with_resumed()
            self._take_on()
            if self._wanted:
                self._await_company()
                self._work()
            elif self.threads.rests(self):
                received = self.inbox.get()
                self.threads.works(self)
                stopping = received is _STOP
                if isinstance(received, Wish):
                    self._go_on(received)

    def _take_on(self) -> None:
        """Runs waiting calls, also those that arrive meanwhile, up to `most`."""
        room = self.threads.most
        while room > 0 and (tasks := self.threads.take(room)):
            room -= len(tasks)
            for task in tasks:
                self._switch_to(greenlet(_run), *task)

    def _await_company(self) -> None:
        """Waits a moment for calls that are on their way here: the larger a group, the less each call costs.

        It waits for no call twice, because a request may never come.
        """
        awaited = set(self._coming)
        for _ in range(_MOST_MOMENTS):
            company = sum(map(len, self._wanted.values()))
            if company >= self.threads.most or not (self._coming or self.threads.calls_wait()):
                return
            sleep(_MOMENT)
            self._go_on_with_resumed()
            self._take_on()
        self._coming -= awaited

    def _go_on_with_resumed(self) -> None:
        while True:
            try:
                received = self.inbox.get_nowait()
            except Empty:
                return
            if isinstance(received, Wish):
                self._go_on(received)
            elif received is _STOP:
                self.inbox.put(_STOP)
                return

    def _work(self) -> None:
        wanted, self._wanted = self._wanted, {}
        self.since = monotonic()
        for work, all_wishes in wanted.items():
            for first in range(0, len(all_wishes), self.threads.most):
                self._work_for(work, all_wishes[first : first + self.threads.most])
        self.since = float("inf")

    def _work_for(self, work: Callable[[Sequence[Any]], None], wishes: Sequence[Wish]) -> None:
        self.threads.grouped(len(wishes))
        try:
            work(wishes)
        except Exception as error:
            for wish in wishes:
                if not wish.pending:
                    wish.error = error
        for wish in wishes:
            if not wish.pending:
                self._go_on(wish)

    def _go_on(self, wish: Wish) -> None:
        assert wish._greenlet is not None
        self.parked -= 1
        self._coming.discard(wish._greenlet)
        self._switch_to(wish._greenlet)

    def _switch_to(self, call: greenlet, *arguments: Any) -> None:
        """Lets a call run until it hands in a wish, is parked, or ends."""
        wanted = call.switch(*arguments)
        if call.dead:
            return
        self.parked += 1
        if wanted:
            work, wish = wanted
            self._wanted.setdefault(work, []).append(wish)
        else:
            self._coming.add(call)


def _run(
    future: Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    try:
        result = function(*arguments, **options)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _hub() -> _Hub | None:
    hub: _Hub | None = getattr(_here, "hub", None)
    return hub if hub is not None and getcurrent() is not hub.greenlet else None
