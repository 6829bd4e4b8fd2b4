"""Requests of any type, built from its descriptor: mostly plausible, with a hostile field or two."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from recalld.domain import Position
from recalld.services.page_token import PageTokens
from tests.fuzz import values

Draw = Callable[[st.SearchStrategy[Any]], Any]

# What a field of this name usually holds. Any other gets a value by its type, so a new field needs nothing here.
_PLAUSIBLE: dict[str, st.SearchStrategy[Any]] = {
    "session_id": st.sampled_from(values.SESSIONS),
    "user_id": st.sampled_from(values.USERS),
    "message_id": st.sampled_from(values.MESSAGE_IDS),
    "Message.message_id": st.just("") | st.uuids().map(str),
    "request_id": st.just("") | st.uuids().map(str),
    "role": st.sampled_from(["user", "assistant", "' or 1=1 --"]),
    "roles": st.lists(st.sampled_from(["user", "%"]), max_size=2),
    "query": st.sampled_from([*values.TSQUERY, "tea", "x' or 'y"]),
    "content": values.contents,
    "etag": st.just(""),
    "email": st.sampled_from(["", "a@b.example", "%"]),
    "older_than": values.durations,
}
_MASK = "google.protobuf.FieldMask"
_OF_TYPE: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    "google.protobuf.Struct": (
        values.small_documents.map(values.struct_of),
        values.hostile_documents.map(values.struct_of),
    ),
    "google.protobuf.Timestamp": (values.timestamps, values.timestamps),
    "google.protobuf.Duration": (values.durations, values.durations),
    _MASK: (st.nothing(), values.hostile_masks),
}
_OF_CPP_TYPE: dict[int, tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    FieldDescriptor.CPPTYPE_STRING: (st.sampled_from(["", "x"]), values.hostile_texts),
    FieldDescriptor.CPPTYPE_BOOL: (st.booleans(), st.booleans()),
    FieldDescriptor.CPPTYPE_INT32: (st.integers(0, 3), st.sampled_from(values.INT32_EDGES)),
    FieldDescriptor.CPPTYPE_INT64: (st.integers(0, 3), st.sampled_from(values.INT64_EDGES)),
    FieldDescriptor.CPPTYPE_ENUM: (st.integers(0, 2), st.sampled_from(values.INT32_EDGES)),
    FieldDescriptor.CPPTYPE_DOUBLE: (st.just(0.5), st.sampled_from(values.DOUBLES)),
}
# Bytes of what may be repeated by the thousand without making a request that gRPC refuses as too large.
_SMALL = 500

_TOKEN_FIELDS = ("page_token", "resume_token")
_TIMES = [datetime.min, datetime(2026, 3, 1, 12), datetime.max]
_KEYS = [UUID(int=0), UUID(int=2**128 - 1)]
_SEQS = [1, 2**62, 2**62 + 1, 2**63 - 1, -1]
# Nothing, half a place, and times that no calendar has.
_NO_PLACES = [
    b"",
    b"\xff" * 12,
    *(time.to_bytes(8, signed=True) + b"\xff" * 16 for time in (2**63 - 1, -(2**63), 2**60)),
]


class Wire(bytes):
    """The bytes of a request. Hypothesis prints what fails, and some have megabytes."""

    def __repr__(self) -> str:
        return f"{bytes(self[:1000])!r} ({len(self)} bytes)"


def requests(kind: type[Message]) -> st.SearchStrategy[Wire]:
    """Messages of the type, serialised."""

    @st.composite
    def build(draw: Draw) -> Wire:
        request = kind()
        _fill(draw, request)
        _fill_token(draw, request)
        return Wire(request.SerializeToString())

    return build()


def _fill(draw: Draw, message: Message) -> None:
    fields = [field for field in message.DESCRIPTOR.fields if field.name not in _TOKEN_FIELDS]
    # Half of the messages have nothing hostile, else too few would get past validation. Some lack what is required.
    calm = draw(st.booleans())
    hostile = {field.name for field in fields if not calm and draw(st.integers(0, 4)) == 0}
    for field in fields:
        if draw(st.integers(0, 15 if calm else 7)) == 0 or (field.containing_oneof and draw(st.booleans())):
            continue
        if field.message_type is not None and field.message_type.full_name not in _OF_TYPE:
            _fill_message(draw, message, field)
            continue
        value = draw(_strategy(field, hostile=field.name in hostile))
        if field.is_repeated:
            getattr(message, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)


def _fill_message(draw: Draw, parent: Message, field: Any) -> None:
    if not field.is_repeated:
        _fill(draw, getattr(parent, field.name))
        return
    for _ in range(draw(st.integers(1, 3))):
        _fill(draw, getattr(parent, field.name).add())
    one = getattr(parent, field.name)[0]
    if one.ByteSize() < _SMALL and draw(st.integers(0, 20)) == 0:
        getattr(parent, field.name).extend([one] * draw(st.sampled_from([997, 1000, 3000])))


def _strategy(field: Any, *, hostile: bool) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        plausible, strange = _OF_TYPE[field.message_type.full_name]
        if field.message_type.full_name == _MASK:
            plausible = values.masks([each.name for each in field.containing_type.fields])
    else:
        plausible, strange = _OF_CPP_TYPE[field.cpp_type]
    if field.is_repeated:
        plausible, strange = st.lists(plausible, max_size=3), st.lists(strange, max_size=101)
    if hostile:
        return strange
    owned = f"{field.containing_type.name}.{field.name}"
    return _PLAUSIBLE.get(owned, _PLAUSIBLE.get(field.name, plausible))


# --- page tokens


def token_field(kind: type[Message]) -> str | None:
    """The name of the field that takes a page or resume token."""
    return next((name for name in _TOKEN_FIELDS if name in kind.DESCRIPTOR.fields_by_name), None)


def forged_tokens(request: Message) -> list[str]:
    """Tokens with the check of this request, as anyone can compute it, for all sorts of places and for none."""
    tokens = PageTokens("default", request)
    by_time = [tokens.at_position(Position(time.replace(tzinfo=UTC), key)) for time in _TIMES for key in _KEYS]
    return [*by_time, *map(tokens.at_seq, _SEQS), *map(tokens._issue, _NO_PLACES)]


def _fill_token(draw: Draw, request: Message) -> None:
    name = token_field(type(request))
    if name is not None and draw(st.booleans()):
        others = PageTokens("default", type(request)()), PageTokens("other", request)
        tokens = st.sampled_from([*forged_tokens(request), *(other.at_seq(1) for other in others)])
        setattr(request, name, draw(st.one_of(tokens, _damaged(tokens), values.hostile_texts)))


def _damaged(tokens: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    def damage(token: str, place: int, way: int) -> str:
        place %= len(token)
        return [token[:place], token + "=", token * 2, token[:place] + "A" + token[place + 1 :], token.swapcase()][way]

    return st.builds(damage, tokens, st.integers(0, 50), st.integers(0, 4))
