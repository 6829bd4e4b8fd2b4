"""Tables that are spread over the nodes of a Citus cluster. All that differs there from plain Postgres is in here."""

from __future__ import annotations

from typing import Any

import psycopg

from recalld.storage.sql import compose, statements

_SQL = statements("citus")

_TABLES = compose(_SQL["tables"], plan=_SQL["plan"])
_DISTRIBUTE_TABLES = compose(_SQL["distribute_tables"], tables=_TABLES)
_DISTRIBUTE_FUNCTIONS = compose(_SQL["distribute_functions"], functions=_SQL["functions"])
_DROP_LOCAL_COPIES = compose(_SQL["drop_local_copies"], plan=_SQL["plan"])
_IS_COMPLETE = compose(_SQL["is_complete"], tables=_TABLES, functions=_SQL["functions"])

# For psql; the same statements in the same transactions as `distribute`.
SCRIPT = f"""{_SQL["sequential"]};

BEGIN;

{_DISTRIBUTE_TABLES};

{_DISTRIBUTE_FUNCTIONS};

COMMIT;

{_DROP_LOCAL_COPIES};
"""

# For psql, before the steps of the schema.
SCRIPT_SETTING = f"{_SQL['sequential']};\n\n"


def distributed(connection: psycopg.Connection[Any]) -> bool:
    """Whether sessions are spread over nodes, so that a statement should keep to one session.

    It takes one or two look-ups in the catalog, works on any node, and needs no privileges.
    """
    if connection.execute(_SQL["extension"]).fetchone() is None:
        return False
    return _boolean(connection.execute(_SQL["is_distributed"]).fetchone())


def obstacle(connection: psycopg.Connection[Any]) -> str | None:
    """Why the tables cannot be distributed from here, and what to do about it, in one line; None when they can."""
    if connection.execute(_SQL["extension"]).fetchone() is None:
        return (
            "--distributed needs Citus: install it, run `create extension citus` in this database on every node, and"
            " add the nodes by `select citus_add_node(…)`"
        )
    if not _boolean(connection.execute(_SQL["is_coordinator"]).fetchone()):
        return "--distributed works from the coordinator only: name that node in RECALLD_DATABASE_URL"
    return None


def complete(connection: psycopg.Connection[Any]) -> bool:
    """Whether `distribute` would find nothing to do. The schema must be there."""
    return _boolean(connection.execute(_IS_COMPLETE).fetchone())


def distribute(connection: psycopg.Connection[Any]) -> list[str]:
    """Distributes what is not distributed yet, all or nothing, and returns what that was. The schema must be there.

    Rows are copied to their nodes, meanwhile nobody can write. It changes settings of the connection, which is in
    autocommit mode.
    """
    connection.execute(_SQL["sequential"])
    with connection.transaction():
        done = connection.execute(_DISTRIBUTE_TABLES).fetchall()
        done += connection.execute(_DISTRIBUTE_FUNCTIONS).fetchall()
    # By itself, so that being killed before this only leaves it to the next run.
    connection.execute(_DROP_LOCAL_COPIES)
    return [f"distribution of {name}" for name, _ in done]


def _boolean(row: tuple[Any, ...] | None) -> bool:
    assert row is not None
    return bool(row[0])
