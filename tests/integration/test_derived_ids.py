"""Ids that the server makes: derived from the session and the seq, and not indexed."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import grpc
import psycopg
import pytest

from recall.v1.memory_pb2 import (
    AddMemoryRequest,
    DeleteMessageRequest,
    GetMemoryRequest,
    GetMessageRequest,
    Message,
    UpdateMessageRequest,
)
from recalld.client import Client, reason_of
from tests.integration.conftest import connected, serving
from tests.processes import DEADLINE


@pytest.fixture
def client(database_url: str) -> Iterator[Client]:
    with serving(database_url) as server, connected(server) as client:
        yield client


def adding(session_id: str, content: str = "hello") -> AddMemoryRequest:
    return AddMemoryRequest(session_id=session_id, messages=[Message(role="user", content=content)])


def contents(client: Client, session_id: str) -> list[str]:
    request = GetMemoryRequest(session_id=session_id, last_n=1000)
    return [message.content for message in client.memory.GetMemory(request, timeout=DEADLINE).messages]


def test_an_id_that_the_server_made_finds_its_message(client: Client) -> None:
    added = client.memory.AddMemory(adding("s", "one"), timeout=DEADLINE).messages[0]
    client.memory.AddMemory(adding("s", "two"), timeout=DEADLINE)
    get = GetMessageRequest(session_id="s", message_id=added.message_id)
    assert client.memory.GetMessage(get, timeout=DEADLINE).message.content == "one"
    update = UpdateMessageRequest(session_id="s", message_id=added.message_id, content="edited")
    assert client.memory.UpdateMessage(update, timeout=DEADLINE).message.seq == 1
    delete = DeleteMessageRequest(session_id="s", message_id=added.message_id)
    client.memory.DeleteMessage(delete, timeout=DEADLINE)
    assert contents(client, "s") == ["two"]
    with pytest.raises(grpc.RpcError) as gone:
        client.memory.GetMessage(get, timeout=DEADLINE)
    assert gone.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_database_derives_it_too_and_keeps_only_given_ids_in_an_index(client: Client, database_url: str) -> None:
    made = client.memory.AddMemory(adding("s"), timeout=DEADLINE).messages[0].message_id
    given = str(uuid4())
    client.memory.AddMemory(
        AddMemoryRequest(session_id="s", messages=[Message(role="user", message_id=given)]), timeout=DEADLINE
    )
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "select recalld.message_id(session_key, seq)::text = message_id::text, id_derived from recalld.message"
            " order by seq"
        ).fetchall()
        assert rows == [(True, True), (False, None)]
        predicate = connection.execute(
            "select pg_get_expr(indpred, indrelid) from pg_index"
            " where indexrelid = 'recalld.message_by_given_id'::regclass"
        ).fetchone()
    assert predicate == ("(id_derived IS NOT TRUE)",)
    assert client.memory.GetMessage(GetMessageRequest(session_id="s", message_id=made), timeout=DEADLINE)
    assert client.memory.GetMessage(GetMessageRequest(session_id="s", message_id=given), timeout=DEADLINE)


def test_who_sends_it_back_repeats_that_message_or_conflicts_with_it(client: Client) -> None:
    added = client.memory.AddMemory(adding("s", "one"), timeout=DEADLINE).messages[0]
    message = Message(role="user", content="one", message_id=added.message_id)
    again = AddMemoryRequest(session_id="s", messages=[message])
    assert client.memory.AddMemory(again, timeout=DEADLINE).messages[0] == added
    again.messages[0].content = "another"
    with pytest.raises(grpc.RpcError) as refused:
        client.memory.AddMemory(again, timeout=DEADLINE)
    assert reason_of(refused.value).reason == "MESSAGE_ID_CONFLICT"
    assert contents(client, "s") == ["one"]


def test_one_that_the_server_has_yet_to_make_is_refused_and_so_stays_free(client: Client) -> None:
    first = client.memory.AddMemory(adding("s"), timeout=DEADLINE).messages[0].message_id
    coming = f"{2:012x}"[:8] + "-" + f"{2:012x}"[8:] + first[13:]
    forged = AddMemoryRequest(session_id="s", messages=[Message(role="user", message_id=coming)])
    with pytest.raises(grpc.RpcError) as refused:
        client.memory.AddMemory(forged, timeout=DEADLINE)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "messages[0].message_id" in (refused.value.details() or "")
    assert client.memory.AddMemory(adding("s"), timeout=DEADLINE).messages[0].message_id == coming
    # In another session it is an id like any other.
    forged.session_id = "t"
    assert client.memory.AddMemory(forged, timeout=DEADLINE).messages[0].message_id == coming
