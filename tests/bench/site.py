"""What the bench runs against: one Postgres, recalld on it, and the echo servers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import psycopg

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recalld.client import Client, connect
from recalld.embedded import postgres
from tests.bench import load
from tests.bench.cpu import Tree, postmaster
from tests.bench.echo import ANSWERS_VARIABLE
from tests.bench.load import Load
from tests.bench.rounds import Figures
from tests.bench.texts import texts
from tests.processes import SERVING, await_health

WORKERS: Final = 2
SESSIONS: Final = 1000
LAST_N: Final = 20

# Those of all servers and peers together: more than Postgres comes with.
_CONNECTIONS: Final = 300

# Seconds that a server has to end before it is killed.
_END_TIME: Final = 30.0


@dataclass(frozen=True)
class Server:
    """A server in processes of its own, and the CPU time that they use."""

    address: str
    tree: Tree


@dataclass
class Site:
    """Everything that runs, and the requests that are sent to it.

    `database_url` is the Postgres of all servers; `requests` has the file of each kind of request by name.
    """

    directory: Path
    database_url: str
    postgres: Tree
    texts: list[str]
    text_source: str
    recalld: Server
    echo: Server
    bare: Server
    roaming: Server
    client: Client
    requests: dict[str, Path] = field(default_factory=dict)

    def call(self, server: Server, method: str, requests: str, **bounds: Any) -> Figures:
        """The figures of one run of ghz, and the CPU time that it took, per call, of all that took part."""
        before = server.tree.seconds(), self.postgres.seconds()
        seen = load.run(server.address, method, self.requests[requests], **bounds)
        after = server.tree.seconds(), self.postgres.seconds()
        return figures(seen, after[0] - before[0], after[1] - before[1])

    def write(self, name: str, requests: list[Any]) -> None:
        """Keeps requests under a name."""
        self.requests[name] = load.write_requests(self.directory / f"{name}.requests", requests)

    @contextmanager
    def database(self, name: str) -> Iterator[str]:
        """The URL of another, empty database of the same Postgres, which is dropped in the end."""
        self.execute(f"create database {name}")
        try:
            yield urlsplit(self.database_url)._replace(path=f"/{name}").geturl()
        finally:
            self.execute(f"drop database {name} with (force)")

    def execute(self, statement: str, **values: Any) -> list[Any]:
        """The rows that a statement of the bench's own returns, if any."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description else []


def figures(seen: Load, server: float, database: float) -> Figures:
    """One round's figures, given the CPU seconds of the server and of Postgres."""
    return {
        "rate": seen.rate,
        "p50_ms": seen.p50 * 1e3,
        "p95_ms": seen.p95 * 1e3,
        "p99_ms": seen.p99 * 1e3,
        "server_us": server / seen.calls * 1e6,
        "postgres_us": database / seen.calls * 1e6,
        "client_us": seen.cpu / seen.calls * 1e6,
        "calls": seen.calls,
    }


@contextmanager
def site() -> Iterator[Site]:
    """Starts everything, with what a GetMemory reads already written; in the end nothing is left."""
    with tempfile.TemporaryDirectory(prefix="recalld-bench-") as name, ExitStack() as closing:
        directory = Path(name)
        directory.chmod(0o755)  # Postgres passes through as a user of its own, if need be
        with postgres(directory / "data") as url, psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"alter system set max_connections = {_CONNECTIONS}")  # takes a restart
        url = closing.enter_context(postgres(directory / "data"))
        recalld = closing.enter_context(serving("recalld", directory, url))
        client = closing.enter_context(connect(recalld.address))
        said, source = texts(SESSIONS)
        _write_memories(client.memory, said)
        _keep_answers(client.memory, directory)
        made = Site(
            directory,
            url,
            postmaster(directory / "data" / "postgres"),
            said,
            source,
            recalld,
            closing.enter_context(serving("tests.bench.echo", directory, url)),
            closing.enter_context(serving("tests.bench.bare", directory, url)),
            closing.enter_context(serving("tests.bench.echo", directory, url, "--worker-cpu-affinity", "off")),
            client,
        )
        made.write("AddMemory", [added(f"write-{number}", [text]) for number, text in enumerate(said)])
        made.write("GetMemory", [_last(number) for number in range(SESSIONS)])
        yield made


@contextmanager
def serving(module: str, directory: Path, database_url: str, *arguments: str) -> Iterator[Server]:
    """`python -m MODULE serve` with two workers, and otherwise as one gets it without any settings but these."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECALLD_")}
    environment[ANSWERS_VARIABLE] = str(directory)
    command = [sys.executable, "-m", module, "serve", "--listen", "127.0.0.1:0", "--workers", str(WORKERS)]
    with (
        (directory / f"{module}-{urlsplit(database_url).path[1:]}{''.join(arguments)}.log").open("w") as log,
        subprocess.Popen(
            [*command, "--database-url", database_url, *arguments],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as popen,
    ):
        try:
            assert popen.stdout is not None
            said = popen.stdout.readline()
            address = said.partition(" listens on ")[2].partition(" ")[0]
            if not address:
                raise RuntimeError(f"{module} did not start: {Path(log.name).read_text()}")
            await_health(address, SERVING)
            yield Server(address, Tree(popen.pid))
        finally:
            popen.send_signal(signal.SIGTERM)
            try:
                popen.wait(_END_TIME)
            except subprocess.TimeoutExpired:
                popen.kill()


def added(session: str, contents: list[str]) -> AddMemoryRequest:
    """A request that appends messages of these contents."""
    return AddMemoryRequest(session_id=session, messages=[Message(role="user", content=text) for text in contents])


def _last(number: int) -> GetMemoryRequest:
    return GetMemoryRequest(session_id=f"read-{number}", last_n=LAST_N)


def _write_memories(memory: MemoryServiceStub, said: list[str]) -> None:
    """Gives every session that is read as many messages as a call asks for, all different."""
    for number in range(SESSIONS):
        memory.AddMemory(added(f"read-{number}", [said[(number + place) % len(said)] for place in range(LAST_N)]))


def _keep_answers(memory: MemoryServiceStub, directory: Path) -> None:
    """What the echo servers answer: a real answer of each method, byte for byte."""
    added_one = memory.AddMemory(added("sample", ["hello"]))
    (directory / "AddMemory").write_bytes(added_one.SerializeToString())
    (directory / "GetMemory").write_bytes(memory.GetMemory(_last(0)).SerializeToString())
