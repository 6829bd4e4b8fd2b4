"""Running until told to stop: one server in this process, or several in processes of their own on one port."""

from __future__ import annotations

import fcntl
import gc
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Final, NoReturn

from pydantic import SecretStr

from recalld import addresses, logs
from recalld.app import Server, StartError
from recalld.conflicts import check_serving
from recalld.embedded import EmbeddedPostgresError, postgres
from recalld.gathering import all_end
from recalld.settings import Settings, SettingsError
from recalld.storage import MigrationError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

# Seconds before a worker that died is replaced; the last one repeats. After a worker that ran for _LIVED seconds they
# begin anew.
_BACKOFF: Final = (0.2, 1.0, 2.0, 5.0, 10.0)
_LIVED: Final = 60.0

# Threshold of the youngest generation of the garbage collector: objects allocated less those freed. By default 700.
_COLLECT_AFTER: Final = 10_000

# Seconds that the process waits at its end for threads that were told to end: they take milliseconds, unless a call
# holds one.
_LAST_CALLS: Final = 0.5

# Seconds in which a client of the metrics port must send its request.
_SCRAPE_TIMEOUT: Final = 5.0

# Seconds that a worker has to end, beyond its delay and grace, before it is killed.
_EXIT_MARGIN: Final = 5.0


def serve(settings: Settings, started: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; a second one cancels the calls that are still in progress.

    The signals are blocked rather than handled, in every thread, and in the programs that start and stop the embedded
    Postgres, since Ctrl-C goes to all processes of a terminal. One thread waits for them.

    Args:
        settings: of the server.
        started: called with the address once it listens.

    Raises SettingsError, StartError, EmbeddedPostgresError, MigrationError.
    """
    if settings.workers > 1:
        # Otherwise it starts with the first worker, and unblocks the signals then.
        multiprocessing.resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    if settings.workers > 1:
        _Supervisor(settings).run(started)
    else:
        _serve_here(Server(settings), started, metrics=settings.metrics_listen)
    log.info("stopped")


def end_process(status: int) -> NoReturn:
    """Ends the process; without the interpreter's own shutdown if calls are still running, as with a frozen database.

    The interpreter can crash when it shuts down while their greenlets exist.
    """
    if not all_end(_LAST_CALLS):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def _serve_here(server: Server, started: Callable[[str], None], *, metrics: str | None) -> None:
    _obey_signals(server.finish, server.cancel_calls)
    try:
        with server, _metrics_served(metrics, server.metrics.registry):
            _tune_collector()
            started(server.address)
            server.wait()
    except EmbeddedPostgresError:
        if not server.finished:  # otherwise Ctrl-C interrupted initdb, which leaves nothing behind
            raise


def _tune_collector() -> None:
    """Has the garbage collector run less often, and leave out what was allocated at start.

    Calls leave next to no cycles behind, yet looking for them took a fifteenth of their CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)


def _obey_signals(finish: Callable[[], None], hurry: Callable[[], None]) -> None:
    def obey() -> None:
        received = signal.sigwait(_STOP_SIGNALS)
        finish()
        log.info("stopping on %s", signal.Signals(received).name)
        while True:
            signal.sigwait(_STOP_SIGNALS)
            hurry()

    threading.Thread(target=obey, name="recalld-signals", daemon=True).start()


@contextmanager
def _metrics_served(address: str | None, registry: CollectorRegistry) -> Iterator[None]:
    if address is None:
        yield
        return
    from prometheus_client import start_http_server

    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        raise StartError(f"cannot serve metrics on {address}: {addresses.why(error)}") from None
    # Without these, a silent client keeps a thread for ever, and one that leaves early makes the server print a stack.
    server.RequestHandlerClass.timeout = _SCRAPE_TIMEOUT  # type: ignore[attr-defined]
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    log.info("metrics on http://%s:%d/metrics", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- several processes


class _Worker:
    """One worker process, which reports the address that it listens on, or the error that ended it.

    Args:
        settings: of its server.
        number: its place among the workers.
        cpu: the only CPU that it uses; None for any.
        attempt: how many workers had its place before, since the last one that ran for long.
    """

    def __init__(self, settings: Settings, number: int, cpu: int | None, attempt: int = 0) -> None:
        # A fresh interpreter: gRPC cannot be forked once it was used.
        context = multiprocessing.get_context("spawn")
        self._reports, sender = context.Pipe(duplex=False)
        self.number = number
        self.cpu = cpu
        self.attempt = attempt
        self.process: SpawnProcess = context.Process(
            target=_work, args=(settings, cpu, sender), name=f"recalld-worker-{number}"
        )
        self.started_at = time.monotonic()
        self.replaced_at: float | None = None
        self.process.start()
        sender.close()

    def failure(self) -> Exception | None:
        """The error that it reported, if any."""
        report = self._last_report()
        return report if isinstance(report, Exception) else None

    def wait_until_started(self) -> None:
        """Returns when it listens. Raises SettingsError, StartError, MigrationError."""
        report = self._last_report(wait=True)
        if report is None:
            self.process.join()
            raise StartError(f"worker {self.number} ended with status {self.process.exitcode} before it started")
        if isinstance(report, Exception):
            raise report

    def _last_report(self, *, wait: bool = False) -> str | Exception | None:
        """The last report that was not read yet, or None. With `wait` it waits for one, or for the worker to end."""
        report = None
        try:
            while wait or self._reports.poll():
                report = self._reports.recv()
                wait = False
        except EOFError:
            pass
        return report


def _work(settings: Settings, cpu: int | None, reports: Connection) -> None:
    """The main function of a worker process."""
    if cpu is not None:
        _keep_to(cpu)  # before there are threads, which inherit it
    # Ctrl-C goes to a terminal's whole process group, but only the supervisor should get it.
    os.setpgrp()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    logs.set_up(settings.log_level, settings.log_format)
    server = Server(settings, share_port=True)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        server.finish()

    threading.Thread(target=end_with_parent, name="recalld-orphan", daemon=True).start()
    with _metrics_inherited(parent):
        try:
            _serve_here(server, reports.send, metrics=None)
        except (SettingsError, StartError, MigrationError) as error:
            reports.send(error)
            raise SystemExit(1) from None
    end_process(0)


def _keep_to(cpu: int) -> None:
    """Pins this process to one CPU, with a policy by which a thread that wakes does not preempt the one that runs.

    The one that runs holds the interpreter's lock.
    """
    with suppress(OSError):  # not allowed to: it works on any, a little slower
        os.sched_setaffinity(0, [cpu])
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class _Supervisor:
    """Starts the workers, replaces those that die, and passes signals to stop on to them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        self._workers: list[_Worker] = []

    def run(self, started: Callable[[str], None]) -> None:
        check_serving(self._settings)
        _obey_signals(self._stop, self._signal_workers)
        with ExitStack() as closing:
            listen = closing.enter_context(_reserved(self._settings.listen))
            registry = closing.enter_context(_shared_metrics())
            url = self._settings.database_url or SecretStr(closing.enter_context(postgres(self._settings.data_dir)))
            self._settings = self._settings.model_copy(update={"listen": listen, "database_url": url})
            closing.enter_context(_metrics_served(self._settings.metrics_listen, registry))
            closing.callback(self._end_workers)
            for number, cpu in enumerate(_cpus(self._settings)):
                self._workers.append(_Worker(self._settings, number, cpu))
            for worker in self._workers:
                worker.wait_until_started()
            started(listen)
            while not self._stopping.is_set():
                self._watch()

    def _stop(self) -> None:
        self._stopping.set()
        os.write(self._wake_write, b"x")

    def _watch(self) -> None:
        """Waits for workers to die, and for the time to start others in their place."""
        due = [worker.replaced_at for worker in self._workers if worker.replaced_at is not None]
        timeout = max(0.0, min(due) - time.monotonic()) if due else None
        sentinels = [worker.process.sentinel for worker in self._workers if worker.replaced_at is None]
        multiprocessing.connection.wait([self._wake_read, *sentinels], timeout)
        for index, worker in enumerate(self._workers):
            if self._stopping.is_set():
                return
            if worker.replaced_at is None:
                if not worker.process.is_alive():
                    _schedule_replacement(worker)
            elif worker.replaced_at <= time.monotonic():
                self._workers[index] = _Worker(self._settings, worker.number, worker.cpu, worker.attempt + 1)

    def _signal_workers(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)

    def _end_workers(self) -> None:
        self._signal_workers()
        grace = self._settings.shutdown_delay + self._settings.shutdown_grace
        deadline = time.monotonic() + grace.total_seconds() + _EXIT_MARGIN
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                log.error("worker %d does not end, and is killed", worker.number)
                worker.process.kill()
                worker.process.join()


def _cpus(settings: Settings) -> Sequence[int | None]:
    """The CPU of each worker; None where it may use any.

    The threads of a process pass the interpreter's lock to one another with every call. On several CPUs that costs
    wake-ups and contention, a fifth of the CPU time of an AddMemory; on one it does not. But a pinned worker cannot
    move away from a busy CPU, so by default (`auto`) workers are pinned only if there is no CPU to spare.
    """
    usable = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else []
    affinity = settings.worker_cpu_affinity
    if not usable or affinity == "off" or (affinity == "auto" and settings.workers < len(usable)):
        return [None] * settings.workers
    # Several servers on one machine should not all begin with the same CPU.
    first = random.randrange(len(usable))
    return [usable[(first + number) % len(usable)] for number in range(settings.workers)]


@contextmanager
def _reserved(address: str) -> Iterator[str]:
    """The address, with a port that workers can share and that nobody else listens on. Raises StartError."""
    host, _, port = address.rpartition(":")
    bare = host.strip("[]")
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    with socket.socket(family) as alone, socket.socket(family) as shared:
        try:
            # Fails when anyone listens there, also by sharing, as another server's workers do.
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((bare, int(port)))
            picked = alone.getsockname()[1]
            alone.close()
            # Holds the port while no worker listens on it.
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind((bare, picked))
        except OSError as error:
            raise StartError(addresses.refusal(address, addresses.why(error))) from None
        yield f"{host}:{picked}"


@contextmanager
def _shared_metrics() -> Iterator[CollectorRegistry]:
    """A registry over the metrics of all workers, which they keep in files of a directory of their own."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.multiprocess import MultiProcessCollector

    directory = tempfile.mkdtemp(prefix="recalld-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    try:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        yield registry
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _metrics_inherited(supervisor: multiprocessing.process.BaseProcess) -> Iterator[None]:
    """Removes the directory of the shared metrics with the last worker, where the supervisor was killed and cannot."""
    directory = os.environ["PROMETHEUS_MULTIPROC_DIR"]
    in_use = os.open(directory, os.O_RDONLY)
    try:
        # Each worker holds a shared lock until it ends, in whatever way: the one that gets it exclusively is the last.
        fcntl.flock(in_use, fcntl.LOCK_SH)
        yield
    finally:
        if not supervisor.is_alive():
            with suppress(BlockingIOError):
                fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        os.close(in_use)


def _schedule_replacement(worker: _Worker) -> None:
    """Logs that a worker has died, and sets when another takes its place.

    Raises the error that the worker reported if it was the first in its place: then none could work.
    """
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]
    failure = worker.failure()
    # The error of a replacement, such as a certificate that is just being written, must not end the other workers.
    if failure and not worker.attempt:
        raise failure
    now = time.monotonic()
    if now - worker.started_at > _LIVED:
        worker.attempt = 0
    pause = _BACKOFF[min(worker.attempt, len(_BACKOFF) - 1)]
    worker.replaced_at = now + pause
    why = f" ({failure})" if failure else ""
    status = worker.process.exitcode
    log.error("worker %d ended with status %s%s; another starts in %g s", worker.number, status, why, pause)
