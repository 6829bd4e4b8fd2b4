"""Messages that tell their namespace; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0011"
down_revision = "0010"

upgrade = upgrade_from_sql(__file__)
