"""The targets: what is compared with what, and how it has to come out. One entry for each line of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.bench import calls, purging, rivals, sizes, streams, writing
from tests.bench.rounds import Effort, Outcome, Value, at_largest, figure, ratio, ratio_of_sizes, ratio_to_best
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
    Target(
        "hot",
        "64 writers on one hot session / spread over 1,000, nothing lost, seq dense",
        writing.hot_session,
        ratio("one session", "spread", "rate"),
        at_least=0.8,
    ),
    Target(
        "long-add",
        "AddMemory p50 at 1,000,000 messages in the session / at 100",
        sizes.lengths,
        ratio_of_sizes("AddMemory", "p50_ms"),
        at_most=1.3,
    ),
    Target(
        "long-get",
        "GetMemory p50 at 1,000,000 messages in the session / at 100",
        sizes.lengths,
        ratio_of_sizes("GetMemory", "p50_ms"),
        at_most=1.3,
    ),
    Target(
        "page",
        "last page of 1,000,000 sessions / first page",
        sizes.counts,
        at_largest("last page", "first page", "p50_ms"),
        at_most=1.3,
    ),
    Target(
        "delete",
        "DeleteSession with 1,000,000 messages / with 1",
        sizes.deletion,
        ratio("many messages", "1 message", "p50_ms"),
        at_most=2,
    ),
    Target(
        "stream",
        "StreamSessions sessions/s at 100 a chunk / the same rows by psycopg, as serialised messages, no gRPC",
        streams.streams,
        ratio("StreamSessions", "psycopg loop", "sessions"),
        at_least=0.65,
    ),
    Target(
        "purge",
        "Purge messages/s / the bare range DELETE in psql",
        purging.purge,
        ratio("Purge", "psql delete", "messages"),
        at_least=0.6,
    ),
    Target(
        "purge-load",
        "AddMemory p99 during a Purge / before",
        purging.purge_under_load,
        ratio("meanwhile", "before", "p99_ms"),
        at_most=2,
    ),
    Target(
        "batch",
        "AddMemory of 100 messages: messages/s / of 1 message",
        writing.batches,
        ratio("100 a call", "1 a call", "messages"),
        at_least=8,
    ),
    Target(
        "memory",
        "server memory while one client streams 1,000,000 sessions: growth",
        streams.stream_memory,
        figure("server", "growth_mib"),
        at_most=50,
        unit="MiB",
    ),
    Target(
        "disk",
        "disk per message beyond its content, indexes included",
        writing.disk,
        figure("disk", "beyond_content"),
        at_most=280,
        unit="bytes",
    ),
]

# What is measured besides, for the curves.
CURVES: Final[list[Experiment]] = [calls.calls_in_flight]

# These leave large data sets behind.
LARGE: Final[list[Experiment]] = [sizes.lengths, sizes.counts, sizes.deletion, streams.streams, streams.stream_memory]
