"""Arrays as Postgres reads them, whatever is in their elements."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest

from recalld.storage.arrays import array

KEYS = [UUID(int=0), None, UUID("6f1c0b4e-8a1d-4c55-9d0e-2f3a7b9c1d20")]
TEXTS = [
    None,
    "",
    " ",
    "NULL",
    "null",
    "{}",
    "{1,2}",
    "a,b",
    '"',
    '""',
    "\\",
    "\\\\",
    '\\"',
    '"\\',
    "\\x41",
    "'); drop table x; --",
    "line\nbreak\r\n\ttab \x0b\x01\x7f",
    "%(time)s %s %%",
    "Grüße, 世界 🙂 e\u0301 \u202e",
    "x" * 20_000,
]


@pytest.mark.parametrize(
    ("values", "cast"),
    [
        ([], "text[]"),
        (TEXTS, "text[]"),
        ([f'{{"a": "{"b" * 9}\\n\\"c,{{}}"}}', None, "{}"], "text[]"),
        (KEYS, "uuid[]"),
        ([0, -1, None, 2**63 - 1, -(2**63)], "bigint[]"),
        ([True, None, False], "boolean[]"),
    ],
)
def test_what_is_sent_as_an_array_arrives_as_it_is(database_url: str, values: list[Any], cast: str) -> None:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(f"select %s::{cast}".encode(), [array(values)]).fetchone()
    assert row == (values,)
