"""Appending for several calls at once; ids that need no index; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0004"
down_revision = "0003"

upgrade = upgrade_from_sql(__file__)
