"""Alembic's entry point: runs the pending steps on the connection that recalld.storage.migrate passes in.

All steps of one run are one transaction, under a lock: of several servers that start at once on an empty database, one
migrates and the others wait and find nothing left to do.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from recalld.storage.sql import statements

_SQL = statements("schema")

attributes = context.config.attributes
connection = attributes["connection"]

context.configure(
    connection=connection,
    version_table_schema="recalld",
    on_version_apply=attributes["on_version_apply"],
)

with context.begin_transaction():
    connection.execute(text(_SQL["lock_migrations"]))
    connection.execute(text(_SQL["create_schema"]))
    context.run_migrations()
