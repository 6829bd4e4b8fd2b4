"""The command line: `recalld serve | migrate | keys | purge | config | doctor | health | version`.

Every command imports what it needs when it runs, so that `recalld version` and `recalld config` are quick.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from recalld import __version__
from recalld.cli.doctor import doctor
from recalld.cli.health import health
from recalld.cli.keys import keys
from recalld.cli.options import (
    Duration,
    Text,
    asks_server,
    complain,
    connected,
    database_of,
    discard_output,
    one_line,
    reachable,
    refused,
    unavailable,
    with_settings,
)
from recalld.settings import Settings, SettingsError, effective, variable, without_secrets

if TYPE_CHECKING:
    from recall.v1.admin_pb2 import PurgeResponse

_INTERRUPTED: Final = 130  # what shells expect of a command that ended by SIGINT
_FAILURE: Final = 1
_USAGE: Final = 2

# Seconds between two lines of progress where it cannot be shown in place.
_LINE_INTERVAL: Final = 5.0

_PACKAGE: Final = Path(__file__).parent.parent

log = logging.getLogger(__name__)

_EXAMPLE: Final = '{"session_id":"demo","messages":[{"role":"user","content":"hello"}]}'


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status. Errors are reported on stderr, one line each."""
    # gRPC's own log lines repeat in another format what is reported here; the variable set to INFO or ERROR shows them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # As root the embedded Postgres is started by fork() and exec(), in which gRPC's fork handlers can crash.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no locale has every character
    try:
        status = recalld.main(list(arguments), prog_name="recalld", standalone_mode=False)
        if sys.stdout is not None:  # it is None if it was closed before the start
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except SystemExit:  # raised by click and rich when the reader of the output has gone
        return _FAILURE
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except SettingsError as error:
        complain(str(error))
        return _USAGE
    except click.Abort:
        return _INTERRUPTED
    except OSError as error:
        discard_output()
        complain(f"{error.filename or 'cannot write the output'}: {error.strerror or error}")
        return _FAILURE
    except ModuleNotFoundError:  # reported by the caller, __main__
        raise
    except Exception as error:
        if os.environ.get(variable("log_level"), "").upper() == "DEBUG":
            raise
        complain(f"internal error at {_place(error)}: {type(error).__name__}: {one_line(error)}")
        return _FAILURE


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def recalld() -> None:
    """Conversation memory for AI applications, in Postgres, behind gRPC."""


@recalld.command()
@with_settings()
def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from recalld import logs, serving
    from recalld.app import StartError
    from recalld.embedded import EmbeddedPostgresError
    from recalld.storage import MigrationError, UnknownLanguage

    logs.set_up(settings.log_level, settings.log_format)
    try:
        serving.serve(settings, functools.partial(_announce, settings))
    except UnknownLanguage as error:
        raise SettingsError(str(error)) from error
    except (StartError, EmbeddedPostgresError, MigrationError) as error:
        raise click.ClickException(str(error)) from error


@recalld.command()
@with_settings("database_url", "data_dir", "search_language", "log_level", "log_format")
@click.option("--distributed", is_flag=True, help="Also spread the tables over the nodes of the database's Citus.")
@click.option(
    "--grant-to", type=Text(), metavar="ROLE", help="Also give this database role what a server needs, and no more."
)
@click.option("--sql", "only_sql", is_flag=True, help="Print the SQL of what is pending, and change nothing.")
def migrate(settings: Settings, distributed: bool, grant_to: str | None, only_sql: bool) -> None:
    """Bring the database to the schema, and the search language, of this version."""
    from recalld import logs, storage
    from recalld.errors import StorageUnavailable

    logs.set_up(settings.log_level, settings.log_format)
    try:
        with database_of(settings) as url:
            if only_sql:
                click.echo(storage.pending_sql(url, distribute=distributed), nl=False)
                return
            steps = storage.migrate(
                url, settings.search_language, change_language=True, distribute=distributed, grant_to=grant_to
            )
    except StorageUnavailable as error:
        raise unavailable(error) from error
    except storage.UnknownLanguage as error:
        raise SettingsError(str(error)) from error
    except storage.MigrationError as error:
        raise click.ClickException(one_line(error)) from error
    for step in steps:
        click.echo(f"migrated: {step}")
    if not steps:
        click.echo("nothing to do: the database is up to date")


recalld.add_command(keys)
recalld.add_command(doctor)
recalld.add_command(health)


@recalld.command()
@with_settings("listen")
@click.option("--older-than", type=Duration(), help="Remove what was deleted this long ago. [default: the retention]")
@click.option("--session", "session_id", type=Text(), metavar="ID", help="Only this session.")
@click.option("--user", "user_id", type=Text(), metavar="ID", help="Only this user and its sessions.")
@click.option("--dry-run", is_flag=True, help="Only count what would be removed.")
@click.option(
    "--batch-size", type=click.IntRange(0, 2**31 - 1), default=0, help="The most messages removed in one transaction."
)
@asks_server
def purge(
    settings: Settings,
    older_than: timedelta | None,
    session_id: str | None,
    user_id: str | None,
    dry_run: bool,
    batch_size: int,
    **options: Any,
) -> None:
    """Have a running server remove deleted data for good. The credential needs the scope admin."""
    import grpc

    from recall.v1.admin_pb2 import PurgeRequest

    if session_id is not None and user_id is not None:
        raise click.UsageError("--session and --user exclude each other")
    request = PurgeRequest(dry_run=dry_run, batch_size=batch_size)
    if older_than is not None:
        request.older_than.FromTimedelta(older_than)
    if session_id is not None:
        request.session_id = session_id
    if user_id is not None:
        request.user_id = user_id
    with connected(settings, options) as client:
        try:
            _show_progress(client.admin.Purge(request), dry_run=dry_run)
        except grpc.RpcError as error:
            raise refused(error) from None


@recalld.command()
@with_settings()
@click.option("--json", "as_json", is_flag=True, help="As JSON, an object by setting.")
def config(settings: Settings, as_json: bool) -> None:
    """Show every setting, its value, where that comes from, and its meaning. Takes the flags of serve."""
    if as_json:
        import json

        shown = {row.name: {k: v for k, v in row._asdict().items() if k != "name"} for row in effective(settings)}
        click.echo(json.dumps(shown, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("Variable", "Value", "Source", "Meaning", box=None, header_style="bold", pad_edge=False)
    table.columns[0].no_wrap = True
    table.columns[1].overflow = "fold"
    for row in effective(settings):
        table.add_row(row.variable, row.value, row.source, row.meaning)
    Console(highlight=False, markup=False).print(table)


@recalld.command()
def version() -> None:
    """Show the versions of recalld and of what it stands on."""
    import platform

    import google.protobuf
    import grpc
    import psycopg
    from google.protobuf.internal import api_implementation

    click.echo(f"recalld {__version__}")
    click.echo(f"python {platform.python_version()}")
    click.echo(f"grpcio {grpc.__version__}")
    click.echo(f"protobuf {google.protobuf.__version__} ({api_implementation.Type()})")
    libpq = psycopg.pq.version_pretty(psycopg.pq.version())
    click.echo(f"psycopg {psycopg.__version__} ({psycopg.pq.__impl__}, libpq {libpq})")


def _announce(settings: Settings, address: str) -> None:
    url = settings.database_url
    where = (
        f"Postgres at {without_secrets(url.get_secret_value())}" if url else f"embedded Postgres in {settings.data_dir}"
    )
    workers = f" with {settings.workers} workers" if settings.workers > 1 else ""
    options = "-plaintext" if settings.tls_cert_file is None else "-cacert ca.pem"
    if settings.tls_client_ca_file is not None:
        options += " -cert client.pem -key client.key"
    if settings.auth:
        options += " -H 'authorization: Bearer recalld_…'"
    if not settings.serves_reflection:
        options += " -import-path protos -proto recall/v1/memory.proto"
    target = reachable(address)
    try:
        print(f"recalld {__version__} listens on {address}{workers}")
        print(f"data: {where}")
        print(f"try:  grpcurl {options} -d '{_EXAMPLE}' {target} recall.v1.MemoryService/AddMemory", flush=True)
    except OSError as error:  # a full disk, or a reader that has gone, is no reason not to serve
        discard_output()
        log.warning("cannot write to stdout: %s", error.strerror)


def _place(error: Exception) -> str:
    """The innermost line of this package in an error's traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    return f"{Path(frames[-1].filename).relative_to(_PACKAGE)}:{frames[-1].lineno}"


def _show_progress(responses: Iterator[PurgeResponse], *, dry_run: bool) -> None:
    """Shows what was removed so far: in place on a terminal, otherwise a line now and then, and one at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    verb = "would remove" if dry_run else "removed"
    columns = (BarColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    console = Console(highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        # How much there is to remove is not known before it is removed: the bar only pulses.
        bar = progress.add_task(verb, total=None)
        last_line = time.monotonic()
        so_far = ""
        try:
            for response in responses:
                line = f"{verb} {response.sessions} sessions, {response.messages} messages, {response.users} users"
                so_far = "" if response.done else f"{line} so far"
                if response.done:
                    console.print(line, markup=False)
                elif console.is_terminal:
                    progress.update(bar, description=line)
                elif time.monotonic() - last_line > _LINE_INTERVAL:
                    last_line = time.monotonic()
                    console.print(so_far, markup=False)
        finally:
            if so_far:  # it failed, or was interrupted
                console.print(so_far, markup=False)
