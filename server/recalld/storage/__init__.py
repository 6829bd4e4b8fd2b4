"""Storage on Postgres: the domain's store, and what keeps its database in shape. No service sees psycopg."""

from recalld.storage.api_keys import ApiKeyError, ApiKeys, open_registry
from recalld.storage.database import Database
from recalld.storage.distribution import distributed
from recalld.storage.leases import Lease
from recalld.storage.migrate import MigrationError, UnknownLanguage, check_schema, migrate, pending_sql
from recalld.storage.store import PostgresStore

__all__ = [
    "ApiKeyError",
    "ApiKeys",
    "Database",
    "Lease",
    "MigrationError",
    "PostgresStore",
    "UnknownLanguage",
    "check_schema",
    "distributed",
    "migrate",
    "open_registry",
    "pending_sql",
]
