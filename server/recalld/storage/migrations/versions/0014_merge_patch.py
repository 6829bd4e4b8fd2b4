"""Merging metadata in one pass; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0014"
down_revision = "0013"

upgrade = upgrade_from_sql(__file__)
