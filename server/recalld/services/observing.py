"""Observability of calls: for each a line in the log, metrics, and a span of its trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from random import randbytes
from time import perf_counter
from typing import Any, Final

import grpc

from recalld.metrics import CallMetrics, Metrics
from recalld.services.call import principal, status_code
from recalld.services.wrapping import Behaviour, Handler, Wrap, rewrapped

log = logging.getLogger(__name__)

# ErrorInfo.reason of the current call, if it has failed.
reason: Final[ContextVar[str]] = ContextVar("reason", default="")

_trace_id: Final[ContextVar[str]] = ContextVar("trace_id", default="")

_REQUEST_ID: Final = "x-request-id"
_MOST_REQUEST_ID_CHARACTERS: Final = 128

# Makes the span of a call; what it yields is the trace's id.
Tracer = Callable[[str, grpc.ServicerContext], AbstractContextManager[str]]


def observing(metrics: Metrics, tracer: Tracer | None, *, log_calls: bool) -> Wrap:
    """Makes an interceptor's `wrap` that observes every call.

    Args:
        metrics: where calls are counted.
        tracer: starts spans; None when nobody collects them.
        log_calls: whether each call has a line in the log.
    """

    def wrap(method: str, handler: Handler) -> Handler:
        observer = _Observer(method, metrics, log_calls=log_calls)

        def unary(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                start = observer.begin(context)
                try:
                    return behaviour(request, context)
                finally:
                    observer.end(context, start)

            return answer

        def stream(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                start = observer.begin(context)
                try:
                    yield from behaviour(request, context)
                finally:
                    observer.end(context, start)

            return answer

        return rewrapped(handler if tracer is None else _traced(tracer, method, handler), unary, stream)

    return wrap


def _traced(tracer: Tracer, method: str, handler: Handler) -> Handler:
    """The handler, with a span around each call."""
    name = method.lstrip("/")

    def unary(behaviour: Behaviour) -> Behaviour:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            with tracer(name, context) as trace_id:
                _trace_id.set(trace_id)
                return behaviour(request, context)

        return answer

    def stream(behaviour: Behaviour) -> Behaviour:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with tracer(name, context) as trace_id:
                _trace_id.set(trace_id)
                yield from behaviour(request, context)

        return answer

    return rewrapped(handler, unary, stream)


class _Observer:
    """Logs and counts the calls of one method."""

    def __init__(self, method: str, metrics: Metrics, *, log_calls: bool) -> None:
        self._method = method.lstrip("/")
        self._in_progress = metrics.in_progress
        self._calls = CallMetrics(metrics, method)
        self._log_calls = log_calls

    def begin(self, context: grpc.ServicerContext) -> float:
        """Returns the start of the call, to be passed to `end`."""
        self._in_progress.add(context)
        return perf_counter()

    def end(self, context: grpc.ServicerContext, start: float) -> None:
        seconds = perf_counter() - start
        code = status_code(context).name
        self._in_progress.discard(context)
        self._calls.count(code)
        self._calls.seconds.observe(seconds)
        if self._log_calls and log.isEnabledFor(logging.INFO):
            self._log(context, code, seconds)

    def _log(self, context: grpc.ServicerContext, code: str, seconds: float) -> None:
        caller = principal.get()
        # As log.info does, without finding the calling line and checking the name of every field.
        record = log.makeRecord(log.name, logging.INFO, "", 0, "call", (), None)
        vars(record).update(
            method=self._method,
            code=code,
            reason=reason.get(),
            ms=round(seconds * 1000, 2),
            namespace=caller.namespace,
            caller=caller.name,
            request_id=_request_id(context),
            peer=context.peer(),
            trace_id=_trace_id.get(),
        )
        log.handle(record)


def _request_id(context: grpc.ServicerContext) -> str:
    """The caller's id of this call, or one that is made here."""
    for key, value in context.invocation_metadata() or ():
        if key == _REQUEST_ID and isinstance(value, str):
            return value[:_MOST_REQUEST_ID_CHARACTERS]
    # Not os.urandom: it releases the interpreter's lock, which costs far more.
    return randbytes(8).hex()
