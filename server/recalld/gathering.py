"""Few threads for many calls: what several of them want at the same time is done for all of them at once.

Each call runs in a greenlet. One that comes to `gather` stops there, and its thread goes on with the next call; when
there are no more, the thread does what they want, together, and then goes on with each of them. For calls that it knows
to be on their way it waits a moment; one that is alone waits for nobody. What would hold up a thread is done by `aside`
on another.

Threads that wait for one another would do too, but a third more slowly: waking them, one by one, and their struggle for
the interpreter's lock cost more than the rest of a small call.
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

# All threads that gather.
_threads: Final = WeakSet[threading.Thread]()

# The hub whose thread this is, if it is one's.
_here = threading.local()


class Wish:
    """What a call wants, and what came of it.

    Attributes:
        call: whose wish it is.
        pending: whether it is not to go on when the work is done, but at `resume`.
        error: what it raises when it goes on.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.pending = False
        self.error: Exception | None = None
        self._hub: _Hub | None = None
        self._greenlet: greenlet | None = None

    def resume(self) -> None:
        """What was pending is done. Called on any thread, once."""
        assert self._hub is not None
        self._hub.inbox.put(self)


def gather(work: Callable[[Sequence[W]], None], wish: W) -> None:
    """Has `work` done for the wish, and for all others of other calls that want the same work at this moment.

    Only on a thread that gathers. Raises what the work raises.
    """
    hub = _hub()
    assert hub is not None, "nobody gathers here"
    wish._hub, wish._greenlet = hub, getcurrent()
    hub.greenlet.switch((work, wish))
    if wish.error is not None:
        raise wish.error


def aside(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    """Calls a function that may take its time; a thread that gathers goes on with other calls meanwhile."""
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
    """A condition that holds up no thread that gathers: who waits for it there is put aside until it is notified."""

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
        """Of those put aside it tells all, be it `notify_all`, which comes here too, or not: any wait may end early."""
        parked, self._parked = self._parked, []
        for wish in parked:
            wish.resume()
        super().notify(n)


def all_end(within: float) -> bool:
    """Whether all threads of the process that gather end `within` so many seconds, having been told to.

    An interpreter that ends before them can crash around a call's greenlet.
    """
    deadline = monotonic() + within
    for thread in list(_threads):
        thread.join(max(0.0, deadline - monotonic()))
    return not any(thread.is_alive() for thread in _threads)


def gathers(threads: Gathering | None = None) -> bool:
    """Whether this thread gathers, so that there may be company to share work with; for these `threads`, if given."""
    hub = _hub()
    return hub is not None and threads in (None, hub.threads)


class Gathering(ThreadPoolExecutor):
    """Threads that gather. A call's Future cannot be cancelled.

    A ThreadPoolExecutor by name only: gRPC takes no other kind for the threads of a method.

    Args:
        threads: how many; each works for some calls while the others take on the next. While all of them are kept by
            their work for long, by a lock or a database that does not answer, there are more.
        most: calls that something is done for at once, and that a thread takes on before it does what they want.
        aside: has something done on a thread elsewhere.
        grouped: told each time for how many calls something is done at once.
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
                # Under the lock: after it, the thread may have taken on the call already, and be one too many.
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
        """Starts another thread when calls wait and all threads have been at their work for long."""
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
        """Ends the threads once they have nothing to do; does not wait for it."""
        with self._lock:
            self._closed = True
            hubs, self._hubs = self._hubs, []
        self._crowded.set()
        for hub in hubs:
            hub.inbox.put(_STOP)

    def take(self, most: int) -> Sequence[_Task]:
        """Calls that wait."""
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
        """Notes that a hub has nothing to do; False when there is something. One too many is told to end."""
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
        """Notes that a hub has something to do, be it that nobody gave it a call."""
        with self._lock:
            if hub in self._idle:
                self._idle.remove(hub)


class _Hub:
    """One thread that gathers: its calls, and what they want."""

    def __init__(self, threads: Gathering) -> None:
        self.threads = threads
        # Wishes that were pending; None when there are calls to take on.
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.greenlet = cast("greenlet", None)
        # When its work began; infinite while it does none.
        self.since = float("inf")
        # Calls that are put aside.
        self.parked = 0
        # Those of them that may still want something, and have not been waited for in vain.
        self._coming: set[greenlet] = set()
        self._wanted: dict[Callable[[Sequence[Any]], None], list[Wish]] = {}

    def wish_of_nobody(self) -> Wish:
        """For the call that runs here now: it is put aside until this is resumed."""
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
        """Runs the calls that wait, and those that come meanwhile, but not more than one thread should."""
        room = self.threads.most
        while room > 0 and (tasks := self.threads.take(room)):
            room -= len(tasks)
            for task in tasks:
                self._switch_to(greenlet(_run), *task)

    def _await_company(self) -> None:
        """Waits a moment for calls that are on their way here: the larger a group, the less each of it costs.

        For none twice: a request may never come.
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
        """Lets a call run until it wants something, is put aside, or ends."""
        wanted = call.switch(*arguments)
        if call.dead:
            return
        self.parked += 1
        if wanted:
            work, wish = wanted
            self._wanted.setdefault(work, []).append(wish)
        else:
            self._coming.add(call)


# Seconds that work may take before its thread is not counted on any more.
_PATIENCE: Final = 0.05

# How often, and for how many seconds, a thread waits for calls that are on their way.
_MOST_MOMENTS: Final = 3
_MOMENT: Final = 0.0005

_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_STOP: Final = object()


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
