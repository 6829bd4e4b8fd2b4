"""The initial schema; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0001"
down_revision = None

upgrade = upgrade_from_sql(__file__)
