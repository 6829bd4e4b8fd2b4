"""Traces: a call's span belongs to its caller's trace, the database's is below it; there is none unless asked for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import GetSessionRequest, StreamSessionsRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld import tracing
from recalld.domain import Call, Position, Session, SessionPage, SessionQuery
from recalld.metrics import Metrics
from recalld.tracing import Tracing, TracingError
from tests.reference import ReferenceStore
from tests.unit.observed import DEADLINE, observed

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN = "b7ad6b7169203331"
CALLER = (("traceparent", f"00-{TRACE}-{CALLERS_SPAN}-01"),)

HELLO = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="what a user wrote")])


class TracedStore(ReferenceStore):
    """Uses a database that is traced, as the real store does."""

    def __init__(self, traces: Tracing) -> None:
        super().__init__()
        self._traces = traces

    def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
        with self._traces.statement():
            return super().get_session(call, session_id, show_deleted=show_deleted)

    def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
        with self._traces.statement():
            return super().list_sessions(call, query, after, limit)


class BrokenStore(ReferenceStore):
    def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
        raise ValueError("what a user wrote")


class Traced:
    """A tracer, and the spans that have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.traces = tracing.traced_by(provider)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()


@pytest.fixture
def traced() -> Traced:
    return Traced()


def ids(span: ReadableSpan) -> tuple[str, str]:
    """A span's trace and parent."""
    context = span.get_span_context()
    assert context is not None
    return f"{context.trace_id:032x}", f"{span.parent.span_id:016x}" if span.parent else ""


def own_id(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    return f"{context.span_id:016x}"


def test_a_call_and_its_statement_are_part_of_the_callers_trace(
    traced: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with observed(Metrics(), tracer=traced.traces.call, store=TracedStore(traced.traces)) as channel:
        sessions = SessionServiceStub(channel)
        MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
        sessions.GetSession(GetSessionRequest(session_id="s"), timeout=DEADLINE, metadata=CALLER)
    _, statement, call = traced.spans
    assert ids(call) == (TRACE, CALLERS_SPAN)
    assert ids(statement) == (TRACE, own_id(call))
    assert (call.name, call.kind) == ("recall.v1.SessionService/GetSession", SpanKind.SERVER)
    assert (statement.name, statement.kind) == ("postgresql", SpanKind.CLIENT)
    assert dict(call.attributes or {}) == {
        "rpc.system": "grpc",
        "rpc.service": "recall.v1.SessionService",
        "rpc.method": "GetSession",
        "rpc.grpc.status_code": 0,
    }
    logged = [vars(record)["trace_id"] for record in caplog.records if record.getMessage() == "call"]
    assert logged[-1] == TRACE


def test_a_call_without_a_trace_begins_one(traced: Traced) -> None:
    with observed(Metrics(), tracer=traced.traces.call) as channel:
        for _ in range(2):
            MemoryServiceStub(channel).AddMemory(HELLO, timeout=DEADLINE)
    first, second = (ids(span) for span in traced.spans)
    assert first[1] == second[1] == ""
    assert first[0] != second[0]


def test_a_stream_is_one_span_with_a_statement_for_each_page(traced: Traced, caplog: pytest.LogCaptureFixture) -> None:
    with observed(Metrics(), tracer=traced.traces.call, store=TracedStore(traced.traces)) as channel:
        for number in range(3):
            MemoryServiceStub(channel).AddMemory(
                AddMemoryRequest(session_id=f"s{number}", messages=HELLO.messages), timeout=DEADLINE
            )
        sessions = SessionServiceStub(channel)
        request = StreamSessionsRequest(chunk_size=1)
        assert len(list(sessions.StreamSessions(request, timeout=DEADLINE, metadata=CALLER))) == 3
    ours = [span for span in traced.spans if ids(span)[0] == TRACE]
    [call] = [span for span in ours if span.kind == SpanKind.SERVER]
    statements = [span for span in ours if span is not call]
    assert statements
    assert {ids(span)[1] for span in statements} == {own_id(call)}
    # OpenTelemetry reports a span that ended in another context than it began in.
    assert [record for record in caplog.records if record.name.startswith("opentelemetry")] == []


@pytest.mark.parametrize(
    ("broken", "code", "status"), [(False, 5, StatusCode.UNSET), (True, 13, StatusCode.ERROR)], ids=["theirs", "ours"]
)
def test_only_what_is_our_fault_is_an_error_and_no_text_is_kept(
    broken: bool, code: int, status: StatusCode, traced: Traced
) -> None:
    store = BrokenStore() if broken else ReferenceStore()
    with (
        observed(Metrics(), tracer=traced.traces.call, store=store) as channel,
        pytest.raises(grpc.RpcError),
    ):
        SessionServiceStub(channel).GetSession(GetSessionRequest(session_id="nobody"), timeout=DEADLINE)
    [call] = traced.spans
    assert call.attributes is not None
    assert call.attributes["rpc.grpc.status_code"] == code
    assert call.status.status_code == status
    assert "what a user wrote" not in call.to_json()


def test_a_failed_statement_is_an_error_by_its_type_alone(traced: Traced) -> None:
    with pytest.raises(ValueError, match="what a user wrote"), traced.traces.statement():
        raise ValueError("what a user wrote")
    [statement] = traced.spans
    assert (statement.status.status_code, statement.status.description) == (StatusCode.ERROR, "ValueError")
    assert "what a user wrote" not in statement.to_json()


# --- how it is set up


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "memory"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_TRACES_EXPORTER": "", "OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"},
    ],
    ids=str,
)
def test_nothing_is_traced_unless_there_is_somewhere_to_send_it(environ: dict[str, str]) -> None:
    assert tracing.set_up(environ) is None


def test_without_it_opentelemetry_is_not_loaded() -> None:
    loaded = "import sys, recalld.app, recalld.tracing as t; t.set_up(); print('opentelemetry' in sys.modules)"
    assert _python(loaded) == "False\n"
    # The control: set up, it is.
    assert _python(loaded, OTEL_TRACES_EXPORTER="console") == "True\n"


def _python(program: str, **environ: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | environ, capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        (
            {"OTEL_TRACES_EXPORTER": "zipkin"},
            'OTEL_TRACES_EXPORTER: should be one of console, none, otlp (got "zipkin")',
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            'OTEL_EXPORTER_OTLP_PROTOCOL: should be http/protobuf (got "grpc")',
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"},
            'OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: should be http/protobuf (got "http/json")',
        ),
    ],
    ids=["exporter", "protocol", "protocol of traces"],
)
def test_what_cannot_be_had_is_one_line_that_names_the_variable(environ: dict[str, str], told: str) -> None:
    with pytest.raises(TracingError) as refused:
        tracing.set_up(environ)
    assert str(refused.value) == told


def test_missing_packages_are_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None  # what makes an import fail
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", missing)
    with pytest.raises(
        TracingError, match=r"^traces need opentelemetry[\w.]+; in a clone .*: pip install '\.\[otel,server\]'$"
    ):
        tracing.set_up({"OTEL_TRACES_EXPORTER": "otlp"})
