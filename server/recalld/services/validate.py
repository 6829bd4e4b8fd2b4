"""The rules of single request fields.

Each function takes a value and the field's path as clients know it, such as `messages[2].content`, and returns what
the domain uses or raises InvalidField. The rules are in the proto comments, their numbers in recalld.limits. Documents,
times and masks have modules of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from recall.v1 import admin_pb2, memory_pb2
from recalld import limits
from recalld.errors import InvalidField

Number = TypeVar("Number", bound=int)
Meaning = TypeVar("Meaning")

# Unicode category Cc: C0, DEL and C1. NUL is one of them.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


# --- texts


def identifier(text: str, field: str) -> str:
    """A session_id or user_id that must be there."""
    return _label(text, field, limits.MAX_ID_CHARACTERS)


def optional_identifier(text: str, field: str) -> str:
    """A session_id or user_id, or "" for none."""
    return identifier(text, field) if text else ""


def role(text: str, field: str) -> str:
    return _label(text, field, limits.MAX_ROLE_CHARACTERS)


def name(text: str, field: str) -> str:
    """A name or e-mail address, which may be empty."""
    return _label(text, field, limits.MAX_NAME_CHARACTERS) if text else ""


def content(text: str, field: str) -> str:
    # A character takes at most 4 bytes, so most texts need no encoding to be known as short enough.
    if len(text) * 4 > limits.MAX_CONTENT_BYTES and len(text.encode()) > limits.MAX_CONTENT_BYTES:
        raise InvalidField(field, f"must be at most {limits.MAX_CONTENT_BYTES} bytes in UTF-8")
    return without_nul(text, field)


def query(text: str, field: str) -> str:
    if len(text) > limits.MAX_QUERY_CHARACTERS or not text.strip():
        raise InvalidField(field, f"must be 1 to {limits.MAX_QUERY_CHARACTERS} characters, not only white space")
    return without_nul(text, field)


def without_nul(text: str, field: str) -> str:
    """Any text that Postgres can hold."""
    if "\0" in text:
        raise InvalidField(field, "must not contain NUL")
    return text


def uuid(text: str, field: str) -> str:
    """A UUID in its canonical form, in either case; here it is always in lower case."""
    if not _UUID.fullmatch(text):
        raise InvalidField(field, "must be a UUID such as 6f1c0b4e-8a1d-4c55-9d0e-2f3a7b9c1d20")
    return text.lower()


def _label(text: str, field: str, max_characters: int) -> str:
    if not 1 <= len(text) <= max_characters:
        raise InvalidField(field, f"must be 1 to {max_characters} characters")
    if _CONTROL.search(text):
        raise InvalidField(field, "must not contain control characters")
    return text


# --- numbers and enums


def non_negative(number: int, field: str) -> int:
    if number < 0:
        raise InvalidField(field, "must not be negative")
    return number


def size(number: int, field: str, default: int, maximum: int) -> int:
    """How much to return or do at once: 0 means the default, and more than the maximum means the maximum."""
    return min(non_negative(number, field) or default, maximum)


def page_size(number: int, field: str) -> int:
    return size(number, field, limits.DEFAULT_PAGE_SIZE, limits.MAX_PAGE_SIZE)


def choice(number: Number, field: str, choices: Mapping[Number, Meaning]) -> Meaning:
    """What an enum's number means. Proto3 lets numbers through that the enum does not name."""
    try:
        return choices[number]
    except KeyError:
        raise InvalidField(field, "is not a value that this server knows") from None


# --- several fields


def scope(request: memory_pb2.SearchMemoryRequest | admin_pb2.PurgeRequest) -> tuple[str, str]:
    """The session_id and user_id of a oneof `scope`, "" for what is not set. Set but empty is an error."""
    match request.WhichOneof("scope"):
        case "session_id":
            return identifier(request.session_id, "session_id"), ""
        case "user_id":
            return "", identifier(request.user_id, "user_id")
        case _:
            return "", ""
