"""Several worker processes on one port, and the one that looks after them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import grpc
import psutil
import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from recalld.client import Client, connect
from tests.certificates import Authority
from tests.faults.cluster import free_port
from tests.faults.scraping import metric
from tests.faults.waiting import tables_locked
from tests.postgres import Databases
from tests.processes import DEADLINE, Process, running, runs
from tests.waiting import wait_until

WORKERS = 2
IN_USE = "recalld: cannot listen on {}: it is in use; --listen chooses another address, :0 any free port"


def workers(server: Process) -> list[psutil.Process]:
    """The processes that serve: those that listen on the port."""
    found = []
    for child in psutil.Process(server.pid).children():
        with suppress(psutil.NoSuchProcess):
            listening = {one.laddr.port for one in child.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
            if runs(child) and _port(server) in listening:
                found.append(child)
    return found


def worker_of(server: Process, local_port: int) -> psutil.Process:
    """The worker that has the connection from this port of ours."""
    for worker in workers(server):
        if local_port in {one.raddr.port for one in worker.net_connections("tcp") if one.raddr}:
            return worker
    raise AssertionError(f"nobody has the connection from {local_port}")


def _port(server: Process) -> int:
    return int(server.address.rpartition(":")[2])


@contextmanager
def client_of_each(server: Process, retries: int = 1) -> Iterator[list[tuple[psutil.Process, Client]]]:
    """Each worker, with a client that is connected to it. The kernel chooses, so it takes a few attempts."""
    with ExitStack() as closing:
        found: dict[int, tuple[psutil.Process, Client]] = {}
        for _ in range(60):
            if len(found) == WORKERS:
                break
            before = _own_connections(server)
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", retries)]
            client = closing.enter_context(connect(server.address, options=options))
            grpc.channel_ready_future(client.channel).result(DEADLINE)
            [local_port] = _own_connections(server) - before
            worker = worker_of(server, local_port)
            found.setdefault(worker.pid, (worker, client))
        assert len(found) == WORKERS, "all connections came to one worker"
        yield list(found.values())


def _own_connections(server: Process) -> set[int]:
    connections = psutil.Process().net_connections("tcp")
    return {one.laddr.port for one in connections if one.raddr and one.raddr.port == _port(server)}


@contextmanager
def serving(tmp_path: Path, url: str, *arguments: str) -> Iterator[Process]:
    fixed = ["--database-url", url, "--workers", str(WORKERS), "--lock-timeout", "1m", "--shutdown-grace", "1m"]
    with running(tmp_path, [*fixed, *arguments]) as server:
        yield server


def add(client: Client, session_id: str) -> int:
    """Adds a message, and returns its seq."""
    request = AddMemoryRequest(session_id=session_id, messages=[Message(role="user", content="hello")])
    return client.memory.AddMemory(request, timeout=DEADLINE).messages[0].seq


def test_a_killed_worker_is_replaced_and_calls_go_on(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, database_url) as server, client_of_each(server) as each, ThreadPoolExecutor() as threads:
        victim, _ = each[0]
        with tables_locked(database_url) as wait_for:
            calls = [threads.submit(add, client, "s") for _, client in each]
            wait_for(WORKERS)
            victim.kill()
            wait_until(lambda: not runs(victim), "the worker lives")
        # The call that the killed worker had is repeated by the service config, at another.
        assert sorted(call.result(DEADLINE) for call in calls) == [1, 2]
        wait_until(lambda: len(workers(server)) == WORKERS, "no worker takes its place")
        assert "ended with status -9; another starts in 0.2 s" in server.stderr
        assert victim.pid not in {worker.pid for worker in workers(server)}
        assert [add(client, "s") for _, client in each] == [3, 4]


def test_the_killed_workers_call_fails_where_nobody_repeats_it(tmp_path: Path, database_url: str) -> None:
    """The control of the test above."""
    with (
        serving(tmp_path, database_url) as server,
        client_of_each(server, retries=0) as each,
        ThreadPoolExecutor() as threads,
    ):
        with tables_locked(database_url) as wait_for:
            calls = [threads.submit(add, client, "s") for _, client in each]
            wait_for(WORKERS)
            each[0][0].kill()
            error = calls[0].exception(DEADLINE)
        assert isinstance(error, grpc.RpcError)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        # Whether the other was stored is unknown: its statement was on its way.
        assert calls[1].result(DEADLINE) in (1, 2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has processes keep to a CPU")
@pytest.mark.parametrize("affinity", ["auto", "on", "off"])
def test_a_worker_keeps_to_one_cpu_as_told_and_so_does_the_one_that_replaces_it(
    affinity: str, tmp_path: Path, database_url: str
) -> None:
    usable = psutil.Process().cpu_affinity()
    kept = affinity == "on" or (affinity == "auto" and len(usable) <= WORKERS)
    with serving(tmp_path, database_url, "--worker-cpu-affinity", affinity) as server:
        used = [worker.cpu_affinity() for worker in workers(server)]
        assert all(len(cpus) == 1 if kept else cpus == usable for cpus in used)
        policy = os.SCHED_BATCH if kept else os.SCHED_OTHER
        assert all(os.sched_getscheduler(worker.pid) == policy for worker in workers(server))
        if kept:
            assert len({cpu for [cpu] in used}) == min(WORKERS, len(usable))
        assert psutil.Process(server.pid).cpu_affinity() == usable
        [victim, survivor] = workers(server)
        before = victim.cpu_affinity()
        victim.kill()
        wait_until(lambda: len(set(workers(server)) - {victim}) == WORKERS, "no worker takes its place")
        [replacement] = set(workers(server)) - {survivor}
        assert replacement.cpu_affinity() == before


def test_a_worker_that_dies_again_and_again_is_started_at_growing_intervals(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, database_url) as server:
        [victim, survivor] = workers(server)
        for pause in ("0.2", "1"):
            victim.kill()
            wait_until(lambda: f"another starts in {pause} s" in server.stderr, "the pause is another")  # noqa: B023
            wait_until(lambda: len(workers(server)) == WORKERS, "no worker takes its place")
            [victim] = [worker for worker in workers(server) if worker != survivor]


def test_a_replacement_that_cannot_start_is_tried_again_while_the_others_serve(
    tmp_path: Path, database_url: str
) -> None:
    issued = Authority(tmp_path).issue("server")
    arguments = ["--database-url", database_url, "--workers", str(WORKERS)]
    arguments += ["--tls-cert-file", str(issued.cert_file), "--tls-key-file", str(issued.key_file)]
    with running(tmp_path, arguments, serves=False) as server:
        good = issued.key
        issued.key_file.write_text("half a key")
        workers(server)[0].kill()
        wait_until(lambda: server.stderr.count("another starts in") >= 2, "it is not tried again")
        assert len(workers(server)) == WORKERS - 1
        issued.key_file.write_bytes(good)
        wait_until(lambda: len(workers(server)) == WORKERS, "no worker takes its place")


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, database_url) as server:
        orphans = psutil.Process(server.pid).children(recursive=True)
        assert len(workers(server)) == WORKERS
        server.signal(signal.SIGKILL)
        server.wait()
        wait_until(lambda: not any(runs(orphan) for orphan in orphans), "a worker goes on without its supervisor")


def test_the_last_worker_removes_what_a_killed_supervisor_leaves(tmp_path: Path, database_url: str) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    arguments = ["--database-url", database_url, "--workers", str(WORKERS)]
    with running(tmp_path, arguments, environment={"TMPDIR": str(temporary)}) as server:
        first, *others = workers(server)
        [metrics] = temporary.glob("recalld-metrics-*")
        server.signal(signal.SIGSTOP)
        # It has metrics there too, and does not live to the end.
        first.kill()
        wait_until(lambda: not runs(first), "the worker lives")
        server.signal(signal.SIGKILL)
        server.wait()
        wait_until(lambda: not any(runs(other) for other in others), "a worker goes on without its supervisor")
        assert not metrics.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_calls_of_all_workers_finish(
    number: signal.Signals, tmp_path: Path, database_url: str
) -> None:
    with serving(tmp_path, database_url) as server, client_of_each(server) as each, ThreadPoolExecutor() as threads:
        everyone = workers(server)
        with tables_locked(database_url) as wait_for:
            calls = [threads.submit(add, client, "s") for _, client in each]
            wait_for(WORKERS)
            # As a terminal does it, to the whole process group.
            server.signal(number, group=True)
            wait_until(lambda: workers(server) == [], "workers still listen")
            assert not any(call.done() for call in calls)
        assert sorted(call.result(DEADLINE) for call in calls) == [1, 2]
        assert server.wait() == 0
        assert not any(runs(worker) for worker in everyone)


def test_a_second_signal_cancels_the_calls_of_all_workers(tmp_path: Path, database_url: str) -> None:
    with (
        serving(tmp_path, database_url, "--shutdown-grace", "1h") as server,
        client_of_each(server) as each,
        ThreadPoolExecutor() as threads,
        tables_locked(database_url) as wait_for,
    ):
        calls: list[Future[int]] = [threads.submit(add, client, "s") for _, client in each]
        wait_for(WORKERS)
        server.signal(signal.SIGTERM)
        wait_until(lambda: workers(server) == [], "workers still listen")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert all(isinstance(call.exception(DEADLINE), grpc.RpcError) for call in calls)


# --- a start that cannot work


def refused(arguments: Sequence[str]) -> tuple[int, str, list[str]]:
    """The exit code of `recalld serve`, its output, and what it says on stderr."""
    command = [sys.executable, "-m", "recalld", "serve", "--log-level", "ERROR", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=False)
    return ended.returncode, ended.stdout, ended.stderr.splitlines()


@pytest.mark.parametrize("first", [1, WORKERS], ids="first has {}".format)
@pytest.mark.parametrize("second", [1, WORKERS], ids="second has {}".format)
def test_a_port_in_use_is_refused_whoever_has_it(first: int, second: int, tmp_path: Path, database_url: str) -> None:
    with running(tmp_path, ["--database-url", database_url, "--workers", str(first)]) as server:
        arguments = ["--database-url", database_url, "--workers", str(second), "--listen", server.address]
        assert refused(arguments) == (1, "", [IN_USE.format(server.address)])
        with connect(server.address) as client:
            assert add(client, "s") == 1


def test_a_certificate_that_is_none_is_one_line(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "bad.pem").write_text("nothing of the kind")
    bad = str(tmp_path / "bad.pem")
    arguments = ["--database-url", database_url, "--workers", str(WORKERS), "--listen", "127.0.0.1:0"]
    code, output, [line] = refused([*arguments, "--tls-cert-file", bad, "--tls-key-file", bad])
    assert (code, output) == (2, "")
    assert line.startswith("recalld: ")
    assert bad in line


@pytest.mark.parametrize("count", [1, WORKERS])
def test_a_schema_that_needs_a_newer_server_ends_it_with_one_line(count: int, databases: Databases) -> None:
    with databases.copy() as url:
        with psycopg.connect(url) as connection:
            connection.execute("update recalld.alembic_version set version_num = '9999'")
            connection.execute(
                "create or replace function recalld.oldest_server() returns text language sql return '9998'"
            )
        code, _, [line] = refused(["--database-url", url, "--workers", str(count), "--listen", "127.0.0.1:0"])
    assert code == 1
    assert re.fullmatch(r"recalld: the database has schema 9999, which needs a server .*: upgrade recalld", line)


@pytest.mark.parametrize("count", [1, WORKERS])
def test_a_search_language_that_the_database_does_not_know_ends_it_as_a_wrong_setting(
    count: int, databases: Databases
) -> None:
    with databases.empty() as url:
        arguments = ["--database-url", url, "--workers", str(count), "--listen", "127.0.0.1:0"]
        code, _, [line] = refused([*arguments, "--search-language", "klingon"])
    assert code == 2
    assert line == "recalld: search_language: the database has no text search configuration 'klingon'"


def test_a_metrics_port_in_use_is_one_line(tmp_path: Path, database_url: str) -> None:
    with serving(tmp_path, database_url) as server:
        arguments = ["--database-url", database_url, "--listen", "127.0.0.1:0", "--metrics-listen", server.address]
        for count in (1, WORKERS):
            code, _, [line] = refused([*arguments, "--workers", str(count)])
            assert code == 1
            assert line == f"recalld: cannot serve metrics on {server.address}: it is in use"


# --- what workers share


def test_one_metrics_port_counts_the_calls_of_all_workers_the_dead_too(tmp_path: Path, database_url: str) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    with (
        serving(tmp_path, database_url, "--metrics-listen", metrics) as server,
        client_of_each(server) as each,
    ):
        for number, (_, client) in enumerate(each, start=1):
            for _ in range(number):
                add(client, "s")
        # A call is counted when it is over, which its caller may know first.
        counted = partial(metric, metrics, "recalld_calls_total", method="MemoryService/AddMemory", code="OK")
        wait_until(lambda: counted() == 3, "calls are missing")
        each[0][0].kill()
        wait_until(lambda: "another starts in" in server.stderr, "nobody noticed")
        assert counted() == 3


def test_one_metrics_port_shows_the_calls_in_progress_of_all_workers_also_while_they_drain(
    tmp_path: Path, database_url: str
) -> None:
    metrics = f"127.0.0.1:{free_port()}"
    in_progress = partial(metric, metrics, "recalld_calls_in_progress")
    with (
        tables_locked(database_url) as wait_for,
        serving(tmp_path, database_url, "--metrics-listen", metrics) as server,
        client_of_each(server) as [(_, one), (_, other)],
    ):
        request = GetMemoryRequest(session_id="s")
        first, second, third = (
            client.memory.GetMemory.future(request, timeout=DEADLINE) for client in (one, one, other)
        )
        wait_for(3)
        wait_until(lambda: in_progress() == 3, "calls are missing")
        server.signal(signal.SIGTERM)
        wait_until(lambda: server.stderr.count("stopping on") == 1 + WORKERS, "they do not drain")
        first.cancel()
        wait_until(lambda: in_progress() == 2, "a call that has ended is in progress")
        # The last of its worker, which ends with it.
        third.cancel()
        wait_until(lambda: in_progress() == 1, "a call of a worker that has ended is in progress")
        second.cancel()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """Not in pytest's directory: as root, Postgres is another user, and every pytest that starts locks others out."""
    with tempfile.TemporaryDirectory(prefix="recalld-data-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def test_workers_share_an_embedded_postgres_which_ends_with_the_last(tmp_path: Path, data_dir: Path) -> None:
    with running(tmp_path, ["--data-dir", str(data_dir), "--workers", str(WORKERS)]) as server:
        postmaster = psutil.Process(int((data_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0]))
        with client_of_each(server) as each:
            assert [add(client, "s") for _, client in each] == [1, 2]
            for _, client in each:
                memory = client.memory.GetMemory(GetMemoryRequest(session_id="s"), timeout=DEADLINE)
                assert len(memory.messages) == WORKERS
        assert runs(postmaster)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert not runs(postmaster)
