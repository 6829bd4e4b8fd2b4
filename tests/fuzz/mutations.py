"""The bytes of requests, damaged: what a broken or hostile client puts on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from hypothesis import strategies as st

from recalld.limits import MAX_REQUEST_BYTES
from tests.fuzz.requests import Wire, requests

# The wire type of what has a length before it.
_LENGTH_DELIMITED = 2

# A session's or message's metadata: Struct.fields, its value, and Value.struct_value.
_STRUCT_STEPS = (1, 2, 5)


def varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def delimited(field: int, payload: bytes) -> bytes:
    """A field with its length before it."""
    return varint(field << 3 | _LENGTH_DELIMITED) + varint(len(payload)) + payload


def nested_struct(levels: int) -> bytes:
    """The bytes of a Struct that is nested so deep, which no protobuf library would serialise past its limit."""
    encoded = b""
    for level in range(levels):
        for step in reversed(_STRUCT_STEPS if level else _STRUCT_STEPS[:2]):
            encoded = delimited(step, encoded)
    return encoded


def _deep(field: int, levels: int) -> bytes:
    return delimited(field, nested_struct(levels))


# Bytes that are in no UTF-8, cut characters, both halves of a surrogate pair, NUL in two bytes, what is past the last.
_INVALID_UTF8 = [b"\xff", b"\xfe\xff", b"\xc3", b"a\x80b", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xc0\x80"]
_INVALID_UTF8 += [b"\xf4\x90\x80\x80"]
_OVERLONG = [b"\x80" * 10 + b"\x01", b"\xff" * 10, b"\xff" * 9 + b"\x7f", b"\x80" * 4 + b"\x00"]
_TAGS = [b"\x00", b"\x02", b"\x07", b"\x0b", b"\x0c", b"\x0b\x0c", b"\xf8\xff\xff\xff\xff\x0f\x00", b"\x06"]

fragments: st.SearchStrategy[bytes] = st.one_of(
    st.binary(max_size=20),
    st.builds(delimited, st.integers(1, 8), st.sampled_from(_INVALID_UTF8)),
    st.builds(lambda field, number: varint(field << 3) + number, st.integers(1, 8), st.sampled_from(_OVERLONG)),
    st.builds(_deep, st.integers(1, 8), st.sampled_from([10, 32, 33, 34, 100, 2000])),
    # A length past the end, and one that is huge.
    st.builds(
        lambda field, length: varint(field << 3 | _LENGTH_DELIMITED) + varint(length) + b"x",
        st.integers(1, 8),
        st.sampled_from([2, 2**31 - 1, 2**31, 2**63]),
    ),
    st.sampled_from(_TAGS),
    # Groups, which proto3 has not, opened by the thousand.
    st.just(b"\x0b" * 3000),
)


def mutated(kind: type[Message]) -> st.SearchStrategy[Wire]:
    """The bytes of a request of the type after one to three of these: cut, flip, splice, repeat, replace."""
    changed = st.builds(_mutate, requests(kind), st.lists(_changes, min_size=1, max_size=3))
    return st.one_of(st.binary(max_size=64), fragments, changed).map(Wire)


def _mutate(data: bytes, changes: list[Callable[[bytes], bytes]]) -> bytes:
    for change in changes:
        data = change(data)
    return data[:MAX_REQUEST_BYTES]  # gRPC refuses more than that before it gets to us


def _cut(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: place % (len(data) + 1)]


def _flip(place: int, bit: int) -> Callable[[bytes], bytes]:
    def flip(data: bytes) -> bytes:
        if not data:
            return data
        at = place % len(data)
        return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]

    return flip


def _splice(place: int, inserted: bytes) -> Callable[[bytes], bytes]:
    def splice(data: bytes) -> bytes:
        at = place % (len(data) + 1)
        return data[:at] + inserted + data[at:]

    return splice


def _append(inserted: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data + inserted


def _repeat(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data + data[place % (len(data) + 1) :]


_places = st.integers(0, 2000)
_changes: st.SearchStrategy[Any] = st.one_of(
    st.builds(_cut, _places),
    st.builds(_flip, _places, st.integers(0, 7)),
    st.builds(_splice, _places, fragments),
    st.builds(_append, fragments),
    st.builds(_repeat, _places),
)
