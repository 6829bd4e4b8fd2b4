"""A server as a process, its Postgres, the network between them, and somebody who calls and watches the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import psycopg
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_status import rpc_status

from recall.v1.memory_pb2 import AddMemoryRequest, AddMemoryResponse, GetMemoryRequest, Message
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2 import DeleteSessionRequest
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.storage.appends import MOST_CHARACTERS
from tests.faults.cluster import Cluster, cluster
from tests.faults.proxy import Proxy
from tests.processes import DEADLINE, NOT_SERVING, SERVING, Process, running
from tests.waiting import becomes

POOL_SIZE: Final = 4

# Seconds: what is promised of health in both directions, and of the service after the database's return, which can take
# nearly all of it; and by how much a machine with much else to do may be late. Without what keeps a promise it takes
# longer than both: see the controls.
PROMISED: Final = 5.0
LATE: Final = 5.0

# Seconds in which a server with nothing wrong in it answers, on a machine with much else to do. A call that waits as
# long as the server has it wait by default, for a lock or a connection, takes longer.
PROMPT: Final = 3.5

_API: Final = "recall.v1.MemoryService"


@dataclass(frozen=True)
class Answer:
    """How a call ended: OK, or a status with its ErrorInfo.reason, and after how many seconds."""

    code: grpc.StatusCode
    reason: str
    retry_after: float | None
    seconds: float

    @property
    def told(self) -> tuple[str, str]:
        return self.code.name, self.reason


STORAGE_UNAVAILABLE: Final = ("UNAVAILABLE", "STORAGE_UNAVAILABLE")
OK: Final = ("OK", "")


class Caller:
    """Calls a server, on a channel of its own; nothing is retried."""

    def __init__(self, address: str) -> None:
        self.address = address
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self.channel = grpc.insecure_channel(address, options=options)
        self.memory = MemoryServiceStub(self.channel)
        self.sessions = SessionServiceStub(self.channel)
        self._threads = ThreadPoolExecutor(32)

    def close(self) -> None:
        self.channel.close()
        self._threads.shutdown()

    def add(self, session: str, content: str = "hello", timeout: float | None = DEADLINE, **more: Any) -> Answer:
        messages = [Message(role="user", content=content)]
        request = AddMemoryRequest(session_id=session, messages=messages, **more)
        return ended(lambda: self.memory.AddMemory(request, timeout=timeout))

    def add_alone(self, session: str, timeout: float | None = DEADLINE) -> Answer:
        """Adds what is too large to share a statement: it has a connection of its own while it waits."""
        return self.add(session, "x" * (MOST_CHARACTERS + 1), timeout)

    def get(self, session: str, timeout: float | None = DEADLINE) -> Answer:
        return ended(lambda: self.memory.GetMemory(GetMemoryRequest(session_id=session), timeout=timeout))

    def delete(self, session: str, timeout: float | None = DEADLINE) -> Answer:
        request = DeleteSessionRequest(session_id=session)
        return ended(lambda: self.sessions.DeleteSession(request, timeout=timeout))

    def contents(self, session: str) -> list[str]:
        """What the session holds, oldest first."""
        memory = self.memory.GetMemory(GetMemoryRequest(session_id=session, last_n=1000), timeout=DEADLINE)
        return [message.content for message in memory.messages]

    def adding(self, session: str, request_id: str, content: str) -> grpc._CallFuture[AddMemoryResponse]:
        messages = [Message(role="user", content=content)]
        request = AddMemoryRequest(session_id=session, messages=messages, request_id=request_id)
        return self.memory.AddMemory.future(request, timeout=DEADLINE)

    def later(self, call: Callable[..., Answer], *arguments: Any, **options: Any) -> Future[Answer]:
        """The call, made on another thread."""
        return self._threads.submit(call, *arguments, **options)

    def burst(self, number: int = 4 * POOL_SIZE, timeout: float = DEADLINE) -> list[Answer]:
        """Reads and writes, all at once."""
        half = number // 2
        calls = [self.later(self.get, f"burst-{n}", timeout) for n in range(half)]
        calls += [self.later(self.add, f"burst-{n}", timeout=timeout) for n in range(half)]
        return [call.result() for call in calls]


class Site:
    """A running server and what it stands on."""

    def __init__(self, process: Process, postgres: Cluster, proxy: Proxy, caller: Caller) -> None:
        self.process = process
        self.postgres = postgres
        self.proxy = proxy
        self.caller = caller

    def waiting(self) -> int:
        """How many statements of the server's wait for a lock."""
        [(number,)] = self.postgres.execute(
            "select count(*) from pg_stat_activity where application_name = 'recalld' and wait_event_type = 'Lock'"
        )
        return int(number)

    @contextmanager
    def locked(self, session: str) -> Iterator[None]:
        """Somebody else holds the lock on a session's row, for as long as Postgres lives."""
        with closing(self.postgres.connect()) as connection:
            connection.execute("begin")
            rows = connection.execute("select from recalld.session where session_id = %s for update", (session,))
            assert rows.rowcount == 1
            yield

    def await_postgres(self) -> float:
        """Returns when Postgres takes connections, and the moment: time.monotonic()."""

        def answers() -> bool:
            with suppress(psycopg.OperationalError):
                self.postgres.execute("select")
                return True
            return False

        assert becomes(answers), self.postgres.log
        return time.monotonic()

    def assert_whole_since(self, back: float, within: float = PROMISED + LATE) -> None:
        """Fails unless all is well `within` seconds after the database came `back` (time.monotonic())."""
        until = back + within
        while True:
            answers = self.caller.burst(timeout=max(0.1, until - time.monotonic()))
            if all(answer.told == OK for answer in answers):
                break
            assert time.monotonic() < until, f"{within} s after the return: {answers}\n{self.process.stderr}"
        assert time.monotonic() < until, f"took {time.monotonic() - back:.1f} s"
        self.await_health(SERVING, until - time.monotonic())
        assert self.process.runs

    def await_health(self, status: int, within: float) -> None:
        """Fails unless health says `status` in time."""
        stub = HealthStub(self.caller.channel)
        until = time.monotonic() + within
        for response in stub.Watch(HealthCheckRequest(service=_API), timeout=DEADLINE):
            if response.status == status:
                break
        assert time.monotonic() <= until, f"health took {time.monotonic() - until:.1f} s too long"

    @contextmanager
    def outage(self) -> Iterator[None]:
        """What is done inside takes the database away: health notices in time, and answers at once all the while."""
        with Watching(self.process.address) as watching:
            yield
            self.await_health(NOT_SERVING, PROMISED + LATE)
        assert watching.slowest < PROMPT


class Watching:
    """Asks for the server's health again and again, as long as the context lasts."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.slowest = 0.0

    def _watch(self) -> None:
        with grpc.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = HealthStub(channel).Check
            check(HealthCheckRequest(), timeout=DEADLINE)  # connects
            while not self._over.wait(0.05):
                before = time.monotonic()
                with suppress(grpc.RpcError):
                    check(HealthCheckRequest(), timeout=DEADLINE)
                self.slowest = max(self.slowest, time.monotonic() - before)

    def __enter__(self) -> Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


@contextmanager
def site(directory: Path, *arguments: str, by_proxy: bool = False, **postgres: str) -> Iterator[Site]:
    """A server that serves, with a pool of POOL_SIZE.

    Args:
        directory: for what the server writes to stderr.
        arguments: more of `recalld serve`.
        by_proxy: whether it reaches Postgres through the proxy.
        postgres: settings of Postgres.
    """
    with cluster(**postgres) as made:
        proxy = Proxy(made.port)
        url = made.url_by(proxy.port) if by_proxy else made.url
        options = ["--database-url", url, "--pool-size", str(POOL_SIZE), "--purge-interval", "0", *arguments]
        try:
            with running(directory, options) as process:
                caller = Caller(process.address)
                try:
                    yield Site(process, made, proxy, caller)
                finally:
                    caller.close()
        finally:
            proxy.close()


def ended(call: Callable[[], object]) -> Answer:
    """How a call ended."""
    before = time.monotonic()
    try:
        call()
    except grpc.RpcError as error:
        status = rpc_status.from_call(error)
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        retry_after = None
        for detail in status.details if status else ():
            detail.Unpack(info)
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        assert not info.reason or info.domain == "recalld"
        return Answer(error.code(), info.reason, retry_after, time.monotonic() - before)
    return Answer(grpc.StatusCode.OK, "", None, time.monotonic() - before)


def told(answers: Sequence[Answer]) -> set[tuple[str, str]]:
    """What the calls were told."""
    return {answer.told for answer in answers}
