"""Health for those who ask once and those who watch: nobody who watches can hold up another, or the server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from recalld.errors import Overloaded, StorageUnavailable
from recalld.health import Health
from recalld.services import health
from recalld.services.health import HealthServicer
from tests.served import served
from tests.waiting import wait_until

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING

SERVICES = ("", "a", "b", "c")
DEADLINE = 30.0


@contextmanager
def stub_of(servicer: HealthServicer) -> Iterator[HealthStub]:
    server = grpc.server(ThreadPoolExecutor(8))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    with served(server) as channel:
        yield HealthStub(channel)


def asking(service: str) -> HealthCheckRequest:
    return HealthCheckRequest(service=service)


def test_a_check_tells_what_was_set_and_not_found_for_an_unknown_service() -> None:
    servicer = HealthServicer()
    servicer.set(["a"], SERVING)
    with stub_of(servicer) as stub:
        assert stub.Check(asking("a"), timeout=DEADLINE).status == SERVING
        with pytest.raises(grpc.RpcError) as refused:
            stub.Check(asking("b"), timeout=DEADLINE)
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_watcher_is_told_each_change_and_nothing_else() -> None:
    servicer = HealthServicer()
    with stub_of(servicer) as stub:
        watch = stub.Watch(asking("a"), timeout=DEADLINE)
        assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
        for status in (SERVING, NOT_SERVING, SERVING):
            servicer.set(["a"], status)
            assert next(watch).status == status
            servicer.set(["a"], status)
        servicer.set(["a"], NOT_SERVING)
        assert next(watch).status == NOT_SERVING


def test_watchers_that_leave_while_others_are_told_do_not_stop_the_server() -> None:
    """With the servicer of grpcio-health-checking this server stops answering within a second."""
    servicer = HealthServicer()
    ended = threading.Event()

    def flip() -> None:
        while not ended.is_set():
            for status in (SERVING, NOT_SERVING):
                servicer.set(SERVICES, status)

    def come_and_go(stub: HealthStub, service: str) -> None:
        for _ in range(20):
            watch = stub.Watch(asking(service), timeout=DEADLINE)
            next(watch)
            watch.cancel()

    with stub_of(servicer) as stub, ThreadPoolExecutor(len(SERVICES) + 1) as threads:
        flipping = threads.submit(flip)
        try:
            watchers = [threads.submit(come_and_go, stub, service) for service in SERVICES]
            for watcher in watchers:
                watcher.result()
        finally:
            ended.set()
        flipping.result()
        # Whoever has left is forgotten.
        wait_until(lambda: not servicer._watchers, "somebody is remembered")


class Deaf:
    """The call of a watcher that does not take what it is told, until the call is cancelled."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.cancelled = threading.Event()

    def send(self, _response: HealthCheckResponse) -> None:
        self.told.set()
        assert self.cancelled.wait(DEADLINE)

    def add_callback(self, _callback: Any) -> bool:
        return True

    def cancel(self) -> None:
        self.cancelled.set()


def test_watchers_that_take_nothing_hold_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_SEND_TIMEOUT", 0.0)
    servicer = HealthServicer()
    deaf = [Deaf() for _ in range(8)]  # more than there are threads to tell them
    for one in deaf:
        servicer.Watch(asking("a"), one, one.send)  # type: ignore[arg-type]  # what Watch needs of a context
    assert deaf[0].told.wait(DEADLINE)
    with stub_of(servicer) as stub:
        servicer.set(["a"], SERVING)
        assert stub.Check(asking("a"), timeout=DEADLINE).status == SERVING
        watch = stub.Watch(asking("a"), timeout=DEADLINE)

        def all_cancelled() -> bool:
            servicer.cancel_stalled()
            return all(one.cancelled.is_set() for one in deaf)

        wait_until(all_cancelled, "a watcher that takes nothing stays")
        assert next(watch).status == SERVING


@pytest.mark.parametrize("error", [StorageUnavailable(), Overloaded()])
def test_a_database_that_is_away_or_busy_at_first_is_waited_for(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be busy with calls of this very server, which takes them before it serves."""
    monkeypatch.setattr("recalld.health._BACKOFF", (0.01,))
    errors = [error, error]
    failures: list[Exception] = []

    def prepare() -> None:
        if errors:
            raise errors.pop()

    watched = Health(["service"], prepare=prepare, ping=lambda: None, fail=failures.append)
    watched.start()
    try:
        wait_until(lambda: watched.serving, f"it does not serve: {failures}")
    finally:
        watched.stop()
    assert failures == []


@pytest.mark.parametrize(
    ("reminder", "lines"), [(60.0, ["away", "full", "away"]), (0.0, ["away"] * 3 + ["full", "away"])]
)
def test_why_there_is_no_database_is_told_when_it_changes_and_now_and_then(
    reminder: float, lines: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It may be away for long, and tried every two seconds."""
    monkeypatch.setattr("recalld.health._BACKOFF", (0.01,))
    monkeypatch.setattr("recalld.health._REMINDER", reminder)
    reasons = iter(["away"] * 3 + ["full", "away"])

    def prepare() -> None:
        if reason := next(reasons, None):
            raise StorageUnavailable from ConnectionError(reason)

    watched = Health(["service"], prepare=prepare, ping=lambda: None, fail=lambda _error: None)
    watched.start()
    try:
        wait_until(lambda: watched.serving, "it does not serve")
    finally:
        watched.stop()
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"no database yet, trying on (`recalld doctor` tells more): {reason}" for reason in lines]
