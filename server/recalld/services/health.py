"""The servicer of grpc.health.v1.Health: any number of watchers, none of which can hold up another, or the server.

Not the one of grpcio-health-checking (1.85). That sends while it holds its lock, and takes the lock on gRPC's serving
thread when a watcher leaves; but a send ends only when that thread says so. When one watcher left while another was
being told something, the whole server stopped answering.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from recalld.gathering import Gathering

# Threads that tell watchers.
_TELLERS: Final = 4

# Seconds that a watcher has to take what it is told. One that opens no window for it would keep a teller for ever.
_LONGEST_TELLING: Final = 2.0


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Says of each service what `set` said last, to whoever asks, and at each change to whoever watches.

    An open Watch holds no thread.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._watchers: set[_Watcher] = set()
        self._lock = threading.Lock()
        # One that is told holds no thread while it takes that, if its call can be put aside.
        self._tellers = Gathering(_TELLERS, most=1, aside=lambda errand: errand()(), name="recalld-health-watch")

    def set(self, services: Iterable[str], status: int) -> None:
        """Sets the status of services, and returns without waiting until the watchers know."""
        with self._lock:
            self._statuses.update(dict.fromkeys(services, status))
            watchers = list(self._watchers)
        for watcher in watchers:
            self._tell(watcher)

    def end_watches(self) -> None:
        """Ends the calls of all watchers, once they know the status of the moment, or do not take it.

        A server that stops would wait for them as long as it waits for any call.
        """
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.ending = True
            self._tell(watcher)
        if not watchers:
            return
        late = threading.Timer(_LONGEST_TELLING, lambda: [watcher.context.cancel() for watcher in watchers])
        late.daemon = True
        late.start()

    def close(self) -> None:
        """Lets its threads end; nobody is told anything more."""
        self._tellers.shutdown()

    def cancel_deaf(self) -> None:
        """Ends the calls of watchers that do not take what they are told. To be called now and then."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            if watcher.telling_since < monotonic() - _LONGEST_TELLING:
                watcher.context.cancel()

    def Check(self, request: HealthCheckRequest, context: grpc.ServicerContext) -> HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return HealthCheckResponse()
        return HealthCheckResponse(status=status)

    def Watch(
        self,
        request: HealthCheckRequest,
        context: grpc.ServicerContext,
        send: Callable[[HealthCheckResponse], object],
    ) -> None:
        watcher = _Watcher(
            context, send, lambda: self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
        )
        with self._lock:
            self._watchers.add(watcher)
        # On gRPC's serving thread: it may wait for a moment's work with a set, not for a send.
        if context.add_callback(lambda: self._forget(watcher)):
            self._tell(watcher)
        else:
            self._forget(watcher)

    # How gRPC is told that responses are sent by a callback, and the call stays open when the method returns.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def _tell(self, watcher: _Watcher) -> None:
        with suppress(RuntimeError):  # the process is shutting down
            self._tellers.submit(watcher.tell)

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


class _Watcher:
    """One Watch: told the status of the moment whenever it may have changed, by one thread at a time.

    Attributes:
        context: of the call.
        telling_since: when it began to be told what it has not taken yet; else infinite.
        ending: whether its call ends when it has been told.
    """

    def __init__(
        self, context: grpc.ServicerContext, send: Callable[[HealthCheckResponse], Any], status: Callable[[], int]
    ) -> None:
        self.context = context
        self.telling_since = float("inf")
        self.ending = False
        self._send = send
        self._status = status
        self._told: int | None = None
        self._lock = threading.Lock()
        self._asked = False
        self._telling = False

    def tell(self) -> None:
        """Sends the status, unless it is the last that was sent, or another thread will."""
        with self._lock:
            self._asked = True
            if self._telling:
                return
            self._telling = True
        while self._take_on():
            status = self._status()
            if status != self._told:
                self._told = status
                self.telling_since = monotonic()
                self._send(HealthCheckResponse(status=status))
                self.telling_since = float("inf")
        if self.ending:
            self.context.cancel()

    def _take_on(self) -> bool:
        with self._lock:
            self._telling, self._asked = self._asked, False
            return self._telling
