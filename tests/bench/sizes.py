"""What must not cost more where there is more: long sessions, many sessions, deep pages, large deletions."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from recall.v1.memory_pb2 import GetMemoryRequest
from recall.v1.session_pb2 import DeleteSessionRequest, ListSessionsRequest
from tests.bench import bulk
from tests.bench.calls import ADD, GET
from tests.bench.rounds import Effort, Figures, Outcome, Rounds, interleaved
from tests.bench.site import LAST_N, Site, added

LIST: Final = "recall.v1.SessionService/ListSessions"

# How many messages the short sessions have: several of them, since they grow while they are measured.
SHORT: Final = 100
_SHORT_SESSIONS: Final = 20

# Deletions of one round. Each is undone, outside the time.
_DELETIONS: Final = 5

_PAGE: Final = 100


def lengths(site: Site, effort: Effort) -> Outcome:
    """AddMemory and GetMemory of sessions of 100 to a million messages."""
    sessions = {SHORT: [f"short-{number}" for number in range(_SHORT_SESSIONS)]}
    sessions |= {length: [f"long-{length}"] for length in _steps(SHORT, effort)[1:]}
    for length, names in sessions.items():
        for name in names:
            bulk.fill(site, name, length - LAST_N)
            for text in site.texts[:LAST_N]:
                site.client.memory.AddMemory(added(name, [text]))
    bulk.settle(site)
    contenders: dict[str, Callable[[], Figures]] = {}
    for length, names in sessions.items():
        requests = f"length-{length}"
        site.write(f"{requests}-add", [added(name, [site.texts[0]]) for name in names])
        site.write(f"{requests}-get", [GetMemoryRequest(session_id=name, last_n=LAST_N) for name in names])
        contenders[f"AddMemory @ {length}"] = partial(_one_by_one, site, effort, ADD, f"{requests}-add")
        contenders[f"GetMemory @ {length}"] = partial(_one_by_one, site, effort, GET, f"{requests}-get")
    interleaved(contenders, 1)
    return Outcome(interleaved(contenders, effort.rounds))


def counts(site: Site, effort: Effort) -> Outcome:
    """AddMemory, GetMemory and a page of sessions where there are more and more sessions; then the last page of all."""
    rounds: Rounds = {}
    for count in _steps(1000, effort):
        bulk.sessions(site, count)
        names = [f"many-{1 + number * 7919 % count}" for number in range(1000)]
        site.write("many-add", [added(name, [text]) for name, text in zip(names, site.texts, strict=True)])
        site.write("many-get", [GetMemoryRequest(session_id=name, last_n=LAST_N) for name in names])
        site.write("first-page", [_page(site, "", _PAGE)])
        contenders = {
            f"AddMemory @ {count}": partial(_one_by_one, site, effort, ADD, "many-add"),
            f"GetMemory @ {count}": partial(_one_by_one, site, effort, GET, "many-get"),
            f"first page @ {count}": partial(_one_by_one, site, effort, LIST, "first-page"),
        }
        if count == effort.many:
            site.write("last-page", [_page(site, _last_page(site), _PAGE)])
            contenders[f"last page @ {count}"] = partial(_one_by_one, site, effort, LIST, "last-page")
        interleaved(contenders, 1)
        rounds |= interleaved(contenders, effort.rounds)
    return Outcome(rounds)


def deletion(site: Site, effort: Effort) -> Outcome:
    """DeleteSession of a session with one message, and of one with a million."""
    contenders = {}
    for name, length in (("1 message", 1), ("many messages", effort.many)):
        bulk.fill(site, f"delete-{length}", length)
        contenders[name] = partial(_deletions, site, f"delete-{length}")
    bulk.settle(site)
    interleaved(contenders, 1)
    return Outcome(interleaved(contenders, effort.rounds))


def _steps(first: int, effort: Effort) -> list[int]:
    """Sizes from the first to the largest."""
    steps = [first]
    while steps[-1] < effort.many:
        steps.append(min(effort.many, steps[-1] * effort.step))
    return steps


def _one_by_one(site: Site, effort: Effort, method: str, requests: str) -> Figures:
    """One call at a time: what is asked is what a call takes, not how many there can be."""
    return site.call(site.recalld, method, requests, most=effort.singly, calls=1)


def _deletions(site: Site, session: str) -> Figures:
    took = []
    for _ in range(_DELETIONS):
        before = time.perf_counter()
        site.client.sessions.DeleteSession(DeleteSessionRequest(session_id=session))
        took.append(time.perf_counter() - before)
        bulk.restore(site, session)
    return {"p50_ms": statistics.median(took) * 1e3}


def _page(site: Site, token: str, size: int) -> ListSessionsRequest:
    """A page of the many sessions, and of no others."""
    request = ListSessionsRequest(page_size=size, page_token=token)
    request.filter.create_time_to.FromDatetime(bulk.END)
    return request


def _last_page(site: Site) -> str:
    """The token of a last page that is as full as any."""
    token, following = "", _next(site, "", 1000)
    while following:
        token, following = following, _next(site, following, 1000)
    return _next(site, token, 1000 - _PAGE)


def _next(site: Site, token: str, size: int) -> str:
    return site.client.sessions.ListSessions(_page(site, token, size)).next_page_token
