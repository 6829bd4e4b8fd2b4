"""A server as a process, seen from outside: its metrics over HTTP, its traces at a collector, its log as JSON."""

from __future__ import annotations

import json
import re
import signal
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recalld import serving
from recalld.metrics import Metrics
from recalld.serving import _EXIT_MARGIN
from recalld.tracing import _LAST_SPANS
from tests.faults.cluster import free_port
from tests.faults.scraping import metric
from tests.faults.waiting import tables_locked
from tests.processes import DEADLINE, Process, running, start
from tests.waiting import wait_until

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLERS_SPAN = "b7ad6b7169203331"
CALLER = (("traceparent", f"00-{TRACE}-{CALLERS_SPAN}-01"), ("x-request-id", "theirs"))


def add(address: str, metadata: tuple[tuple[str, str], ...] = ()) -> None:
    request = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="what a user wrote")])
    with grpc.insecure_channel(address) as channel:
        MemoryServiceStub(channel).AddMemory(request, timeout=DEADLINE, metadata=metadata)


# --- metrics


def test_metrics_have_the_values_of_the_calls_made(tmp_path: Path, database_url: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with running(tmp_path, ["--database-url", database_url, "--metrics-listen", metrics]) as server:
        for _ in range(3):
            add(server.address)
        calls = {"method": "MemoryService/AddMemory"}
        assert metric(metrics, "recalld_calls_total", **calls, code="OK") == 3
        assert metric(metrics, "recalld_call_seconds_count", **calls) == 3
        assert metric(metrics, "recalld_calls_in_progress") == 0
        assert metric(metrics, "recalld_calls_refused_total") == 0
        wait_until(lambda: metric(metrics, "recalld_database_up") == 1, "the database is not up")
        wait_until(lambda: metric(metrics, "recalld_pool_connections", state="idle") >= 1, "no connection is idle")
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=DEADLINE) as response:
            assert response.headers["content-type"].startswith("text/plain")
            families = {family.name for family in text_string_to_metric_families(response.read().decode())}
        assert len(families) > 8
        assert all(name.startswith("recalld_") for name in families)


def test_metrics_show_calls_that_wait_hold_connections_and_are_refused(tmp_path: Path, database_url: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    limits = ["--pool-size", "1", "--max-concurrent-calls", "2", "--pool-timeout", "1m", "--lock-timeout", "1m"]
    arguments = ["--database-url", database_url, "--metrics-listen", metrics, *limits]
    with running(tmp_path, arguments) as server, ThreadPoolExecutor() as threads:
        with tables_locked(database_url) as wait_for:
            calls = [threads.submit(add, server.address) for _ in range(2)]
            wait_for(1)
            wait_until(lambda: metric(metrics, "recalld_pool_waiting") == 1, "no call waits for a connection")
            assert metric(metrics, "recalld_pool_connections", state="lent") == 1
            assert metric(metrics, "recalld_calls_in_progress") == 2
            with pytest.raises(grpc.RpcError):
                add(server.address)
            assert metric(metrics, "recalld_calls_refused_total") == 1
        for call in calls:
            call.result(DEADLINE)
        wait_until(lambda: metric(metrics, "recalld_pool_connections", state="lent") == 0, "a connection stays lent")
        assert metric(metrics, "recalld_calls_in_progress") == 0


def test_metrics_tell_how_many_calls_shared_statements(tmp_path: Path, database_url: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    arguments = ["--database-url", database_url, "--metrics-listen", metrics, "--lock-timeout", "1m"]
    with running(tmp_path, arguments) as server, ThreadPoolExecutor(8) as threads:
        with tables_locked(database_url) as wait_for:
            calls = [threads.submit(add, server.address) for _ in range(8)]
            wait_for(5)
            wait_until(lambda: metric(metrics, "recalld_calls_in_progress") == 8, "not all calls have come")
        for call in calls:
            call.result(DEADLINE)
        # The first four, of which each found fewer than four others, have a statement each.
        assert metric(metrics, "recalld_group_size_sum", method="MemoryService/AddMemory") == 4
        assert metric(metrics, "recalld_group_size_count", method="MemoryService/GetMemory") == 0


def test_metrics_of_a_server_without_its_database_say_so(tmp_path: Path) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    arguments = ["--database-url", "postgresql://127.0.0.1:1/none", "--metrics-listen", metrics]
    with running(tmp_path, arguments, serves=False):
        assert metric(metrics, "recalld_build_info") == 1
        assert metric(metrics, "recalld_database_up") == 0


def test_who_connects_for_metrics_and_says_nothing_or_leaves_keeps_no_thread_and_prints_nothing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "_SCRAPE_TIMEOUT", 0.5)
    port = free_port()

    with serving._metrics_served(f"127.0.0.1:{port}", Metrics().registry), ExitStack() as opened:
        silent = []
        for _ in range(10):
            silent.append(opened.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE)))
            with socket.create_connection(("127.0.0.1", port)) as leaving:
                leaving.sendall(b"GET /metrics HTTP/1.1\r\n")
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        assert [connection.recv(1) for connection in silent] == [b""] * 10, "the silent ones are not given up"
        serving_them = "process_request_thread"
        wait_until(
            lambda: not any(serving_them in thread.name for thread in threading.enumerate()),
            "the silent ones keep their threads",
        )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=DEADLINE) as answer:
            assert b"recalld_build_info" in answer.read()
    assert capfd.readouterr().err == ""


def test_an_address_for_metrics_that_is_in_use_is_one_clear_line(tmp_path: Path, database_url: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    arguments = ["--database-url", database_url, "--metrics-listen", metrics]
    with running(tmp_path, arguments), start(arguments, tmp_path / "second") as second:
        assert second.wait(DEADLINE) == 1
    errors = [line for line in (tmp_path / "second").read_text().splitlines() if line.startswith("recalld: ")]
    assert errors == [f"recalld: cannot serve metrics on {metrics}: it is in use"]


# --- traces


class Collector:
    """An OpenTelemetry collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.paths.add(self.path)
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def resource(self) -> dict[str, str]:
        [resource, *_] = self.requests[0].resource_spans
        return {one.key: one.value.string_value for one in resource.resource.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@contextmanager
def tracing(tmp_path: Path, database_url: str, endpoint: str, *arguments: str) -> Iterator[Process]:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    options = ["--database-url", database_url, "--purge-interval", "0", *arguments]
    with running(tmp_path, options, environment=environment) as server:
        yield server


def test_a_trace_goes_from_the_caller_through_the_call_to_the_database(
    tmp_path: Path, database_url: str, collector: Collector
) -> None:
    with tracing(tmp_path, database_url, collector.url, "--log-format", "json") as server:
        add(server.address, CALLER)

        def ours() -> list[Span]:
            return [span for span in collector.spans if span.trace_id.hex() == TRACE]

        wait_until(lambda: any(span.parent_span_id.hex() == CALLERS_SPAN for span in ours()), "the call has no span")
        [call] = [span for span in ours() if span.parent_span_id.hex() == CALLERS_SPAN]
        statements = [span for span in ours() if span is not call]
        assert (call.name, call.kind) == ("recall.v1.MemoryService/AddMemory", Span.SPAN_KIND_SERVER)
        assert statements
        for statement in statements:
            assert statement.parent_span_id == call.span_id
            assert (statement.name, statement.kind) == ("postgresql", Span.SPAN_KIND_CLIENT)
            assert call.start_time_unix_nano <= statement.start_time_unix_nano
            assert statement.end_time_unix_nano <= call.end_time_unix_nano
        assert collector.paths == {"/v1/traces"}
        assert collector.resource["service.name"] == "recalld"
        assert not any(b"what a user wrote" in request.SerializeToString() for request in collector.requests)
        assert f'"trace_id": "{TRACE}"' in _logged(server, '"theirs"')


def test_what_was_traced_last_is_sent_before_it_ends(tmp_path: Path, database_url: str, collector: Collector) -> None:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with running(tmp_path, ["--database-url", database_url], environment=environment) as server:
        add(server.address, CALLER)
        assert collector.spans == []
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert TRACE in {span.trace_id.hex() for span in collector.spans}


def test_a_collector_that_is_not_there_holds_nothing_up(tmp_path: Path, database_url: str) -> None:
    with tracing(tmp_path, database_url, f"http://127.0.0.1:{free_port()}") as server:
        add(server.address, CALLER)
        before = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        # It gives up in good time, where OpenTelemetry by itself takes a quarter of a minute.
        assert time.monotonic() - before < 2 * _EXIT_MARGIN
    assert _LAST_SPANS < _EXIT_MARGIN


def test_a_wrong_exporter_is_one_clear_line(database_url: str, tmp_path: Path) -> None:
    stderr = tmp_path / "stderr"
    with start(["--database-url", database_url], stderr, {"OTEL_TRACES_EXPORTER": "zipkin"}) as process:
        assert process.wait(DEADLINE) == 2
    assert stderr.read_text() == (
        'recalld: OTEL_TRACES_EXPORTER: should be one of console, none, otlp (got "zipkin")\n'
    )


# --- the log


@pytest.mark.parametrize("style", ["text", "json"])
def test_every_call_has_a_line(style: str, tmp_path: Path, database_url: str) -> None:
    with running(tmp_path, ["--database-url", database_url, "--log-format", style]) as server:
        add(server.address, (("x-request-id", 'a" code=FORGED'),))
        with grpc.insecure_channel(server.address) as channel:
            MemoryServiceStub(channel).GetMemory(GetMemoryRequest(session_id="s"), timeout=DEADLINE)
        line = _logged(server, "AddMemory")
        assert "what a user wrote" not in server.stderr
        if style == "json":
            events = [json.loads(line) for line in server.stderr.splitlines()]
            [event] = [event for event in events if event.get("method", "").endswith("/AddMemory")]
            assert event["code"] == "OK"
            assert event["request_id"] == 'a" code=FORGED'
            assert event["namespace"] == "default"
            assert event["ms"] > 0
        else:
            assert re.search(r" INFO recalld\.\S+: call method=recall\.v1\.MemoryService/AddMemory code=OK ", line)
            assert r' request_id="a\" code=FORGED" peer=ipv4:127.0.0.1:' in line
        _logged(server, "GetMemory")


def test_no_call_has_a_line_without_them(tmp_path: Path, database_url: str) -> None:
    with running(tmp_path, ["--database-url", database_url, "--no-log-calls"]) as server:
        add(server.address)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "AddMemory" not in server.stderr
        assert "stopped" in server.stderr


def _logged(server: Process, mark: str) -> str:
    """The one line with the mark, which may take a moment to be written."""
    wait_until(lambda: mark in server.stderr, f"{mark} is not logged")
    [line] = [line for line in server.stderr.splitlines() if mark in line]
    return line
