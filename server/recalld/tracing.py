"""Traces by OpenTelemetry: a span for each call, as part of its caller's trace, and one below it for each use of the
database.

Set up by the standard variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME …) alone. Without
one that says where to send spans, nothing is traced and OpenTelemetry is not even loaded.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from typing import Any, Final, NamedTuple

import grpc

from recalld.services.call import status_code

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_EXPORTERS: Final = {"otlp", "console", "none"}
_NEEDED: Final = {
    "otlp": ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter"),
    "console": ("opentelemetry.sdk.trace",),
}
_PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL: Final = "http/protobuf"

# The codes that OpenTelemetry's conventions for gRPC call errors of the server; all others are the caller's.
_SERVER_ERRORS: Final = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
}

# Seconds that the process waits at its end for the last spans to be sent.
_LAST_SPANS: Final = 3.0


class TracingError(Exception):
    """Tracing is asked for but not possible; the text says why, in one line."""


class Tracing(NamedTuple):
    """Makes the spans of calls and statements. `close` sends the last ones."""

    call: Callable[[str, grpc.ServicerContext], AbstractContextManager[str]]
    statement: Callable[[], AbstractContextManager[object]]
    close: Callable[[], None]


def asked_for(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the environment asks spans to be sent: `otlp`, `console`, or None for nowhere. Raises TracingError."""
    exporter = environ.get(_EXPORTER) or ("otlp" if any(environ.get(name) for name in _ENDPOINTS) else "none")
    if exporter not in _EXPORTERS:
        raise TracingError(f'{_EXPORTER}: should be one of {", ".join(sorted(_EXPORTERS))} (got "{exporter}")')
    if exporter == "none" or environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    protocol = next((name for name in _PROTOCOLS if environ.get(name)), None)
    if exporter == "otlp" and protocol and environ[protocol] != _PROTOCOL:
        raise TracingError(f'{protocol}: should be {_PROTOCOL} (got "{environ[protocol]}")')
    try:
        for module in _NEEDED[exporter]:
            import_module(module)
    except ImportError as error:
        remedy = "in a clone of the repository: pip install '.[otel,server]'"
        raise TracingError(f"traces need {error.name}; {remedy}") from None
    return exporter


def set_up(environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """Tracing as the environment asks for it, or None. Raises TracingError."""
    exporter = asked_for(environ)
    return None if exporter is None else _set_up(exporter)


def _set_up(exporter: str) -> Tracing:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    from recalld import __version__

    sender: SpanExporter
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        sender = OTLPSpanExporter()
    else:
        sender = ConsoleSpanExporter()
    # Attributes from the environment override ours.
    ours = Resource({"service.name": "recalld", "service.version": __version__})
    provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(sender))
    return traced_by(provider)


def traced_by(provider: Any) -> Tracing:
    """Tracing with an OpenTelemetry TracerProvider of the SDK."""
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

    tracer = provider.get_tracer("recalld")

    @contextmanager
    def call(method: str, context: grpc.ServicerContext) -> Iterator[str]:
        caller = extract({key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)})
        service, _, name = method.rpartition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        with tracer.start_as_current_span(
            method, caller, SpanKind.SERVER, attributes, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield format_trace_id(span.get_span_context().trace_id)
            finally:
                code = status_code(context)
                span.set_attribute("rpc.grpc.status_code", code.value[0])
                if code in _SERVER_ERRORS:
                    span.set_status(Status(StatusCode.ERROR, code.name))

    @contextmanager
    def statement() -> Iterator[None]:
        with tracer.start_as_current_span(
            "postgresql",
            kind=SpanKind.CLIENT,
            attributes={"db.system.name": "postgresql"},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                # Its text could quote what users wrote.
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    def close() -> None:
        # Without a collector, shutdown would retry for long.
        sending = threading.Thread(target=provider.shutdown, name="recalld-traces", daemon=True)
        sending.start()
        sending.join(_LAST_SPANS)

    return Tracing(call, statement, close)
