"""Two applications that use the same ids for everything, through the API: neither can tell that the other exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message as ProtoMessage

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import (
    AddMemoryRequest,
    ClearMemoryRequest,
    DeleteMessageRequest,
    GetMemoryRequest,
    GetMessageRequest,
    ListMessagesRequest,
    Message,
    SearchMemoryRequest,
    UpdateMessageRequest,
)
from recall.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    SessionFilter,
    StreamSessionsRequest,
    UndeleteSessionRequest,
    UpdateSessionRequest,
)
from recall.v1.user_pb2 import (
    CreateUserRequest,
    DeleteUserRequest,
    GetUserRequest,
    ListUsersRequest,
    StreamUsersRequest,
    UndeleteUserRequest,
    UpdateUserRequest,
)
from tests.integration.callers import (
    Caller,
    Refusal,
    a_round,
    calling,
    create_key,
    in_a_new_namespace,
    method_of,
    with_credential,
)
from tests.integration.conftest import serving

# What is never the same twice.
_PASSING = {"create_time", "update_time", "delete_time", "purge_time", "etag", "next_page_token", "resume_token"}


@pytest.fixture(scope="module")
def nobody(shared_database_url: str) -> Iterator[Caller]:
    """A connection; whose it is depends on the credential of each call."""
    with serving(shared_database_url, auth=True) as server, calling(server) as caller:
        yield caller


@pytest.fixture
def one(nobody: Caller, shared_database_url: str) -> Caller:
    return in_a_new_namespace(nobody, shared_database_url)


@pytest.fixture
def other(nobody: Caller, shared_database_url: str) -> Caller:
    return in_a_new_namespace(nobody, shared_database_url)


def lasting(message: ProtoMessage) -> ProtoMessage:
    """The message without what is never the same twice, at any depth."""
    for descriptor, value in message.ListFields():
        if descriptor.name in _PASSING:
            message.ClearField(descriptor.name)
        elif descriptor.message_type is not None and descriptor.message_type.full_name.startswith("recall."):
            for part in value if descriptor.is_repeated else [value]:
                lasting(part)
    return message


def outcome(caller: Caller, request: ProtoMessage, session_id: str = "", user_id: str = "") -> tuple[Any, ...]:
    """All that a caller learns, byte for byte, with the given ids taken out."""
    try:
        parts = [lasting(answer).SerializeToString() for answer in caller.call(request)]
        code = grpc.StatusCode.OK
    except grpc.RpcError as error:
        refusal = Refusal(error)
        code = refusal.code
        details = [detail.SerializeToString() for detail in refusal.status.details]
        parts = [refusal.status.message.encode(), *details, *sorted(key.encode() for key in refusal.trailing)]
    for text in (session_id, user_id):
        if text:
            parts = [part.replace(text.encode(), b"-" * len(text)) for part in parts]
    return (code, *parts)


def test_two_namespaces_with_the_same_ids_each_see_what_they_would_see_alone(
    nobody: Caller, shared_database_url: str, one: Caller, other: Caller
) -> None:
    """In lockstep: every listing, count, score and purge of one would show the other's rows if it could."""
    alone = in_a_new_namespace(nobody, shared_database_url)
    expected = [outcome(alone, request) for request in a_round()]

    for request, answer in zip(a_round(), expected, strict=True):
        assert answer[0] is grpc.StatusCode.OK, request
        assert outcome(one, request) == answer, method_of(request)
        assert outcome(other, request) == answer, method_of(request)


def test_of_two_credentials_of_one_namespace_the_second_sees_what_the_first_did(
    nobody: Caller, shared_database_url: str
) -> None:
    """The control of the test above: a round on top of another is not answered like the first."""
    namespace = f"n-{uuid4().hex}"
    first, second = (with_credential(nobody, create_key(shared_database_url, namespace)) for _ in range(2))
    answers = [outcome(first, request) for request in a_round()[:-8]]
    differing = [
        method_of(request)
        for request, answer in zip(a_round(), answers, strict=False)
        if outcome(second, request) != answer
    ]
    assert {"CreateUser", "CreateSession", "GetMemory"} <= set(differing)


def test_no_answer_holds_a_word_of_the_other_namespace(one: Caller, other: Caller) -> None:
    for mine, yours in zip(a_round("zebra"), a_round("giraffe"), strict=True):
        for caller, request, theirs in ((one, mine, b"giraffe"), (other, yours, b"zebra")):
            answers = b"".join(answer.SerializeToString() for answer in caller.call(request))
            assert theirs not in answers, method_of(request)


_MESSAGE_ID = "00000000-0000-4000-8000-000000000001"


def _fill(caller: Caller, *, deleted: bool) -> None:
    """Makes the user `ada` with the sessions `known` (deleted or not), which holds one message."""
    caller.call(CreateUserRequest(user_id="ada"))
    said = Message(message_id=_MESSAGE_ID, role="user", content="apple")
    caller.call(AddMemoryRequest(session_id="known", user_id="ada", messages=[said]))
    if deleted:
        caller.call(DeleteUserRequest(user_id="ada"))


def _about(session_id: str, user_id: str) -> list[ProtoMessage]:
    """What one can say about a session and a user. What creates them comes last."""
    ids: dict[str, Any] = {"session_id": session_id, "message_id": _MESSAGE_ID}
    session: dict[str, Any] = {"session_id": session_id}
    user: dict[str, Any] = {"user_id": user_id}
    message = Message(role="user", content="pear")
    return [
        GetSessionRequest(**session, show_deleted=True),
        UpdateSessionRequest(**session),
        UpdateSessionRequest(**session, etag="1"),
        DeleteSessionRequest(**session),
        DeleteSessionRequest(**session, allow_missing=True),
        UndeleteSessionRequest(**session),
        GetMemoryRequest(**session),
        ListMessagesRequest(**session),
        GetMessageRequest(**ids),
        UpdateMessageRequest(**ids, content="pear"),
        DeleteMessageRequest(**ids),
        ClearMemoryRequest(**session),
        SearchMemoryRequest(query="apple", **session),
        SearchMemoryRequest(query="apple", **user),
        ListSessionsRequest(filter=SessionFilter(**user), show_deleted=True),
        StreamSessionsRequest(filter=SessionFilter(**user), show_deleted=True),
        CreateSessionRequest(session_id="s", user_id=user_id),
        AddMemoryRequest(session_id="s", user_id=user_id, messages=[message]),
        AddMemoryRequest(**session, expected_last_seq=1, messages=[message]),
        GetUserRequest(**user, show_deleted=True),
        UpdateUserRequest(**user, first_name="A"),
        DeleteUserRequest(**user),
        DeleteUserRequest(**user, allow_missing=True),
        UndeleteUserRequest(**user),
        PurgeRequest(**session, dry_run=True),
        PurgeRequest(**user),
        CreateUserRequest(**user),
        CreateSessionRequest(**session),
        AddMemoryRequest(**session, messages=[Message(message_id=_MESSAGE_ID, role="user", content="pear")]),
    ]


@pytest.mark.parametrize("deleted", [False, True])
def test_what_another_namespace_has_is_answered_like_what_nobody_has(one: Caller, other: Caller, deleted: bool) -> None:
    _fill(one, deleted=deleted)

    taken = [outcome(other, request, "known", "ada") for request in _about("known", "ada")]

    unknown = [outcome(other, request, "never", "bob") for request in _about("never", "bob")]
    assert taken == unknown


def test_what_one_has_is_answered_otherwise(one: Caller) -> None:
    """The control of the test above: each of these requests tells what exists from what does not."""
    same = []
    for mine, unknown in zip(_about("known", "ada"), _about("never", "bob"), strict=True):
        _fill_again(one)
        if outcome(one, mine, "known", "ada") == outcome(one, unknown, "never", "bob"):
            same.append(method_of(mine))
    # What nobody deleted cannot be undeleted or purged, whether it exists or not.
    assert sorted(same) == ["Purge", "Purge"]


def _fill_again(caller: Caller) -> None:
    for session_id in ("known", "never", "s"):
        caller.call(DeleteSessionRequest(session_id=session_id, allow_missing=True))
    for user_id in ("ada", "bob"):
        caller.call(DeleteUserRequest(user_id=user_id, allow_missing=True))
    caller.call(PurgeRequest(older_than=Duration()))
    _fill(caller, deleted=False)


_LISTINGS: list[ProtoMessage] = [
    ListSessionsRequest(page_size=1),
    StreamSessionsRequest(chunk_size=1),
    ListMessagesRequest(session_id="s0", page_size=1),
    ListUsersRequest(page_size=1),
    StreamUsersRequest(chunk_size=1),
]


@pytest.mark.parametrize("listing", _LISTINGS, ids=method_of)
def test_a_token_of_one_namespace_is_invalid_in_another(one: Caller, other: Caller, listing: ProtoMessage) -> None:
    for caller in (one, other):
        for number in range(3):
            caller.call(CreateUserRequest(user_id=f"u{number}"))
            messages = [Message(role="user", content="hi")] * 3
            caller.call(AddMemoryRequest(session_id=f"s{number}", messages=messages))
    first: Any = one.call(listing)[0]
    following: Any = type(listing)()
    following.CopyFrom(listing)
    if "page_token" in listing.DESCRIPTOR.fields_by_name:
        following.page_token = first.next_page_token
    else:
        following.resume_token = first.resume_token

    assert one.call(following)[0] != first  # the control: it is good where it is from
    refusal = other.refused(following)

    assert refusal.code == grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "INVALID_PAGE_TOKEN"
