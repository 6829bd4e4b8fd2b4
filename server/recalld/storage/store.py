"""The store on Postgres: the domain's calls, each a statement or a short transaction of sql/*.sql."""

from __future__ import annotations

from recalld.storage.memory import MemoryStore
from recalld.storage.purge import PurgeStore
from recalld.storage.sessions import SessionStore
from recalld.storage.users import UserStore


class PostgresStore(SessionStore, MemoryStore, UserStore, PurgeStore):
    """Implements recalld.domain.Store, subject by subject."""
