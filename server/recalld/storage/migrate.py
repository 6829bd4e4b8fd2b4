"""Brings the database to the schema that this version of the server needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from recalld.errors import StorageUnavailable
from recalld.storage.database import CONNECT_TIMEOUT
from recalld.storage.sql import statements

log = logging.getLogger(__name__)

_DIRECTORY = Path(__file__).parent / "migrations"
_SQL = statements("schema")


class MigrationError(Exception):
    """The database cannot be brought to this server's schema; the text says why, in one line."""


def newest_revision() -> str:
    """The revision that this version of the server needs."""
    return max(step.stem for step in (_DIRECTORY / "versions").glob("*.sql")).partition("_")[0]


def migrate(url: str, language: str, *, change_language: bool = False, grant_to: str | None = None) -> list[str]:
    """Applies the pending steps, all or none, and returns their names. Safe to run from several processes at once.

    Args:
        url: the database, as a URL or a libpq connection string.
        language: the text search configuration, such as `english`, that a new database searches in.
        change_language: whether a database that searches in another language is changed to this one. It rebuilds the
            search index, which takes long on a large database; searches miss messages until it is done.
        grant_to: a database role that gets what a server needs, which does not include changing the schema.

    Raises StorageUnavailable when the database does not answer, MigrationError when it cannot be migrated.
    """
    try:
        with psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT, autocommit=True) as connection:
            applied = [] if _revision(connection) == newest_revision() else _upgrade(url)
            _warn_of_lost_writes(connection)
            current = _language(connection)
            if current != language and (change_language or applied[:1] == ["0001_initial"]):
                _set_language(connection, language)
                applied.append(f"search language {language}")
            elif current != language:
                log.warning("searching in %s, not %s: `recalld migrate` changes it", current, language)
            if grant_to is not None:
                _grant(connection, grant_to)
                applied.append(f"grants to {grant_to}")
            return applied
    except psycopg.OperationalError as error:
        raise StorageUnavailable from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"the database's role may not do that: run `recalld migrate` as the schema's owner ({_one_line(error)})"
        ) from error
    except psycopg.Error as error:
        raise MigrationError(_one_line(error)) from error


def _revision(connection: psycopg.Connection[Any]) -> str | None:
    """The schema's revision, without loading Alembic: most starts find nothing to do."""
    try:
        row = connection.execute(_SQL["revision"]).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    return str(row[0]) if row else None


def _upgrade(url: str) -> list[str]:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import DBAPIError

    applied: list[str] = []
    config = Config()
    config.set_main_option("script_location", str(_DIRECTORY))
    config.set_main_option("path_separator", "os")

    def on_version_apply(*, step: Any, **_: Any) -> None:
        applied.append(Path(step.up_revision.path).stem)

    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT),
        poolclass=NullPool,
    )
    try:
        with engine.connect() as connection:
            config.attributes.update(connection=connection, on_version_apply=on_version_apply)
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise (error.orig if isinstance(error.orig, psycopg.Error) else error) from error
    except CommandError as error:
        raise MigrationError(f"the database's schema is not one that this version knows: {error}") from error
    return applied


def _warn_of_lost_writes(connection: psycopg.Connection[Any]) -> None:
    """An acknowledged write is durable only if Postgres is told to make it so."""
    row = connection.execute(_SQL["durability"]).fetchone()
    assert row is not None
    for setting, value in zip(("fsync", "synchronous_commit"), row, strict=True):
        if value == "off":
            log.warning("%s is off in the database: a crash there can lose acknowledged writes", setting)


def _language(connection: psycopg.Connection[Any]) -> str:
    row = connection.execute(_SQL["search_language"]).fetchone()
    assert row is not None
    return str(row[0])


def _set_language(connection: psycopg.Connection[Any], language: str) -> None:
    if connection.execute(_SQL["find_language"], {"language": language}).fetchone() is None:
        raise MigrationError(f"search_language: the database has no text search configuration {language!r}")
    for name in ("set_search_language", "reindex_search"):
        connection.execute(sql.SQL(_SQL[name]).format(language=sql.Literal(language)))


def _grant(connection: psycopg.Connection[Any], role: str) -> None:
    connection.execute(sql.SQL(_SQL["grant"]).format(role=sql.Identifier(role)))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
