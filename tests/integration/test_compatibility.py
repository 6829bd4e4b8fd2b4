"""Clients and servers of different versions understand each other; what the versions are is in versions.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1 import session_pb2, user_pb2
from recalld.app import Server
from recalld.client import Client
from tests.integration.versions import (
    DEADLINE,
    FUTURE,
    RELEASED,
    UNHEARD_OF,
    Api,
    Call,
    extended,
    front,
    reduced,
    released,
    set_future,
    stub_calls,
    todays,
)

MESSAGE_ID = "7f4ff0a5-4a2c-4c43-9f5e-3a6d1c2f9b01"


# --- the calls


def a_round(call: Call) -> None:
    """Every RPC of 0.1.0 at least once, with answers that must be right."""
    [made] = call("CreateUser", user_id="ada", first_name="Ada", metadata={"plan": "pro"})
    assert made["user"]["metadata"] == {"plan": "pro"}
    [got] = call("GetUser", user_id="ada")
    [updated] = call("UpdateUser", user_id="ada", email="ada@example.org", etag=got["user"]["etag"])
    assert (updated["user"]["first_name"], updated["user"]["email"]) == ("Ada", "ada@example.org")
    [users] = call("ListUsers", page_size=10)
    [streamed] = call("StreamUsers", chunk_size=10)
    assert [user["user_id"] for user in users["users"]] == ["ada"] == [user["user_id"] for user in streamed["users"]]

    [made] = call("CreateSession", session_id="s", user_id="ada", metadata={"topic": "billing", "tags": ["a"]})
    assert made["session"]["metadata"] == {"topic": "billing", "tags": ["a"]}
    call("UpdateSession", session_id="s", metadata={"topic": None, "urgent": True})
    [got] = call("GetSession", session_id="s")
    assert got["session"]["metadata"] == {"tags": ["a"], "urgent": True}

    messages = [
        {"role": "user", "content": "where is my invoice", "message_id": MESSAGE_ID, "metadata": {"n": 1}},
        {"role": "assistant", "content": "on its way", "token_count": 3},
    ]
    [added] = call("AddMemory", session_id="s", messages=messages, expected_last_seq=0)
    assert [message["seq"] for message in added["messages"]] == ["1", "2"]
    assert call("AddMemory", session_id="s", messages=messages, expected_last_seq=0) == [added]
    [memory] = call("GetMemory", session_id="s", last_n=1)
    assert (memory["messages"][0]["content"], memory["session"]["message_count"]) == ("on its way", "2")
    [listed] = call("ListMessages", session_id="s", order="MESSAGE_ORDER_SEQ_DESC", page_size=1)
    assert listed["messages"][0]["token_count"] == 3
    [listed] = call(
        "ListMessages", session_id="s", order="MESSAGE_ORDER_SEQ_DESC", page_token=listed["next_page_token"]
    )
    assert listed["messages"][0]["message_id"] == MESSAGE_ID
    [found] = call("SearchMemory", query="invoices", session_id="s", page_size=1)
    assert found["results"][0]["message"]["message_id"] == MESSAGE_ID
    call("UpdateMessage", session_id="s", message_id=MESSAGE_ID, content="", update_mask="content")
    [got] = call("GetMessage", session_id="s", message_id=MESSAGE_ID)
    assert "content" not in got["message"]
    assert got["message"]["metadata"] == {"n": 1}
    call("DeleteMessage", session_id="s", message_id=MESSAGE_ID)
    [cleared] = call("ClearMemory", session_id="s")
    assert (cleared["session"].get("message_count"), cleared["session"]["last_seq"]) == (None, "2")

    call("DeleteSession", session_id="s")
    [sessions] = call("ListSessions", order_by="SESSION_ORDER_UPDATE_TIME_DESC", show_deleted=True)
    assert sessions["sessions"][0]["delete_time"]
    assert call("StreamSessions") == []
    call("UndeleteSession", session_id="s")
    [chunk] = call("StreamSessions", filter={"user_id": "ada", "metadata": {"urgent": True}})
    assert [session["session_id"] for session in chunk["sessions"]] == ["s"]
    call("DeleteUser", user_id="ada")
    call("UndeleteUser", user_id="ada")
    *_, purged = call("Purge", older_than="0s", session_id="s")
    assert purged == {"sessions": "1", "messages": "2", "done": True}

    with pytest.raises(grpc.RpcError) as raised:
        call("GetSession", session_id="s", show_deleted=True)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert detail(raised.value, error_details_pb2.ErrorInfo).reason == "SESSION_NOT_FOUND"


def detail(error: Any, kind: Any) -> Any:
    """The detail of this kind in an error's status."""
    status = rpc_status.from_call(error)
    assert status is not None
    [packed] = [one for one in status.details if one.Is(kind.DESCRIPTOR)]
    found = kind()
    packed.Unpack(found)
    return found


def called_by_a_round(call: Call) -> set[str]:
    names = set()

    def noting(name: str, **fields: Any) -> list[dict[str, Any]]:
        names.add(name)
        return call(name, **fields)

    a_round(noting)
    return names


# --- old clients


@pytest.mark.parametrize("image", RELEASED, ids=lambda image: image.stem)
def test_a_client_of_a_released_version_works(client: Client, image: Path) -> None:
    a_round(Api(released(image)).calls(client.channel))


def test_a_round_calls_every_rpc_of_the_first_release(client: Client) -> None:
    first = Api(released(next(image for image in RELEASED if image.stem == "v0.1.0")))

    assert called_by_a_round(first.calls(client.channel)) == set(first.rpcs)


# --- old servers


@pytest.mark.parametrize("image", RELEASED, ids=lambda image: image.stem)
def test_a_client_of_today_works_with_the_api_of_a_released_version(
    server: Server, client: Client, image: Path
) -> None:
    with front(Api(released(image)), server) as address, grpc.insecure_channel(address) as channel:
        a_round(stub_calls(Client(channel)))


def test_what_an_older_server_does_not_know_is_ignored_and_absent(server: Server, client: Client) -> None:
    with front(Api(reduced(todays())), server) as address, grpc.insecure_channel(address) as channel:
        older = Client(channel)
        request = session_pb2.CreateSessionRequest(session_id="s")
        request.metadata.update({"topic": "billing"})

        session = older.sessions.CreateSession(request, timeout=DEADLINE).session

        assert (session.session_id, session.etag, session.HasField("metadata")) == ("s", "", False)
        with pytest.raises(grpc.RpcError) as raised:
            list(older.users.StreamUsers(user_pb2.StreamUsersRequest(), timeout=DEADLINE))
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    stored = client.sessions.GetSession(session_pb2.GetSessionRequest(session_id="s"), timeout=DEADLINE).session
    assert (bool(stored.etag), stored.HasField("metadata")) == (True, False)


# --- clients of the future


@pytest.fixture
def future() -> Api:
    return Api(extended(todays()))


def test_unknown_fields_are_ignored_and_never_answered(client: Client, future: Api) -> None:
    prepared: set[str] = set()
    answers: list[Any] = []

    def prepare(request: Message) -> None:
        set_future(request)
        assert UNHEARD_OF.encode() in request.SerializeToString()
        prepared.add(request.DESCRIPTOR.name)

    call = future.calls(client.channel, prepare)

    def keeping(name: str, **fields: Any) -> list[dict[str, Any]]:
        answers.extend(answer := call(name, **fields))
        return answer

    a_round(keeping)

    assert len(prepared) == len(Api(todays()).rpcs)
    assert UNHEARD_OF not in str(answers)


def test_a_call_with_unknown_fields_is_repeated_by_one_without(client: Client, future: Api) -> None:
    messages = [{"role": "user", "content": "hello", "message_id": MESSAGE_ID}]
    newer, older = future.calls(client.channel, set_future), stub_calls(client)

    first = newer("AddMemory", session_id="s", messages=messages)

    assert older("AddMemory", session_id="s", messages=messages) == first


@pytest.mark.parametrize(
    ("rpc", "field", "fields"),
    [
        ("ListSessions", "order_by", {}),
        ("StreamSessions", "order_by", {}),
        ("ListMessages", "order", {"session_id": "s"}),
    ],
)
def test_an_unknown_enum_value_is_refused_by_the_name_of_its_field(
    client: Client, future: Api, rpc: str, field: str, fields: dict[str, str]
) -> None:
    call = future.calls(client.channel)
    call("CreateSession", session_id="s")
    assert call(rpc, **fields, **{field: 2}), "a known value is taken"

    with pytest.raises(grpc.RpcError) as raised:
        call(rpc, **fields, **{field: FUTURE})

    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert [one.field for one in detail(raised.value, error_details_pb2.BadRequest).field_violations] == [field]


@pytest.mark.parametrize("service", ["SessionService", "MemoryService", "UserService", "AdminService"])
def test_an_unknown_rpc_is_unimplemented(client: Client, future: Api, service: str) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        future.calls(client.channel)(f"Future{service}")

    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
