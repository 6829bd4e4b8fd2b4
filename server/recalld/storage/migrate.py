"""Brings the database to the schema that this version of the server needs."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from recalld.errors import StorageUnavailable
from recalld.storage import distribution
from recalld.storage.database import connect
from recalld.storage.migrations import await_turn
from recalld.storage.sql import statements

log = logging.getLogger(__name__)

_DIRECTORY = Path(__file__).parent / "migrations"
_SQL = statements("schema")

# A step that waits for a lock makes every statement behind it wait too. So it waits for _LOCK_TIMEOUT seconds, and then
# lets the others pass for _LOCK_PAUSE seconds before it tries again.
_LOCK_TIMEOUT = 2.0
_LOCK_PAUSE = 1.0
_LOCK_ATTEMPTS = 60

# The end of the comment on the search index while that is not, or not completely, built in the current search language.
# A comment that somebody else has made stays before it.
_TO_BE_REBUILT = "\n[recalld: to be rebuilt, the search language has changed]"


class MigrationError(Exception):
    """The database cannot be brought to this server's schema; the text says why, in one line."""


class UnknownLanguage(MigrationError):
    """The database has no text search configuration of this name."""


def newest_revision() -> str:
    """The revision that this version of the server needs."""
    return max(step.stem for step in (_DIRECTORY / "versions").glob("*.sql")).partition("_")[0]


def current_revision(connection: psycopg.Connection[Any]) -> str | None:
    """The schema's revision, without loading Alembic: most starts find nothing to do."""
    try:
        row = connection.execute(_SQL["revision"]).fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    return str(row[0]) if row else None


def migrate(
    url: str,
    language: str,
    *,
    change_language: bool = False,
    distribute: bool = False,
    grant_to: str | None = None,
) -> list[str]:
    """Applies the pending steps, and returns their names. Safe to run from several processes at once, and to kill.

    Each step is a transaction, or builds an index concurrently, and waits only briefly for locks, so servers go on
    serving meanwhile.

    Args:
        url: the database, as a URL or a libpq connection string.
        language: the text search configuration, such as `english`, that a database without messages searches in.
        change_language: whether a database with messages is changed to this language too. That rebuilds the search
            index, which takes long on a large database; searches miss messages until it is done. A change that was
            interrupted is completed.
        distribute: whether the tables are spread over the nodes of a Citus cluster. Where they already are, tables of a
            later version are spread in any case. Nobody can write while rows are copied to their nodes.
        grant_to: a database role that gets what a server needs, which does not include changing the schema.

    Raises StorageUnavailable when the database does not answer, MigrationError when it cannot be migrated.
    """
    with _errors_translated(), connect(url, autocommit=True) as connection:
        _refuse_without_citus(connection, distribute)
        applied = _bring_up_to_date(connection, url)
        _warn_of_lost_writes(connection)
        applied += _settle_language(connection, language, change_language)
        if distribute or distribution.distributed(connection):
            applied += _distribute(connection)
        if grant_to is not None:
            _grant(connection, grant_to)
            applied.append(f"grants to {grant_to}")
        return applied


def check_schema(url: str) -> None:
    """Returns when the database has a schema that this version can work on.

    Raises StorageUnavailable when it does not answer or is not migrated yet, MigrationError when it never will.
    """
    try:
        with connect(url, autocommit=True) as connection:
            current, newest = current_revision(connection), newest_revision()
            if current is None or current < newest:
                raise StorageUnavailable from MigrationError(
                    f"the database has schema {current or 'none'}, not {newest} yet: run `recalld migrate`"
                )
            _refuse_if_too_new(connection, current)
            _warn_if_broken_off(_search(connection))
    except psycopg.NotSupportedError as error:
        raise MigrationError(_one_line(error)) from error
    except psycopg.Error as error:
        raise StorageUnavailable from error


def pending_sql(url: str, *, distribute: bool = False) -> str:
    """The SQL that `migrate` would run, empty when there is nothing to do. Raises the same errors as `migrate`."""
    with _errors_translated(), connect(url, autocommit=True) as connection:
        _refuse_without_citus(connection, distribute)
        current = current_revision(connection)
        up_to_date = current is not None and current >= newest_revision()
        if current is not None and up_to_date:
            _refuse_if_too_new(connection, current)
        distribute = distribute or distribution.distributed(connection)
        if up_to_date and distribute:
            distribute = not distribution.complete(connection)
    steps = "" if up_to_date else _steps_sql(current)
    if not distribute:
        return steps
    return f"{steps and distribution.SCRIPT_SETTING}{steps}{distribution.SCRIPT}"


def _steps_sql(current: str | None) -> str:
    from alembic import command

    out = io.StringIO()
    command.upgrade(_config(output_buffer=out), f"{current}:head" if current else "head", sql=True)
    return out.getvalue()


def _refuse_without_citus(connection: psycopg.Connection[Any], distribute: bool) -> None:
    if distribute and (obstacle := distribution.obstacle(connection)):
        raise MigrationError(obstacle)


def _bring_up_to_date(connection: psycopg.Connection[Any], url: str) -> list[str]:
    current = current_revision(connection)
    if current is None or current < newest_revision():
        applied: list[str] = []
        return _patiently(lambda: _run_steps(url, applied))
    _refuse_if_too_new(connection, current)
    return []


def _refuse_if_too_new(connection: psycopg.Connection[Any], current: str) -> None:
    newest = newest_revision()
    if current == newest:
        return
    row = connection.execute(_SQL["oldest_server"]).fetchone()
    assert row is not None
    if row[0] > newest:
        raise MigrationError(
            f"the database has schema {current}, which needs a server that knows {row[0]}; this one knows {newest}:"
            " upgrade recalld"
        )
    log.warning("the database has schema %s, newer than this server's %s, which can work on it", current, newest)


def _distribute(connection: psycopg.Connection[Any]) -> list[str]:
    """Runs in one process at a time; a later one finds nothing left to do."""
    _await_turn(connection)
    connection.execute(_SQL["set_lock_timeout"], {"milliseconds": str(int(_LOCK_TIMEOUT * 1000))})
    return _patiently(lambda: distribution.distribute(connection))


def _patiently(migration: Callable[[], list[str]]) -> list[str]:
    """Repeats a migration that cannot get a lock, at most _LOCK_ATTEMPTS times. Raises MigrationError."""
    attempt = 1
    while True:
        try:
            return migration()
        except psycopg.errors.LockNotAvailable as error:
            if attempt >= _LOCK_ATTEMPTS:
                raise MigrationError(
                    "others hold a lock that a migration needs: try when there is less going on"
                ) from error
        attempt += 1
        log.warning("others hold a lock that a migration needs; attempt %d", attempt)
        time.sleep(_LOCK_PAUSE)


def _run_steps(url: str, applied: list[str]) -> list[str]:
    """Runs the pending steps. Adds each to `applied`, also those before one that fails, and returns that."""
    from alembic import command
    from alembic.util import CommandError
    from sqlalchemy import NullPool, create_engine
    from sqlalchemy.exc import DBAPIError, PendingRollbackError

    def on_version_apply(*, step: Any, **_: Any) -> None:
        applied.append(Path(step.up_revision.path).stem)

    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: connect(url, application_name="recalld migrate"),
        poolclass=NullPool,
    )
    config = _config()
    try:
        with engine.connect() as connection:
            config.attributes.update(
                connection=connection, on_version_apply=on_version_apply, lock_timeout=_LOCK_TIMEOUT
            )
            command.upgrade(config, "head")
            return applied
    except DBAPIError as error:
        raise (error.orig if isinstance(error.orig, psycopg.Error) else error) from error
    except PendingRollbackError as error:
        # Alembic commits at the end of a step without a transaction, even if that end is a lost connection.
        raise psycopg.OperationalError("the connection was lost during a step") from error
    except CommandError as error:
        raise MigrationError(f"the database's schema is not one that this version knows: {error}") from error


def _config(**options: Any) -> Any:
    from alembic.config import Config

    config = Config(**options)
    config.set_main_option("script_location", str(_DIRECTORY))
    config.set_main_option("path_separator", "os")
    return config


def _warn_of_lost_writes(connection: psycopg.Connection[Any]) -> None:
    """Warns of settings of Postgres with which an acknowledged write may not be durable."""
    row = connection.execute(_SQL["durability"]).fetchone()
    assert row is not None
    for setting, value in zip(("fsync", "synchronous_commit"), row, strict=True):
        if value == "off":
            log.warning("%s is off in the database: a crash there can lose acknowledged writes", setting)


class _Search(NamedTuple):
    """The search language, and the comment on the search index, which tells whether it is built in that language."""

    language: str
    comment: str

    @property
    def broken_off(self) -> bool:
        return self.comment.endswith(_TO_BE_REBUILT)


def _search(connection: psycopg.Connection[Any]) -> _Search:
    row = connection.execute(_SQL["search_language"]).fetchone()
    assert row is not None
    return _Search(*row)


def _warn_if_broken_off(search: _Search) -> None:
    if search.broken_off:
        log.warning(
            "searches miss messages: a change of the search language to %s is not done. If none is under way,"
            " `recalld migrate` completes it",
            search.language,
        )


def _settle_language(connection: psycopg.Connection[Any], language: str, change: bool) -> list[str]:
    """Changes the search language if `change` is set, or there are no messages yet and the role may change it."""
    search = _search(connection)
    if search.language == language and not search.broken_off:
        return []
    try:
        if change or connection.execute(_SQL["any_message"]).fetchone() is None:
            return _set_language(connection, language)
    except psycopg.errors.InsufficientPrivilege:
        if change:
            raise
    if search.language != language:
        log.warning("searching in %s, not %s: `recalld migrate` changes it", search.language, language)
    _warn_if_broken_off(search)
    return []


def _set_language(connection: psycopg.Connection[Any], language: str) -> list[str]:
    """Runs in one process at a time. Until it is done, the comment on the index says so."""
    if connection.execute(_SQL["find_language"], {"language": language}).fetchone() is None:
        raise UnknownLanguage(f"search_language: the database has no text search configuration {language!r}")
    _await_turn(connection)
    search = _search(connection)
    if search.language == language and not search.broken_off:
        return []
    with connection.transaction():
        connection.execute(sql.SQL(_SQL["set_search_language"]).format(language=sql.Literal(language)))
        if not search.broken_off:
            _comment(connection, search.comment + _TO_BE_REBUILT)
    for (name,) in connection.execute(_SQL["unfinished_indexes"]).fetchall():
        connection.execute(sql.SQL(_SQL["drop_index"]).format(name=sql.Identifier("recalld", name)))
    connection.execute(_SQL["reindex_search"])
    _comment(connection, _search(connection).comment.removesuffix(_TO_BE_REBUILT))
    return [f"search language {language}"]


def _comment(connection: psycopg.Connection[Any], text: str) -> None:
    connection.execute(sql.SQL(_SQL["comment_on_search"]).format(text=sql.Literal(text or None)))


def _await_turn(connection: psycopg.Connection[Any]) -> None:
    """Takes the lock of migrations, which lasts until the connection is closed."""
    await_turn(lambda: connection.execute(_SQL["lock_migrations"]).fetchone() == (True,))


def _grant(connection: psycopg.Connection[Any], role: str) -> None:
    """Runs in one process at a time: of two that grant the same concurrently, Postgres would refuse one."""
    _await_turn(connection)
    connection.execute(sql.SQL(_SQL["grant"]).format(role=sql.Identifier(role)))


@contextmanager
def _errors_translated() -> Iterator[None]:
    """Raises StorageUnavailable or MigrationError in place of psycopg's errors."""
    try:
        yield
    except psycopg.OperationalError as error:
        raise StorageUnavailable from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise MigrationError(
            f"the database's role may not do that: run `recalld migrate` as the schema's owner ({_one_line(error)})"
        ) from error
    except psycopg.Error as error:
        raise MigrationError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
