"""Upgrades while callers go on: a step at a time, with the previous release and this one both serving."""

from __future__ import annotations

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest

from recalld.client import Client, connect
from recalld.settings import Settings
from recalld.storage import migrate
from tests.faults.traffic import Traffic
from tests.migrations.test_sql import REVISIONS, upgrade
from tests.postgres import Databases
from tests.processes import DEADLINE, NOT_SERVING, SERVING, Process, await_health, running
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]

# The commit of release 0.1.0, and the schema that it knows.
PREVIOUS = "88a72a7d37e884aa35f6c70fc519b5f5c275f0e2"
PREVIOUS_REVISION = "0001"

# The module, which the package's function of the same name hides.
MIGRATE = import_module("recalld.storage.migrate")

STEPS = sorted(step.stem for step in (ROOT / "server/recalld/storage/migrations/versions").glob("*.sql"))


@pytest.fixture
def empty_url(databases: Databases) -> Iterator[str]:
    with databases.empty() as url:
        yield url


@pytest.fixture(scope="module")
def previous_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of the previous release."""
    directory = tmp_path_factory.mktemp("previous")
    command = ["git", "-C", str(ROOT), "archive", PREVIOUS, "server", "generated"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git, and the history of the repository")
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        # Python 3.11 before .4, as Debian 12 has it, knows no filter; the archive is of this very repository.
        options: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        files.extractall(directory, **options)
    return directory


def both(*servers: Process) -> Client:
    """A client that spreads its calls over the servers."""
    options = [("grpc.lb_policy_name", "round_robin"), ("grpc.use_local_subchannel_pool", 1)]
    return connect(f"ipv4:{','.join(server.address for server in servers)}", options=options)


def test_callers_notice_nothing_of_an_upgrade_step_by_step(
    empty_url: str, previous_release: Path, tmp_path: Path
) -> None:
    path = os.pathsep.join(str(previous_release / part) for part in ("server", "generated"))
    arguments = ["--database-url", empty_url]
    with (
        running(tmp_path, arguments, environment={"PYTHONPATH": path}) as old,
        running(tmp_path, [*arguments, "--no-migrate"], serves=False) as new,
    ):
        assert old.announced[0].startswith("recalld 0.1.0 ")
        with connect(old.address) as client:
            with Traffic(client) as traffic:
                for revision in REVISIONS[REVISIONS.index(PREVIOUS_REVISION) + 1 :]:
                    traffic.wait_for_calls(60)
                    await_health(new.address, NOT_SERVING)
                    upgrade(empty_url, revision)
                traffic.wait_for_calls(60)
                # It waited for the last step.
                await_health(new.address, SERVING)
            assert traffic.failures == []
            traffic.check(client)
        with both(old, new) as client:
            with Traffic(client, name="both") as traffic:
                traffic.wait_for_calls(200)
            assert traffic.failures == []
            traffic.check(client)
        assert "AddMemory" in new.stderr
        for server in (old, new):
            server.signal(signal.SIGTERM)
            assert server.wait() == 0


def test_a_migration_that_was_killed_half_way_leaves_nothing_behind_and_is_done_by_the_next(empty_url: str) -> None:
    upgrade(empty_url, PREVIOUS_REVISION)
    command = [sys.executable, "-m", "recalld", "migrate", "--database-url", empty_url]
    with (
        psycopg.connect(empty_url) as holder,
        psycopg.connect(empty_url, autocommit=True) as observer,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as killed,
    ):
        # It has made the step's tables, and now waits to note that it is done.
        holder.execute("lock table recalld.alembic_version in exclusive mode")
        waiting = "select count(*) from pg_locks where not granted and relation = 'recalld.alembic_version'::regclass"
        wait_until(lambda: observer.execute(waiting).fetchone() == (1,), "the migration does not wait")
        killed.kill()
        assert killed.wait(DEADLINE) == -signal.SIGKILL
    with psycopg.connect(empty_url) as connection:
        assert connection.execute("select version_num from recalld.alembic_version").fetchall() == [("0001",)]
        assert connection.execute("select to_regclass('recalld.api_key')").fetchone() == (None,)
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE, check=True)
    assert done.stdout.splitlines() == [f"migrated: {step}" for step in STEPS[1:]]


# --- a step that needs a lock which a long transaction holds


@pytest.fixture
def next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A step beyond the newest that needs every caller out of a table for a moment; its name."""
    directory = tmp_path / "migrations"
    shutil.copytree(ROOT / "server/recalld/storage/migrations", directory)
    revision, name = f"{len(STEPS) + 1:04}", f"{len(STEPS) + 1:04}_next"
    versions = directory / "versions"
    (versions / f"{name}.sql").write_text("alter table recalld.session add column next text;")
    code = (versions / f"{STEPS[-1]}.py").read_text()
    code = code.replace(f'down_revision = "{REVISIONS[-2]}"', f'down_revision = "{REVISIONS[-1]}"')
    (versions / f"{name}.py").write_text(code.replace(f'\nrevision = "{REVISIONS[-1]}"', f'\nrevision = "{revision}"'))
    monkeypatch.setattr(MIGRATE, "_DIRECTORY", directory)
    return name


def test_a_step_that_waits_for_a_lock_lets_calls_pass_in_between(
    next_step: str, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied: list[str] = []
    migration = threading.Thread(target=lambda: applied.extend(migrate(database_url, "english")))
    with (
        running(tmp_path, ["--database-url", database_url, "--lock-timeout", "15s"]) as server,
        connect(server.address) as client,
        caplog.at_level(logging.WARNING),
    ):
        with Traffic(client) as traffic:
            traffic.wait_for_calls(50)
            with psycopg.connect(database_url) as reader:
                reader.execute("select from recalld.session")  # and goes on to hold a lock that does not bother calls
                migration.start()
                for attempt in (2, 3):
                    wait_until(lambda: f"attempt {attempt}" in caplog.text, "it waits and waits")  # noqa: B023
                    traffic.wait_for_calls(20)
                assert applied == []
            migration.join(DEADLINE)
            assert applied == [next_step]
            traffic.wait_for_calls(50)
        assert traffic.failures == []
        traffic.check(client)
    # Calls waited behind the step, but not until the server gave them up, which by default it does sooner than here.
    assert traffic.slowest > 1
    assert Settings().lock_timeout.total_seconds() > 2 * MIGRATE._LOCK_TIMEOUT


def test_a_step_that_waits_on_stops_all_calls(
    next_step: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the test above."""
    monkeypatch.setattr(MIGRATE, "_LOCK_TIMEOUT", DEADLINE)
    migration = threading.Thread(target=migrate, args=(database_url, "english"))
    with (
        running(tmp_path, ["--database-url", database_url, "--lock-timeout", "3s"]) as server,
        connect(server.address) as client,
        Traffic(client) as traffic,
    ):
        traffic.wait_for_calls(50)
        with psycopg.connect(database_url) as reader:
            reader.execute("select from recalld.session")
            migration.start()
            wait_until(lambda: any("ABORTED" in failure for failure in traffic.failures), "no call was given up")
        migration.join(DEADLINE)
