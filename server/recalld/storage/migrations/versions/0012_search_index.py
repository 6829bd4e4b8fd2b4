"""A full-text index of each namespace's messages; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql_concurrently

revision = "0012"
down_revision = "0011"

upgrade = upgrade_from_sql_concurrently(__file__)
