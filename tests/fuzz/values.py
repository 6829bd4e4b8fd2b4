"""Values of single fields: plausible ones, which get a call past validation, and hostile ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import strategies as st

KIB = 1024

SESSIONS = ["live", "deleted", "\N{FAMILY}/1", "x' or '1'='1"]
USERS = ["ada", "gone", "%_\\"]
MESSAGE_IDS = [str(UUID(int=number)) for number in (1, 2, 3)]

# --- texts

SQL = [
    "'; drop table recalld.message; --",
    "' or ''='",
    '"; select pg_sleep(9) /*',
    "\\'; select 1",
    "$$ || pg_sleep(9) || $$",
    "$tag$;$tag$",
    "%s %(a)s {0} {a} %n%n%n",
    "U&'\\0041' E'\\x00'",
    "null",
    "default",
    ":a :'a' $1 ?",
]
PATTERNS = ["%", "_", "\\", "\\%", "a%b_c\\", "[a-z]*(?i)^$", "*?{}"]
TSQUERY = ["a & b | !c <-> d:*", "!!", "( ( a", "a <99999> b", "'", "a:ABCD*", "& | ! <->", "::", "\\ '' \\", "a:*b:*"]
UNICODE = [
    "e\u0301 \u00e9",
    "a\u202eb\u2066c",
    "\ufeffbom\u200b\u200d",
    "\U0001f469\u200d\U0001f467 \U0010ffff",
    "\ufffe\uffff\ufdd0",
    "z" + "\u0335" * 200,
    "\u0130I\u0131i\u00df\u1e9e",
    "\u2028\u2029\u0085",
    "\ud7ff\ue000",
]
CONTROL = ["a\0b", "\0", "a\nb", "\r\n\r\nHTTP/1.1 200", "\x1b[2J", "\x7f\x80\x9f", "\t"]
NUMBERS = ["NaN", "-Infinity", "1e999", "0", "-1", "9223372036854775808", "00000000-0000-0000-0000-000000000000"]
TRAPS = [*SQL, *PATTERNS, *TSQUERY, *UNICODE, *CONTROL, *NUMBERS, "", " ", "../../etc/passwd", "recalld", "*"]
STORABLE = [trap for trap in TRAPS if "\0" not in trap]

_LENGTHS = [64, 65, 256, 257, 2048, 4096, 4097, 64 * KIB, 70_000]
_FILLS = ["x", "\N{SLIGHTLY SMILING FACE}", "a ", "'", "\\", "\x01", "a&", "(", "\u0301"]

_long = st.builds(lambda fill, length: (fill * length)[:length], st.sampled_from(_FILLS), st.sampled_from(_LENGTHS))
_traps = st.sampled_from(TRAPS)
hostile_texts = st.one_of(_traps, _traps, st.text(max_size=12), _long, st.lists(_traps).map("".join))
contents = st.sampled_from(STORABLE) | st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40)

# --- numbers

INT32_EDGES = [0, 1, -1, 2, 999, 1000, 1001, 2**31 - 1, -(2**31)]
INT64_EDGES = [*INT32_EDGES, 2**31, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]
DOUBLES = [0.0, -0.0, 1.5, 5e-324, 2.0**53 + 2, 1.7976931348623157e308, -1e308, math.nan, math.inf, -math.inf, 0.1]

# --- documents


def struct_of(document: dict[str, Any]) -> Struct:
    """The document as a Struct. Ellipsis stands for a value of no kind, which json_format cannot make."""
    struct = Struct()
    for key, value in document.items():
        _fill(struct.fields[key], value)
    return struct


def _fill(target: Value, value: Any) -> None:
    match value:
        case str():
            target.string_value = value
        case bool():
            target.bool_value = value
        case int() | float():
            target.number_value = value
        case None:
            target.null_value = NULL_VALUE
        case dict():
            target.struct_value.CopyFrom(struct_of(value))
        case list():
            target.list_value.SetInParent()
            for each in value:
                _fill(target.list_value.values.add(), each)


def nested(levels: int, *, lists: bool = False) -> dict[str, Any]:
    """A document of so many levels; below the first, of objects or of arrays."""
    document: Any = [] if lists and levels > 1 else {}
    for level in range(levels - 1):
        document = [document] if lists and level < levels - 2 else {"a": document}
    return document if isinstance(document, dict) else {"a": document}


_names = st.sampled_from(["a", "b", "c"])
_small_values = st.sampled_from(["x", "", 1, 2.5, True, None, {"b": 1}, [1, {"c": None}], {}, []])
small_documents = st.dictionaries(_names, _small_values, max_size=3)
_no_kind = st.just(...)
_numbers = st.sampled_from(DOUBLES) | st.sampled_from(INT64_EDGES)
_wild_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(_traps, _numbers, st.none(), st.booleans(), _no_kind),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=3),
    max_leaves=6,
)
_wild_documents = st.dictionaries(_traps, _wild_values, max_size=3)
_LARGE: list[Callable[[], dict[str, Any]]] = [
    *(partial(nested, levels) for levels in (31, 32, 33)),
    *(partial(nested, levels, lists=True) for levels in (31, 32, 33, 40)),
    lambda: {str(number): number for number in range(6000)},
    lambda: {"a": [1.7976931348623157e308] * 2500},
    lambda: {"a": [5e-324] * 9000},
    lambda: {"a": "x" * (64 * KIB - 8)},
    lambda: {"a": "x" * (64 * KIB - 7)},
    lambda: {"k" * 65_000: ""},
    lambda: {"a": "\x01" * 11_000},
    lambda: {"a": [[]] * 20_000},
]
hostile_documents = _wild_documents | st.sampled_from(_LARGE).map(lambda make: make())

# --- well-known types

_SECONDS = [0, 1, -1, 1_700_000_000, -62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800, 2**63 - 1]
_SECONDS += [-(2**63), 315_576_000_000, 315_576_000_001, 9_224_318_015, -210_866_803_201]
_NANOS = [0, 0, 1, 999_999_999, 1_000_000_000, -1, 2**31 - 1, -(2**31)]
timestamps = st.builds(Timestamp, seconds=st.sampled_from(_SECONDS), nanos=st.sampled_from(_NANOS))
durations = st.builds(Duration, seconds=st.sampled_from(_SECONDS), nanos=st.sampled_from(_NANOS))


def masks(paths: list[str]) -> st.SearchStrategy[FieldMask]:
    """Masks with some of the paths, or with all that there are."""
    return st.lists(st.sampled_from([*paths, "*", "*"]), max_size=2).map(lambda chosen: FieldMask(paths=chosen))


hostile_masks = masks([*TRAPS, "metadata", "metadata.a", "METADATA", "session_key", "user_id,role"])
