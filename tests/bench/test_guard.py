"""What a call costs the server beside one that does nothing, in CPU time: a regression fails here. `make guard`.

CPU time and not wall time, and a ratio to a reference that takes turns with it: so a busy machine does not matter much,
and a faster one not at all.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest

from tests.bench.calls import ADD, GET
from tests.bench.load import is_there
from tests.bench.rounds import Rounds, interleaved, ratio
from tests.bench.site import site

pytestmark = [
    pytest.mark.guard,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not is_there(), reason="no ghz: install Go, then `make .tools/ghz`"),
]

# The most that a call may cost, as a multiple of the echo's: measured, and a half more for noise.
MOST_ADD: Final = 2.6
MOST_GET: Final = 3.2

_ROUNDS: Final = 5
_CALLS: Final = 1500


@pytest.fixture(scope="module")
def rounds() -> Iterator[Rounds]:
    with site() as made:
        contenders = {
            f"{name} {whose}": partial(made.call, server, method, name, most=_CALLS)
            for name, method in (("AddMemory", ADD), ("GetMemory", GET))
            for whose, server in (("recalld", made.recalld), ("echo", made.echo))
        }
        interleaved(contenders, 1)  # connections, prepared statements, caches
        yield interleaved(contenders, _ROUNDS)


@pytest.mark.parametrize(("method", "most"), [("AddMemory", MOST_ADD), ("GetMemory", MOST_GET)])
def test_a_call_takes_the_server_no_more_cpu_than_it_may(rounds: Rounds, method: str, most: float) -> None:
    ratios = ratio(f"{method} recalld", f"{method} echo", "server_us")(rounds)
    assert 1.0 < statistics.median(ratios) <= most, f"each round: {ratios}"
