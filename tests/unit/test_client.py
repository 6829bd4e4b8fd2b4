"""The Python client, against a server that only records: what it sends, what it repeats, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import CreateSessionRequest, StreamSessionsRequest
from recalld.client import Tls, channel_options, connect, connect_async, reason_of, service_config
from recalld.settings import Settings
from recalld.transport import options
from tests.unit.recorder import Recorder, recording

ROOT = Path(__file__).resolve().parents[2]

KEY = "recalld_0123456789ab_secret"

# Calls one method of a client of its own, and returns the response, or all responses of a stream.
Ask = Callable[..., Any]


def ask_blocking(recorder: Recorder, method: str, request: Any, timeout: float | None = None, **how: Any) -> Any:
    with connect(recorder.address, **how) as client:
        answer = attrgetter(method)(client)(request, timeout=timeout)
        return list(answer) if "Stream" in method or "Purge" in method else answer


def ask_asyncio(recorder: Recorder, method: str, request: Any, timeout: float | None = None, **how: Any) -> Any:
    async def ask() -> Any:
        async with connect_async(recorder.address, **how) as client:
            answer = attrgetter(method)(client)(request, timeout=timeout)
            return [each async for each in answer] if "Stream" in method or "Purge" in method else await answer

    return asyncio.run(ask())


@pytest.fixture(params=[ask_blocking, ask_asyncio], ids=["blocking", "asyncio"])
def ask(request: pytest.FixtureRequest) -> Ask:
    chosen: Ask = request.param
    return chosen


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    with recording() as recorder:
        yield recorder


def added(recorder: Recorder) -> list[AddMemoryRequest]:
    return [AddMemoryRequest.FromString(received.request) for received in recorder.received]


# --- the service config


def configured() -> dict[str, dict[str, Any]]:
    """What the service config says of each method of the API, by the rule that a method goes before its service."""
    by_name = {
        (name["service"], name.get("method")): method_config
        for method_config in json.loads(service_config())["methodConfig"]
        for name in method_config["name"]
    }
    return {
        method.name: by_name.get((service.full_name, method.name)) or by_name.get((service.full_name, None)) or {}
        for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def test_the_methods_that_are_repeated_are_the_reads_and_add_memory() -> None:
    repeated = {method for method, config in configured().items() if "retryPolicy" in config}
    reads = {method for method in configured() if method.startswith(("Get", "List", "Search", "Stream"))}
    assert len(reads) == 10
    assert repeated == reads | {"AddMemory"}


def test_every_method_but_the_streams_has_a_longest_time() -> None:
    endless = {method for method, config in configured().items() if "timeout" not in config}
    assert endless == {"StreamSessions", "StreamUsers", "Purge"}


def test_the_service_config_of_the_package_is_the_one_beside_the_protos() -> None:
    assert service_config() == (ROOT / "protos" / "recall" / "v1" / "service_config.json").read_text()


# --- what is repeated


def test_a_call_that_may_be_repeated_is_until_it_succeeds(recorder: Recorder, ask: Ask) -> None:
    recorder.fail(grpc.StatusCode.UNAVAILABLE, times=2)
    recorder.fail(grpc.StatusCode.RESOURCE_EXHAUSTED, ("grpc-retry-pushback-ms", "1"), times=2)
    ask(recorder, "memory.AddMemory", AddMemoryRequest(session_id="s"))
    assert len(recorder.received) == 5
    assert len({request.request_id for request in added(recorder)}) == 1


def test_without_the_client_it_is_not(recorder: Recorder) -> None:
    recorder.fail(grpc.StatusCode.UNAVAILABLE)
    with grpc.insecure_channel(recorder.address) as channel, pytest.raises(grpc.RpcError, match="as told"):
        MemoryServiceStub(channel).GetMemory(GetMemoryRequest())
    assert len(recorder.received) == 1


def test_a_stream_that_fails_before_its_first_response_is_repeated(recorder: Recorder, ask: Ask) -> None:
    recorder.fail(grpc.StatusCode.UNAVAILABLE)
    assert len(ask(recorder, "sessions.StreamSessions", StreamSessionsRequest())) == 1
    assert len(recorder.received) == 2


@pytest.mark.parametrize(
    ("method", "request_type"), [("sessions.CreateSession", CreateSessionRequest), ("admin.Purge", PurgeRequest)]
)
def test_another_write_is_not_repeated(recorder: Recorder, ask: Ask, method: str, request_type: type[Any]) -> None:
    recorder.fail(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(grpc.RpcError, match="as told"):
        ask(recorder, method, request_type())
    assert len(recorder.received) == 1


def test_neither_is_an_error_that_would_come_again(recorder: Recorder, ask: Ask) -> None:
    recorder.fail(grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(grpc.RpcError, match="as told"):
        ask(recorder, "memory.GetMemory", GetMemoryRequest())
    assert len(recorder.received) == 1


@pytest.mark.parametrize(("mebibytes", "attempts"), [(3.9, 2), (4.1, 1)])
def test_the_largest_requests_are_repeated_and_what_is_too_large_is_not(
    recorder: Recorder, ask: Ask, mebibytes: float, attempts: int
) -> None:
    recorder.fail(grpc.StatusCode.UNAVAILABLE)
    request = AddMemoryRequest(messages=[Message(content="x" * int(mebibytes * 1024 * 1024))])
    try:
        ask(recorder, "memory.AddMemory", request)
        succeeded = True
    except grpc.RpcError:
        succeeded = False
    assert (len(recorder.received), succeeded) == (attempts, attempts == 2)


# --- what is sent


def test_a_call_that_names_no_deadline_gets_one_that_the_server_knows_and_a_stream_none(
    recorder: Recorder, ask: Ask
) -> None:
    ask(recorder, "memory.GetMemory", GetMemoryRequest())
    ask(recorder, "memory.GetMemory", GetMemoryRequest(), timeout=20)
    ask(recorder, "sessions.StreamSessions", StreamSessionsRequest())
    default, own, stream = (received.seconds for received in recorder.received)
    assert default is not None
    assert own is not None
    assert stream is not None
    # Each less what it takes to get there.
    assert 5 < default < 11 < own < 21
    assert stream > 1e9


def test_the_key_goes_with_every_call(recorder: Recorder, ask: Ask) -> None:
    ask(recorder, "memory.GetMemory", GetMemoryRequest(), api_key=KEY)
    ask(recorder, "sessions.StreamSessions", StreamSessionsRequest(), api_key=KEY)
    ask(recorder, "memory.GetMemory", GetMemoryRequest())
    sent = [received.metadata.get("authorization") for received in recorder.received]
    assert sent == [f"Bearer {KEY}", f"Bearer {KEY}", None]


def test_a_function_is_asked_for_the_key_at_each_call(recorder: Recorder) -> None:
    tokens = iter(["a", "b"])
    with connect(recorder.address, api_key=lambda: next(tokens)) as client:
        client.memory.GetMemory(GetMemoryRequest())
        client.memory.GetMemory(GetMemoryRequest())
    assert [received.metadata["authorization"] for received in recorder.received] == ["Bearer a", "Bearer b"]


def test_a_calls_own_metadata_is_kept(recorder: Recorder) -> None:
    with connect(recorder.address, api_key=KEY) as client:
        client.memory.GetMemory(GetMemoryRequest(), metadata=(("traceparent", "00-1"),))
    assert recorder.received[0].metadata["traceparent"] == "00-1"


def test_add_memory_gets_a_request_id_on_a_copy(recorder: Recorder, ask: Ask) -> None:
    request = AddMemoryRequest(session_id="s", messages=[Message(content="hello")])
    ask(recorder, "memory.AddMemory", request)
    ask(recorder, "memory.AddMemory", request)
    first, second = added(recorder)
    assert UUID(first.request_id) != UUID(second.request_id)
    assert request.request_id == ""
    first.ClearField("request_id")
    assert first == request


@pytest.mark.parametrize(
    "request_",
    [AddMemoryRequest(request_id="mine"), AddMemoryRequest(messages=[Message(), Message(message_id="mine")])],
    ids=["request_id", "message_id"],
)
def test_an_id_of_the_callers_own_is_left_alone(recorder: Recorder, ask: Ask, request_: AddMemoryRequest) -> None:
    ask(recorder, "memory.AddMemory", request_)
    assert added(recorder) == [request_]


# --- what is refused


@pytest.mark.parametrize(
    "target",
    [
        "memory.example.org:443",
        "10.0.0.1:50051",
        "dns:///memory.example.org:443",
        "dns://127.0.0.1/memory.example.org:443",
        "dns://10.0.0.1/localhost:443",
        "ipv4:127.0.0.1:1,10.0.0.1:1",
        "[::1].example.org:443",
        "localhost.example.org:443",
        "127.0.0.1.example.org:443",
        "0.0.0.0:50051",
        "example.org:127.0.0.1",
        "127.0.0.ipv4:1",
        "xds:///localhost",
        "",
    ],
)
@pytest.mark.parametrize("connecting", [connect, connect_async])
def test_a_key_does_not_leave_the_host_in_plaintext(target: str, connecting: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="plaintext") as raised:
        connecting(target, api_key=KEY)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize(
    "target",
    [
        "localhost:50051",
        "localhost",
        "127.0.0.1:50051",
        "127.9.9.9:50051",
        "[::1]:50051",
        "dns:localhost:50051",
        "dns:///localhost:50051",
        "ipv4:127.0.0.1:1,127.0.0.1:2",
        "ipv6:[::1]:1",
        "unix:/run/recalld.sock",
    ],
)
def test_to_the_same_host_it_may(target: str) -> None:
    connect(target, api_key=KEY).close()


def test_elsewhere_it_may_with_tls_or_when_told_so() -> None:
    connect("memory.example.org:443", api_key=KEY, tls=True).close()
    connect("memory.example.org:443", api_key=KEY, send_key_in_plaintext=True).close()
    connect("memory.example.org:443").close()


@pytest.mark.parametrize("key", ["", f"{KEY}\n", "two words", "schlüssel"])
def test_what_is_no_key_is_refused_without_being_quoted(key: str, recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="api_key") as raised:
        connect(recorder.address, api_key=key)
    with connect(recorder.address, api_key=lambda: key) as client, pytest.raises(ValueError, match="api_key"):
        client.memory.GetMemory(GetMemoryRequest())
    assert not key.strip() or key.strip() not in str(raised.value)


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValueError, match="go together"):
        Tls(cert="client.pem")


# --- around it


def test_the_callers_options_go_first() -> None:
    chosen = channel_options("localhost:1", [("grpc.keepalive_time_ms", 1), ("grpc.primary_user_agent", "me")])
    assert dict(chosen) | {"grpc.keepalive_time_ms": 1, "grpc.primary_user_agent": "me"} == dict(chosen)
    assert len(chosen) == len(dict(chosen))


@pytest.mark.parametrize(("use", "answered"), [((), True), ([("grpc.enable_http_proxy", 1)], False)])
def test_a_proxy_for_the_web_is_not_asked_for_the_same_host(
    use: list[tuple[str, int]], answered: bool, recorder: Recorder, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("grpc_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    try:
        ask(recorder, "sessions.CreateSession", CreateSessionRequest(), timeout=30, options=use)
        succeeded = True
    except grpc.RpcError:
        succeeded = False
    assert succeeded is answered


def test_the_server_permits_the_pings_of_the_client() -> None:
    client, server = dict(channel_options("localhost:1")), dict(options(Settings(), share_port=False))
    assert client["grpc.keepalive_time_ms"] >= server["grpc.http2.min_ping_interval_without_data_ms"]
    assert server["grpc.keepalive_permit_without_calls"] == client["grpc.keepalive_permit_without_calls"]


def test_an_error_that_is_not_recallds_has_no_reason(recorder: Recorder, ask: Ask) -> None:
    recorder.fail(grpc.StatusCode.INTERNAL)
    with pytest.raises(grpc.RpcError) as raised:
        ask(recorder, "memory.GetMemory", GetMemoryRequest())
    reason = reason_of(raised.value)
    assert (reason.reason, reason.metadata, reason.fields, reason.retry_after) == ("", {}, {}, None)


@pytest.mark.parametrize(
    ("domain", "said", "expected"),
    [
        ("recalld", "as told", ("OVERLOADED", {"a": "b"})),
        ("mesh.example", "as told", ("", {})),
        ("recalld", "not what the call's own status says", ("", {})),
    ],
)
def test_a_reason_of_what_is_between_is_not_recallds(
    domain: str, said: str, expected: tuple[str, dict[str, str]], recorder: Recorder, ask: Ask
) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message=said)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="OVERLOADED", domain=domain, metadata={"a": "b"}))
    recorder.fail(grpc.StatusCode.INTERNAL, ("grpc-status-details-bin", status.SerializeToString()))
    with pytest.raises(grpc.RpcError) as raised:
        ask(recorder, "memory.GetMemory", GetMemoryRequest())
    reason = reason_of(raised.value)
    assert (reason.reason, reason.metadata) == expected


def test_it_needs_nothing_of_the_server() -> None:
    code = "import sys, recalld.client; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert {name for name in loaded if name.startswith("recalld")} == {"recalld", "recalld.client"}
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    # grpc itself looks for its siblings, and Debian's Python loads what customises it.
    ours = {name for name in foreign if not name.startswith(("_", "grpc", "cython", "sitecustomize"))}
    assert ours <= {"google", "recall", "recalld", "typing_extensions"}
