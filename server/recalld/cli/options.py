"""What the commands share: options for settings, and how they say what went wrong."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from recalld.settings import (
    API_KEY,
    Settings,
    flag,
    format_duration,
    is_unicode,
    parse_duration,
    show,
    unknown_variables,
    variable,
)

if TYPE_CHECKING:
    import grpc

    from recalld.client import Client
    from recalld.errors import StorageUnavailable

# 100 years: a longer one is a typing error, and dates end with the year 9999.
_LONGEST: Final = timedelta(days=36500)

_NO_DATABASE: Final = re.compile(r'database "([^"]+)" does not exist')
_REMEDIES: Final = {
    "session is read-only": "name the host that takes writes in RECALLD_DATABASE_URL",
    "password": "correct the user or the password in RECALLD_DATABASE_URL",
    'role "': "create the role, or name another one in RECALLD_DATABASE_URL",
}

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def complain(text: str) -> None:
    """Says on stderr what is wrong, each line by itself."""
    with suppress(OSError):  # a full disk: the status says it too
        for line in text.splitlines():
            click.echo(f"recalld: {line}", err=True)


def discard_output() -> None:
    """Discards what stdout has buffered: otherwise Python tries to write it again at exit, and prints a stack."""
    with suppress(OSError, AttributeError):  # it is no file, or there is none
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Text(click.ParamType[str]):
    """An option whose text must not be empty: an empty one is most likely an unset variable of a shell."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("must not be empty", param, ctx)
        if not is_unicode(value):
            self.fail("must be UTF-8", param, ctx)
        return str(value)


class Duration(click.ParamType[timedelta]):
    """An option such as `7d`, `12h` or `90` (seconds)."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            duration = parse_duration(value)
        except ValueError as error:
            self.fail(f'{error} (got "{value}")', param, ctx)
        if duration > _LONGEST:
            self.fail(f"must be at most {format_duration(_LONGEST)}", param, ctx)
        return duration


_PEM: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


def with_settings(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command the flags of these settings, or of all, and calls it with the loaded settings first."""

    chosen = names or tuple(Settings.model_fields)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def load_and_run(**options: Any) -> Any:
            given = {name: options.pop(name) for name in chosen}
            for line in unknown_variables():
                complain(f"warning: {line}")
            settings = Settings.load({name: value for name, value in given.items() if value is not None})
            return command(settings, **options)

        decorated: Callable[..., Any] = functools.wraps(command)(load_and_run)
        for name in reversed(chosen):
            decorated = _option(name)(decorated)
        return decorated

    return decorate


def _option(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    field = Settings.model_fields[name]
    text = f"{field.description} [{variable(name)}; default: {show(field.default) or 'unset'}]"
    if field.annotation is bool:
        return click.option(f"{flag(name)}/--no-{flag(name)[2:]}", name, default=None, help=text)
    return click.option(flag(name), name, metavar="VALUE", help=text)


def asks_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that say which server to ask, and how; `connected` takes them."""
    for option in reversed(
        (
            click.option(
                "--target", type=Text(), metavar="HOST:PORT", help="The server to ask. [default: the setting listen]"
            ),
            click.option("--tls", is_flag=True, help="Encrypt, trusting the usual authorities."),
            click.option("--ca-file", type=_PEM, metavar="PEM", help="Encrypt, trusting the authority in this file."),
            click.option("--cert-file", type=_PEM, metavar="PEM", help="Show this certificate (mutual TLS)."),
            click.option("--key-file", type=_PEM, metavar="PEM", help="The key of --cert-file."),
            click.option(
                "--api-key",
                type=Text(),
                metavar="KEY",
                envvar=API_KEY,
                help=f"The credential; better not seen, in {API_KEY}.",
            ),
        )
    ):
        command = option(command)
    return command


def connected(settings: Settings, options: dict[str, Any]) -> Client:
    """A client of the server that the options of `asks_server` name, which it takes out of `options`."""
    from recalld.access.files import FileError
    from recalld.client import Tls, connect, is_local

    target, tls, ca, cert, key, api_key = (
        options.pop(name) for name in ("target", "tls", "ca_file", "cert_file", "key_file", "api_key")
    )
    target = target or reachable(settings.listen)
    if (cert is None) != (key is None):
        raise click.UsageError("--cert-file and --key-file go together")
    encrypted = bool(tls or ca or cert)
    if api_key is not None and not encrypted and not is_local(target):
        raise click.UsageError(f"the key would travel in plaintext to {target}: say --tls or --ca-file")
    try:
        if ca or cert:
            from recalld.access.certificates import check_certificates

            check_certificates(ca, cert, key)
        return connect(target, api_key=api_key, tls=Tls(ca, cert, key) if encrypted else False)
    except (FileError, ValueError) as error:
        raise click.UsageError(str(error)) from None


def refused(error: grpc.RpcError) -> click.ClickException:
    """What to say of a call that failed, and what to do about it."""
    from recalld.client import reason_of

    code = error.code().name
    remedy = ""
    if code == "UNAVAILABLE" and not reason_of(error).reason:
        remedy = "; check that recalld serves there (--target), and whether with TLS (--tls, --ca-file)"
    elif code == "UNAUTHENTICATED":
        remedy = f"; give a key in {API_KEY}"
    return click.ClickException(f"{code}: {one_line(error.details())}{remedy}")


def reachable(listen: str) -> str:
    """The address by which this machine reaches a server that listens on `listen`: loopback for a wildcard."""
    host, _, port = listen.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"


@contextmanager
def database_of(settings: Settings) -> Iterator[str]:
    """The URL of the configured database, or of the embedded one, which runs meanwhile."""
    from recalld.embedded import EmbeddedPostgresError, postgres

    configured = settings.database_url
    try:
        with nullcontext(configured.get_secret_value()) if configured else postgres(settings.data_dir) as url:
            yield url
    except EmbeddedPostgresError as error:
        raise click.ClickException(str(error)) from error


def unavailable(error: StorageUnavailable) -> click.ClickException:
    """What to say when the database cannot be used, and what to do about it."""
    cause = one_line(error.__cause__)
    return click.ClickException(f"the database is not available: {cause}: {database_remedy(cause)}")


def database_remedy(words: str) -> str:
    """What to do about this error text of a connection attempt, for which psycopg gives no SQLSTATE."""
    if missing := _NO_DATABASE.search(words):
        return f"create it: createdb {missing[1]}"
    return next(
        (remedy for sign, remedy in _REMEDIES.items() if sign in words),
        "check RECALLD_DATABASE_URL, the network, Postgres",
    )


def one_line(text: object) -> str:
    """The text with its line breaks and runs of spaces made one space each."""
    return " ".join(str(text).split())
