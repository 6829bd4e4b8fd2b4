"""Alembic's entry point: runs the pending steps on the connection that recalld.storage.migrate passes in.

All steps of one run are one transaction, under a lock: of several servers that start at once on an empty database, one
migrates and the others wait and find nothing left to do.
"""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

attributes = context.config.attributes
connection = attributes["connection"]

context.configure(
    connection=connection,
    version_table_schema="recalld",
    on_version_apply=attributes["on_version_apply"],
)

with context.begin_transaction():
    connection.execute(text("select pg_advisory_xact_lock(hashtextextended('recalld.migrate', 0))"))
    connection.execute(text("create schema if not exists recalld"))
    context.run_migrations()
