"""Storage on Postgres: the domain's store, and what keeps its database in shape. All of psycopg stays in here."""

from recalld.storage.api_keys import ApiKeyError, ApiKeys, open_registry
from recalld.storage.database import Database
from recalld.storage.migrate import MigrationError, migrate
from recalld.storage.store import PostgresStore

__all__ = [
    "ApiKeyError",
    "ApiKeys",
    "Database",
    "MigrationError",
    "PostgresStore",
    "migrate",
    "open_registry",
]
