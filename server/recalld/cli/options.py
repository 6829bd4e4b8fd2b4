"""What the commands share: options for settings, and how they say what went wrong."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from recalld.settings import API_KEY, Settings, flag, parse_duration, show, unknown_variables, variable

if TYPE_CHECKING:
    from recalld.client import Client

_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


def complain(text: str) -> None:
    """Says on stderr what is wrong, each line by itself."""
    for line in text.splitlines():
        click.echo(f"recalld: {line}", err=True)


class Duration(click.ParamType[timedelta]):
    """An option such as `7d`, `12h` or `90` (seconds)."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f'{error} (got "{value}")', param, ctx)


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
            click.option("--target", metavar="HOST:PORT", help="The server to ask. [default: the setting listen]"),
            click.option("--tls", is_flag=True, help="Encrypt, trusting the usual authorities."),
            click.option("--ca-file", metavar="PEM", help="Encrypt, trusting the authority in this file."),
            click.option("--cert-file", metavar="PEM", help="Show this certificate (mutual TLS)."),
            click.option("--key-file", metavar="PEM", help="The key of --cert-file."),
            click.option(
                "--api-key", metavar="KEY", envvar=API_KEY, help=f"The credential; better not seen, in {API_KEY}."
            ),
        )
    ):
        command = option(command)
    return command


def connected(settings: Settings, options: dict[str, Any]) -> Client:
    """A client of the server that the options of `asks_server` name, which it takes out of `options`."""
    from recalld.client import Tls, connect

    target, tls, ca, cert, key, api_key = (
        options.pop(name) for name in ("target", "tls", "ca_file", "cert_file", "key_file", "api_key")
    )
    try:
        return connect(
            target or reachable(settings.listen),
            api_key=api_key,
            tls=Tls(ca, cert, key) if tls or ca or cert else False,
        )
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def reachable(listen: str) -> str:
    """Where this machine reaches a server that listens there: on loopback if it listens everywhere."""
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


def one_line(text: object) -> str:
    """The text with its line breaks and runs of spaces made one space each."""
    return " ".join(str(text).split())
