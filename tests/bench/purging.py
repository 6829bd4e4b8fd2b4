"""Purge beside the DELETE that it comes down to, and what it does to those who write meanwhile."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from functools import partial
from typing import Final
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.session_pb2 import DeleteSessionRequest
from tests.bench import bulk
from tests.bench.calls import ADD, WARM_UP
from tests.bench.rounds import Effort, Figures, Outcome, interleaved
from tests.bench.site import Site
from tests.faults.cluster import programs

# Messages that one round removes: as many as 1 in 5 of a million.
_PART: Final = 5

# Sessions that a purge under load removes, so that it lasts.
_SESSIONS: Final = 10

_BARE: Final = """
delete from recalld.message
 where session_key = recalld.session_key('default', '{session}') and seq between 1 and {count}
"""


def purge(site: Site, effort: Effort) -> Outcome:
    """Messages a second that are removed for good, when nothing else goes on."""
    count = effort.many // _PART
    contenders = {
        "Purge": partial(_purged, site, count),
        "psql delete": partial(_deleted, site, count),
    }
    return Outcome(interleaved(contenders, effort.few))


def purge_under_load(site: Site, effort: Effort) -> Outcome:
    """AddMemory alone, and while a Purge runs."""
    site.call(site.recalld, ADD, "AddMemory", seconds=WARM_UP)
    contenders = {
        "before": partial(_writing, site, effort),
        "meanwhile": partial(_writing_meanwhile, site, effort),
    }
    return Outcome(interleaved(contenders, effort.few))


def _purged(site: Site, count: int) -> Figures:
    session = f"purge-{uuid4()}"
    bulk.fill(site, session, count)
    bulk.settle(site)
    site.client.sessions.DeleteSession(DeleteSessionRequest(session_id=session))
    begun = time.perf_counter()
    *_, last = site.client.admin.Purge(PurgeRequest(older_than=Duration(), session_id=session))
    seconds = time.perf_counter() - begun
    assert last.messages == count, last
    return {"messages": count / seconds}


def _deleted(site: Site, count: int) -> Figures:
    session = f"purge-{uuid4()}"
    bulk.fill(site, session, count)
    bulk.settle(site)
    statement = _BARE.format(session=session, count=count)
    said = subprocess.run(
        [programs() / "psql", "-X", "-c", r"\timing on", "-c", statement, site.database_url],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    ).stdout
    assert f"DELETE {count}" in said, said
    took = re.search(r"Time: ([\d.]+) ms", said)
    assert took is not None, said
    return {"messages": count / float(took[1]) * 1e3}


def _writing(site: Site, effort: Effort) -> Figures:
    return site.call(site.recalld, ADD, "AddMemory", seconds=effort.seconds)


def _writing_meanwhile(site: Site, effort: Effort) -> Figures:
    sessions = [f"purge-{uuid4()}" for _ in range(_SESSIONS)]
    for session in sessions:
        bulk.fill(site, session, effort.many // _PART // _SESSIONS)
    bulk.settle(site)
    for session in sessions:
        site.client.sessions.DeleteSession(DeleteSessionRequest(session_id=session))
    over = threading.Event()

    def purge() -> None:
        try:
            list(site.client.admin.Purge(PurgeRequest(older_than=Duration())))
        finally:
            over.set()

    purging = threading.Thread(target=purge)
    purging.start()
    figures = site.call(site.recalld, ADD, "AddMemory", seconds=effort.seconds, until=over)
    purging.join()
    return figures
