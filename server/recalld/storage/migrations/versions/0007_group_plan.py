"""One plan for groups of all sizes; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0007"
down_revision = "0006"

upgrade = upgrade_from_sql(__file__)
