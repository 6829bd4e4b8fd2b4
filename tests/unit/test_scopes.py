"""The table of scopes has every RPC, and what is not in it is closed: tried on each through the real interceptors."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

import recall.v1
from recalld.access import Principal, Scope
from recalld.errors import CredentialMissing
from recalld.services import add_services
from recalld.services.admission import SCOPES, Admission
from recalld.services.health import HealthServicer
from recalld.services.wrapping import Handler
from tests.reference import ReferenceStore
from tests.served import served
from tests.unit.handlers import DEADLINE, reason_of
from tests.unit.rpc import around, detail

REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}

# In no table: a method that somebody adds and forgets.
NEW_UNARY = "/recall.v1.NewService/New"
NEW_STREAM = "/recall.v1.NewService/StreamNew"


def described() -> dict[str, Any]:
    """Every RPC that there is, by its path: of all our protos, and of channelz."""
    modules = [
        importlib.import_module(f"recall.v1.{module.name}")
        for module in pkgutil.iter_modules(recall.v1.__path__)
        if module.name.endswith("_pb2")
    ]
    return {
        f"/{service.full_name}/{method.name}": method
        for module in (*modules, channelz_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


METHODS = described()


def scopes_in_header(context: grpc.ServicerContext) -> Principal:
    """Admits whoever says what they may do."""
    for key, value in context.invocation_metadata() or ():
        if key == "scopes":
            return Principal("default", frozenset(Scope(word) for word in str(value).split()), "")
    raise CredentialMissing


def new_service() -> grpc.GenericRpcHandler:
    handlers: dict[str, Handler] = {
        "New": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "StreamNew": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([request])),
    }
    return grpc.method_handlers_generic_handler("recall.v1.NewService", handlers)


@contextmanager
def serving(admission: Admission | None) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(4), interceptors=around(admission=admission, most_streams=2))
    add_services(server, ReferenceStore(), timedelta(days=30))
    channelz.add_channelz_servicer(server)
    health = HealthServicer()
    health.set([""], health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection([reflection.SERVICE_NAME], server)
    server.add_generic_rpc_handlers((new_service(),))
    with served(server) as channel:
        yield channel


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    with serving(scopes_in_header) as channel:
        yield channel


@pytest.fixture(scope="module")
def open_channel() -> Iterator[grpc.Channel]:
    """To a server without authentication."""
    with serving(None) as channel:
        yield channel


def outcome(channel: grpc.Channel, path: str, scopes: set[Scope] | None) -> Any:
    """The error that an empty request ends with, None if with none."""
    metadata = () if scopes is None else (("scopes", " ".join(scope.value for scope in scopes)),)
    streaming = path == NEW_STREAM or (path in METHODS and METHODS[path].server_streaming)
    try:
        if streaming:
            stream: Any = channel.unary_stream(path)
            list(stream(b"", metadata=metadata, timeout=DEADLINE))
        else:
            call: Any = channel.unary_unary(path)
            call(b"", metadata=metadata, timeout=DEADLINE)
    except grpc.RpcError as error:
        return error
    return None


def assert_lacks(error: Any, scope: str) -> None:
    assert error is not None
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    info = detail(rpc_status.from_call(error), error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"scope": scope}


def test_the_table_has_every_rpc_and_nothing_else() -> None:
    assert set(METHODS) == set(SCOPES)


def test_the_descriptors_are_those_of_all_services() -> None:
    services = {path.split("/")[1] for path in METHODS}
    api = {f"recall.v1.{name}Service" for name in ("Admin", "Memory", "Session", "User")}
    assert services == {*api, "grpc.channelz.v1.Channelz"}


@pytest.mark.parametrize("path", SCOPES)
def test_what_only_reads_by_its_name_needs_no_more_than_read(path: str) -> None:
    name = path.rpartition("/")[2]
    if path.startswith(("/recall.v1.AdminService/", "/grpc.channelz.")):
        expected = Scope.ADMIN
    else:
        expected = Scope.READ if name.startswith(("Get", "List", "Stream", "Search")) else Scope.WRITE
    assert SCOPES[path] is expected


@pytest.mark.parametrize("path", SCOPES)
def test_every_method_needs_a_credential(channel: grpc.Channel, path: str) -> None:
    error = outcome(channel, path, None)
    assert error is not None
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


@pytest.mark.parametrize("path", SCOPES)
def test_every_method_refuses_all_other_scopes_together(channel: grpc.Channel, path: str) -> None:
    assert_lacks(outcome(channel, path, set(Scope) - {SCOPES[path]}), SCOPES[path].value)
    assert_lacks(outcome(channel, path, set()), SCOPES[path].value)


@pytest.mark.parametrize("path", SCOPES)
def test_every_method_admits_its_scope_alone(channel: grpc.Channel, path: str) -> None:
    error = outcome(channel, path, {SCOPES[path]})
    assert error is None or error.code() not in {*REFUSALS, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INTERNAL}


@pytest.mark.parametrize("path", [NEW_UNARY, NEW_STREAM])
def test_a_method_that_is_not_in_the_table_is_closed_to_everyone(
    channel: grpc.Channel, open_channel: grpc.Channel, path: str
) -> None:
    assert_lacks(outcome(channel, path, set(Scope)), "none")
    assert_lacks(outcome(channel, path, None), "none")
    assert_lacks(outcome(open_channel, path, None), "none")


@pytest.mark.parametrize("path", [NEW_UNARY, NEW_STREAM])
def test_the_same_method_is_open_once_it_is_in_the_table(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test before."""
    monkeypatch.setattr("recalld.services.admission.SCOPES", {**SCOPES, path: Scope.READ})
    with serving(scopes_in_header) as channel:
        assert outcome(channel, path, {Scope.READ}) is None
        assert_lacks(outcome(channel, path, {Scope.WRITE, Scope.ADMIN}), "read")


@pytest.mark.parametrize("path", SCOPES)
def test_without_authentication_every_method_of_the_table_is_open(open_channel: grpc.Channel, path: str) -> None:
    error = outcome(open_channel, path, None)
    assert error is None or error.code() not in REFUSALS


def test_health_and_reflection_are_open(channel: grpc.Channel) -> None:
    check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE)
    assert check.status == health_pb2.HealthCheckResponse.SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    [response] = stub.ServerReflectionInfo(iter([request]), timeout=DEADLINE)
    assert response.list_services_response.service


@pytest.mark.parametrize(
    "path",
    [
        "/recall.v1.SessionService/GetSession/",
        "/recall.v1.SessionService//GetSession",
        "/recall.v1.sessionservice/GetSession",
        "/grpc.health.v1.Health/../../recall.v1.SessionService/GetSession",
        "/grpc.reflection./recall.v1.SessionService/GetSession",
        "/Recall.v1.SessionService/GetSession",
    ],
)
def test_a_path_written_in_another_way_leads_nowhere(channel: grpc.Channel, path: str) -> None:
    error = outcome(channel, path, set(Scope))
    assert error is not None
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
