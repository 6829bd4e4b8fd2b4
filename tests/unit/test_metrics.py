"""Metrics: the right values after known calls, in a form that Prometheus reads, with few and harmless labels."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import GetSessionRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld import __version__
from recalld.domain import Call, Session
from recalld.metrics import Metrics
from tests.reference import ReferenceStore
from tests.unit.observed import DEADLINE, observed

ID = "an-id-of-a-user"

METHODS = {
    f"{service.name}/{method.name}"
    for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def channel(metrics: Metrics) -> Iterator[grpc.Channel]:
    with observed(metrics) as channel:
        yield channel


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def add(channel: grpc.Channel, times: int = 1) -> None:
    for _ in range(times):
        messages = [Message(role="user", content="hello")]
        MemoryServiceStub(channel).AddMemory(AddMemoryRequest(session_id=ID, messages=messages), timeout=DEADLINE)


def miss(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError):
        SessionServiceStub(channel).GetSession(GetSessionRequest(session_id=f"{ID}-2"), timeout=DEADLINE)


def test_calls_are_counted_by_method_and_code(metrics: Metrics, channel: grpc.Channel) -> None:
    add(channel, 3)
    miss(channel)
    assert value(metrics, "recalld_calls_total", method="MemoryService/AddMemory", code="OK") == 3
    assert value(metrics, "recalld_calls_total", method="SessionService/GetSession", code="NOT_FOUND") == 1
    assert value(metrics, "recalld_calls_total", method="SessionService/GetSession", code="OK") == 0


def test_every_call_is_in_the_histogram_once(metrics: Metrics, channel: grpc.Channel) -> None:
    add(channel, 3)
    labels = {"method": "MemoryService/AddMemory"}
    assert value(metrics, "recalld_call_seconds_count", **labels) == 3
    assert value(metrics, "recalld_call_seconds_bucket", **labels, le="+Inf") == 3
    assert 0 < value(metrics, "recalld_call_seconds_sum", **labels) < DEADLINE


def test_a_call_is_in_progress_until_it_ends_well_or_not(metrics: Metrics) -> None:
    entered, leave = Event(), Event()

    class Waiting(ReferenceStore):
        def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
            entered.set()
            assert leave.wait(DEADLINE)
            return super().get_session(call, session_id, show_deleted=show_deleted)

    with observed(metrics, store=Waiting()) as channel:
        call: Any = SessionServiceStub(channel).GetSession.future(GetSessionRequest(session_id=ID), timeout=DEADLINE)
        assert entered.wait(DEADLINE)
        assert value(metrics, "recalld_calls_in_progress") == 1
        leave.set()
        assert call.exception().code() == grpc.StatusCode.NOT_FOUND
        assert value(metrics, "recalld_calls_in_progress") == 0


def test_the_version_is_a_label(metrics: Metrics) -> None:
    assert value(metrics, "recalld_build_info", version=__version__) == 1


def test_prometheus_reads_them_and_no_label_is_an_id_or_what_a_caller_made_up(
    metrics: Metrics, channel: grpc.Channel
) -> None:
    add(channel)
    miss(channel)
    unknown: Any = channel.unary_unary("/recall.v1.SessionService/MadeUp")
    with pytest.raises(grpc.RpcError):
        unknown(b"", timeout=DEADLINE)
    text = generate_latest(metrics.registry).decode()
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        assert family.type in {"counter", "gauge", "histogram"}
        for sample in family.samples:
            for name, label in sample.labels.items():
                labels.setdefault(name, set()).add(label)
    assert labels["method"] == {"MemoryService/AddMemory", "SessionService/GetSession"} <= METHODS
    assert labels["code"] == {"OK", "NOT_FOUND"}
    assert labels.keys() <= {"method", "code", "le", "version", "state", "kind"}
    assert ID not in text
