"""A database that answers, but not with what it was asked for: no space, no writes, no lock in time, no connection."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from recalld.domain import LocalCall
from recalld.errors import DeadlineExceeded
from recalld.storage import Database
from tests.faults.cluster import cluster, system_user, temporary_directory
from tests.faults.site import OK, POOL_SIZE, PROMPT, STORAGE_UNAVAILABLE, Answer, Caller, Site, site, told
from tests.processes import DEADLINE, SERVING, running
from tests.waiting import becomes

CONTENTION = ("ABORTED", "CONTENTION")
OVERLOADED = ("RESOURCE_EXHAUSTED", "OVERLOADED")

# Seconds: of the server here.
LOCK_TIMEOUT = 0.5
POOL_TIMEOUT = 1.0


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all these tests: each finds it as whole as the one before should have left it."""
    timeouts = (f"--lock-timeout={LOCK_TIMEOUT}s", f"--pool-timeout={POOL_TIMEOUT}s")
    with site(tmp_path_factory.mktemp("site"), *timeouts) as made:
        yield made


@pytest.fixture(autouse=True)
def full_pool(here: Site) -> None:
    assert told(here.caller.burst()) == {OK}


# --- locks


def test_a_row_that_somebody_else_holds_on_to_aborts_the_writer_and_no_one_else(here: Site) -> None:
    assert here.caller.add("held").told == OK
    with here.locked("held"):
        answer = here.caller.add("held")
        assert answer.told == CONTENTION
        assert answer.retry_after is not None
        assert LOCK_TIMEOUT <= answer.seconds < LOCK_TIMEOUT + PROMPT
        assert here.caller.get("held").told == OK
        assert here.caller.add("another").told == OK
    assert here.caller.add("held").told == OK


def test_a_table_that_is_being_altered_aborts_reads_and_writes_instead_of_holding_them(here: Site) -> None:
    with closing(here.postgres.connect()) as connection:
        connection.execute("begin")
        connection.execute("alter table recalld.session add column another text")
        answers = here.caller.burst(POOL_SIZE)
        assert told(answers) == {CONTENTION}
        assert max(answer.seconds for answer in answers) < LOCK_TIMEOUT + PROMPT
    assert told(here.caller.burst()) == {OK}


def test_without_a_lock_timeout_a_lock_outlasts_the_call(tmp_path: Path) -> None:
    """The control of the two tests above."""
    with site(tmp_path, "--lock-timeout", "1h") as here:
        assert here.caller.add("held").told == OK
        with here.locked("held"):
            answer = here.caller.add("held", timeout=LOCK_TIMEOUT + PROMPT)
            assert answer.code == grpc.StatusCode.DEADLINE_EXCEEDED


# --- connections


def test_a_call_that_finds_all_connections_busy_is_turned_away_in_time_and_the_others_go_on(tmp_path: Path) -> None:
    with site(tmp_path, f"--pool-timeout={POOL_TIMEOUT}s", "--lock-timeout=1m") as here:
        assert here.caller.add("held").told == OK
        with here.locked("held"):
            busy = [here.caller.later(here.caller.add_alone, "held") for _ in range(POOL_SIZE)]
            assert becomes(lambda: here.waiting() == POOL_SIZE)
            answers = here.caller.burst(8)
            assert told(answers) == {OVERLOADED}
            assert all(answer.retry_after is not None for answer in answers)
            assert all(answer.seconds < POOL_TIMEOUT + PROMPT for answer in answers)
            hurried = here.caller.get("s", timeout=POOL_TIMEOUT / 4)
            assert hurried.code == grpc.StatusCode.DEADLINE_EXCEEDED
            assert here.waiting() == POOL_SIZE
            here.await_health(SERVING, PROMPT)
        assert told([call.result() for call in busy]) == {OK}
        assert told(here.caller.burst()) == {OK}


class Hurried:
    """A call of the server's own, but with a deadline."""

    namespace = "default"

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def remaining(self) -> float | None:
        return max(0.0, self._until - time.monotonic())

    def when_over(self, callback: Callable[[], None]) -> bool:
        return True


def test_a_call_whose_deadline_ends_its_wait_for_a_connection_leaves_the_queue(here: Site) -> None:
    database = Database(here.postgres.url, size=1, timeout=30)
    database.open()
    try:
        with database.connection(LocalCall("default")), ThreadPoolExecutor() as threads:
            waiting = threads.submit(borrow, database, Hurried(3.0))
            assert becomes(lambda: database.usage().waiting == 1)
            with pytest.raises(DeadlineExceeded):
                waiting.result(DEADLINE)
            assert database.usage().waiting == 0
        borrow(database, Hurried(DEADLINE))
    finally:
        database.close()


def borrow(database: Database, call: Hurried) -> None:
    with database.connection(call):
        pass


# --- no writes


def test_a_database_that_takes_no_more_writes_is_unavailable_until_it_does(here: Site) -> None:
    """SQLSTATE 25006, as on the old primary after a failover."""
    writes_back = "alter system reset default_transaction_read_only"
    answers: list[Answer] = []

    def all_refused() -> bool:
        answers[:] = [here.caller.add("s") for _ in range(POOL_SIZE)]
        return told(answers) == {STORAGE_UNAVAILABLE}

    try:
        with here.outage():
            here.postgres.execute("alter system set default_transaction_read_only = on")
            here.postgres.execute("select pg_reload_conf()")
            assert becomes(all_refused), told(answers)  # which each connection hears of in its own time
            assert max(answer.seconds for answer in answers) < POOL_TIMEOUT + PROMPT
    finally:
        with here.postgres.connect(options="-c default_transaction_read_only=off") as connection:
            connection.execute(writes_back)
            connection.execute("select pg_reload_conf()")
    here.assert_whole_since(time.monotonic())


# --- no space


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A directory that holds so much and no more. Skips the test where there can be none."""
    with temporary_directory() as directory:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("only root can mount a small file system, and not in every container")
        try:
            if user := system_user():
                shutil.chown(directory, user, user)
            yield directory
        finally:
            subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_on_a_full_disk_writes_are_refused_and_reads_go_on_until_there_is_space(tmp_path: Path) -> None:
    """SQLSTATE 53100. The log has space of its own: without that Postgres stops altogether."""
    with small_disk(32) as disk, cluster() as postgres:
        with postgres.connect("postgres") as connection:
            connection.execute(f"create tablespace small location '{disk}'".encode())
            connection.execute("alter database recalld set tablespace small")
        with running(tmp_path, ["--database-url", postgres.url, "--pool-size", str(POOL_SIZE)]) as process:
            caller = Caller(process.address)
            try:
                assert caller.add("s", "before").told == OK
                filler = disk / "filler"
                fill(filler)
                answers = [caller.add("s", os.urandom(200_000).hex()) for _ in range(4)]
                assert told(answers) == {STORAGE_UNAVAILABLE}
                assert caller.contents("s") == ["before"]
                assert process.runs
                filler.unlink()
                assert caller.add("s", "after").told == OK
                assert caller.contents("s") == ["before", "after"]
            finally:
                caller.close()


def fill(file: Path) -> None:
    """Leaves no space on its disk."""
    with file.open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(65536))
