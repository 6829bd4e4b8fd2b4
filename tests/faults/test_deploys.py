"""A deploy: servers that are told to end, and others in their place, while callers go on."""

from __future__ import annotations

import errno
import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, StreamSessionsRequest, StreamSessionsResponse
from recalld.client import Client, connect, reason_of, service_config
from tests.faults.cluster import free_port
from tests.faults.traffic import CALL, Traffic
from tests.faults.waiting import tables_locked
from tests.processes import DEADLINE, NOT_SERVING, SERVING, Process, running
from tests.waiting import wait_until

SESSIONS = 150  # of 60,000 bytes: more than gRPC buffers for a client that does not read


class Pair:
    """Two servers on one database, at addresses that stay theirs."""

    def __init__(self, directory: Path, url: str, closing: ExitStack) -> None:
        self._directory = directory
        # Room for every caller in each: none is turned away, or gives up waiting for a lock. And a delay in which the
        # client hears of the end, on a machine with much else to do.
        limits = ["--pool-size", "16", "--lock-timeout", "1m"]
        self._arguments = ["--database-url", url, "--shutdown-delay", "3s", *limits]
        self._closing = closing
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.servers = [self._start(address) for address in self.addresses]

    def _start(self, address: str) -> Process:
        return self._closing.enter_context(running(self._directory, [*self._arguments, "--listen", address]))

    def client(self, *, retries: bool = True) -> Client:
        """A client that spreads its calls over both, by the published service config or without its retries.

        It watches their health, and so leaves a server that is about to end while that still takes calls. Without this,
        gRPC's server drops what reaches it between its decision to end and the client's knowledge of that: CANCELLED.
        """
        config = json.loads(service_config())
        if not retries:
            for methods in config["methodConfig"]:
                methods.pop("retryPolicy", None)
        config["loadBalancingConfig"] = [{"round_robin": {}}]
        config["healthCheckConfig"] = {"serviceName": "recall.v1.MemoryService"}
        options = [
            ("grpc.service_config", json.dumps(config)),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        return connect(f"ipv4:{','.join(self.addresses)}", options=options)

    def await_calls_everywhere(self) -> None:
        """Returns when calls come to both: the client may be connected to one sooner."""
        wait_until(lambda: all("AddMemory" in server.stderr for server in self.servers), "no call comes to a server")

    def replace(self, index: int, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends one server and starts another at its address; returns the exit code when calls come there again."""
        self.servers[index].signal(number)
        code = self.servers[index].wait()
        server = self.servers[index] = self._start(self.addresses[index])
        wait_until(lambda: "AddMemory" in server.stderr, "no call comes to the new server")
        return code


@pytest.fixture
def pair(tmp_path: Path, database_url: str) -> Iterator[Pair]:
    with ExitStack() as closing:
        yield Pair(tmp_path, database_url, closing)


@pytest.mark.timeout(300)
def test_a_rolling_restart_fails_no_call_loses_nothing_and_doubles_nothing(pair: Pair) -> None:
    with pair.client() as client:
        with Traffic(client) as traffic:
            traffic.wait_for_calls(100)
            assert [pair.replace(index) for index in (0, 1)] == [0, 0]
            traffic.wait_for_calls(100)
        assert traffic.failures == []
        traffic.check(client)


def test_a_crash_fails_calls_that_nobody_repeats(pair: Pair, database_url: str) -> None:
    """The control of the test above: what it counts does happen, to the same traffic."""
    with pair.client(retries=False) as client, Traffic(client, callers=12) as traffic:
        pair.await_calls_everywhere()
        with tables_locked(database_url):
            traffic.wait_until_stuck()  # some callers at each server
            pair.servers[0].signal(signal.SIGKILL)
            assert pair.servers[0].wait() == -signal.SIGKILL
        wait_until(lambda: any("UNAVAILABLE" in failure for failure in traffic.failures), "no call failed")


def test_a_crash_fails_no_call_that_the_service_config_repeats(pair: Pair, database_url: str) -> None:
    with pair.client() as client, Traffic(client, callers=12) as traffic:
        pair.await_calls_everywhere()
        with tables_locked(database_url):
            traffic.wait_until_stuck()
            pair.servers[0].signal(signal.SIGKILL)
            assert pair.servers[0].wait() == -signal.SIGKILL
        traffic.wait_for_calls(50)
    assert [failure for failure in traffic.failures if not failure.startswith("_update")] == []


def test_during_the_delay_health_says_no_and_new_connections_are_served(tmp_path: Path, database_url: str) -> None:
    arguments = ["--database-url", database_url, "--shutdown-delay", "1h"]
    with running(tmp_path, arguments) as server:
        with grpc.insecure_channel(server.address) as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(), timeout=DEADLINE)
            assert next(watch).status == SERVING
            server.signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            watch.cancel()
        with connect(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as client:
            client.sessions.CreateSession(CreateSessionRequest(session_id="late"), timeout=CALL)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_without_a_delay_new_connections_are_refused(tmp_path: Path, database_url: str) -> None:
    """The control of the test above: what is served there is served because of the delay."""
    arguments = ["--database-url", database_url]
    with (
        running(tmp_path, [*arguments, "--lock-timeout", "1m", "--shutdown-grace", "1m"]) as server,
        connect(server.address) as client,
        connect(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as late,
        ThreadPoolExecutor(1) as threads,
    ):
        with tables_locked(database_url) as wait_for:
            create = CreateSessionRequest(session_id="in-progress")
            call = threads.submit(client.sessions.CreateSession, create, timeout=CALL)
            wait_for(1)  # it keeps the server from ending
            server.signal(signal.SIGTERM)
            await_refusal(server.address)
            with pytest.raises(grpc.RpcError) as refused:
                late.sessions.CreateSession(CreateSessionRequest(session_id="late"), timeout=CALL)
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            assert not call.done()
        call.result(DEADLINE)
        assert server.wait() == 0


def await_refusal(address: str) -> None:
    """Returns when the address takes no connections any more.

    It asks without gRPC, whose server now and then leaves a call that comes with the end unanswered for the whole
    grace, and then the call that is in progress ends with it.
    """
    host, _, port = address.rpartition(":")

    def refused() -> bool:
        with socket.socket() as connection:
            return connection.connect_ex((host, int(port))) == errno.ECONNREFUSED

    wait_until(refused, "connections are still taken")


def test_a_stream_that_a_deploy_ends_goes_on_at_another_server(tmp_path: Path, database_url: str) -> None:
    chunks: list[StreamSessionsResponse] = []
    arguments = ["--database-url", database_url, "--shutdown-grace", "1m"]
    with running(tmp_path, arguments) as first, running(tmp_path, arguments) as second:
        with connect(first.address) as client:
            for n in range(SESSIONS):
                create = CreateSessionRequest(session_id=f"s{n:03}")
                create.metadata.update({"large": "x" * 60_000})
                client.sessions.CreateSession(create, timeout=CALL)
            stream = client.sessions.StreamSessions(StreamSessionsRequest(chunk_size=1), timeout=DEADLINE)
            chunks.append(next(stream))
            first.signal(signal.SIGTERM)
            await_refusal(first.address)
            with pytest.raises(grpc.RpcError) as ended:
                chunks.extend(stream)
            assert (ended.value.code(), reason_of(ended.value).reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "SHUTTING_DOWN",
            )
            assert 0 < len(chunks) < SESSIONS
        assert first.wait() == 0
        with connect(second.address) as client:
            request = StreamSessionsRequest(chunk_size=50, resume_token=chunks[-1].resume_token)
            chunks.extend(client.sessions.StreamSessions(request, timeout=DEADLINE))
            client.sessions.GetSession(GetSessionRequest(session_id="s000"), timeout=CALL)
    seen = [session.session_id for chunk in chunks for session in chunk.sessions]
    assert seen == [f"s{n:03}" for n in range(SESSIONS)]
