"""API keys: who has none is let in nowhere, who has one only where its scopes go, and it costs next to nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.message import Message as ProtoMessage
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recall.v1.memory_pb2 import GetMemoryRequest
from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest
from recalld.access import Scope
from recalld.app import Server
from recalld.services.admission import SCOPES
from tests.integration.callers import (
    METHODS,
    Caller,
    Refusal,
    a_round,
    calling,
    create_key,
    in_a_new_namespace,
    method_of,
    one_of_each,
    path_of,
    with_credential,
)
from tests.integration.conftest import serving
from tests.postgres import Databases


@pytest.fixture(scope="module")
def server(shared_database_url: str) -> Iterator[Server]:
    with serving(shared_database_url, auth=True) as server:
        yield server


@pytest.fixture(scope="module")
def nobody(server: Server) -> Iterator[Caller]:
    """A connection; whose it is depends on the credential of each call."""
    with calling(server) as caller:
        yield caller


@pytest.fixture
def one(nobody: Caller, shared_database_url: str) -> Caller:
    return in_a_new_namespace(nobody, shared_database_url)


@pytest.fixture
def other(nobody: Caller, shared_database_url: str) -> Caller:
    return in_a_new_namespace(nobody, shared_database_url)


class Statements:
    """Counts the SQL statements that calls run: on their own threads, unlike health's pings."""

    def __init__(self) -> None:
        self.count = 0

    def take(self) -> int:
        """How many there were since the last time."""
        count, self.count = self.count, 0
        return count


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    counted = Statements()
    execute = psycopg.Cursor.execute

    def counting(cursor: Any, *args: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith(("recalld-call", "recalld-gather", "recalld-aside")):
            counted.count += 1
        return execute(cursor, *args, **options)

    monkeypatch.setattr(psycopg.Cursor, "execute", counting)
    return counted


def test_a_round_is_every_rpc() -> None:
    assert {method_of(request) for request in one_of_each()} == METHODS


# --- no credential, and too little of one


@pytest.mark.parametrize("request_", one_of_each(), ids=method_of)
def test_without_a_credential_no_method_is_answered_nor_the_database_asked(
    nobody: Caller, statements: Statements, request_: ProtoMessage
) -> None:
    refusal = nobody.refused(request_)

    assert refusal.code == grpc.StatusCode.UNAUTHENTICATED
    assert (refusal.reason, refusal.info.domain) == ("CREDENTIAL_MISSING", "recalld")
    assert statements.count == 0


@pytest.mark.parametrize(
    "credential", ["", "Basic dTpw", "Bearer", "Bearer ", "Bearer nonsense", "Bearer recalld_short", "Bearer a.b.c"]
)
def test_what_is_no_credential_is_invalid_and_not_looked_up(
    nobody: Caller, statements: Statements, credential: str
) -> None:
    caller = Caller(nobody.channel, (("authorization", credential),))

    assert caller.refused(GetSessionRequest(session_id="s")).reason == "CREDENTIAL_INVALID"
    assert statements.count == 0


def test_two_credentials_are_none(one: Caller, other: Caller) -> None:
    both = Caller(one.channel, (*one.metadata, *other.metadata))

    assert both.refused(GetMemoryRequest(session_id="s")).reason == "CREDENTIAL_INVALID"


def test_a_key_whose_secret_is_another_ones_is_invalid(nobody: Caller, shared_database_url: str) -> None:
    mine, yours = (create_key(shared_database_url, f"n-{uuid4().hex}") for _ in range(2))
    forged = mine[: len("recalld_0123456789ab_")] + yours[len("recalld_0123456789ab_") :]

    refusal = with_credential(nobody, forged).refused(GetMemoryRequest(session_id="s"))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_INVALID")
    with_credential(nobody, mine).call(GetMemoryRequest(session_id="s"))


@pytest.mark.parametrize("request_", one_of_each(), ids=method_of)
def test_a_credential_opens_the_methods_of_its_scopes_and_no_other(
    nobody: Caller, shared_database_url: str, statements: Statements, request_: ProtoMessage
) -> None:
    needed = SCOPES[path_of(request_)]
    lacking = in_a_new_namespace(nobody, shared_database_url, *set(Scope) - {needed})
    lacking.refused(request_)  # now the key is known
    statements.take()

    refusal = lacking.refused(request_)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
    assert dict(refusal.info.metadata) == {"scope": needed.value}
    assert statements.count == 0
    having = in_a_new_namespace(nobody, shared_database_url, needed)
    assert having.code(request_) in _ON_NOTHING


# What a round's requests are answered with where nothing is.
_ON_NOTHING = (grpc.StatusCode.OK, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


def test_health_and_reflection_need_no_credential_and_channelz_needs_admin(
    nobody: Caller, one: Caller, shared_database_url: str
) -> None:
    health = HealthStub(nobody.channel).Check(HealthCheckRequest(service="recall.v1.MemoryService"), timeout=30)
    assert health.status == HealthCheckResponse.SERVING
    asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    [listed] = reflection_pb2_grpc.ServerReflectionStub(nobody.channel).ServerReflectionInfo(asked, timeout=30)
    assert "recall.v1.MemoryService" in {service.name for service in listed.list_services_response.service}

    servers = channelz_pb2_grpc.ChannelzStub(nobody.channel).GetServers
    reader = in_a_new_namespace(nobody, shared_database_url, Scope.READ, Scope.WRITE)
    for caller, reason in ((nobody, "CREDENTIAL_MISSING"), (reader, "SCOPE_MISSING")):
        with pytest.raises(grpc.RpcError) as raised:
            servers(channelz_pb2.GetServersRequest(), timeout=30, metadata=caller.metadata)
        assert Refusal(raised.value).reason == reason
    assert servers(channelz_pb2.GetServersRequest(), timeout=30, metadata=one.metadata).server


def test_reflection_and_channelz_can_be_off(database_url: str) -> None:
    key = create_key(database_url, "n")
    with serving(database_url, auth=True, reflection=False) as server, calling(server, key) as caller:
        caller.call(GetMemoryRequest(session_id="s"))
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        with pytest.raises(grpc.RpcError) as raised:
            list(reflection_pb2_grpc.ServerReflectionStub(caller.channel).ServerReflectionInfo(asked, timeout=30))
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.RpcError) as raised:
            channelz_pb2_grpc.ChannelzStub(caller.channel).GetServers(
                channelz_pb2.GetServersRequest(), timeout=30, metadata=caller.metadata
            )
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_a_method_that_there_is_not_is_unimplemented_for_everyone(nobody: Caller, one: Caller) -> None:
    unknown: Any = nobody.channel.unary_unary("/recall.v1.MemoryService/DropEverything")
    for caller in (nobody, one):
        with pytest.raises(grpc.RpcError) as raised:
            unknown(b"", timeout=30, metadata=caller.metadata)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


# --- what it costs


@contextmanager
def known_for_an_hour() -> Iterator[None]:
    """Keys that are known are not looked up again, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recalld.access.api_keys._FRESH", 3600.0)
        patch.setattr("recalld.access.api_keys.REVOCATION_SECONDS", 7200.0)
        yield


def test_authentication_adds_no_statement_to_a_call_with_a_known_key(
    databases: Databases, statements: Statements
) -> None:
    costs: dict[bool, list[int]] = {}
    for auth in (False, True):
        with (
            known_for_an_hour(),
            databases.copy() as url,
            serving(url, auth=auth) as server,
            calling(server, create_key(url, "default")) as caller,
        ):
            statements.take()
            caller.call(GetMemoryRequest(session_id="s"))
            # The control: the first call of a key has it looked up, and only that.
            assert statements.take() == 1 + auth
            costs[auth] = []
            for request in a_round():
                caller.call(request)
                costs[auth].append(statements.take())
    assert costs[True] == costs[False]
    assert min(costs[True]) > 0


def test_without_authentication_everyone_is_in_one_namespace_whatever_credential_they_send(database_url: str) -> None:
    """The control of all of the above: nothing here holds by itself."""
    with serving(database_url) as server, calling(server) as caller:
        mine, yours = (with_credential(caller, create_key(database_url, name)) for name in "ab")
        mine.call(CreateSessionRequest(session_id="s"))
        assert yours.refused(CreateSessionRequest(session_id="s")).reason == "SESSION_ALREADY_EXISTS"
