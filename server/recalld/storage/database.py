"""Connections to Postgres: lent for one statement or transaction, which is stopped when its call is over."""

from __future__ import annotations

import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from os import dup
from time import monotonic
from typing import Any, NamedTuple

import psycopg
from psycopg import errors as pg
from psycopg.adapt import AdaptersMap
from psycopg.pq import ConnStatus
from psycopg.types.json import set_json_loads
from psycopg.types.numeric import Int8BinaryDumper, Int8Dumper
from psycopg_pool import ConnectionPool, PoolClosed, PoolTimeout

from recalld import errors, metadata
from recalld.domain import Call
from recalld.storage.sql import statements

log = logging.getLogger(__name__)

Connection = psycopg.Connection[tuple[Any, ...]]

_SQL = statements("schema")

# The encoding of the database, and of connections, whatever PGCLIENTENCODING says.
_ENCODING = "UTF8"

# Seconds. A statement whose call is over gets a cancel request, and then _CANCEL_TIMEOUT to end before its connection
# is cut: a frozen server answers no cancel request.
CONNECT_TIMEOUT = 5
_CANCEL_TIMEOUT = 1.0

# Seconds by which a statement may outlast its timeout, which the database enforces unless it is frozen, or a pooler
# hides the timeout from it.
_OVERTIME = 1.0

# Seconds after which the database ends a transaction in which recalld sends nothing more. Otherwise the locks of a
# recalld that is frozen, or whose machine is gone, would be held until TCP notices.
_LONGEST_SILENCE = 10.0

# Seconds between two checks of the connections that are lent.
_PATROL_INTERVAL = 0.5

# Seconds that a ping may take. A connection whose other end vanished without a word would keep it for much longer.
_LONGEST_PING = 2.0

# Seconds that a statement from before an outage may go on once the database is back; then its connection counts as
# lost.
_STRAGGLER_TIME = 1.5

# Seconds for which the pool by itself retries to connect, at growing intervals. After that the next call or ping starts
# anew, with short intervals, however long the database was away.
_RECONNECT_TIMEOUT = 2.0

# A vanished network is noticed after this long: milliseconds, then seconds and a number of probes.
_NETWORK: dict[str, int] = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}

# SQLSTATEs, each with what it means for the caller. Anything else is a defect, reported as INTERNAL.
_UNAVAILABLE: tuple[type[psycopg.Error], ...] = (
    psycopg.InterfaceError,  # the connection was lost before the statement was sent
    psycopg.OperationalError,  # lost connections, 57P0x shutdown and start-up, 53xxx out of disk, memory, connections
    pg.ReadOnlySqlTransaction,  # 25006: the server was the primary, and is no longer
    pg.InvalidSchemaName,  # 3F000, 42P01, 42703, 42883: not migrated yet, or not to the end
    pg.UndefinedTable,
    pg.UndefinedColumn,
    pg.UndefinedFunction,
    pg.IdleInTransactionSessionTimeout,  # 25P03, a timeout of the database's own
)
_TOO_LONG = (pg.QueryCanceled, pg.TransactionTimeout)
_PROGRAM_LIMITS = "54"  # for psycopg they too are operational, but they fail again however often they are tried
_CONTENTION = (pg.SerializationFailure, pg.DeadlockDetected, pg.LockNotAvailable)


def connect(
    url: str, *, target_session_attrs: str = "read-write", **options: Any
) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection without a pool, to whichever host of the URL can be written to; it works through a pooler too.

    Raises psycopg.NotSupportedError for a database that is not in UTF-8 and so cannot keep every text.
    """
    connection = psycopg.connect(
        url,
        connect_timeout=CONNECT_TIMEOUT,
        target_session_attrs=target_session_attrs,
        client_encoding=_ENCODING,
        prepare_threshold=None,
        **options,
    )
    encoding = connection.info.parameter_status("server_encoding") or _ENCODING
    if encoding != _ENCODING:
        connection.close()
        raise psycopg.NotSupportedError(
            f"the database's encoding is {encoding}: make one with createdb --encoding UTF8 --template template0"
        )
    return connection


class Database:
    """A pool of connections to one Postgres.

    Args:
        url: the database, as a URL or a libpq connection string; of several hosts the one that can be written to.
        size: the most connections; also an attribute.
        timeout: seconds that a call waits for a connection before it is turned away.
        statement_timeout: seconds after which a statement is stopped.
        lock_timeout: seconds that a statement waits for a lock.
        pooler: whether a pooler in transaction mode, such as PgBouncer, is in between. It knows no start-up options and
            moves a client from one server connection to the next, so neither they nor prepared statements are used.
        span: makes a span of a trace, around each use of a connection.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int = 8,
        timeout: float = 5.0,
        statement_timeout: float = 30.0,
        lock_timeout: float = 5.0,
        pooler: bool = False,
        span: Callable[[], AbstractContextManager[object]] | None = None,
    ) -> None:
        self.size = size
        self._span = span
        self._timeout = timeout
        self._longest = statement_timeout if pooler else statement_timeout + _OVERTIME
        options: dict[str, Any] = {
            "autocommit": True,
            "context": _adapters(),
            "cursor_factory": _BinaryCursor,
            "application_name": "recalld",
            "connect_timeout": CONNECT_TIMEOUT,
            "target_session_attrs": "read-write",
            "client_encoding": _ENCODING,
            **_NETWORK,
        }
        if pooler:
            options["prepare_threshold"] = None
        else:
            options["options"] = (
                f"-c timezone=UTC -c statement_timeout={int(statement_timeout * 1000)}"
                f" -c lock_timeout={int(lock_timeout * 1000)}"
                f" -c idle_in_transaction_session_timeout={int(_LONGEST_SILENCE * 1000)}"
            )
        self._pool = _pool(url, "recalld", size, timeout, options)
        # A connection of its own, so that a busy server does not look like a dead database.
        self._ping_pool = _pool(url, "recalld-ping", 1, timeout, options)
        self._queue: set[object] = set()
        self._lent: dict[_Running, float] = {}
        self._pinging: dict[_Running, float] = {}
        self._away = False
        self._last_return = float("-inf")
        # At most one statement a connection can need stopping.
        self._stoppers = ThreadPoolExecutor(max_workers=size, thread_name_prefix="recalld-stop")
        self._closed = threading.Event()

    def open(self) -> None:
        """Starts connecting, and returns without waiting for the database."""
        self._pool.open()
        self._ping_pool.open()
        threading.Thread(target=self._patrol, name="recalld-patrol", daemon=True).start()

    def close(self) -> None:
        """Closes all connections; calls that still wait for one are turned away."""
        self._closed.set()
        self._pool.close()
        self._ping_pool.close()
        self._stoppers.shutdown()

    def ping(self) -> None:
        """Asks the database for an answer. Raises StorageUnavailable when there is none, or it cannot be written to.

        When it answers again after it did not, the connections from before are given up: they may be dead, and a dead
        connection does not always say so.
        """
        try:
            self._ask()
        except psycopg.Error as error:
            self._away = True
            raise errors.StorageUnavailable from error
        if self._away:
            self._away = False
            self._last_return = monotonic()
            self._pool.drain()

    def _ask(self) -> None:
        connection = _borrow(self._ping_pool, self._timeout)
        running = _Running(connection, self._stoppers)
        try:
            self._pinging[running] = monotonic()
            row = connection.execute(_SQL["ping"]).fetchone()
            if row != ("off",):
                connection.close()
                raise pg.ReadOnlySqlTransaction
        finally:
            running.end()
            self._pinging.pop(running, None)
            self._ping_pool.putconn(connection)

    def usage(self) -> Usage:
        """What the pool holds and who waits for it, at this moment."""
        stats = self._pool.get_stats()
        # The pool goes on counting those who gave up, until it next has a connection to give away.
        waiting = min(stats.get("requests_waiting", 0), len(self._queue))
        return Usage(stats.get("pool_size", 0), len(self._lent), waiting)

    def span(self) -> AbstractContextManager[object]:
        """A span of the current call's trace, around work that another thread or a group does for it."""
        return self._span() if self._span is not None else nullcontext()

    @contextmanager
    def connection(self, call: Call, *, traced: bool = True) -> Iterator[Connection]:
        """Lends a connection in autocommit mode, for as long as one statement or transaction of `call` takes.

        With a span of its trace, unless it is not `traced`.

        When the call is over before that, because its deadline passed or the caller went away, the statement is
        stopped. Raises the domain's errors for the database's.
        """
        remaining = call.remaining()
        if remaining is not None and remaining <= 0:
            raise errors.DeadlineExceeded
        timeout = self._timeout if remaining is None else min(remaining, self._timeout)
        try:
            # Not by `with`: that would commit what autocommit has committed.
            connection = self._queued(timeout)
            running = _Running(connection, self._stoppers)
            try:
                if not call.when_over(running.stop):
                    raise errors.Cancelled
                self._lent[running] = monotonic()
                if self._span is None or not traced:
                    yield connection
                else:
                    with self._span():
                        yield connection
                if running.stopping:
                    # When a commit that waits for a synchronous standby is stopped, Postgres reports success, although
                    # the standby does not have it.
                    raise pg.QueryCanceled
            except pg.ReadOnlySqlTransaction:
                # After a failover: only a new connection looks for the new primary.
                connection.close()
                raise
            except psycopg.Rollback as error:
                # It leaves its transaction only when that could not be rolled back.
                raise psycopg.OperationalError("the connection was lost before a rollback") from error
            finally:
                running.end()
                self._lent.pop(running, None)
                self._pool.putconn(connection)
        except psycopg.Error as error:  # the pool's own errors are among them
            if known := self._translated(error, call):
                raise known from error
            raise

    def _queued(self, timeout: float) -> Connection:
        """A connection of the pool. While the caller waits for it, `_queue` counts it."""
        place = object()
        self._queue.add(place)
        try:
            return _borrow(self._pool, timeout)
        finally:
            self._queue.discard(place)

    def _patrol(self) -> None:
        """Stops what the database should have stopped by now, and what waits for an answer lost in an outage."""
        while not self._closed.wait(_PATROL_INTERVAL):
            now = monotonic()
            for running, since in list(self._lent.items()):
                if since < now - self._longest:
                    running.stop()
                elif since < self._last_return < now - _STRAGGLER_TIME:
                    running.cut()
            for running, since in list(self._pinging.items()):
                if since < now - _LONGEST_PING:
                    running.cut()

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
            return errors.Overloaded() if self._lent and not self._away else errors.StorageUnavailable()
        if (error.sqlstate or "").startswith(_PROGRAM_LIMITS):
            return None
        if isinstance(error, _TOO_LONG):
            return errors.DeadlineExceeded("the call takes longer than the server allows")
        if isinstance(error, _CONTENTION):
            return errors.Contention()
        if isinstance(error, _UNAVAILABLE):
            log.warning("database: %s %s", error.sqlstate, " ".join(str(error).split()))
            return errors.StorageUnavailable()
        return None


class Usage(NamedTuple):
    """How many connections there are, how many of them are lent, and how many calls wait for one."""

    connections: int
    lent: int
    waiting: int


class _Running:
    """The use of a borrowed connection. Other threads can stop it, but not once the connection is given back."""

    def __init__(self, connection: Connection, stoppers: ThreadPoolExecutor) -> None:
        self._connection = connection
        self._stoppers = stoppers
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.stopping = False

    def end(self) -> None:
        """To be called before the connection is given back. Waits for a cancel request that is being sent."""
        with self._lock:
            self._ended.set()

    def stop(self) -> None:
        """Has another thread stop the statement, if it runs: gRPC's serving thread, which calls it, must not wait."""
        # Only once: a second cancel request would keep the connection from being given back.
        if not self._ended.is_set() and not self.stopping:
            self.stopping = True
            with suppress(RuntimeError):  # the process is shutting down
                self._stoppers.submit(self._stop)

    def _stop(self) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            with suppress(psycopg.Error):
                self._connection.cancel_safe(timeout=_CANCEL_TIMEOUT)
        if not self._ended.wait(_CANCEL_TIMEOUT):
            self.cut()

    def cut(self) -> None:
        """Ends the connection, if it is still borrowed."""
        with self._lock:
            if not self._ended.is_set():
                _cut(self._connection)


def _pool(url: str, name: str, size: int, timeout: float, options: dict[str, Any]) -> ConnectionPool[Connection]:
    return ConnectionPool(
        url,
        min_size=1,
        max_size=size,
        timeout=timeout,
        reconnect_timeout=_RECONNECT_TIMEOUT,
        open=False,
        name=name,
        kwargs=options,
    )


def _borrow(pool: ConnectionPool[Connection], timeout: float) -> Connection:
    """A connection that was alive a moment ago."""
    deadline = monotonic() + timeout
    while True:
        connection = pool.getconn(max(0.0, deadline - monotonic()))
        if not _has_ended(connection):
            return connection
        connection.close()
        pool.putconn(connection)


def _has_ended(connection: Connection) -> bool:
    """Whether an idle connection has ended, as all do when Postgres restarts.

    Then there is something to read from it. To ask the kernel for that costs a microsecond, to ask the database a round
    trip. What else an idle connection could have to tell, such as a setting that was changed, is not worth reading.
    """
    pgconn = connection.pgconn
    if pgconn.status != ConnStatus.OK:
        return True
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    return bool(poll.poll(0))


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
