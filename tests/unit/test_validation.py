"""Every rule of every request field, at its edge and one past it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from tests.reference import ReferenceStore
from tests.unit.rpc import RpcFailed, Services, struct

UUID = "6f1c0b4e-8a1d-4c55-9d0e-2f3a7b9c1d20"
MIB = 1024 * 1024
CONTROL = ["\0", "\x1f", "\n", "\x7f", "\x80", "\x9f"]
FACE = "\N{SLIGHTLY SMILING FACE}"  # 4 bytes in UTF-8


def add(**message: Any) -> memory_pb2.AddMemoryRequest:
    return memory_pb2.AddMemoryRequest(session_id="s", messages=[memory_pb2.Message(**{"role": "user"} | message)])


def many(count: int) -> memory_pb2.AddMemoryRequest:
    return memory_pb2.AddMemoryRequest(session_id="s", messages=[memory_pb2.Message(role="user")] * count)


def duplicates(first: str, second: str) -> memory_pb2.AddMemoryRequest:
    messages = [memory_pb2.Message(role="user", message_id=each) for each in (first, second)]
    return memory_pb2.AddMemoryRequest(session_id="s", messages=messages)


def listing(**wanted: Any) -> session_pb2.ListSessionsRequest:
    return session_pb2.ListSessionsRequest(filter=session_pb2.SessionFilter(**wanted))


def streaming(**wanted: Any) -> session_pb2.StreamSessionsRequest:
    return session_pb2.StreamSessionsRequest(filter=session_pb2.SessionFilter(**wanted))


def search(**arguments: Any) -> memory_pb2.SearchMemoryRequest:
    return memory_pb2.SearchMemoryRequest(**{"query": "tea"} | arguments)


def purge(**arguments: Any) -> admin_pb2.PurgeRequest:
    return admin_pb2.PurgeRequest(**arguments)


@dataclass(frozen=True)
class Rule:
    """Values that a field takes, and values that it refuses."""

    field: str
    make: Callable[[Any], Message]
    good: list[Any]
    bad: list[Any]


def identifier(field: str, make: Callable[[Any], Message], *, optional: bool = False) -> Rule:
    good = ["x", "x" * 256, FACE * 256, " ", "a/b:c", "\u00a0"]
    bad = ["x" * 257, FACE * 257, *(f"a{control}" for control in CONTROL)]
    return Rule(field, make, [*good, ""] if optional else good, bad if optional else [*bad, ""])


def role(field: str, make: Callable[[Any], Message]) -> Rule:
    return Rule(field, make, ["x", FACE * 64], ["", "x" * 65, *CONTROL])


def name(field: str, make: Callable[[Any], Message]) -> Rule:
    return Rule(field, make, ["", "x", FACE * 256], ["x" * 257, *CONTROL])


def content(field: str, make: Callable[[Any], Message]) -> Rule:
    good = ["", "a\nb\t", "x" * MIB, "é" * (MIB // 2), FACE * (MIB // 4)]
    return Rule(field, make, good, ["x" * (MIB + 1), "é" * (MIB // 2) + "x", FACE * (MIB // 4) + "x", "a\0"])


def message_id(field: str, make: Callable[[Any], Message], *, optional: bool = False) -> Rule:
    wrong = [UUID[:-1], UUID + "0", UUID.replace("-", ""), f"{{{UUID}}}", f"urn:uuid:{UUID}", UUID[:-1] + "g"]
    wrong += [UUID + "\n", UUID[:-1] + "\u0661", UUID.replace("-", "", 1), "0" * 36]
    return Rule(field, make, [UUID, UUID.upper(), *([""] if optional else [])], wrong + ([] if optional else [""]))


def metadata(field: str, make: Callable[[Any], Message]) -> Rule:
    full = "x" * (64 * 1024 - len('{"a":""}'))
    return Rule(field, make, [None, struct(), struct(a=full)], [struct(a=full + "x"), struct(a="\0")])


def non_negative(field: str, make: Callable[[Any], Message], *, bits: int) -> Rule:
    return Rule(field, make, [0, 1, 2 ** (bits - 1) - 1], [-1, -(2 ** (bits - 1))])


def time(field: str, make: Callable[[Any], Message]) -> Rule:
    first, last = -62_135_596_800, 253_402_300_799
    good = [None, Timestamp(), Timestamp(seconds=first), Timestamp(seconds=last, nanos=999_999_999)]
    bad = [Timestamp(seconds=first - 1), Timestamp(seconds=last + 1), Timestamp(nanos=-1), Timestamp(nanos=10**9)]
    return Rule(field, make, good, bad)


def order(field: str, make: Callable[[Any], Message], *, last: int) -> Rule:
    return Rule(field, make, list(range(last + 1)), [-1, last + 1])


def mask(make: Callable[[Any], Message], *fields: str) -> Rule:
    good = [None, FieldMask(), FieldMask(paths=["*"]), FieldMask(paths=fields), FieldMask(paths=[fields[0], "*"])]
    bad = [FieldMask(paths=[path]) for path in ("etag", "metadata.a", "", fields[0].upper())]
    return Rule("update_mask", make, good, bad)


RULES = [
    # SessionService
    identifier("session_id", lambda v: session_pb2.CreateSessionRequest(session_id=v), optional=True),
    identifier("user_id", lambda v: session_pb2.CreateSessionRequest(user_id=v), optional=True),
    metadata("metadata", lambda v: session_pb2.CreateSessionRequest(metadata=v)),
    identifier("session_id", lambda v: session_pb2.GetSessionRequest(session_id=v)),
    identifier("session_id", lambda v: session_pb2.UpdateSessionRequest(session_id=v)),
    identifier("user_id", lambda v: session_pb2.UpdateSessionRequest(session_id="s", user_id=v), optional=True),
    metadata("metadata", lambda v: session_pb2.UpdateSessionRequest(session_id="s", metadata=v)),
    mask(lambda v: session_pb2.UpdateSessionRequest(session_id="s", update_mask=v), "metadata", "user_id"),
    Rule("etag", lambda v: session_pb2.UpdateSessionRequest(session_id="s", etag=v), ["", "x" * 999], ["\0"]),
    identifier("session_id", lambda v: session_pb2.DeleteSessionRequest(session_id=v)),
    Rule("etag", lambda v: session_pb2.DeleteSessionRequest(session_id="s", etag=v), ["", "x" * 999], ["\0"]),
    identifier("session_id", lambda v: session_pb2.UndeleteSessionRequest(session_id=v)),
    non_negative("page_size", lambda v: session_pb2.ListSessionsRequest(page_size=v), bits=32),
    order("order_by", lambda v: session_pb2.ListSessionsRequest(order_by=v), last=4),
    identifier("filter.user_id", lambda v: listing(user_id=v), optional=True),
    metadata("filter.metadata", lambda v: listing(metadata=v)),
    time("filter.create_time_from", lambda v: listing(create_time_from=v)),
    time("filter.create_time_to", lambda v: listing(create_time_to=v)),
    time("filter.update_time_from", lambda v: listing(update_time_from=v)),
    time("filter.update_time_to", lambda v: listing(update_time_to=v)),
    non_negative("chunk_size", lambda v: session_pb2.StreamSessionsRequest(chunk_size=v), bits=32),
    order("order_by", lambda v: session_pb2.StreamSessionsRequest(order_by=v), last=4),
    identifier("filter.user_id", lambda v: streaming(user_id=v), optional=True),
    # MemoryService
    identifier(
        "session_id",
        lambda v: memory_pb2.AddMemoryRequest(session_id=v, messages=[memory_pb2.Message(role="user")]),
    ),
    Rule("messages", many, [1, 1000], [0, 1001]),
    role("messages[0].role", lambda v: add(role=v)),
    content("messages[0].content", lambda v: add(content=v)),
    metadata("messages[0].metadata", lambda v: add(metadata=v)),
    non_negative("messages[0].token_count", lambda v: add(token_count=v), bits=32),
    message_id("messages[0].message_id", lambda v: add(message_id=v), optional=True),
    Rule("messages[1].message_id", lambda v: duplicates(UUID, v), [""], [UUID, UUID.upper(), "x"]),
    identifier(
        "user_id",
        lambda v: memory_pb2.AddMemoryRequest(session_id="s", messages=[memory_pb2.Message(role="user")], user_id=v),
        optional=True,
    ),
    metadata(
        "metadata",
        lambda v: memory_pb2.AddMemoryRequest(session_id="s", messages=[memory_pb2.Message(role="user")], metadata=v),
    ),
    message_id(
        "request_id",
        lambda v: memory_pb2.AddMemoryRequest(session_id="s", messages=[memory_pb2.Message(role="user")], request_id=v),
        optional=True,
    ),
    non_negative(
        "expected_last_seq",
        lambda v: memory_pb2.AddMemoryRequest(
            session_id="s", messages=[memory_pb2.Message(role="user")], expected_last_seq=v
        ),
        bits=64,
    ),
    identifier("session_id", lambda v: memory_pb2.GetMemoryRequest(session_id=v)),
    non_negative("last_n", lambda v: memory_pb2.GetMemoryRequest(session_id="s", last_n=v), bits=32),
    non_negative("max_tokens", lambda v: memory_pb2.GetMemoryRequest(session_id="s", max_tokens=v), bits=32),
    non_negative("after_seq", lambda v: memory_pb2.GetMemoryRequest(session_id="s", after_seq=v), bits=64),
    identifier("session_id", lambda v: memory_pb2.ListMessagesRequest(session_id=v)),
    non_negative("page_size", lambda v: memory_pb2.ListMessagesRequest(session_id="s", page_size=v), bits=32),
    order("order", lambda v: memory_pb2.ListMessagesRequest(session_id="s", order=v), last=2),
    identifier("session_id", lambda v: memory_pb2.GetMessageRequest(session_id=v, message_id=UUID)),
    message_id("message_id", lambda v: memory_pb2.GetMessageRequest(session_id="s", message_id=v)),
    identifier("session_id", lambda v: memory_pb2.UpdateMessageRequest(session_id=v, message_id=UUID)),
    message_id("message_id", lambda v: memory_pb2.UpdateMessageRequest(session_id="s", message_id=v)),
    content("content", lambda v: memory_pb2.UpdateMessageRequest(session_id="s", message_id=UUID, content=v)),
    Rule(
        "role",
        lambda v: memory_pb2.UpdateMessageRequest(session_id="s", message_id=UUID, role=v),
        ["", "x" * 64],
        ["x" * 65, *CONTROL],
    ),
    role(
        "role",
        lambda v: memory_pb2.UpdateMessageRequest(
            session_id="s", message_id=UUID, role=v, update_mask=FieldMask(paths=["*"])
        ),
    ),
    Rule(
        "role",
        lambda v: memory_pb2.UpdateMessageRequest(
            session_id="s", message_id=UUID, role=v, update_mask=FieldMask(paths=["content"])
        ),
        ["", "x" * 64],
        ["x" * 65, *CONTROL],
    ),
    non_negative(
        "token_count",
        lambda v: memory_pb2.UpdateMessageRequest(session_id="s", message_id=UUID, token_count=v),
        bits=32,
    ),
    metadata("metadata", lambda v: memory_pb2.UpdateMessageRequest(session_id="s", message_id=UUID, metadata=v)),
    mask(
        lambda v: memory_pb2.UpdateMessageRequest(session_id="s", message_id=UUID, role="user", update_mask=v),
        *("content", "role", "token_count", "metadata"),
    ),
    identifier("session_id", lambda v: memory_pb2.DeleteMessageRequest(session_id=v, message_id=UUID)),
    message_id("message_id", lambda v: memory_pb2.DeleteMessageRequest(session_id="s", message_id=v)),
    identifier("session_id", lambda v: memory_pb2.ClearMemoryRequest(session_id=v)),
    Rule(
        "query",
        lambda v: search(query=v),
        ["x", FACE * 4096, "a\nb", "!?"],
        ["", " \t\n", "x" * 4097, FACE * 4097, "a\0"],
    ),
    identifier("session_id", lambda v: search(session_id=v)),
    identifier("user_id", lambda v: search(user_id=v)),
    Rule("roles", lambda v: search(roles=["user"] * v), [0, 100], [101]),
    role("roles[1]", lambda v: search(roles=["user", v])),
    metadata("metadata", lambda v: search(metadata=v)),
    time("create_time_from", lambda v: search(create_time_from=v)),
    time("create_time_to", lambda v: search(create_time_to=v)),
    non_negative("page_size", lambda v: search(page_size=v), bits=32),
    # UserService
    identifier("user_id", lambda v: user_pb2.CreateUserRequest(user_id=v), optional=True),
    name("email", lambda v: user_pb2.CreateUserRequest(email=v)),
    name("first_name", lambda v: user_pb2.CreateUserRequest(first_name=v)),
    name("last_name", lambda v: user_pb2.CreateUserRequest(last_name=v)),
    metadata("metadata", lambda v: user_pb2.CreateUserRequest(metadata=v)),
    identifier("user_id", lambda v: user_pb2.GetUserRequest(user_id=v)),
    identifier("user_id", lambda v: user_pb2.UpdateUserRequest(user_id=v)),
    name("email", lambda v: user_pb2.UpdateUserRequest(user_id="u", email=v)),
    name("first_name", lambda v: user_pb2.UpdateUserRequest(user_id="u", first_name=v)),
    name("last_name", lambda v: user_pb2.UpdateUserRequest(user_id="u", last_name=v)),
    metadata("metadata", lambda v: user_pb2.UpdateUserRequest(user_id="u", metadata=v)),
    mask(
        lambda v: user_pb2.UpdateUserRequest(user_id="u", update_mask=v),
        *("email", "first_name", "last_name", "metadata"),
    ),
    Rule("etag", lambda v: user_pb2.UpdateUserRequest(user_id="u", etag=v), ["", "x" * 999], ["\0"]),
    identifier("user_id", lambda v: user_pb2.DeleteUserRequest(user_id=v)),
    Rule("etag", lambda v: user_pb2.DeleteUserRequest(user_id="u", etag=v), ["", "x" * 999], ["\0"]),
    identifier("user_id", lambda v: user_pb2.UndeleteUserRequest(user_id=v)),
    non_negative("page_size", lambda v: user_pb2.ListUsersRequest(page_size=v), bits=32),
    non_negative("chunk_size", lambda v: user_pb2.StreamUsersRequest(chunk_size=v), bits=32),
    # AdminService
    Rule(
        "older_than",
        lambda v: purge(older_than=v),
        [None, Duration(), Duration(nanos=999_999_999), Duration(seconds=315_576_000_000)],
        [Duration(seconds=-1), Duration(nanos=-1), Duration(nanos=10**9), Duration(seconds=315_576_000_001)],
    ),
    identifier("session_id", lambda v: purge(session_id=v)),
    identifier("user_id", lambda v: purge(user_id=v)),
    non_negative("batch_size", lambda v: purge(batch_size=v), bits=32),
]


def labelled(cases: list[tuple[Rule, Any]]) -> list[Any]:
    def label(rule: Rule, value: Any) -> str:
        text = ascii(value).replace("\\", "/").replace("\n", " ")
        return f"{rule.field}={text if len(text) <= 40 else f'{text[:20]}..{len(text)}'}"

    labels = [label(rule, value) for rule, value in cases]
    return [
        pytest.param(*case, id=f"{number}-{text}")
        for number, (case, text) in enumerate(zip(cases, labels, strict=True))
    ]


def invoke(request: Message) -> None:
    services = Services(ReferenceStore())
    if isinstance(request, (admin_pb2.PurgeRequest, session_pb2.StreamSessionsRequest, user_pb2.StreamUsersRequest)):
        services.stream(request)
    else:
        services.call(request)


def outcome(request: Message) -> str:
    try:
        invoke(request)
    except RpcFailed as failed:
        return failed.code
    return "OK"


@pytest.mark.parametrize(("rule", "value"), labelled([(rule, value) for rule in RULES for value in rule.bad]))
def test_a_value_past_the_edge_is_refused_and_its_field_is_named(rule: Rule, value: Any) -> None:
    with pytest.raises(RpcFailed) as raised:
        invoke(rule.make(value))
    failed = raised.value
    assert (failed.code, failed.reason, failed.field) == ("INVALID_ARGUMENT", "INVALID_FIELD", rule.field)


@pytest.mark.parametrize(("rule", "value"), labelled([(rule, value) for rule in RULES for value in rule.good]))
def test_a_value_at_the_edge_is_accepted(rule: Rule, value: Any) -> None:
    assert outcome(rule.make(value)) in ("OK", "NOT_FOUND", "FAILED_PRECONDITION", "ABORTED")  # the store is empty


def test_a_derived_message_id_may_not_be_given_too(services: Services) -> None:
    derived = str(uuid.uuid5(uuid.UUID(UUID), "0"))
    request = memory_pb2.AddMemoryRequest(
        session_id="s",
        messages=[memory_pb2.Message(role="user"), memory_pb2.Message(role="user", message_id=derived)],
        request_id=UUID,
    )
    with pytest.raises(RpcFailed) as raised:
        services.call(request)
    assert raised.value.field == "messages[1].message_id"


def test_nothing_is_stored_when_any_field_is_refused(services: Services) -> None:
    good, bad = memory_pb2.Message(role="user"), memory_pb2.Message(role="")
    with pytest.raises(RpcFailed):
        services.call(memory_pb2.AddMemoryRequest(session_id="s", messages=[good, bad]))
    assert not services.call(memory_pb2.GetMemoryRequest(session_id="s")).HasField("session")
