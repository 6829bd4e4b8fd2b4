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

# Threads that send to watchers.
_SENDERS: Final = 4

# Seconds that a send to a watcher may take. Without flow-control window on the watcher's side it would take for ever.
_SEND_TIMEOUT: Final = 2.0


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Answers checks with the status that `set` gave a service last, and sends watchers each change.

    An open Watch holds no thread.
    """

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._watchers: set[_Watcher] = set()
        self._lock = threading.Lock()
        # A send that waits for its watcher holds no thread, if its call can be put aside.
        self._senders = Gathering(_SENDERS, most=1, aside=lambda errand: errand()(), name="recalld-health-watch")

    def set(self, services: Iterable[str], status: int) -> None:
        """Sets the status of services, without waiting until it is sent to their watchers."""
        with self._lock:
            self._statuses.update(dict.fromkeys(services, status))
            watchers = list(self._watchers)
        for watcher in watchers:
            self._notify(watcher)

    def end_watches(self) -> None:
        """Ends the calls of all watchers, each when it has taken the current status, or after _SEND_TIMEOUT.

        Otherwise a server that stops would wait for them for the whole grace.
        """
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.ending = True
            self._notify(watcher)
        if not watchers:
            return
        late = threading.Timer(_SEND_TIMEOUT, lambda: [watcher.context.cancel() for watcher in watchers])
        late.daemon = True
        late.start()

    def close(self) -> None:
        """Lets its threads end; nothing more is sent."""
        self._senders.shutdown()

    def cancel_stalled(self) -> None:
        """Ends the calls of watchers that do not take what is sent. To be called regularly."""
        with self._lock:
            watchers = list(self._watchers)
        for watcher in watchers:
            if watcher.sending_since < monotonic() - _SEND_TIMEOUT:
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
        # The callback runs on gRPC's serving thread: it may wait for work on the set, but never for a send.
        if context.add_callback(lambda: self._forget(watcher)):
            self._notify(watcher)
        else:
            self._forget(watcher)

    # Makes gRPC pass `send`, by which responses are sent, and keep the call open when the method returns.
    Watch.experimental_non_blocking = True  # type: ignore[attr-defined]

    def _notify(self, watcher: _Watcher) -> None:
        with suppress(RuntimeError):  # the process is shutting down
            self._senders.submit(watcher.send)

    def _forget(self, watcher: _Watcher) -> None:
        with self._lock:
            self._watchers.discard(watcher)


class _Watcher:
    """One Watch. It is sent the current status whenever that may have changed, by one thread at a time.

    Attributes:
        context: of the call.
        sending_since: when the current send began (time.monotonic()); infinite while there is none.
        ending: whether its call ends after the next status.
    """

    def __init__(
        self, context: grpc.ServicerContext, send: Callable[[HealthCheckResponse], Any], status: Callable[[], int]
    ) -> None:
        self.context = context
        self.sending_since = float("inf")
        self.ending = False
        self._send = send
        self._status = status
        self._sent: int | None = None
        self._lock = threading.Lock()
        self._asked = False
        self._sending = False

    def send(self) -> None:
        """Sends the status, unless it is the last that was sent, or another thread will."""
        with self._lock:
            self._asked = True
            if self._sending:
                return
            self._sending = True
        while self._go_on():
            status = self._status()
            if status != self._sent:
                self._sent = status
                self.sending_since = monotonic()
                self._send(HealthCheckResponse(status=status))
                self.sending_since = float("inf")
        if self.ending:
            self.context.cancel()

    def _go_on(self) -> bool:
        """Whether `send` was called since the last look; if not, this thread stops sending."""
        with self._lock:
            self._sending, self._asked = self._asked, False
            return self._sending
