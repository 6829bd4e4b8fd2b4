"""A server that is killed and started again at the same address, and callers that notice at once."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import grpc

from recalld.client import Client
from tests.faults.cluster import Cluster, free_port
from tests.processes import DEADLINE, SERVING, Process, await_health, start
from tests.waiting import wait_until

# No repeating of calls behind the caller's back, and no waiting for a server that is back.
_CHANNEL = [
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
]


class Replica:
    """`recalld serve` in a process, at an address of its own.

    Args:
        directory: where its stderr is kept, one file for each start.
        arguments: of `recalld serve`.
    """

    def __init__(self, directory: Path, arguments: Sequence[str]) -> None:
        self._directory = directory
        self._metrics = f"127.0.0.1:{free_port()}"
        self.address = f"127.0.0.1:{free_port()}"
        self._arguments = [*arguments, "--listen", self.address, "--metrics-listen", self._metrics]
        self._starts = count(1)
        self._process: Process | None = None
        self._closing = ExitStack()

    @property
    def process(self) -> Process:
        assert self._process is not None, "not started"
        return self._process

    def start(self) -> None:
        """Starts it, and returns when it listens."""
        stderr = self._directory / f"stderr-{self.address}-{next(self._starts)}"
        self._process = Process(self._closing.enter_context(start(self._arguments, stderr)), stderr)
        assert self._process.announced[0].startswith("recalld "), self._process.stderr

    def await_serving(self) -> None:
        await_health(self.address, SERVING)

    def kill(self) -> None:
        """kill -9, and looks whether it had gone wrong before that."""
        self.process.signal(signal.SIGKILL)
        self._closing.close()
        assert "Traceback" not in self.process.stderr, self.process.stderr

    def calls_in_progress(self) -> int:
        """How many calls it works on, also those that their callers have given up."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=DEADLINE) as answer:
            found = re.search(r"^recalld_calls_in_progress (\S+)$", answer.read().decode(), re.MULTILINE)
        assert found is not None
        return int(float(found[1]))

    @contextmanager
    def client(self) -> Iterator[Client]:
        with grpc.insecure_channel(self.address, options=_CHANNEL) as channel:
            yield Client(channel)


@contextmanager
def replica(directory: Path, *arguments: str) -> Iterator[Replica]:
    """A replica that serves; killed in the end."""
    made = Replica(directory, arguments)
    made.start()
    try:
        made.await_serving()
        yield made
    finally:
        if made.process.runs:
            made.kill()


def await_rest(replicas: Sequence[Replica], database: Cluster) -> None:
    """Returns when no replica works on a call, and none of their statements runs, nor of those that were killed."""
    busy = "select count(*) from pg_stat_activity where application_name = 'recalld' and state <> 'idle'"
    wait_until(
        lambda: not any(each.calls_in_progress() for each in replicas) and database.execute(busy) == [(0,)],
        "calls and statements do not come to an end",
    )
