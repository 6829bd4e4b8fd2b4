"""StreamSessions beside the same rows without gRPC, and the memory of a server that streams everything."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID

import psycopg

from recall.v1.session_pb2 import Session, SessionFilter, StreamSessionsRequest
from tests.bench import bulk, load
from tests.bench.rounds import Effort, Figures, Outcome, interleaved
from tests.bench.site import Site

STREAM: Final = "recall.v1.SessionService/StreamSessions"

# Sessions of a stream whose speed is measured: as many as 1 in 5 of all that there are.
_PART: Final = 5

_CHUNK: Final = 100

# Rows of a page in the loop without gRPC: the more, the faster.
_PAGE: Final = 1000

# Seconds between two looks at the server's memory.
_LOOK_INTERVAL: Final = 0.1

_ROWS: Final = """
select session_id, user_id, metadata, message_count, last_seq, create_time, update_time, version, session_key
  from recalld.session
 where namespace = 'default' and not deleted
   and (create_time, session_key) > (%(time)s, %(key)s) and create_time < %(end)s
 order by create_time, session_key
 limit %(page)s
"""


def streams(site: Site, effort: Effort) -> Outcome:
    """Sessions a second to one client, and to nobody: read by psycopg, made messages, serialised, and thrown away."""
    bulk.sessions(site, effort.many)
    part = effort.many // _PART
    [(end,)] = site.execute(
        "select create_time from recalld.session where session_key = recalld.session_key('default', %(id)s)",
        id=f"many-{part + 1}",
    )
    first = SessionFilter()
    first.create_time_to.FromDatetime(end)
    site.write("part", [StreamSessionsRequest(chunk_size=_CHUNK, filter=first)])
    contenders = {
        "StreamSessions": partial(_stream, site, "part", part),
        "psycopg loop": partial(_loop, site, end, part),
    }
    interleaved(contenders, 1)
    return Outcome(interleaved(contenders, effort.rounds))


def stream_memory(site: Site, effort: Effort) -> Outcome:
    """By how much the server grows while one client reads everything."""
    bulk.sessions(site, effort.many)
    site.write("everything", [StreamSessionsRequest(chunk_size=_CHUNK)])
    before = highest = site.recalld.tree.resident()
    over = threading.Event()

    def look() -> None:
        nonlocal highest
        while not over.wait(_LOOK_INTERVAL):
            highest = max(highest, site.recalld.tree.resident())

    watching = threading.Thread(target=look)
    watching.start()
    try:
        figures = _stream(site, "everything", effort.many)
    finally:
        over.set()
        watching.join()
    mib = {"before_mib": before / 2**20, "highest_mib": highest / 2**20, "growth_mib": (highest - before) / 2**20}
    return Outcome({"server": [figures | mib]})


def _stream(site: Site, requests: str, count: int) -> Figures:
    """One stream that has so many sessions, at least."""
    before = site.recalld.tree.seconds(), site.postgres.seconds()
    seen = load.run(site.recalld.address, STREAM, site.requests[requests], most=1, calls=1, streams=True)
    server, database = site.recalld.tree.seconds() - before[0], site.postgres.seconds() - before[1]
    return {
        "sessions": count / seen.seconds,
        **_each(count, server_us=server, postgres_us=database, client_us=seen.cpu),
    }


def _loop(site: Site, end: datetime, count: int) -> Figures:
    before = time.process_time(), site.postgres.seconds()
    begun = time.perf_counter()
    assert _read(site.database_url, end) == count
    seconds = time.perf_counter() - begun
    server, database = time.process_time() - before[0], site.postgres.seconds() - before[1]
    return {"sessions": count / seconds, **_each(count, server_us=server, postgres_us=database)}


def _each(count: int, **seconds: float) -> Figures:
    """Microseconds for each session."""
    return {name: used / count * 1e6 for name, used in seconds.items()}


def _read(url: str, end: datetime) -> int:
    """The loop to be compared with: no more than it takes, and as fast as one would write it."""
    values = {"time": datetime.min.replace(tzinfo=UTC), "key": UUID(int=0), "end": end, "page": _PAGE}
    count = 0
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor(binary=True) as cursor:
        while rows := cursor.execute(_ROWS, values).fetchall():
            for session_id, user_id, metadata, message_count, last_seq, create_time, update_time, version, _ in rows:
                session = Session(
                    session_id=session_id,
                    user_id=user_id or "",
                    message_count=message_count,
                    last_seq=last_seq,
                    etag=str(version),
                    create_time=create_time,
                    update_time=update_time,
                )
                session.metadata.update(metadata)
                session.SerializeToString()
            count += len(rows)
            values["time"], values["key"] = rows[-1][5], rows[-1][8]
    return count
