"""google.protobuf.Struct as a metadata document and back, by hand: json_format takes two to three times as long."""

from __future__ import annotations

import math
from typing import Any

from google.protobuf import struct_pb2

from recalld import limits, metadata
from recalld.domain import Metadata
from recalld.errors import InvalidField

# A Struct's numbers are doubles.
_MAX_EXACT = float(metadata.MAX_EXACT_INTEGER)

# No Struct takes more room as JSON than this times its own size: the worst is a control character, one byte that JSON
# writes as \u0001.
_JSON_GROWTH = 6


def to_document(struct: struct_pb2.Struct, field: str) -> Metadata:
    """The document that a request carries in `field`. Integral numbers up to 2^53 become int, all others float.

    Raises InvalidField naming `field` for what JSON or Postgres cannot hold (NaN, infinity, NUL), a value of no kind,
    and a document that is nested too deep or is too large.
    """
    if not struct.fields:
        return {}
    document = _object(struct, field, 1)
    if (
        struct.ByteSize() * _JSON_GROWTH > limits.MAX_METADATA_BYTES
        and metadata.size(document) > limits.MAX_METADATA_BYTES
    ):
        raise InvalidField(field, f"must be at most {limits.MAX_METADATA_BYTES} bytes as compact JSON")
    return document


def fill(struct: struct_pb2.Struct, document: Metadata) -> None:
    """Puts a document into an empty Struct. An empty document leaves it unset."""
    fields = struct.fields
    for key, value in document.items():
        _fill_value(fields[key], value)


def _object(struct: struct_pb2.Struct, field: str, depth: int) -> Metadata:
    _check_depth(field, depth)
    return {_text(key, field): _value(value, field, depth) for key, value in struct.fields.items()}


def _array(values: struct_pb2.ListValue, field: str, depth: int) -> list[Any]:
    _check_depth(field, depth)
    return [_value(value, field, depth) for value in values.values]


def _value(value: struct_pb2.Value, field: str, depth: int) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return _text(value.string_value, field)
        case "number_value":
            return _number(value.number_value, field)
        case "bool_value":
            return value.bool_value
        case "null_value":
            return None
        case "struct_value":
            return _object(value.struct_value, field, depth + 1)
        case "list_value":
            return _array(value.list_value, field, depth + 1)
        case _:
            raise InvalidField(field, "must not contain a value of no kind")


def _check_depth(field: str, depth: int) -> None:
    if depth > limits.MAX_METADATA_DEPTH:
        raise InvalidField(field, f"must be at most {limits.MAX_METADATA_DEPTH} levels deep")


def _text(text: str, field: str) -> str:
    if "\0" in text:
        raise InvalidField(field, "must not contain NUL")
    return text


def _number(number: float, field: str) -> int | float:
    if -_MAX_EXACT <= number <= _MAX_EXACT:
        integer = int(number)
        return integer if integer == number else number
    if not math.isfinite(number):
        raise InvalidField(field, "must not contain NaN or infinity")
    return number


def _fill_value(target: struct_pb2.Value, value: Any) -> None:
    if isinstance(value, str):
        target.string_value = value
    elif isinstance(value, bool):  # before int, which it is too
        target.bool_value = value
    elif isinstance(value, (int, float)):
        target.number_value = value
    elif value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, dict):
        # Set even when it is empty: the value must have a kind.
        target.struct_value.SetInParent()
        fill(target.struct_value, value)
    else:
        target.list_value.SetInParent()
        add = target.list_value.values.add
        for element in value:
            _fill_value(add(), element)
