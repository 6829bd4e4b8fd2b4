"""Large data sets, made by SQL straight in the tables: in seconds, where the API would take hours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from tests.bench.site import Site

# All of the many sessions were created before that.
END: Final = datetime(2001, 1, 1, tzinfo=UTC)

# Messages that one call of recalld.append takes.
_BATCH: Final = 1000

# As in storage/sql/memory.sql. The text has 240 bytes as any other, but no word that the full-text index would hold:
# that would take a minute for a million, and is not what the size of a session changes.
_APPEND: Final = """
select count(a.last_seq)
  from generate_series(0, %(count)s - 1, %(batch)s) as first
 cross join lateral (select least(%(batch)s, %(count)s - first) as size) as batch
 cross join lateral (select array_agg(gen_random_uuid()) as ids, array_agg('user'::text) as roles,
                            array_agg(repeat('the ', 60)) as contents, array_agg(null::jsonb) as metadatas,
                            array_agg(null::integer) as token_counts
                       from generate_series(1, batch.size) as place) as new
 cross join lateral recalld.append(recalld.session_key('default', %(session)s), 'default', %(session)s, '', '{}'::jsonb,
                                   true, null, null::smallint, clock_timestamp(), new.ids, new.roles, new.contents,
                                   new.metadatas, new.token_counts) as a
"""

_SESSIONS: Final = """
insert into recalld.session (session_key, namespace, session_id, metadata, message_count, last_seq, cleared_seq,
                             version, create_time, update_time, active_time)
select recalld.session_key('default', id), 'default', id,
       jsonb_build_object('channel', 'web', 'topic', 'billing', 'priority', number %% 5), 0, 0, 0, 1,
       at, at, date_trunc('minute', at)
  from generate_series(%(first)s::int, %(last)s::int) as number
 cross join lateral (select 'many-' || number as id,
                            timestamptz '2000-01-01' + number * interval '1 second' as at) as made
"""

# Deletion moves the watermark, and this moves it back.
_RESTORE: Final = """
with t as (delete from recalld.tombstone where session_key = recalld.session_key('default', %(session)s))
update recalld.session
   set delete_time = null, cleared_seq = 0, message_count = last_seq
 where session_key = recalld.session_key('default', %(session)s)
"""


def fill(site: Site, session: str, count: int) -> None:
    """Appends so many messages to a session, which may be new."""
    site.execute(_APPEND, session=session, count=count, batch=_BATCH)


def sessions(site: Site, count: int) -> None:
    """Sees to it that there are the sessions many-1 to many-COUNT, one created each second of a time in the past."""
    [(there,)] = site.execute("select count(*) from recalld.session where session_id like 'many-%'")
    if there < count:
        site.execute(_SESSIONS, first=there + 1, last=count)
        settle(site)


def restore(site: Site, session: str) -> None:
    """Makes a deleted session live again, with its messages."""
    site.execute(_RESTORE, session=session)


def settle(site: Site) -> None:
    """What autovacuum would do sooner or later, and a checkpoint: so that neither comes in the midst of a round."""
    site.execute("vacuum (analyze) recalld.session")
    site.execute("vacuum (analyze) recalld.message")
    site.execute("checkpoint")
