"""Leases: locks that one server at a time holds, each a row that expires unless its holder renews it.

An advisory lock would not do: it belongs to a connection, which a pooler gives to another client after a transaction.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final
from uuid import uuid4

from recalld.domain import INTERNAL_CALL
from recalld.storage.database import Database
from recalld.storage.sql import statements

_SQL: Final = statements("lease")


class Lease:
    """A lease as one server sees it.

    Args:
        database: where it is kept.
        name: what it is for.
        ttl: how long it holds without being renewed.
    """

    def __init__(self, database: Database, name: str, ttl: timedelta) -> None:
        self._database = database
        self._values = {"name": name, "holder": uuid4(), "ttl": ttl}

    def take(self) -> bool:
        """Takes the lease; False while another server holds it, or the pause after the last holder lasts."""
        return self._run("take", {})

    def renew(self) -> bool:
        """Extends the lease by `ttl` from now; False when it has expired, and another server may hold it."""
        return self._run("renew", {})

    def give_back(self, pause: timedelta) -> None:
        """Ends the lease, and lets nobody take it during the pause."""
        self._run("give_back", {"pause": pause})

    def _run(self, statement: str, values: dict[str, timedelta]) -> bool:
        with self._database.connection(INTERNAL_CALL) as connection:
            cursor = connection.execute(_SQL[statement], self._values | values)
            return cursor.rowcount > 0
