"""Groups that wait but a moment for a new session; the statements are in the .sql file of the same name."""

from recalld.storage.migrations import upgrade_from_sql

revision = "0010"
down_revision = "0009"

upgrade = upgrade_from_sql(__file__)
