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
from recalld.access import Authenticator
from recalld.access.api_keys import ApiKey, ApiKeyAuthenticator
from recalld.access.certificates import Identities
from recalld.access.files import FileError
from recalld.access.quotas import Quotas
from recalld.access.tokens import Claims, token_authenticator
from recalld.domain import Call
from recalld.embedded import EmbeddedPostgresError, postgres
from recalld.health import Health
from recalld.services import add_services
from recalld.services.admission import Admission, CredentialAdmission
from recalld.services.interceptors import interceptors
from recalld.settings import Settings, check_serving
from recalld.storage import ApiKeys, Database, PostgresStore, migrate
from recalld.transport import listen, options

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
        self._grpc: grpc.Server | None = None
        self._database: Database | None = None

    @property
    def address(self) -> str:
        """HOST:PORT that it serves on, with the port that was picked when port 0 was asked for."""
        assert self._address is not None, "not started"
        return self._address

    def start(self) -> None:
        """Takes the port, then the database, and serves, without waiting for the database to answer.

        Raises SettingsError, StartError, EmbeddedPostgresError.
        """
        _check_libraries()
        check_serving(self._settings)
        server = self._grpc = self._listen()
        with self._closing:
            url = self._database_url()
            self._serve(server, url)
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
        if self._grpc is not None:
            self._grpc.stop(None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _listen(self) -> grpc.Server:
        settings = self._settings
        host = settings.listen.rpartition(":")[0]
        try:
            server = grpc.server(
                self._threads,
                interceptors=interceptors(
                    draining=self._finished.is_set,
                    admission=self._admission(),
                    quotas=Quotas(settings.rate_limit, settings.concurrency_limit),
                    most_streams=settings.max_streams,
                ),
                options=options(settings),
                maximum_concurrent_rpcs=settings.max_concurrent_calls,
            )
            self._address = f"{host}:{listen(server, settings)}"
        except FileError as error:
            raise StartError(str(error)) from error
        except RuntimeError:
            raise StartError(f"cannot listen on {settings.listen}: it is in use, or not ours to use") from None
        return server

    def _admission(self) -> Admission | None:
        settings = self._settings
        if not settings.auth:
            return None
        authenticators: list[Authenticator] = [ApiKeyAuthenticator(self._find_key)]
        secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        if secret or settings.jwt_key_file or settings.jwt_jwks_file:
            claims = Claims(
                issuer=settings.jwt_issuer,
                audience=settings.jwt_audience,
                namespace=settings.jwt_namespace_claim,
                scopes=settings.jwt_scopes_claim,
            )
            authenticators.append(
                token_authenticator(
                    claims, secret=secret, key_file=settings.jwt_key_file, jwks_file=settings.jwt_jwks_file
                )
            )
        identities = Identities(settings.tls_identities_file) if settings.tls_identities_file else None
        return CredentialAdmission(authenticators, identities)

    def _find_key(self, key_id: str, call: Call) -> ApiKey | None:
        assert self._database is not None, "no call comes before the server starts"
        return ApiKeys(self._database).find(key_id, call)

    def _database_url(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        return self._closing.enter_context(postgres(self._settings.data_dir))

    def _serve(self, server: grpc.Server, url: str) -> None:
        settings = self._settings
        database = self._database = Database(
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

        add_services(server, PostgresStore(database), settings.retention)
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        if settings.on_loopback if settings.reflection is None else settings.reflection:
            reflection.enable_server_reflection([*_API, *_BESIDE], server)
            channelz.add_channelz_servicer(server)

        # Undone in the reverse order.
        database.open()
        self._closing.callback(database.close)
        server.start()
        self._closing.callback(self._drain, server)
        health.start()
        self._closing.callback(health.stop)

    def _drain(self, server: grpc.Server) -> None:
        server.stop(self._settings.shutdown_grace.total_seconds()).wait()
        self._threads.shutdown(wait=False, cancel_futures=True)


def serve(settings: Settings, started: Callable[[Server], None]) -> None:
    """Runs a server until SIGTERM or SIGINT; a second one cancels the calls that are still in progress.

    The signals are blocked rather than handled, in every thread, and in the programs that start and stop the embedded
    Postgres, since Ctrl-C goes to all processes of a terminal. One thread waits for them.

    Args:
        settings: of the server.
        started: called once it listens.

    Raises SettingsError, StartError, EmbeddedPostgresError, MigrationError.
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
