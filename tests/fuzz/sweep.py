"""Each field of a request in turn, with each value that has ever been known to break something there.

Chance reaches few pairs of a field and a value; there are not so many that one could not try them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tests.fuzz import values

# What makes a request good; a field of any other name is left empty.
_GOOD: dict[str, Any] = {
    "session_id": "live",
    "user_id": "ada",
    "message_id": values.MESSAGE_IDS[0],
    "role": "user",
    "content": "tea",
    "query": "tea",
}
# These are a new message's own, and would be a conflict, or an owner that may be gone.
_LEFT_EMPTY = {"Message.message_id", "Message.session_id", "AddMemoryRequest.user_id", "UpdateSessionRequest.user_id"}

_TEXTS = [
    *(
        "",
        "\0",
        "a\0b",
        "\n",
        "\x9f",
        "x" * 65,
        "x" * 257,
        "x" * 5000,
        "\U0010ffff" * 256,
        "e\u0301",
        "\ufffe",
        "\u202e",
    ),
    *(
        "'",
        "';--",
        "\\",
        "%",
        "$1",
        "%s",
        "{0}",
        "a & | !",
        ":*",
        "'a':B <-> (",
        "null",
        "-1",
        "NaN",
        "*",
        "x.y",
        "====",
        "AA",
    ),
]
_INT32 = [-1, -(2**31), 2**31 - 1, 1001]
_INT64 = [*_INT32, 2**31, 2**62, 2**63 - 1, -(2**63)]
_DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"": ""},
    {"a": "\0"},
    {"\0": 1},
    {"a": ["\0"]},
    {"a": ...},
    {"a": [...]},
    {"a": None},
    {"'\\%": "';--"},
    *({"a": number} for number in values.DOUBLES),
    *(values.nested(levels, lists=lists) for levels in (32, 33) for lists in (False, True)),
    values.nested(40, lists=True),
    {"a": "\U0010ffff\uffff"},
    {"a": "x" * 66_000},
    {str(number): number for number in range(3000)},
]
_SECONDS = [-62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800, -(2**63), 2**63 - 1, -1]
_NANOS = [-1, 10**9, -(2**31), 999_999_999]
_MESSAGES: dict[str, Sequence[Message]] = {
    "google.protobuf.Struct": [values.struct_of(document) for document in _DOCUMENTS],
    "google.protobuf.Timestamp": [Timestamp(seconds=s) for s in _SECONDS] + [Timestamp(nanos=n) for n in _NANOS],
    "google.protobuf.Duration": [Duration(seconds=s) for s in _SECONDS] + [Duration(nanos=n) for n in _NANOS],
    "google.protobuf.FieldMask": [
        FieldMask(paths=[text]) for text in [*_TEXTS, "metadata", "user_id", "role", "email"]
    ],
}


def good(kind: type[Message]) -> Any:
    """A request that a server which was restocked accepts."""
    request = kind()
    _fill_good(request)
    return request


def sweep(kind: type[Message]) -> Iterator[Message]:
    """Requests that are good but for one field."""
    base = good(kind)
    for reach in _places(base):
        for value in _values(*reach(base)):
            request = good(kind)
            message, field = reach(request)
            message.ClearField(field.name)
            if isinstance(value, list):
                getattr(message, field.name).extend(value)
            elif isinstance(value, Message):
                getattr(message, field.name).CopyFrom(value)
            else:
                setattr(message, field.name, value)
            yield request


def _fill_good(message: Message) -> None:
    for field in message.DESCRIPTOR.fields:
        if f"{message.DESCRIPTOR.name}.{field.name}" in _LEFT_EMPTY or field.containing_oneof:
            continue
        if field.name in _GOOD:
            setattr(message, field.name, _GOOD[field.name])
        elif _is_ours(field) and field.is_repeated:
            _fill_good(getattr(message, field.name).add())


Place = Callable[[Any], tuple[Any, Any]]


def _places(request: Message, parent: Callable[[Any], Any] = lambda request: request) -> Iterator[Place]:
    """Ways to every field, as functions of a request: the message that has the field, and the field."""
    for field in request.DESCRIPTOR.fields:
        if not _is_ours(field):
            yield lambda root, field=field: (parent(root), field)  # type: ignore[misc]
            continue

        def child(root: Any, field: Any = field) -> Any:
            value = getattr(parent(root), field.name)
            return value[0] if field.is_repeated else value

        yield from _places(child(request) if parent(request) is request else getattr(request, field.name), child)


def _is_ours(field: Any) -> bool:
    return field.message_type is not None and field.message_type.full_name not in _MESSAGES


def _values(message: Message, field: Any) -> list[Any]:
    if field.message_type is not None:
        return list(_MESSAGES[field.message_type.full_name])
    by_type: dict[int, list[Any]] = {
        field.CPPTYPE_STRING: _TEXTS,
        field.CPPTYPE_BOOL: [True],
        field.CPPTYPE_INT32: _INT32,
        field.CPPTYPE_ENUM: [*_INT32, 1, 2],
        field.CPPTYPE_INT64: _INT64,
    }
    plain = by_type.get(field.cpp_type, [])
    return [[value] for value in plain] if field.is_repeated else plain
