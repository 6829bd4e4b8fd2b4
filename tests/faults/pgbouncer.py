"""A PgBouncer in transaction mode in front of a Postgres, where the machine has one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.faults.cluster import DATABASE, free_port, system_user, temporary_directory
from tests.waiting import wait_until

_PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class PgBouncer:
    """One that can be killed and started again at its port.

    By default (`server_login_retry`) it stays away for 15 seconds from a Postgres that was not there.

    Args:
        directory: for its files.
        postgres: the port of the Postgres behind it.
        size: the most connections it makes to one database.
    """

    def __init__(self, directory: Path, postgres: int, size: int) -> None:
        self._file = directory / "pgbouncer.ini"
        self.port = free_port()
        self._popen: subprocess.Popen[bytes] | None = None
        self._file.write_text(
            f"""[databases]
* = host=127.0.0.1 port={postgres} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir = {directory}
auth_type = any
admin_users = postgres
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 500
server_login_retry = 1
logfile = {directory}/log
"""
        )

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{DATABASE}"

    def start(self) -> None:
        """Starts it, and returns when it takes connections."""
        assert _PROGRAM is not None
        user = system_user()
        with (self._file.parent / "output").open("ab") as output:
            self._popen = subprocess.Popen(
                [_PROGRAM, str(self._file)], user=user, group=user, stdout=output, stderr=output, start_new_session=True
            )
        wait_until(self._answers, "PgBouncer does not answer")

    def _answers(self) -> bool:
        assert self._popen is not None
        assert self._popen.poll() is None, (self._file.parent / "output").read_text()
        try:
            psycopg.connect(self.url).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        assert self._popen is not None
        os.kill(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


@contextmanager
def pgbouncer(postgres: int, size: int = 20) -> Iterator[PgBouncer]:
    """A PgBouncer that runs; the test is skipped where there is none."""
    if _PROGRAM is None:
        pytest.skip("there is no pgbouncer on this machine")
    with temporary_directory() as directory:
        made = PgBouncer(directory, postgres, size)
        made.start()
        try:
            yield made
        finally:
            made.kill()
