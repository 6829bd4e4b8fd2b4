"""Searching for no more terms than are worth it; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0009"
down_revision = "0008"

upgrade = upgrade_from_sql(__file__)
