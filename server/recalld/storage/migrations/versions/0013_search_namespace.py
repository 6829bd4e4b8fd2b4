"""Searches that read one namespace's messages; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0013"
down_revision = "0012"

upgrade = upgrade_from_sql(__file__)
