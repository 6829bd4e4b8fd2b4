"""Which threads a call runs on, and load shedding: calls beyond the limit are refused at once, with OVERLOADED."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import grpc
from prometheus_client import Histogram

from recalld.errors import Overloaded
from recalld.gathering import Gathering, ParkingCondition, gathers
from recalld.metrics import Metrics
from recalld.services.status import abort
from recalld.services.wrapping import Behaviour, Handler, is_health, is_health_or_reflection
from recalld.spare_threads import SpareThreads

R = TypeVar("R")

# Threads for quick calls of each kind whose waits cannot be parked.
_QUICK_THREADS: Final = 2

# Calls of health, and of reflection, that may wait for their clients at a time: enough for any honest use of health,
# and together fewer than MOST_REFUSALS, so that they never take up all of gRPC's own limit.
_MOST_WAITING_FOR_HEALTH: Final = 512
_MOST_WAITING_FOR_REFLECTION: Final = 64

# The methods whose calls are gathered, each on threads of its own; how many threads, and how many calls one thread
# takes on at a time. A second thread would take a part of the calls, and so make groups smaller.
_GATHERED: Final = frozenset({"/recall.v1.MemoryService/AddMemory", "/recall.v1.MemoryService/GetMemory"})
_GATHERING_THREADS: Final = 1
_MOST_GATHERED: Final = 32

# Calls in progress from which on calls are gathered: fewer are quicker on threads of their own.
_LEAST_TO_GATHER: Final = 4

# Calls that may be in the course of being refused, with those of health and reflection. Beyond them gRPC itself
# refuses, without details.
MOST_REFUSALS: Final = 1024


class CallThreads(ThreadPoolExecutor):
    """A thread for each call that is worked on. No call waits for a thread: see TurnAway."""

    def __init__(self, most: int) -> None:
        super().__init__(most, thread_name_prefix="recalld-call")
        self.most = most
        self.calls = 0
        self._counting = threading.Lock()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        return self.counted(lambda: super(CallThreads, self).submit(fn, *args, **kwargs))

    def counted(self, submit: Callable[[], Future[R]]) -> Future[R]:
        """Counts a call until it ends; `submit` passes it to these threads, or to others."""
        with self._counting:
            self.calls += 1
        try:
            future = submit()
        except RuntimeError:  # shut down
            self._ended()
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: object = None) -> None:
        with self._counting:
            self.calls -= 1


def _parks(
    arguments: tuple[Any, ...], condition: Callable[[Any], ParkingCondition] = lambda _event: ParkingCondition()
) -> bool:
    """Has a call that gRPC submits park while it waits, instead of blocking its thread. False if it cannot.

    The thread of a call waits for the request, which a client may send slowly or never. It waits on a condition in
    gRPC's private state of the call, which is replaced here before anybody waits. If a later gRPC has no such
    condition, the call needs a thread to itself.

    Args:
        arguments: what gRPC submits: a function, the event of the call, its state, and others.
        condition: makes the condition for an event.
    """
    _function, event, state = arguments[:3] if len(arguments) > 2 else (None, None, None)
    if not isinstance(getattr(state, "condition", None), threading.Condition):
        return False
    state.condition = condition(event)
    return True


class GatheredCalls(Gathering):
    """Threads that gather calls. The calls count among those of `calls`."""

    def __init__(self, calls: CallThreads, spare: SpareThreads, sizes: Histogram) -> None:
        super().__init__(_GATHERING_THREADS, most=_MOST_GATHERED, aside=spare.run, grouped=sizes.observe)
        self._calls = calls

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        if not _parks(args):
            return self._calls.submit(fn, *args, **kwargs)
        return self._calls.counted(lambda: super(GatheredCalls, self).submit(fn, *args, **kwargs))


class QuickCalls(Gathering):
    """One thread for calls that need next to no work, even if their clients are slow or keep them open.

    Args:
        spare: threads for what could block.
        name: of the threads.
        most: calls that may wait for their clients. Beyond that, the one that has waited longest is cancelled.
    """

    def __init__(self, spare: SpareThreads, name: str, most: int) -> None:
        super().__init__(1, most=_MOST_GATHERED, aside=spare.run, name=name)
        self._unparked = ThreadPoolExecutor(_QUICK_THREADS, thread_name_prefix=f"{name}-unparked")
        self._most_waiting = most
        # In the order in which they began to wait.
        self._waiting: dict[_QuickCondition, None] = {}
        self._counting = threading.Lock()

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        if not _parks(args, lambda event: _QuickCondition(self, event.call)):
            return self._unparked.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)

    @contextmanager
    def waiting(self, condition: _QuickCondition) -> Iterator[None]:
        """Counts a call among those that wait, and cancels the oldest if there are too many."""
        with self._counting:
            self._waiting[condition] = None
            longest = next(iter(self._waiting)) if len(self._waiting) > self._most_waiting else None
            if longest is not None:
                del self._waiting[longest]
        if longest is not None:
            longest.call.cancel()
        try:
            yield
        finally:
            with self._counting:
                self._waiting.pop(condition, None)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown()
        self._unparked.shutdown(wait=False)


class _QuickCondition(ParkingCondition):
    """The condition on which a quick call waits for its client to send, or to receive.

    Watchers of health are sent changes by other threads, whose waits are not counted.
    """

    def __init__(self, threads: QuickCalls, call: Any) -> None:
        super().__init__()
        self.call = call
        self._threads = threads

    def wait(self, timeout: float | None = None) -> bool:
        if not gathers(self._threads):
            return super().wait(timeout)
        with self._threads.waiting(self):
            return super().wait(timeout)


class TurnAway(grpc.ServerInterceptor):
    """Chooses the threads of a call. If all are taken, it refuses the call without decoding it, on a thread for that.

    gRPC would queue the call unseen, and work on it long after its caller has given up. gRPC's own limit gives the
    caller neither a reason nor a time to retry. Health has a thread of its own, so that a busy server does not look
    dead. So has reflection, whose calls anybody may leave open.

    gRPC calls it for each call on its serving thread, so it must be quick.
    """

    def __init__(self, threads: CallThreads, metrics: Metrics) -> None:
        self._threads = threads
        self._metrics = metrics
        self._spare = SpareThreads("recalld-aside")
        self._quick = QuickCalls(self._spare, "recalld-quick", MOST_REFUSALS)
        self._health = QuickCalls(self._spare, "recalld-health-call", _MOST_WAITING_FOR_HEALTH)
        self._reflection = QuickCalls(self._spare, "recalld-reflection", _MOST_WAITING_FOR_REFLECTION)
        self._gathering = {
            method: GatheredCalls(threads, self._spare, metrics.group_sizes(method)) for method in _GATHERED
        }
        self._gathered: dict[str, Handler] = {}
        self._refusing: dict[str, Handler] = {}
        self._health_and_reflection: dict[str, Handler] = {}

    def close(self) -> None:
        """Lets its threads end."""
        for gathering in self._gathering.values():
            gathering.shutdown()
        self._spare.close()
        self._quick.shutdown()
        self._health.shutdown()
        self._reflection.shutdown()

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if is_health_or_reflection(method):
            moved = self._health_and_reflection.get(method)
            threads = self._health if is_health(method) else self._reflection
            return moved or self._health_and_reflection.setdefault(method, _on(threads, handler))
        if self._threads.calls < self._threads.most:
            if method not in _GATHERED or self._threads.calls < _LEAST_TO_GATHER:
                return handler
            gathered = self._gathered.get(method)
            return gathered or self._gathered.setdefault(method, _on(self._gathering[method], handler))
        return self._refusing.get(method) or self._refusing.setdefault(method, self._refuse(handler))

    def _refuse(self, handler: Handler) -> Handler:
        """A handler that does not wait for the request: to gRPC it is one that might read several, and reads none."""

        def unary(requests: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            self._metrics.refused.inc()
            abort(context, Overloaded())

        def stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            self._metrics.refused.inc()
            abort(context, Overloaded())
            yield

        if handler.response_streaming:
            return _on(self._quick, grpc.stream_stream_rpc_method_handler(stream))
        return _on(self._quick, grpc.stream_unary_rpc_method_handler(unary))


def _on(threads: ThreadPoolExecutor, handler: Handler) -> Handler:
    """The handler, with its behaviour run on these threads."""

    def moved(behaviour: Behaviour) -> Behaviour:
        # `wraps` keeps the attribute that tells gRPC that an open Watch of health holds no thread.
        @functools.wraps(behaviour)
        def run(*arguments: Any, **options: Any) -> Any:
            return behaviour(*arguments, **options)

        run.experimental_thread_pool = threads  # type: ignore[attr-defined]  # how gRPC is told
        return run

    if handler.stream_stream is not None:
        return grpc.stream_stream_rpc_method_handler(
            moved(handler.stream_stream), handler.request_deserializer, handler.response_serializer
        )
    if handler.stream_unary is not None:
        return grpc.stream_unary_rpc_method_handler(
            moved(handler.stream_unary), handler.request_deserializer, handler.response_serializer
        )
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            moved(handler.unary_stream), handler.request_deserializer, handler.response_serializer
        )
    assert handler.unary_unary is not None
    return grpc.unary_unary_rpc_method_handler(
        moved(handler.unary_unary), handler.request_deserializer, handler.response_serializer
    )
