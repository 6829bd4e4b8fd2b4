"""Metadata: the JSON objects that callers attach to users, sessions and messages.

One definition of how they are measured, used for what comes in and for what a merge makes of it.
"""

from __future__ import annotations

import json
from typing import Any, Final

from recalld.domain import Metadata

# All numbers are doubles on the wire. Up to here every integer has one of its own; beyond it they are kept as floats.
MAX_EXACT_INTEGER: Final = 2**53

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def to_json(document: Metadata) -> str:
    """The document as compact JSON text, the form its size is measured in. Raises ValueError on NaN and infinity."""
    return _encode(document)


def from_json(text: str | bytes) -> Any:
    """A value from JSON text as Postgres writes it: 1e300 as a one with 300 zeros, which here is a float again."""
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | float:
    integer = int(digits)
    return integer if -MAX_EXACT_INTEGER <= integer <= MAX_EXACT_INTEGER else float(integer)


def size(document: Metadata) -> int:
    """The document's size in bytes: compact JSON in UTF-8."""
    return len(to_json(document).encode())
