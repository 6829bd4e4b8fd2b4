"""The Python client against a real server: blocking and asyncio, with a key, over TLS, and through losses."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, ListMessagesRequest, Message
from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, StreamSessionsRequest
from recall.v1.user_pb2 import CreateUserRequest, GetUserRequest
from recalld.app import Server
from recalld.client import Tls, connect, connect_async, reason_of
from tests.certificates import Authority, Issued
from tests.integration.callers import create_key
from tests.integration.conftest import serving
from tests.interop.proxy import Fate, dropping

HELLO = Message(role="user", content="hello")


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    """One that asks for a key."""
    with serving(database_url, auth=True) as server:
        yield server


@pytest.fixture
def key(server: Server, database_url: str) -> str:
    return create_key(database_url, "shop")


def test_it_reaches_every_service(server: Server, key: str) -> None:
    with connect(server.address, api_key=key) as client:
        client.users.CreateUser(CreateUserRequest(user_id="ada"))
        client.sessions.CreateSession(CreateSessionRequest(session_id="s", user_id="ada"))
        assert client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=[HELLO])).messages[0].seq == 1
        chunks = list(client.sessions.StreamSessions(StreamSessionsRequest()))
        assert [session.message_count for chunk in chunks for session in chunk.sessions] == [1]
        assert list(client.admin.Purge(PurgeRequest()))[-1].done


async def _reach_every_service(address: str, key: str) -> None:
    async with connect_async(address, api_key=key) as client:
        await client.users.CreateUser(CreateUserRequest(user_id="ada"))
        await client.sessions.CreateSession(CreateSessionRequest(session_id="s", user_id="ada"))
        assert (await client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=[HELLO]))).messages[0].seq == 1
        chunks = [chunk async for chunk in client.sessions.StreamSessions(StreamSessionsRequest())]
        assert [session.message_count for chunk in chunks for session in chunk.sessions] == [1]
        assert [progress.done async for progress in client.admin.Purge(PurgeRequest())][-1]


def test_so_it_does_with_asyncio(server: Server, key: str) -> None:
    asyncio.run(_reach_every_service(server.address, key))


def test_the_reason_of_an_error_has_what_the_server_said(server: Server, key: str) -> None:
    with connect(server.address, api_key=key) as client:
        with pytest.raises(grpc.RpcError) as raised:
            client.sessions.GetSession(GetSessionRequest(session_id="nobody"))
        assert reason_of(raised.value).reason == "SESSION_NOT_FOUND"

        with pytest.raises(grpc.RpcError) as raised:
            client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=[Message(role="")]))
        reason = reason_of(raised.value)
        assert (reason.reason, [*reason.fields], reason.retry_after) == ("INVALID_FIELD", ["messages[0].role"], None)

        with pytest.raises(grpc.RpcError) as raised:
            client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=[HELLO], expected_last_seq=7))
        reason = reason_of(raised.value)
        assert (reason.reason, reason.metadata["last_seq"]) == ("SEQ_MISMATCH", "0")


def test_the_reason_of_an_asyncio_error_too(server: Server, key: str) -> None:
    async def fail() -> grpc.RpcError:
        async with connect_async(server.address, api_key=key) as client:
            with pytest.raises(grpc.RpcError) as raised:
                await client.users.GetUser(GetUserRequest(user_id="nobody"))
            return raised.value

    assert reason_of(asyncio.run(fail())).reason == "USER_NOT_FOUND"


def test_what_is_worth_repeating_says_when(database_url: str) -> None:
    with serving(database_url, rate_limit=1) as server, connect(server.address) as client:

        def create(n: int) -> None:
            client.users.CreateUser(CreateUserRequest(user_id=f"u{n}"))

        with pytest.raises(grpc.RpcError) as raised:
            deque(map(create, range(100)), maxlen=0)
        reason = reason_of(raised.value)
        assert reason.retry_after is not None
        assert reason.retry_after > 0


@pytest.mark.parametrize(("made_wrong", "expected"), [(True, "CREDENTIAL_INVALID"), (False, "CREDENTIAL_MISSING")])
def test_a_wrong_key_is_told_from_none(server: Server, key: str, made_wrong: bool, expected: str) -> None:
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B") if made_wrong else None
    with connect(server.address, api_key=wrong) as client, pytest.raises(grpc.RpcError) as raised:
        client.memory.GetMemory(GetMemoryRequest(session_id="s"))
    assert reason_of(raised.value).reason == expected


def test_every_message_is_stored_once_through_a_proxy_that_loses_a_fifth_of_the_calls(server: Server, key: str) -> None:
    with grpc.insecure_channel(server.address) as upstream, dropping(upstream, drop=0.2) as proxy:
        with connect(proxy.address, api_key=key, timeout=25) as client:
            for n in range(50):
                message = Message(role="user", content=str(n))
                client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=[message]))
            page = client.memory.ListMessages(ListMessagesRequest(session_id="s"))
        assert proxy.fates[Fate.LOST] > 0
        assert proxy.fates[Fate.UNANSWERED] > 0
    assert [message.content for message in page.messages] == [str(n) for n in range(50)]


# --- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def issued(authority: Authority) -> Issued:
    return authority.issue("server")


def test_it_trusts_the_authority_that_it_is_given_and_no_other(
    database_url: str, authority: Authority, issued: Issued
) -> None:
    files = {"tls_cert_file": issued.cert_file, "tls_key_file": issued.key_file}
    with serving(database_url, auth=True, **files) as server:
        key = create_key(database_url, "shop")
        with connect(server.address, api_key=key, tls=authority.cert_file) as client:
            assert not client.memory.GetMemory(GetMemoryRequest(session_id="s")).HasField("session")
        with connect(server.address, api_key=key, tls=True) as client, pytest.raises(grpc.RpcError) as raised:
            client.memory.GetMemory(GetMemoryRequest(session_id="s"), timeout=2)
        assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_it_shows_a_certificate_of_its_own(database_url: str, authority: Authority, issued: Issued) -> None:
    mine = authority.issue("client")
    files = {
        "tls_cert_file": issued.cert_file,
        "tls_key_file": issued.key_file,
        "tls_client_ca_file": authority.cert_file,
    }
    tls = Tls(ca=authority.cert_file, cert=mine.cert_file, key=mine.key_file)

    async def ask(address: str) -> bool:
        async with connect_async(address, tls=tls) as client:
            return (await client.memory.GetMemory(GetMemoryRequest(session_id="s"))).HasField("session")

    with serving(database_url, auth=False, **files) as server:
        assert not asyncio.run(ask(server.address))
        without = connect(server.address, tls=authority.cert_file)
        with without as client, pytest.raises(grpc.RpcError):
            client.memory.GetMemory(GetMemoryRequest(session_id="s"), timeout=2)
