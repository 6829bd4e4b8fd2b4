"""Leases, and which servers can work on this schema; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0003"
down_revision = "0002"

upgrade = upgrade_from_sql(__file__)
