"""Servers to attack, and how hard.

In `make test` the examples are few, and the same each time. `make fuzz` sets FUZZ_FACTOR: that many times as many, and
others each time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.fuzz.target import Target, attacked

FACTOR_VARIABLE = "FUZZ_FACTOR"


def examples(number: int) -> settings:
    """Settings for so many examples in `make test`."""
    factor = os.environ.get(FACTOR_VARIABLE)
    return settings(
        max_examples=number * int(factor or 1),
        derandomize=not factor,
        database=None,
        deadline=None,
        print_blob=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def target(shared_database_url: str) -> Iterator[Target]:
    with attacked(shared_database_url) as target:
        target.restock()
        yield target
