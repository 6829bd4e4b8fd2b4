"""A proxy that loses calls: bytes in, bytes out, whatever the service.

Unary calls only. Metadata, deadline, status and its details pass through as they are.
"""

from __future__ import annotations

import enum
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc

THREADS = 32


class Fate(enum.Enum):
    """What becomes of a call."""

    PASSED = "passed"
    LOST = "lost on the way to the server"
    UNANSWERED = "carried out, and its answer lost"


Edit = Callable[[str, bytes], bytes]


class Proxy:
    """A running proxy. `fates` counts what became of the calls so far."""

    def __init__(self, upstream: grpc.Channel, drop: float, seed: int, edit: Edit | None) -> None:
        self._upstream = upstream
        self._drop = drop
        self._random = random.Random(seed)
        self._edit = edit
        self._lock = threading.Lock()
        self.fates: Counter[Fate] = Counter()
        self.address = ""

    def forward(self, method: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        fate = self._decide()
        if fate is Fate.LOST:
            context.abort(grpc.StatusCode.UNAVAILABLE, fate.value)
        if self._edit is not None:
            request = self._edit(method, request)
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._upstream.unary_unary(method)
        try:
            response, answered = call.with_call(
                request, timeout=context.time_remaining(), metadata=_to_pass_on(context.invocation_metadata())
            )
        except grpc.RpcError as error:
            _relay(error, context)
        if fate is Fate.UNANSWERED:
            context.abort(grpc.StatusCode.UNAVAILABLE, fate.value)
        context.send_initial_metadata(tuple(answered.initial_metadata()))
        context.set_trailing_metadata(tuple(answered.trailing_metadata()))
        return response

    def _decide(self) -> Fate:
        with self._lock:
            drawn = self._random.random()
            fate = Fate.PASSED if drawn >= self._drop else Fate.LOST if drawn < self._drop / 2 else Fate.UNANSWERED
            self.fates[fate] += 1
            return fate


def _to_pass_on(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    """What the caller sent; the rest, such as the count of earlier attempts, is between two ends of a connection."""
    return tuple((key, value) for key, value in metadata if key != "user-agent" and not key.startswith("grpc-"))


def _relay(error: Any, context: grpc.ServicerContext) -> NoReturn:
    context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
    context.abort(error.code(), error.details())


class _Every(grpc.GenericRpcHandler):
    """Answers every method there may be."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method

        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._proxy.forward(method, request, context)

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def dropping(upstream: grpc.Channel, *, drop: float = 0.2, seed: int = 1, edit: Edit | None = None) -> Iterator[Proxy]:
    """A proxy before `upstream`, on a free port of the loopback interface.

    Args:
        upstream: the channel to the server.
        drop: the share of calls that end UNAVAILABLE, half of them after the server has carried them out.
        seed: of the choice which calls these are.
        edit: gives the bytes to send for a method (`/package.Service/Method`) and the bytes received.
    """
    proxy = Proxy(upstream, drop, seed, edit)
    server = grpc.server(ThreadPoolExecutor(THREADS), handlers=[_Every(proxy)])
    proxy.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield proxy
    finally:
        server.stop(None).wait()
