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


def throughput(site: Site, effort: Effort) -> Outcome:
    """AddMemory and GetMemory, each with its echo, with and without what recalld puts around a call; and pgbench."""
    contenders: dict[str, Callable[[float], Figures]] = {}
    for name, method in (("AddMemory", ADD), ("GetMemory", GET)):
        for suffix, server in (("", site.recalld), (" echo", site.echo), (" bare echo", site.bare)):
            contenders[name + suffix] = partial(_call, site, server, method, name)
    pgbench = Pgbench(site)
    contenders["pgbench append"] = pgbench.append
    for warm_up in contenders.values():
        warm_up(WARM_UP)
    timed = {name: partial(contender, effort.seconds) for name, contender in contenders.items()}
    return Outcome(interleaved(timed, effort.rounds))


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
