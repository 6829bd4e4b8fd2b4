"""What is told of every call: a line in the log, metrics, and a span of its trace."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Final

import grpc

from recalld.metrics import CallMetrics, Metrics
from recalld.services.call import principal, status_code
from recalld.services.wrapping import Behaviour, Handler, Wrap, rewrapped

log = logging.getLogger(__name__)

# Why the call that is being worked on failed: ErrorInfo.reason.
reason: Final[ContextVar[str]] = ContextVar("reason", default="")

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
        observe = observer.observe if tracer is None else observer.traced_by(tracer)

        def unary(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                with observe(context):
                    return behaviour(request, context)

            return answer

        def stream(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                with observe(context):
                    yield from behaviour(request, context)

            return answer

        return rewrapped(handler, unary, stream)

    return wrap


class _Observation:
    """One call, from its start to its end."""

    __slots__ = ("_context", "_observer", "_span", "_start", "_trace_id")

    def __init__(
        self, observer: _Observer, context: grpc.ServicerContext, span: AbstractContextManager[str] | None = None
    ) -> None:
        self._observer = observer
        self._context = context
        self._span = span
        self._trace_id = ""
        self._start = 0.0

    def __enter__(self) -> None:
        self._start = perf_counter()
        self._observer.metrics.in_progress.inc()
        if self._span is not None:
            self._trace_id = self._span.__enter__()

    def __exit__(self, *error: Any) -> None:
        code = status_code(self._context).name
        if self._span is not None:
            self._span.__exit__(*error)
        self._observer.ended(self._context, code, perf_counter() - self._start, self._trace_id)


class _Observer:
    def __init__(self, method: str, metrics: Metrics, *, log_calls: bool) -> None:
        self.metrics = metrics
        self._name = method.lstrip("/")
        self._calls = CallMetrics(metrics, method)
        self._log_calls = log_calls

    def observe(self, context: grpc.ServicerContext) -> _Observation:
        return _Observation(self, context)

    def traced_by(self, tracer: Tracer) -> Callable[[grpc.ServicerContext], _Observation]:
        return lambda context: _Observation(self, context, tracer(self._name, context))

    def ended(self, context: grpc.ServicerContext, code: str, seconds: float, trace_id: str) -> None:
        self.metrics.in_progress.dec()
        self._calls.count(code)
        self._calls.seconds.observe(seconds)
        if self._log_calls and log.isEnabledFor(logging.INFO):
            caller = principal.get()
            facts = {
                "method": self._name,
                "code": code,
                "reason": reason.get(),
                "ms": round(seconds * 1000, 2),
                "namespace": caller.namespace,
                "caller": caller.name,
                "request_id": _request_id(context),
                "peer": context.peer(),
                "trace_id": trace_id,
            }
            log.info("call", extra=facts)


def _request_id(context: grpc.ServicerContext) -> str:
    """What the caller calls this call, or a name of our own."""
    for key, value in context.invocation_metadata() or ():
        if key == _REQUEST_ID and isinstance(value, str):
            return value[:_MOST_REQUEST_ID_CHARACTERS]
    return os.urandom(8).hex()
