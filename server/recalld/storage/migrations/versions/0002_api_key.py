"""API keys; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0002"
down_revision = "0001"

upgrade = upgrade_from_sql(__file__)
