"""recalld.merge_patch: JSON Merge Patch as RFC 7396 has it, however large the documents."""

from __future__ import annotations

from random import Random
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.kept import merge_patch

# More than a request may carry. Copying the document for each name takes half a minute, one pass a tenth of a second.
NAMES = 30_000
TIMEOUT = "20s"


def merged(connection: psycopg.Connection[Any], target: Any, patch: Any) -> Any:
    row = connection.execute("select recalld.merge_patch(%s, %s)", [Jsonb(target), Jsonb(patch)]).fetchone()
    assert row is not None
    return row[0]


def some(random: Random, depth: int = 3) -> Any:
    """A value of few different names, so that two of them often have some in common."""
    if depth and random.random() < 0.6:
        return {random.choice("abcd"): some(random, depth - 1) for _ in range(random.randrange(4))}
    return random.choice([None, True, 0, 1.5, "", "text", [], [1, None, {"a": None}]])


def test_it_merges_as_the_rfc_has_it(shared_database_url: str) -> None:
    random = Random(7396)
    with psycopg.connect(shared_database_url) as connection:
        for _ in range(500):
            target, patch = some(random), some(random)
            assert merged(connection, target, patch) == merge_patch(target, patch), (target, patch)


def test_many_names_are_merged_in_one_pass(shared_database_url: str) -> None:
    target = {f"{n}": n for n in range(NAMES)}
    patch = {f"{n}": None if n % 2 else "new" for n in range(0, 2 * NAMES, 3)}
    with psycopg.connect(shared_database_url, options=f"-c statement_timeout={TIMEOUT}") as connection:
        assert merged(connection, target, patch) == merge_patch(target, patch)
