"""Other ways to write: all to one session, and a hundred messages a call; and what messages take up on disk."""

from __future__ import annotations

from functools import partial

import psycopg

from tests.bench.calls import ADD, WARM_UP
from tests.bench.rounds import FULL, Effort, Figures, Outcome, interleaved
from tests.bench.site import Site, added, serving

_HOT = "hot"
_BATCH = 100

# Until it is merged, what is new of the full-text index waits in pages of its own, which stay with the index.
_TOO_FEW = "so few messages say little: the pages in which the full-text index collects new ones outweigh the rest"


def hot_session(site: Site, effort: Effort) -> Outcome:
    """All writers on one session, or spread. Raises AssertionError unless every message is there, in order."""
    site.write(_HOT, [added(_HOT, [text]) for text in site.texts])
    spread = partial(site.call, site.recalld, ADD, "AddMemory")
    hot = partial(site.call, site.recalld, ADD, _HOT)
    spread(seconds=WARM_UP)
    answered = hot(seconds=WARM_UP)["calls"]
    rounds = interleaved(
        {"spread": partial(spread, seconds=effort.seconds), "one session": partial(hot, seconds=effort.seconds)},
        effort.rounds,
    )
    answered += sum(figures["calls"] for figures in rounds["one session"])
    [(stored, first, last, last_seq, count)] = site.execute(
        """
        select count(*), min(m.seq), max(m.seq), min(s.last_seq), min(s.message_count)
          from recalld.message as m
          join recalld.session as s using (session_key)
         where s.session_id = %(session)s
        """,
        session=_HOT,
    )
    assert stored == answered, f"{answered:.0f} calls were answered, {stored} messages are there"
    assert (first, last, last_seq, count) == (1, stored, stored, stored), "seq is not dense"
    return Outcome(rounds, [f"nothing lost: {stored:,} calls answered, seq 1 to {last:,} there"])


def batches(site: Site, effort: Effort) -> Outcome:
    """One message a call, and a hundred. A call of a hundred is a hundred messages: `messages` a second."""
    _write_batches(site, _BATCH)

    def measure(requests: str, size: int, seconds: float) -> Figures:
        figures = site.call(site.recalld, ADD, requests, seconds=seconds)
        return figures | {"messages": figures["rate"] * size}

    one, hundred = partial(measure, "AddMemory", 1), partial(measure, "batches", _BATCH)
    one(WARM_UP)
    hundred(WARM_UP)
    timed = {"1 a call": partial(one, effort.seconds), "100 a call": partial(hundred, effort.seconds)}
    return Outcome(interleaved(timed, effort.rounds))


def disk(site: Site, effort: Effort) -> Outcome:
    """What messages take up in an empty database, after a VACUUM."""
    with site.database("disk") as url, serving("recalld", site.directory, url) as server:
        empty = _sizes(url)
        _write_batches(site, effort.batch)
        written = site.call(server, ADD, "batches", most=effort.messages // effort.batch)["calls"] * effort.batch
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("vacuum recalld.message")
        each = {name: (size - empty[name]) / written for name, size in _sizes(url).items()}
    beyond = sum(each.values()) - len(site.texts[0])
    notes = [_TOO_FEW] if written < FULL.messages else []
    return Outcome({"disk": [{"messages": written, "beyond_content": beyond, **each}]}, notes)


def _write_batches(site: Site, size: int) -> None:
    """Requests of so many messages each, to every session."""
    texts = site.texts
    site.write(
        "batches",
        [
            added(f"batch-{number}", [texts[(number * size + place) % len(texts)] for place in range(size)])
            for number in range(len(texts))
        ],
    )


def _sizes(url: str) -> dict[str, int]:
    """Bytes of the table of messages, what is kept beside it included, and of each of its indexes."""
    with psycopg.connect(url) as connection:
        return dict(
            connection.execute(
                """
                select 'message', pg_table_size('recalld.message')
                 union all
                select i.indexrelid::regclass::text, pg_relation_size(i.indexrelid)
                  from pg_index as i
                 where i.indrelid = 'recalld.message'::regclass
                """
            ).fetchall()
        )
