"""An index of given ids only, in place of one of all; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql_concurrently

revision = "0005"
down_revision = "0004"

upgrade = upgrade_from_sql_concurrently(__file__)
