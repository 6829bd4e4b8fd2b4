"""MemoryService: what a request means, and what its response holds."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID, uuid5

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from recall.v1 import memory_pb2, session_pb2
from recalld.domain import MessageChange, MetadataChange, SearchQuery
from recalld.services.times import EPOCH
from tests.unit.rpc import RecordingStore, RpcFailed, Services, struct

REQUEST_ID = "0f9b3c1e-3d51-4b39-8a63-60a2c4fdf0d1"
MESSAGE_ID = "6f1c0b4e-8a1d-4c55-9d0e-2f3a7b9c1d20"
EMPTIED = MetadataChange({}, replace=True)


def add(services: Services, *contents: str, session_id: str = "s", **arguments: Any) -> memory_pb2.AddMemoryResponse:
    messages = [memory_pb2.Message(role="user", content=content) for content in contents]
    request = memory_pb2.AddMemoryRequest(session_id=session_id, messages=messages, **arguments)
    return cast("memory_pb2.AddMemoryResponse", services.call(request))


def add_ids(services: Services, *message_ids: str, request_id: str = "") -> list[UUID]:
    messages = [memory_pb2.Message(role="user", message_id=message_id) for message_id in message_ids]
    request = memory_pb2.AddMemoryRequest(session_id="s", messages=messages, request_id=request_id)
    return [UUID(added.message_id) for added in services.call(request).messages]


def get(services: Services, **arguments: Any) -> list[str]:
    response = services.call(memory_pb2.GetMemoryRequest(session_id="s", **arguments))
    return [message.content for message in response.messages]


# --- AddMemory


def test_messages_come_back_as_they_were_added(services: Services) -> None:
    sent = memory_pb2.Message(role="user", content="tea?", metadata=struct(a=[1, None]), token_count=3)
    response = services.call(memory_pb2.AddMemoryRequest(session_id="s", messages=[sent], metadata=struct(topic="t")))
    assert (response.session_created, response.session_undeleted) == (True, False)
    (added,) = response.messages
    memory = services.call(memory_pb2.GetMemoryRequest(session_id="s"))
    (message,) = memory.messages
    assert (message.message_id, message.seq, message.create_time) == (added.message_id, added.seq, added.create_time)
    assert (message.session_id, message.role, message.content, message.token_count) == ("s", "user", "tea?", 3)
    assert message.metadata == sent.metadata
    assert (memory.session.last_seq, memory.session.metadata) == (1, struct(topic="t"))


def test_fields_that_the_server_sets_are_ignored(services: Services) -> None:
    sent = memory_pb2.Message(role="user", session_id="x", seq=9, create_time=Timestamp(nanos=-1))
    response = services.call(memory_pb2.AddMemoryRequest(session_id="s", messages=[sent]))
    assert response.messages[0].seq == 1


def test_ids_are_derived_from_the_request_id(services: Services) -> None:
    expected = [uuid5(UUID(REQUEST_ID), "0"), UUID(MESSAGE_ID), uuid5(UUID(REQUEST_ID), "2")]
    assert add_ids(services, "", MESSAGE_ID.upper(), "", request_id=REQUEST_ID) == expected


def test_ids_are_derived_from_the_first_message_id_without_a_request_id(services: Services) -> None:
    expected = [uuid5(UUID(MESSAGE_ID), "0"), UUID(MESSAGE_ID), UUID(REQUEST_ID), uuid5(UUID(MESSAGE_ID), "3")]
    assert add_ids(services, "", MESSAGE_ID, REQUEST_ID, "") == expected


def test_ids_are_random_without_any(services: Services) -> None:
    assert len({*add_ids(services, "", ""), *add_ids(services, "", "")}) == 4


def test_a_repeated_call_returns_the_first_result(services: Services) -> None:
    first = add(services, "a", "b", request_id=REQUEST_ID)
    assert add(services, "a", "b", request_id=REQUEST_ID) == first
    assert get(services) == ["a", "b"]


def test_expected_last_seq_zero_is_not_the_same_as_none(services: Services) -> None:
    add(services, "a")
    with pytest.raises(RpcFailed) as raised:
        add(services, "b", expected_last_seq=0)
    assert (raised.value.code, raised.value.reason) == ("ABORTED", "SEQ_MISMATCH")
    assert raised.value.detail(error_details_pb2.ErrorInfo).metadata == {"last_seq": "1"}
    add(services, "b", expected_last_seq=1)


# --- GetMemory


def test_an_unknown_session_is_an_empty_memory(services: Services) -> None:
    assert services.call(memory_pb2.GetMemoryRequest(session_id="s")) == memory_pb2.GetMemoryResponse()


@pytest.mark.parametrize(("asked", "last_n"), [(0, 12), (1, 1), (1000, 1000), (1001, 1000)])
def test_last_n_has_a_default_and_a_maximum(services: Services, store: RecordingStore, asked: int, last_n: int) -> None:
    get(services, last_n=asked)
    assert store.calls == [("get_memory", ("s",), {"last_n": last_n, "max_tokens": 0, "after_seq": 0})]


def test_memory_is_the_newest_messages_oldest_first(services: Services) -> None:
    add(services, "a", "b", "c", "d")
    assert get(services, last_n=3) == ["b", "c", "d"]
    assert get(services, after_seq=2) == ["c", "d"]
    assert get(services, max_tokens=2) == ["c", "d"]


# --- single messages


def test_a_message_can_be_read_and_deleted_by_its_id(services: Services) -> None:
    message_id = add(services, "a").messages[0].message_id
    message = services.call(memory_pb2.GetMessageRequest(session_id="s", message_id=message_id.upper())).message
    assert message.content == "a"
    assert services.call(memory_pb2.DeleteMessageRequest(session_id="s", message_id=message_id)).message == message
    with pytest.raises(RpcFailed) as raised:
        services.call(memory_pb2.GetMessageRequest(session_id="s", message_id=message_id))
    assert (raised.value.code, raised.value.reason) == ("NOT_FOUND", "MESSAGE_NOT_FOUND")


@pytest.mark.parametrize(
    ("arguments", "paths", "change"),
    [
        ({}, None, MessageChange()),
        ({"content": "c", "role": "r", "token_count": 2}, None, MessageChange("c", "r", 2)),
        ({"metadata": struct(a=1)}, None, MessageChange(metadata=MetadataChange({"a": 1}))),
        ({"role": "r"}, ["content"], MessageChange(content="")),
        ({}, ["token_count"], MessageChange(token_count=0)),
        ({"metadata": struct(a=1)}, ["metadata"], MessageChange(metadata=MetadataChange({"a": 1}, replace=True))),
        ({"role": "r"}, ["*"], MessageChange("", "r", 0, EMPTIED)),
    ],
)
def test_an_update_changes_what_its_mask_names_or_what_is_not_empty(
    services: Services,
    store: RecordingStore,
    arguments: dict[str, Any],
    paths: list[str] | None,
    change: MessageChange,
) -> None:
    add_ids(services, MESSAGE_ID)
    mask = None if paths is None else FieldMask(paths=paths)
    request = memory_pb2.UpdateMessageRequest(session_id="s", message_id=MESSAGE_ID, update_mask=mask, **arguments)
    assert services.call(request).message.message_id == MESSAGE_ID
    assert store.calls[-1] == ("update_message", ("s", MESSAGE_ID, change), {})


def test_clearing_keeps_the_session(services: Services) -> None:
    add(services, "a", "b")
    session = services.call(memory_pb2.ClearMemoryRequest(session_id="s")).session
    assert (session.session_id, session.message_count, session.last_seq) == ("s", 0, 2)


# --- lists and searches


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_pages_hold_every_message_once_in_order(services: Services, size: int, order: int) -> None:
    add(services, *"abcde")
    listed, token = "", ""
    while True:
        page = services.call(
            memory_pb2.ListMessagesRequest(
                session_id="s",
                page_size=size,
                page_token=token,
                order=cast("memory_pb2.MessageOrder.ValueType", order),
            )
        )
        listed += "".join(message.content for message in page.messages)
        token = page.next_page_token
        if not token:
            break
    assert listed == ("edcba" if order == memory_pb2.MESSAGE_ORDER_SEQ_DESC else "abcde")


def test_a_token_of_another_session_is_refused(services: Services) -> None:
    add(services, "a", "b")
    token = services.call(memory_pb2.ListMessagesRequest(session_id="s", page_size=1)).next_page_token
    with pytest.raises(RpcFailed) as raised:
        services.call(memory_pb2.ListMessagesRequest(session_id="other", page_token=token))
    assert (raised.value.reason, raised.value.field) == ("INVALID_PAGE_TOKEN", "page_token")


def test_listing_the_messages_of_an_unknown_session_is_not_found(services: Services) -> None:
    with pytest.raises(RpcFailed) as raised:
        services.call(memory_pb2.ListMessagesRequest(session_id="s"))
    assert (raised.value.code, raised.value.reason) == ("NOT_FOUND", "SESSION_NOT_FOUND")


def test_a_search_finds_messages_with_their_session_and_score(services: Services) -> None:
    add(services, "green tea", "coffee")
    add(services, "tea", session_id="other")
    response = services.call(memory_pb2.SearchMemoryRequest(query="green tea"))
    assert [result.message.session_id for result in response.results] == ["s", "other"]
    assert response.results[0].score > response.results[1].score
    response = services.call(memory_pb2.SearchMemoryRequest(query="tea", session_id="other"))
    assert [result.message.session_id for result in response.results] == ["other"]


def test_a_search_reaches_the_store_whole(services: Services, store: RecordingStore) -> None:
    services.call(
        memory_pb2.SearchMemoryRequest(
            query="tea",
            user_id="u",
            roles=["user"],
            metadata=struct(a=1),
            create_time_from=Timestamp(),
            page_size=5000,
        )
    )
    query = SearchQuery("tea", 1000, user_id="u", roles=["user"], metadata={"a": 1}, create_time_from=EPOCH)
    assert store.calls == [("search_memory", (query,), {})]


def test_writing_to_a_deleted_session_says_that_it_undeleted_it(services: Services) -> None:
    add(services, "a")
    services.call(session_pb2.DeleteSessionRequest(session_id="s"))
    response = add(services, "b")
    assert (response.session_created, response.session_undeleted) == (False, True)
