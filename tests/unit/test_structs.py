"""Metadata crosses the wire unchanged, and what Postgres or JSON cannot hold does not get in."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st

from recalld import limits, metadata
from recalld.errors import InvalidField
from recalld.services import structs

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts
)
documents = st.dictionaries(
    texts,
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20),
)


def struct_of(document: dict[str, Any]) -> struct_pb2.Struct:
    struct = struct_pb2.Struct()
    structs.fill(struct, document)
    return struct


def refused(struct: struct_pb2.Struct) -> str:
    with pytest.raises(InvalidField) as raised:
        structs.to_document(struct, "messages[0].metadata")
    assert raised.value.field == "messages[0].metadata"
    return raised.value.description


@given(documents)
def test_a_document_survives_the_wire(document: dict[str, Any]) -> None:
    received = struct_pb2.Struct.FromString(struct_of(document).SerializeToString())
    assert structs.to_document(received, "metadata") == document


@given(documents)
def test_no_document_outgrows_the_bound_that_spares_measuring(document: dict[str, Any]) -> None:
    assert metadata.size(document) <= max(2, struct_of(document).ByteSize() * structs._JSON_GROWTH)


def test_integral_numbers_become_integers() -> None:
    document = structs.to_document(struct_of({"n": 3.0, "x": 1.5, "b": True, "edge": 2.0**53}), "metadata")
    assert json.dumps(document, sort_keys=True) == '{"b": true, "edge": 9007199254740992, "n": 3, "x": 1.5}'


def test_larger_integers_come_back_as_the_nearest_double() -> None:
    stored = json.loads(f'{{"large": {10**300}}}')
    assert structs.to_document(struct_of(stored), "metadata") == {"large": 1e300}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused(number: float) -> None:
    assert refused(struct_of({"a": [number]})) == "must not contain NaN or infinity"


@pytest.mark.parametrize("document", [{"a\0": 1}, {"a": "\0"}, {"a": ["\0"]}, {"a": {"b\0": 1}}])
def test_nul_is_refused(document: dict[str, Any]) -> None:
    assert refused(struct_of(document)) == "must not contain NUL"


@pytest.mark.parametrize(
    "value",
    [struct_pb2.Value(), struct_pb2.Value(list_value=struct_pb2.ListValue(values=[struct_pb2.Value()]))],
    ids=["alone", "in an array"],
)
def test_a_value_of_no_kind_is_refused(value: struct_pb2.Value) -> None:
    assert refused(struct_pb2.Struct(fields={"a": value})) == "must not contain a value of no kind"


def nested(levels: int, *, arrays: bool) -> dict[str, Any]:
    value: Any = 1
    for _ in range(levels - 1):
        value = [value] if arrays else {"a": value}
    return {"a": value}


@pytest.mark.parametrize("arrays", [False, True])
def test_metadata_may_be_32_levels_deep(arrays: bool) -> None:
    document = nested(limits.MAX_METADATA_DEPTH, arrays=arrays)
    received = struct_pb2.Struct.FromString(struct_of(document).SerializeToString())
    assert structs.to_document(received, "metadata") == document
    assert refused(struct_of(nested(limits.MAX_METADATA_DEPTH + 1, arrays=arrays))) == "must be at most 32 levels deep"


@pytest.mark.parametrize("character", ["x", "é", "\x01"])
def test_metadata_may_be_64_kib_of_json(character: str) -> None:
    empty, each = metadata.size({"a": ""}), metadata.size({"a": character}) - metadata.size({"a": ""})
    room = limits.MAX_METADATA_BYTES - empty
    document = {"a" + "k" * (room % each): character * (room // each)}
    assert metadata.size(document) == 65_536
    assert structs.to_document(struct_of(document), "metadata") == document
    (key,) = document
    assert refused(struct_of({key + "k": document[key]})) == "must be at most 65536 bytes as compact JSON"


def test_an_empty_document_leaves_the_field_unset() -> None:
    assert struct_of({}).ByteSize() == 0
    assert structs.to_document(struct_pb2.Struct(), "metadata") == {}
