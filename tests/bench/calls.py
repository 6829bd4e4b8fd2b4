"""One call at a time in each place: recalld beside the echo, which is the floor, and beside Postgres alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from tests.bench.pgbench import Pgbench
from tests.bench.rounds import Effort, Figures, Outcome, interleaved
from tests.bench.site import Server, Site

ADD: Final = "recall.v1.MemoryService/AddMemory"
GET: Final = "recall.v1.MemoryService/GetMemory"

# Seconds of each contender before anything counts: connections, prepared statements, caches.
WARM_UP: Final = 0.6

# Seconds of a turn of the contenders of `throughput`.
_TURN: Final = 1.3


def throughput(site: Site, effort: Effort) -> Outcome:
    """AddMemory and GetMemory, each with its echo, with and without what recalld puts around a call; and pgbench.

    For information also the echo of workers that do not keep to a CPU each. The kernel deals connections to workers
    anew for each turn, and not evenly: so turns are shorter than elsewhere, and more.
    """
    contenders: dict[str, Callable[[float], Figures]] = {}
    for name, method in (("AddMemory", ADD), ("GetMemory", GET)):
        servers = {"": site.recalld, " echo": site.echo, " bare echo": site.bare, " echo on any CPU": site.roaming}
        for suffix, server in servers.items():
            contenders[name + suffix] = partial(_call, site, server, method, name)
    pgbench = Pgbench(site)
    contenders["pgbench append"] = pgbench.append
    for warm_up in contenders.values():
        warm_up(WARM_UP)
    turns = max(effort.rounds, round(effort.rounds * effort.seconds / _TURN))
    seconds = effort.rounds * effort.seconds / turns
    timed = {name: partial(contender, seconds) for name, contender in contenders.items()}
    return Outcome(interleaved(timed, turns))


def _call(site: Site, server: Server, method: str, requests: str, seconds: float) -> Figures:
    return site.call(server, method, requests, seconds=seconds)


def calls_in_flight(site: Site, effort: Effort) -> Outcome:
    """The curve: AddMemory, GetMemory and the echo of AddMemory with more and more calls in flight."""
    contenders: dict[str, Callable[[], Figures]] = {}
    for calls in effort.in_flight:
        bounds: dict[str, Any] = {"calls": calls, "seconds": effort.seconds / 2}
        contenders |= {
            f"AddMemory @ {calls}": partial(site.call, site.recalld, ADD, "AddMemory", **bounds),
            f"GetMemory @ {calls}": partial(site.call, site.recalld, GET, "GetMemory", **bounds),
            f"AddMemory echo @ {calls}": partial(site.call, site.echo, ADD, "AddMemory", **bounds),
        }
    return Outcome(interleaved(contenders, effort.few))
