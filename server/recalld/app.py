"""The one place that puts the parts of a server together: settings, storage, services, and gRPC around them."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import grpc
import psycopg
from google.protobuf.internal import api_implementation
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from recall.v1 import admin_pb2, memory_pb2, session_pb2, user_pb2
from recalld import addresses, reflection, tracing
from recalld.access import Authenticator
from recalld.access.api_keys import ApiKey, ApiKeyAuthenticator
from recalld.access.certificates import Identities
from recalld.access.files import FileError
from recalld.access.quotas import Quotas
from recalld.access.tokens import Claims, token_authenticator
from recalld.conflicts import check_serving
from recalld.domain import Call
from recalld.embedded import postgres
from recalld.gathering import aside
from recalld.health import Health
from recalld.metrics import Metrics
from recalld.purging import LEASE_TTL, Purger
from recalld.services import add_services
from recalld.services.admission import Admission, CredentialAdmission
from recalld.services.interceptors import interceptors
from recalld.services.observing import observing
from recalld.services.overload import MOST_REFUSALS, CallThreads, TurnAway
from recalld.settings import Settings, SettingsError
from recalld.storage import ApiKeys, Database, Lease, PostgresStore, check_schema, migrate
from recalld.tracing import Tracing, TracingError
from recalld.transport import listen, options

log = logging.getLogger(__name__)

_API: Final = [
    service.full_name
    for file in (session_pb2, memory_pb2, user_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
_STANDARD_SERVICES: Final = [
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
    reflection.SERVICE_NAME,
]

# libpq 17: the first whose cancel requests do not block, and are encrypted like their connection.
_LEAST_LIBPQ: Final = 170000

# Seconds between two updates of the gauges that are not kept up to date by calls.
_SAMPLE_INTERVAL: Final = 1.0


class StartError(Exception):
    """The server cannot run; the text says why, in one line."""


class Server:
    """One server in this process.

    `start` and `stop`, or the server as a context manager. Health says SERVING as soon as the database answers.

    Args:
        settings: with `database_url` it uses that Postgres, otherwise an embedded one in `data_dir`. `workers`,
            `metrics_listen` and the settings of the log are not for it, but for recalld.serving and the command.
        share_port: whether other processes may listen on the same port, as other workers do.
    """

    def __init__(self, settings: Settings, *, share_port: bool = False) -> None:
        self._settings = settings
        self._share_port = share_port
        self._closing = ExitStack()
        self._finished = threading.Event()
        self._draining = threading.Event()
        self._hurried = threading.Event()
        self._failure: Exception | None = None
        self._address: str | None = None
        self._grpc: grpc.Server | None = None
        self._database: Database | None = None
        self.metrics = Metrics()

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
        with self._closing:
            traces = self._trace()
            server = self._grpc = self._listen(traces)
            url = self._database_url()
            self._serve(server, url, traces)
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
        """Makes `wait` return, and raise `failure` if given. May be called on any thread."""
        self._failure = self._failure or failure
        self._finished.set()

    def wait(self) -> None:
        """Returns after `finish`, or raises the failure that it was called with."""
        self._finished.wait()
        if self._failure:
            raise self._failure

    def cancel_calls(self) -> None:
        """Ends the delay and the grace of a `stop` that is under way on another thread."""
        self._hurried.set()
        if self._grpc is not None:
            self._grpc.stop(None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _trace(self) -> Tracing | None:
        try:
            traces = tracing.set_up()
        except TracingError as error:
            raise SettingsError(str(error)) from error
        if traces is not None:
            self._closing.callback(traces.close)
        return traces

    def _listen(self, traces: Tracing | None) -> grpc.Server:
        settings = self._settings
        threads = CallThreads(settings.max_concurrent_calls)
        self._closing.callback(threads.shutdown, wait=False, cancel_futures=True)
        turn_away = TurnAway(threads, self.metrics)
        self._closing.callback(turn_away.close)
        try:
            around = interceptors(
                observe=observing(self.metrics, traces and traces.call, log_calls=settings.log_calls),
                admission=self._admission(),
                quotas=Quotas(settings.rate_limit, settings.concurrency_limit),
                most_streams=settings.max_streams or max(1, settings.max_concurrent_calls // 2),
                draining=self._draining.is_set,
            )
            server = grpc.server(
                threads,
                interceptors=[turn_away, *around],
                options=options(settings, share_port=self._share_port),
                maximum_concurrent_rpcs=settings.max_concurrent_calls + MOST_REFUSALS,
            )
            host = settings.listen.rpartition(":")[0]
            self._address = f"{host}:{listen(server, settings)}"
        except FileError as error:
            raise SettingsError(str(error)) from error
        except RuntimeError as error:
            raise StartError(addresses.refusal(settings.listen, addresses.obstacle(settings.listen))) from error
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
        return aside(ApiKeys(self._database).find, key_id, call)

    def _database_url(self) -> str:
        if self._settings.database_url is not None:
            return self._settings.database_url.get_secret_value()
        return self._closing.enter_context(postgres(self._settings.data_dir))

    def _serve(self, server: grpc.Server, url: str, traces: Tracing | None) -> None:
        settings = self._settings
        database = self._database = Database(
            url,
            size=settings.pool_size,
            timeout=settings.pool_timeout.total_seconds(),
            statement_timeout=settings.statement_timeout.total_seconds(),
            lock_timeout=settings.lock_timeout.total_seconds(),
            pooler=settings.pooler,
            span=traces and traces.statement,
        )

        def prepare() -> None:
            # Migrating needs a session of its own, for its lock and its settings, and a pooler gives none.
            if settings.pooler or not settings.migrate:
                check_schema(url)
            else:
                for step in migrate(url, settings.search_language):
                    log.info("migrated: %s", step)
            store.prepare()

        store = PostgresStore(database)
        health = Health(_API, prepare=prepare, ping=database.ping, fail=self.finish)

        add_services(server, store, settings.retention)
        health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
        if settings.serves_reflection:
            reflection.enable_reflection([*_API, *_STANDARD_SERVICES], server)
            channelz.add_channelz_servicer(server)

        # Each step adds what undoes it to `_closing`, which `stop` runs through from the last to the first.
        database.open()
        self._closing.callback(database.close)
        if settings.purge_interval:
            lease = Lease(database, "purge", LEASE_TTL)
            purger = Purger(
                store,
                lease,
                lambda: database.usage().waiting > 0,
                settings.retention,
                settings.purge_interval,
                self.metrics,
            )
            purger.start()
            self._closing.callback(purger.stop)
        drained = threading.Event()
        self._closing.callback(self.metrics.share_end)
        self._closing.callback(drained.set)
        server.start()
        self._closing.callback(self._drain, server, health)
        self._closing.callback(self._hurried.wait, settings.shutdown_delay.total_seconds())
        health.start()
        self._closing.callback(health.stop)
        threading.Thread(
            target=self._sample, args=(database, health, drained), name="recalld-sample", daemon=True
        ).start()

    def _drain(self, server: grpc.Server, health: Health) -> None:
        self._draining.set()
        stopped = server.stop(self._settings.shutdown_grace.total_seconds())
        health.servicer.end_watches()
        stopped.wait()
        health.servicer.close()

    def _sample(self, database: Database, health: Health, drained: threading.Event) -> None:
        while not drained.wait(_SAMPLE_INTERVAL):
            self.metrics.share()
            usage = database.usage()
            self.metrics.pool_connections.labels("lent").set(usage.lent)
            self.metrics.pool_connections.labels("idle").set(max(0, usage.connections - usage.lent))
            self.metrics.pool_waiting.set(usage.waiting)
            self.metrics.database_up.set(health.serving)


def _check_libraries() -> None:
    """Refuses libraries with which the server would run, but slowly or unreliably. Raises StartError."""
    if psycopg.pq.version() < _LEAST_LIBPQ:
        raise StartError(f"libpq {psycopg.pq.version()} is too old: install psycopg[binary]")
    if api_implementation.Type() != "upb":
        raise StartError(f"protobuf runs on its {api_implementation.Type()!r} implementation: install one with 'upb'")
