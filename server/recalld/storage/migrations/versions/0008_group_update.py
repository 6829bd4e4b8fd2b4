"""The sessions of a group in one update; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0008"
down_revision = "0007"

upgrade = upgrade_from_sql(__file__)
