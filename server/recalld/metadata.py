"""Metadata: the JSON objects that callers attach to users, sessions and messages.

One definition of how they are measured, used for what comes in and for what a merge makes of it.
"""

from __future__ import annotations

import json
from typing import Any

from recalld.domain import Metadata

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def to_json(document: Metadata) -> str:
    """The document as compact JSON text, the form its size is measured in. Raises ValueError on NaN and infinity."""
    return _encode(document)


def size(document: Metadata) -> int:
    """The document's size in bytes: compact JSON in UTF-8."""
    return len(to_json(document).encode())


def depth(value: Any) -> int:
    """How many objects and arrays deep the value nests: 1 for an object of scalars, 0 for a scalar."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0
