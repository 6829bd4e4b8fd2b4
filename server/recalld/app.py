"""The one place that puts the parts together: settings, storage, services, and the gRPC server around them."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import grpc
import psycopg
from google.protobuf.internal import api_implementation
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld.embedded import EmbeddedPostgresError, postgres
from recalld.health import Health
from recalld.limits import KIB, MAX_REQUEST_BYTES
from recalld.services import add_services
from recalld.services.interceptors import interceptors
from recalld.settings import Settings
from recalld.storage import Database, PostgresStore, migrate

log = logging.getLogger(__name__)

_API: Final = [
    service.full_name
    for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
_BESIDE: Final = [
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
    reflection.SERVICE_NAME,
]

_OPTIONS: Final = [
    # Two servers on one port would share its connections silently.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Above the first a call is turned away at random, above the second always; these are what clients apply to us.
    ("grpc.max_metadata_size", 8 * KIB),
    ("grpc.absolute_max_metadata_size", 16 * KIB),
    # Clients may ping this often, also between calls, to keep a connection open through a NAT or balancer; by default
    # gRPC cuts off whoever pings more than once in 5 minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Finds clients that vanished without a word, and with them the streams that they left open.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

# libpq that stops a statement without blocking, also on an encrypted connection.
_LEAST_LIBPQ: Final = 170000


class StartError(Exception):
    """The server cannot run; the text says why, in one line."""


class Server:
    """One server in this process.

    `start` and `stop`, or the server as a context manager. Health says SERVING as soon as the database answers.

    Args:
        settings: with `database_url` it uses that Postgres, otherwise an embedded one in `data_dir`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._closing = ExitStack()
        self._finished = threading.Event()
        self._failure: Exception | None = None
        self._address: str | None = None
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="recalld-call")
        self._grpc = grpc.server(
            self._threads,
            interceptors=interceptors(self._finished.is_set),
            options=_OPTIONS,
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
        )

    @property
    def address(self) -> str:
        """HOST:PORT that it serves on, with the port that was picked when port 0 was asked for."""
        assert self._address is not None, "not started"
        return self._address

    def start(self) -> None:
        """Takes the port, then the database, and serves, without waiting for the database to answer.

        Raises StartError, EmbeddedPostgresError.
        """
        _check_libraries()
        self._address = self._bind()
        with self._closing:
            url = self._database_url()
            self._serve(url)
            self._closing = self._closing.pop_all()

    def stop(self) -> None:
        """Takes no more calls, lets those in progress finish within the grace, and releases what `start` took."""
        self._finished.set()
        self._closing.close()

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._finished.is_set()

    def finish(self, failure: Exception | None = None) -> None:
        """Has `wait` return, on any thread."""
        self._failure = self._failure or failure
        self._finished.set()

    def wait(self) -> None:
        """Returns after `finish`, or raises the failure that it was called with."""
        self._finished.wait()
        if self._failure:
            raise self._failure

    def cancel_calls(self) -> None:
        """Ends the grace of a `stop` that is under way on another thread."""
        self._grpc.stop(None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _bind(self) -> str:
        host = self._settings.listen.rpartition(":")[0]
        try:
            port = self._grpc.add_insecure_port(self._settings.listen)
        except RuntimeError:
            raise StartError(f"cannot listen on {self._settings.listen}: it is in use, or not ours to use") from None
        return f"{host}:{port}"

    def _database_url(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        return self._closing.enter_context(postgres(self._settings.data_dir))

    def _serve(self, url: str) -> None:
        settings = self._settings
        database = Database(
            url,
            size=settings.pool_size,
            timeout=settings.pool_timeout.total_seconds(),
            statement_timeout=settings.statement_timeout.total_seconds(),
        )

        def prepare() -> None:
            if settings.migrate:
                for step in migrate(url, settings.search_language):
                    log.info("migrated: %s", step)

        health = Health(_API, prepare=prepare, ping=database.ping, fail=self.finish)

        add_services(self._grpc, PostgresStore(database), settings.retention)
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, self._grpc)
        reflection.enable_server_reflection([*_API, *_BESIDE], self._grpc)
        channelz.add_channelz_servicer(self._grpc)

        # Undone in the reverse order.
        database.open()
        self._closing.callback(database.close)
        self._grpc.start()
        self._closing.callback(self._drain)
        health.start()
        self._closing.callback(health.stop)

    def _drain(self) -> None:
        self._grpc.stop(self._settings.shutdown_grace.total_seconds()).wait()
        self._threads.shutdown(wait=False, cancel_futures=True)


def serve(settings: Settings, started: Callable[[Server], None]) -> None:
    """Runs a server until SIGTERM or SIGINT; a second one cancels the calls that are still in progress.

    The signals are blocked rather than handled, in every thread, and in the programs that start and stop the embedded
    Postgres, since Ctrl-C goes to all processes of a terminal. One thread waits for them.

    Args:
        settings: of the server.
        started: called once it listens.

    Raises StartError, EmbeddedPostgresError, MigrationError.
    """
    stop_signals = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    server = Server(settings)

    def obey_signals() -> None:
        received = signal.sigwait(stop_signals)
        server.finish()
        log.info("stopping on %s", signal.Signals(received).name)
        signal.sigwait(stop_signals)
        server.cancel_calls()

    threading.Thread(target=obey_signals, name="recalld-signals", daemon=True).start()
    try:
        with server:
            started(server)
            server.wait()
    except EmbeddedPostgresError:
        if not server.finished:  # otherwise Ctrl-C interrupted initdb, which leaves nothing behind
            raise
    log.info("stopped")


def _check_libraries() -> None:
    """Refuses what would work, but slowly or not always."""
    if psycopg.pq.version() < _LEAST_LIBPQ:
        raise StartError(f"libpq {psycopg.pq.version()} is too old: install psycopg[binary]")
    if api_implementation.Type() != "upb":
        raise StartError(f"protobuf runs on its {api_implementation.Type()!r} implementation: install one with 'upb'")
