"""Connections to Postgres: borrowed for a statement, never longer, and stopped when the call that asked is over."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from os import dup
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.adapt import AdaptersMap
from psycopg.types.json import set_json_loads
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from recalld import errors, metadata
from recalld.domain import Call
from recalld.storage.sql import statements

log = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

_SQL = statements("schema")

# Seconds. A statement whose call is over gets a cancel request, and then this long to end before its connection is cut:
# a frozen server answers no cancel request.
CONNECT_TIMEOUT = 5
_CANCEL_TIMEOUT = 1.0

# SQLSTATEs, each with what it means for the caller. Anything else is a defect, reported as INTERNAL.
_UNAVAILABLE: tuple[type[psycopg.Error], ...] = (
    psycopg.InterfaceError,  # the connection was lost before the statement was sent
    psycopg.OperationalError,  # lost connections, 57P0x shutdown and start-up, 53xxx out of disk, memory, connections
    pg.ReadOnlySqlTransaction,  # 25006: a standby after a failover
    pg.InvalidSchemaName,  # 3F000, 42P01: not migrated yet
    pg.UndefinedTable,
)
_CONTENTION = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable)


class Database:
    """A pool of connections to one Postgres.

    Args:
        url: the database, as a URL or a libpq connection string.
        size: the most connections.
        timeout: seconds that a call waits for a connection before it is turned away.
        statement_timeout: seconds after which the database itself stops a statement.
    """

    def __init__(self, url: str, *, size: int = 8, timeout: float = 5.0, statement_timeout: float = 30.0) -> None:
        self._timeout = timeout
        options = {
            "autocommit": True,
            "context": _adapters(),
            "cursor_factory": _BinaryCursor,
            "application_name": "recalld",
            "connect_timeout": CONNECT_TIMEOUT,
            "options": f"-c timezone=UTC -c statement_timeout={int(statement_timeout * 1000)}",
        }
        self._pool: ConnectionPool[Connection] = ConnectionPool(
            url, min_size=1, max_size=size, timeout=timeout, open=False, name="recalld", kwargs=options
        )
        # A connection of its own, so that a busy server does not look like a dead database.
        self._ping_pool: ConnectionPool[Connection] = ConnectionPool(
            url, min_size=1, max_size=1, timeout=timeout, open=False, name="recalld-ping", kwargs=options
        )
        self._lent: set[Connection] = set()
        # At most one statement a connection can need stopping.
        self._stoppers = ThreadPoolExecutor(max_workers=size, thread_name_prefix="recalld-stop")

    def open(self) -> None:
        """Starts connecting, and returns without waiting for the database."""
        self._pool.open()
        self._ping_pool.open()

    def close(self) -> None:
        """Closes all connections; calls that still wait for one are turned away."""
        self._pool.close()
        self._ping_pool.close()
        self._stoppers.shutdown()

    def ping(self) -> None:
        """Asks the database for an answer. Raises StorageUnavailable when there is none in time."""
        try:
            with self._ping_pool.connection() as connection:
                connection.execute(_SQL["ping"])
        except psycopg.Error as error:
            raise errors.StorageUnavailable from error

    @contextmanager
    def connection(self, call: Call) -> Iterator[Connection]:
        """Lends a connection in autocommit mode, for as long as one statement or transaction of `call` takes.

        When the call is over before that, because its deadline passed or the caller went away, the statement is
        stopped. Raises the domain's errors for the database's.
        """
        remaining = call.remaining()
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded
        timeout = self._timeout if remaining is None else min(remaining, self._timeout)
        try:
            # Not by `with`: that would commit what autocommit has committed.
            connection = self._pool.getconn(timeout)
            running = _Running(connection, self._stoppers)
            try:
                if not call.when_over(running.stop):
                    raise errors.Cancelled
                self._lent.add(connection)
                yield connection
            finally:
                running.end()
                self._lent.discard(connection)
                self._pool.putconn(connection)
        except psycopg.Error as error:  # the pool's own errors are among them
            if known := self._translated(error, call):
                raise known from error
            raise

    def _translated(self, error: psycopg.Error, call: Call) -> errors.RecallError | None:
        """The domain's error for one of the database or the pool; None for a defect."""
        if call.remaining() == 0:
            return errors.DeadlineExceeded()
        if not call.when_over(_nothing):
            return errors.Cancelled()
        if isinstance(error, PoolClosed):
            return errors.ShuttingDown()
        if isinstance(error, PoolTimeout):
            # No connection to be had: they are all busy, or there are none because the database is away.
            return errors.Overloaded() if self._lent else errors.StorageUnavailable()
        if isinstance(error, pg.ProgramLimitExceeded):
            return None
        if isinstance(error, pg.QueryCanceled):
            return errors.DeadlineExceeded("the call takes longer than the server allows")
        if isinstance(error, _CONTENTION):
            return errors.Contention()
        if isinstance(error, _UNAVAILABLE):
            log.warning("database: %s %s", error.sqlstate, " ".join(str(error).split()))
            return errors.StorageUnavailable()
        return None


class _Running:
    """What runs on a borrowed connection: it can be stopped from elsewhere, but not once the connection is back."""

    def __init__(self, connection: Connection, stoppers: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._stoppers = stoppers
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def end(self) -> None:
        """The connection goes back; waits for a stop request that is under way."""
        with self._lock:
            self._ended.set()

    def stop(self) -> None:
        """Stops the statement, if one still runs. Called on gRPC's own serving thread, so it only passes the word."""
        if not self._ended.is_set():
            with suppress(RuntimeError):  # the process is shutting down
                self._stoppers.submit(self._stop)

    def _stop(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            with suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=_CANCEL_TIMEOUT)
        if self._ended.wait(_CANCEL_TIMEOUT):
            return
        with self._lock:
            if not self._ended.is_set():
                _cut(self._connection)


def _cut(connection: Connection) -> None:
    """Wakes the thread that waits on the connection, with an error; closing it from here would not be thread-safe."""
    with suppress(psycopg.Error, OSError), socket.socket(fileno=dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


def _nothing() -> None:
    pass


class _BinaryCursor(psycopg.Cursor[tuple[Any, ...]]):
    """Asks for results in binary, which cost less to read: most columns are times, numbers and keys."""

    def __init__(self, connection: Connection, **options: Any) -> None:
        super().__init__(connection, **options)
        self.format = psycopg.pq.Format.BINARY


def _adapters() -> AdaptersMap:
    """How values go over the wire.

    Every int is sent as bigint: by default the type follows the value, and each makes another prepared statement.
    """
    adapters = AdaptersMap(psycopg.adapters)
    set_json_loads(metadata.from_json, adapters)
    adapters.register_dumper(int, Int8Dumper)
    adapters.register_dumper(int, Int8BinaryDumper)
    return adapters
