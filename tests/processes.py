"""`recalld serve` as a process of its own, for what only a process can show: signals, crashes, exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import grpc
import psutil
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING

# Seconds. A deadline, not a delay: what is waited for usually takes a small part of it.
DEADLINE = 30.0

_numbers = count(1)


class Process:
    """A `recalld serve` that has said where it listens."""

    def __init__(self, popen: subprocess.Popen[str], stderr: Path) -> None:
        self._popen = popen
        self._stderr = stderr
        assert popen.stdout is not None
        self.announced = [popen.stdout.readline().rstrip() for _ in range(3)]
        self.address = self.announced[0].partition(" listens on ")[2].partition(" ")[0]

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def runs(self) -> bool:
        return self._popen.poll() is None

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Sends a signal, with `group` as a terminal sends Ctrl-C: to the children too."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Waits for the process to end, and returns its exit code."""
        return self._popen.wait(timeout)


def start(
    arguments: list[str], stderr: Path, environment: Mapping[str, str] | None = None, files: int | None = None
) -> subprocess.Popen[str]:
    """Starts `recalld serve` on a free port of loopback, unless the arguments name another.

    Args:
        arguments: of `serve`.
        stderr: the file that takes what it writes to stderr.
        environment: variables beyond those of this process.
        files: how many it may have open; as many as this process when None.
    """
    limited = [] if files is None else ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"']
    with stderr.open("w") as file:
        return subprocess.Popen(
            [*limited, sys.executable, "-m", "recalld", "serve", "--listen", "127.0.0.1:0", *arguments],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )


@contextmanager
def running(
    directory: Path,
    arguments: list[str],
    *,
    serves: bool = True,
    environment: Mapping[str, str] | None = None,
    files: int | None = None,
) -> Iterator[Process]:
    """A server that has come to serve; killed in the end if it still runs.

    Args:
        directory: where its stderr is kept.
        arguments: of `recalld serve`.
        serves: whether to wait until health says SERVING; without a database it would never come to that.
        environment: variables beyond those of this process.
        files: how many it may have open; as many as this process when None.
    """
    stderr = directory / f"stderr-{next(_numbers)}"
    with start(arguments, stderr, environment, files) as popen:
        try:
            process = Process(popen, stderr)
            assert process.announced[0].startswith("recalld "), process.stderr
            if serves:
                await_health(process.address, SERVING)
            yield process
            assert "Traceback" not in process.stderr, process.stderr
        finally:
            if popen.poll() is None:
                popen.kill()


def await_health(address: str, status: int, service: str = "", timeout: float = DEADLINE) -> None:
    """Returns when health says `status`; raises grpc.RpcError when it does not within `timeout` seconds."""
    with grpc.insecure_channel(address) as channel:
        for response in HealthStub(channel).Watch(HealthCheckRequest(service=service), timeout=timeout):
            if response.status == status:
                return


def runs(process: psutil.Process) -> bool:
    """Whether a process runs; one that ended may stay a zombie where process 1 does not see to it.

    One that was killed can be a zombie while threads of it have yet to end, which hold its files and locks until then.
    """
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    return False
