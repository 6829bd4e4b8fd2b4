"""A server that shuts down ends its open streams so that another one can go on with them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from recall.v1.session_pb2 import CreateSessionRequest, StreamSessionsRequest, StreamSessionsResponse
from tests.integration.conftest import connected, serving
from tests.waiting import wait_until

SESSIONS = 200  # of 60,000 bytes: more than gRPC buffers for a client that does not read


def test_an_open_stream_ends_with_a_reason_and_another_server_goes_on_behind_the_last_chunk(database_url: str) -> None:
    chunks: list[StreamSessionsResponse] = []
    with serving(database_url) as server, connected(server) as client:
        for n in range(SESSIONS):
            create = CreateSessionRequest(session_id=f"s{n:03}")
            create.metadata.update({"large": "x" * 60_000})
            client.sessions.CreateSession(create, timeout=30)
        stream = client.sessions.StreamSessions(StreamSessionsRequest(chunk_size=1), timeout=30)
        chunks.append(next(stream))
        with ThreadPoolExecutor(1) as thread:
            stopped = thread.submit(server.stop)
            with pytest.raises(grpc.RpcError) as raised:
                chunks.extend(stream)
            stopped.result()

    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(raised.value).details[0].Unpack(info)
    assert info.reason == "SHUTTING_DOWN"
    assert 0 < len(chunks) < SESSIONS

    with serving(database_url) as server, connected(server) as client:
        request = StreamSessionsRequest(chunk_size=50, resume_token=chunks[-1].resume_token)
        chunks.extend(client.sessions.StreamSessions(request, timeout=30))
    seen = [session.session_id for chunk in chunks for session in chunk.sessions]
    assert seen == [f"s{n:03}" for n in range(SESSIONS)]


def test_who_watches_its_health_does_not_keep_it_from_ending(database_url: str) -> None:
    """gRPC's own health checking has a Watch open as long as there is a connection."""

    def tellers() -> int:
        return sum(thread.name == "recalld-health-watch" for thread in threading.enumerate())

    before = tellers()
    with serving(database_url, shutdown_grace=timedelta(seconds=20)) as server, connected(server) as client:
        watch = HealthStub(client.channel).Watch(HealthCheckRequest(), timeout=30)
        next(watch)
        assert tellers() > before
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 10
        wait_until(lambda: tellers() <= before, "who told watchers goes on")
