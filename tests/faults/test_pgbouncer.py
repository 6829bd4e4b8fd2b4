"""PgBouncer in transaction mode between the server and Postgres: with the setting `pooler` all is as without it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recalld.client import Client
from tests.faults.cluster import Cluster, cluster
from tests.faults.ledger import Ledger, wrongs
from tests.faults.pgbouncer import PgBouncer, pgbouncer
from tests.faults.replica import replica
from tests.faults.site import LATE
from tests.postgres import POOLER_VARIABLE, SERVER_VARIABLE
from tests.processes import DEADLINE, NOT_SERVING, SERVING, await_health, running
from tests.waiting import wait_until

# Seconds from the pooler's return to the first write, on a machine with much else to do.
PROMISED = 5.0 + LATE

# What a role's own settings are left to say: a pooler passes on no start-up options.
ODD_SETTINGS = {"timezone": "Asia/Kathmandu", "max_connections": "200"}

# The rest of the suites looks at Postgres's sessions from outside, or brings one of its own.
SUITES = [
    "tests/contract",
    *(
        f"tests/integration/test_{name}.py"
        for name in ("client", "concurrency", "conversations", "draining", "errors", "invariants")
    ),
    "tests/model",
]


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_suites_pass_through_it() -> None:
    with cluster(**ODD_SETTINGS) as database, pgbouncer(database.port) as pooler:
        environment = {**os.environ, SERVER_VARIABLE: database.url, POOLER_VARIABLE: pooler.url}
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *SUITES]
        root = Path(__file__).parents[2]
        outcome = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout[-4000:]
    assert "through a pooler" in outcome.stdout, "the suites have not heard of it"


def arguments(pooler: PgBouncer) -> list[str]:
    return ["--database-url", pooler.url, "--log-level", "WARNING", "--purge-interval", "0"]


def migrated(database: Cluster) -> None:
    command = [sys.executable, "-m", "recalld", "migrate", "--database-url", database.url]
    subprocess.run(command, capture_output=True, timeout=DEADLINE, check=True)


def add(client: Client, timeout: float = DEADLINE) -> None:
    request = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="hello")])
    client.memory.AddMemory(request, timeout=timeout)


@pytest.mark.timeout(180)
def test_many_connections_share_few_and_nothing_is_lost_when_either_is_killed(tmp_path: Path) -> None:
    with cluster(**ODD_SETTINGS) as database, pgbouncer(database.port, size=2) as pooler:
        migrated(database)
        with replica(tmp_path, *arguments(pooler), "--pooler") as server, server.client() as client:
            ledger = Ledger([client], writers=8)
            with ledger.kept():
                ledger.wait_for(300)
                for victim in (pooler, database):
                    victim.kill()
                    await_health(server.address, NOT_SERVING)
                    victim.start()
                    back = time.monotonic()
                    ledger.wait_for(1)
                    assert time.monotonic() - back < PROMISED
                    ledger.wait_for(50)
            assert wrongs(database.url, ledger.acknowledged) == []
            shown = "select count(*) from pg_stat_activity where application_name = 'recalld'"
            assert database.execute(shown)[0][0] <= 2


def test_without_the_setting_it_never_serves_and_says_why(tmp_path: Path) -> None:
    """The control of the tests above: there is a pooler in between, and it does forbid what it is said to."""
    with cluster() as database, pgbouncer(database.port) as pooler:
        migrated(database)
        with running(tmp_path, arguments(pooler), serves=False) as server:
            wait_until(lambda: "unsupported startup parameter" in server.stderr, "it does not say why")
            with pytest.raises(grpc.RpcError) as waited:
                await_health(server.address, SERVING, timeout=1)
            assert waited.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_through_it_the_schema_is_not_migrated_but_waited_for(tmp_path: Path) -> None:
    with (
        cluster() as database,
        pgbouncer(database.port) as pooler,
        running(tmp_path, [*arguments(pooler), "--pooler"], serves=False) as server,
    ):
        wait_until(lambda: "run `recalld migrate`" in server.stderr, "it does not say what is missing")
        assert database.execute("select to_regnamespace('recalld')") == [(None,)]
        migrated(database)
        await_health(server.address, SERVING)


def test_a_statement_stops_when_the_deadline_passes_through_it_too(tmp_path: Path) -> None:
    """A cancel request goes by the pooler, which knows by now on which connection the statement runs."""
    waiting = "select count(*) from pg_locks where not granted"
    with (
        cluster() as database,
        pgbouncer(database.port, size=2) as pooler,
        ThreadPoolExecutor() as threads,
    ):
        migrated(database)
        with replica(tmp_path, *arguments(pooler), "--pooler") as server, server.client() as client:
            add(client)
            with psycopg.connect(database.url) as holding:
                holding.execute("select from recalld.session for update")
                call = threads.submit(add, client, timeout=3)
                wait_until(lambda: database.execute(waiting) == [(1,)], "the call does not wait")
                assert isinstance(call.exception(), grpc.RpcError)
                wait_until(lambda: database.execute(waiting) == [(0,)], "the statement goes on")
            add(client)


def test_timeouts_of_the_role_hold_through_it(tmp_path: Path) -> None:
    with cluster() as database:
        migrated(database)
        database.execute("alter role postgres set lock_timeout = '200ms'")
        with (
            pgbouncer(database.port) as pooler,
            replica(tmp_path, *arguments(pooler), "--pooler") as server,
            server.client() as client,
        ):
            add(client)
            with psycopg.connect(database.url) as holding:
                holding.execute("select from recalld.session for update")
                with pytest.raises(grpc.RpcError) as refused:
                    add(client)
            assert refused.value.code() == grpc.StatusCode.ABORTED
            add(client)
