"""Alembic's entry point: runs the pending steps on the connection that recalld.storage.migrate passes in.

Without a connection it prints them. Each step is one transaction, unless it builds an index concurrently, and all are
under one lock: of several servers that start at once on an empty database, one migrates and the others wait and find
nothing left to do.
"""

from __future__ import annotations

from functools import partial

from alembic import context
from sqlalchemy import Connection, text

from recalld.storage.migrations import await_turn
from recalld.storage.sql import statements

_SQL = statements("schema")
_CITUS_SQL = statements("citus")

attributes = context.config.attributes
connection = attributes.get("connection")


def _try_lock(connection: Connection) -> bool:
    locked = bool(connection.scalar(text(_SQL["lock_migrations"])))
    connection.commit()
    return locked


if connection is None:
    context.configure(dialect_name="postgresql", version_table_schema="recalld", transaction_per_migration=True)
    with context.begin_transaction():
        context.execute(_SQL["create_schema"])
        context.run_migrations()
else:
    context.configure(
        connection=connection,
        version_table_schema="recalld",
        transaction_per_migration=True,
        on_version_apply=attributes["on_version_apply"],
    )
    # It lasts until the connection is closed; only what comes after it is to be quick.
    await_turn(partial(_try_lock, connection))
    connection.execute(text(_SQL["limit_lock_wait"]), {"milliseconds": str(int(attributes["lock_timeout"] * 1000))})
    connection.execute(text(_CITUS_SQL["sequential"]))
    connection.execute(text(_SQL["create_schema"]))
    connection.commit()
    with context.begin_transaction():
        context.run_migrations()
