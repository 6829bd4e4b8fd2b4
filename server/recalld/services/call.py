"""A call as the store sees it, over the context that gRPC gives a servicer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

import grpc

from recalld.access import ANYONE, Principal

# The caller of the current call. gRPC runs each call in a context of its own.
principal: Final[ContextVar[Principal]] = ContextVar("principal", default=ANYONE)


class RpcCall:
    """`recalld.domain.Call` for one RPC.

    A streaming call runs many statements, and gRPC keeps every callback that it is given until the RPC ends. So this
    registers one callback with gRPC, which calls the latest one of the store: earlier ones are of finished statements.
    """

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._namespace = principal.get().namespace
        self._context = context
        self._lock = threading.Lock()
        self._callback: Callable[[], None] | None = None
        self._registered = False
        self._over = False

    @property
    def namespace(self) -> str:
        return self._namespace

    def remaining(self) -> float | None:
        remaining = self._context.time_remaining()
        # gRPC reports a missing deadline as one that lies some 300 billion years ahead.
        if remaining is None or remaining > threading.TIMEOUT_MAX:
            return None
        return max(0.0, remaining)

    def when_over(self, callback: Callable[[], None]) -> bool:
        with self._lock:
            if self._over:
                return False
            self._callback = callback
        if self._registered:
            return True
        self._registered = True
        if self._context.add_callback(self._end):
            return True
        with self._lock:
            self._over, self._callback = True, None
        return False

    def _end(self) -> None:
        with self._lock:
            self._over = True
            callback, self._callback = self._callback, None
        if callback is not None:
            callback()


def status_code(context: grpc.ServicerContext) -> grpc.StatusCode:
    """The status code of a call whose handler has ended."""
    code: grpc.StatusCode | None = context.code()  # type: ignore[attr-defined]  # missing in the types of grpc
    if code is not None:
        return code
    return grpc.StatusCode.OK if context.is_active() else grpc.StatusCode.CANCELLED
