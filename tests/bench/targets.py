"""The targets: what is compared with what, and how it has to come out. One entry for each line of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.bench import calls, rivals
from tests.bench.rounds import Effort, Outcome, Value, ratio, ratio_to_best
from tests.bench.site import Site

Experiment = Callable[[Site, Effort], Outcome]


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Args:
        name: for the command line.
        what: what the value is.
        experiment: what measures it; it runs once, however many targets it serves.
        value: gets the value of each round from what was measured.
        at_least: the least that the median may be, or
        at_most: the most.
        unit: of the value; empty for a ratio.
    """

    name: str
    what: str
    experiment: Experiment
    value: Value
    at_least: float | None = None
    at_most: float | None = None
    unit: str = ""

    def met_by(self, value: float) -> bool:
        """Whether a median is good enough."""
        return (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)


TARGETS: Final = [
    Target(
        "add",
        "AddMemory throughput / echo throughput",
        calls.throughput,
        ratio("AddMemory", "AddMemory echo", "rate"),
        at_least=0.60,
    ),
    Target(
        "get",
        "GetMemory last 20 / echo answering the same bytes",
        calls.throughput,
        ratio("GetMemory", "GetMemory echo", "rate"),
        at_least=0.55,
    ),
    Target(
        "postgres",
        "Postgres CPU per AddMemory / pgbench's for the same single append",
        calls.throughput,
        ratio("AddMemory", "pgbench append", "postgres_us"),
        at_most=0.50,
    ),
    Target(
        "peers",
        "AddMemory throughput / the fastest in-process peer's",
        rivals.peers,
        ratio_to_best("AddMemory", "peer ", "rate"),
        at_least=2.0,
    ),
]
