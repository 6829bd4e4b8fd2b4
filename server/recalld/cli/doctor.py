"""`recalld doctor`: what is wrong, or soon will be, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from recalld import addresses
from recalld.cli.options import database_of, database_remedy, one_line, with_settings
from recalld.settings import Settings, SettingsError, unknown_variables

if TYPE_CHECKING:
    import psycopg

_GOOD: Final = "ok"
_DOUBTFUL: Final = "warning"
_BAD: Final = "error"

_LEAST_POSTGRES: Final = 150000
_MOST_SKEW: Final = timedelta(seconds=5)
_EXPIRES_SOON: Final = timedelta(days=14)


class Finding(NamedTuple):
    """What a check found: `verdict` is ok, warning or error; `remedy` is what to do, empty when there is nothing."""

    verdict: str
    subject: str
    text: str
    remedy: str = ""


@click.command()
@with_settings()
def doctor(settings: Settings) -> int:
    """Check configuration, database, schema, clock and TLS files. Takes the flags of serve; exit status 1 on errors."""
    failed = False
    for finding in examine(settings):
        click.echo(f"{finding.verdict:8}{finding.subject}: {finding.text}")
        if finding.remedy:
            click.echo(f"{'':8}→ {finding.remedy}")
        failed = failed or finding.verdict == _BAD
    return int(failed)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, in an order in which the first error explains those after it."""
    yield from _configuration(settings)
    yield from _address(settings)
    yield from _certificates(settings)
    yield from _tokens(settings)
    yield from _traces()
    yield from _database(settings)


def _configuration(settings: Settings) -> Iterator[Finding]:
    from recalld.conflicts import check_serving

    lines = [Finding(_DOUBTFUL, "configuration", line, "correct or remove it") for line in unknown_variables()]
    try:
        check_serving(settings)
    except SettingsError as error:
        lines += [Finding(_BAD, "configuration", line, "see docs/access.md") for line in str(error).splitlines()]
    yield from lines or [Finding(_GOOD, "configuration", "every setting is valid, and they fit together")]
    if settings.insecure and not settings.on_loopback:
        yield Finding(
            _DOUBTFUL,
            "configuration",
            f"{settings.listen} is open to others as --insecure says",
            "have a proxy or mesh in front that encrypts and authenticates",
        )


def _address(settings: Settings) -> Iterator[Finding]:
    obstacle = addresses.obstacle(settings.listen)
    if obstacle is None:
        yield Finding(_GOOD, "address", f"{settings.listen} is free")
    else:
        yield Finding(
            _DOUBTFUL,
            "address",
            f"cannot listen on {settings.listen}: {obstacle}",
            "fine if recalld is running already; otherwise choose another with RECALLD_LISTEN",
        )


def _certificates(settings: Settings) -> Iterator[Finding]:
    from recalld.access.certificates import Identities, expiry, watch_certificates
    from recalld.access.files import FileError

    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return
    try:
        watch_certificates(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
        if settings.tls_identities_file:
            Identities(settings.tls_identities_file)
        ends = expiry(settings.tls_cert_file)
    except FileError as error:
        yield Finding(_BAD, "tls", str(error), "put the right file there; no restart is needed")
        return
    left = ends - datetime.now(UTC)
    if left <= timedelta(0):
        yield Finding(_BAD, "tls", f"the certificate expired at {ends:%Y-%m-%d %H:%M} UTC", "replace it")
    elif left < _EXPIRES_SOON:
        yield Finding(_DOUBTFUL, "tls", f"the certificate expires at {ends:%Y-%m-%d %H:%M} UTC", "replace it soon")
    else:
        yield Finding(_GOOD, "tls", f"certificate and key fit, and are good until {ends:%Y-%m-%d}")


def _tokens(settings: Settings) -> Iterator[Finding]:
    from recalld.access.files import FileError
    from recalld.access.tokens import Claims, token_authenticator

    if settings.jwt_key_file is None and settings.jwt_jwks_file is None:
        return
    try:
        token_authenticator(
            Claims(settings.jwt_issuer, settings.jwt_audience),
            key_file=settings.jwt_key_file,
            jwks_file=settings.jwt_jwks_file,
        )
    except FileError as error:
        yield Finding(_BAD, "tokens", str(error), "put the issuer's public keys there; no restart is needed")
    else:
        yield Finding(_GOOD, "tokens", "the issuer's keys can be read")


def _traces() -> Iterator[Finding]:
    from recalld.tracing import TracingError, asked_for

    try:
        exporter = asked_for()
    except TracingError as error:
        yield Finding(_BAD, "traces", str(error), "the server does not start like this")
        return
    if exporter is not None:
        yield Finding(_GOOD, "traces", f"are sent by {exporter}")


def _database(settings: Settings) -> Iterator[Finding]:
    import psycopg

    try:
        with database_of(settings) as url, _connected(url) as connection:
            for check in (_version, _writable, _durability, _room, _clock, _schema, _nodes):
                yield from check(connection, settings)
    except psycopg.OperationalError as error:
        words = one_line(error)
        yield Finding(_BAD, "database", f"does not answer: {words}", database_remedy(words))
    except psycopg.NotSupportedError as error:
        text, _, remedy = str(error).partition(": ")
        yield Finding(_BAD, "database", text, remedy)
    except psycopg.Error as error:
        yield Finding(_BAD, "database", one_line(error), "check the rights of the database's role")
    except click.ClickException as error:
        yield Finding(_BAD, "database", error.format_message(), "set RECALLD_DATABASE_URL to a Postgres of your own")


def _connected(url: str) -> psycopg.Connection[Any]:
    """Connects as a server does, of several hosts to the one that takes writes; to any when none does."""
    import psycopg

    from recalld.storage.database import connect

    try:
        return connect(url, autocommit=True)
    except psycopg.OperationalError:
        return connect(url, target_session_attrs="any", autocommit=True)


def _version(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    version = connection.info.server_version
    shown = f"Postgres {version // 10000}.{version % 10000}"
    if version < _LEAST_POSTGRES:
        yield Finding(_BAD, "database", f"{shown} is too old", "use Postgres 15 to 18")
    else:
        yield Finding(_GOOD, "database", f"{shown} answers")


def _writable(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    if _ask(connection, "ping") != ("off",):
        yield Finding(
            _BAD,
            "database",
            "it takes no writes: a standby, or set to be read-only",
            "name all hosts in RECALLD_DATABASE_URL: the one that takes writes is found; if none does, promote one",
        )


def _durability(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    for setting, value in zip(("fsync", "synchronous_commit"), _ask(connection, "durability"), strict=True):
        if value == "off":
            yield Finding(
                _DOUBTFUL, "durability", f"{setting} is off: a crash can lose acknowledged writes", "turn it on"
            )


def _room(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    (most,) = _ask(connection, "max_connections")
    needed = settings.workers * (settings.pool_size + 1)
    text = f"needs {needed} of the database's {most}"
    if needed > int(most):
        yield Finding(_BAD, "connections", text, "lower RECALLD_POOL_SIZE or raise max_connections")
    else:
        yield Finding(_GOOD, "connections", text)


def _clock(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    before = datetime.now(UTC)
    (theirs,) = _ask(connection, "clock")
    skew = abs(theirs - (before + (datetime.now(UTC) - before) / 2))
    if skew > _MOST_SKEW:
        yield Finding(
            _DOUBTFUL, "clock", f"{skew.total_seconds():.0f} s apart from the database's", "synchronise both by NTP"
        )
    else:
        yield Finding(_GOOD, "clock", "the same as the database's")


def _schema(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    from recalld.storage.migrate import current_revision, newest_revision

    current, newest = current_revision(connection), newest_revision()
    if current == newest:
        yield Finding(_GOOD, "schema", f"{current}, as this version needs it")
    elif current is None and _ask(connection, "may_create") != (True,):
        remedy = "run `recalld migrate` as the database's owner"
        yield Finding(_BAD, "schema", "there is none yet, and the database's role may not make it", remedy)
    elif current is None:
        yield Finding(_DOUBTFUL, "schema", "there is none yet", _when_migrated(settings))
    elif current < newest:
        yield Finding(_DOUBTFUL, "schema", f"{current}; this version needs {newest}", _when_migrated(settings))
    else:
        (oldest,) = _ask(connection, "oldest_server")
        verdict = _BAD if oldest > newest else _DOUBTFUL
        yield Finding(verdict, "schema", f"{current} is newer than this version's {newest}", "upgrade recalld")


def _nodes(connection: psycopg.Connection[Any], settings: Settings) -> Iterator[Finding]:
    from recalld.storage.distribution import complete, distributed, obstacle

    if distributed(connection):
        if complete(connection):
            yield Finding(_GOOD, "citus", "sessions are distributed over its nodes")
        else:
            yield Finding(_DOUBTFUL, "citus", "a part of the schema is on one node only", "run `recalld migrate`")
    elif obstacle(connection) is None:
        yield Finding(_GOOD, "citus", "not used; `recalld migrate --distributed` spreads sessions over its nodes")


def _when_migrated(settings: Settings) -> str:
    return "the server migrates at start" if settings.migrate else "run `recalld migrate`"


def _ask(connection: psycopg.Connection[Any], statement: str) -> tuple[Any, ...]:
    from recalld.storage.sql import statements

    row = connection.execute(statements("schema")[statement]).fetchone()
    assert row is not None
    return tuple(row)
