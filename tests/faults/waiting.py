"""Calls that wait because a test has them wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg

from tests.waiting import wait_until

_WAITING = """
    select count(*) from pg_locks
     where not granted and database = (select oid from pg_database where datname = current_database())
"""


@contextmanager
def tables_locked(url: str) -> Iterator[Callable[[int], None]]:
    """Makes every call wait that needs a session, to the end of the context.

    What it yields returns when so many statements wait, or more.
    """
    with psycopg.connect(url) as connection, psycopg.connect(url, autocommit=True) as observer:
        connection.execute("lock table recalld.session in access exclusive mode")

        def waiting() -> int:
            row = observer.execute(_WAITING).fetchone()
            assert row is not None
            return int(row[0])

        def wait_for(number: int) -> None:
            wait_until(lambda: waiting() >= number, f"not {number} statements wait")

        yield wait_for
