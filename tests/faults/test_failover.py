"""A primary dies, and a standby is promoted in its place: what was acknowledged is there, and service goes on.

Postgres decides what an acknowledged write survives: only with synchronous replication a commit waits for the standby.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import grpc
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, Message
from recalld.cli.doctor import examine
from recalld.client import Client
from recalld.settings import Settings
from recalld.storage import migrate
from recalld.storage.database import CONNECT_TIMEOUT
from tests.faults.cluster import Cluster, cluster, free_port, run, started, system_user, temporary_directory
from tests.faults.ledger import Ledger, wrongs
from tests.faults.replica import Replica, replica
from tests.faults.site import LATE
from tests.processes import DEADLINE, NOT_SERVING, await_health
from tests.waiting import wait_until

# Seconds from the promotion to the first write, on a busy machine. A primary that hangs rather than dies
# costs a connect timeout, once for the ping and once for the call.
PROMISED = {"kill": 5.0 + LATE, "freeze": 5.0 + 2 * CONNECT_TIMEOUT + LATE}

STORED = "select count(*) from recalld.message"


@contextmanager
def standby_of(primary: Cluster) -> Iterator[Cluster]:
    """A standby that streams from the primary."""
    with temporary_directory() as directory:
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name=standby"
        run("pg_basebackup", "-D", str(directory), "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync")
        standby = Cluster(directory, free_port())
        standby.configure(port=str(standby.port), unix_socket_directories=str(directory))
        if user := system_user():
            shutil.chown(directory / "postgresql.conf", user, user)
        with started(standby):
            streams = "select count(*) from pg_stat_replication where state = 'streaming'"
            wait_until(lambda: primary.execute(streams) == [(1,)], "the standby does not stream")
            yield standby


@contextmanager
def pair() -> Iterator[tuple[Cluster, Cluster]]:
    with cluster() as primary, standby_of(primary) as standby:
        yield primary, standby


def set_up(postgres: Cluster, setting: str, value: str) -> None:
    postgres.execute(f"alter system set {setting} = '{value}'")
    postgres.execute("select pg_reload_conf()")


def make_synchronous(primary: Cluster) -> None:
    set_up(primary, "synchronous_standby_names", "*")
    state = "select sync_state from pg_stat_replication"
    wait_until(lambda: primary.execute(state) == [("sync",)], "the standby does not become synchronous")


def url_of(*postgres: Cluster) -> str:
    """The database on whichever of them takes writes."""
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in postgres)
    return f"postgresql://postgres@{hosts}/recalld"


@contextmanager
def serving_from(directory: Path, *postgres: Cluster, more: tuple[str, ...] = ()) -> Iterator[tuple[Replica, Client]]:
    """A server that knows the addresses of all of them."""
    arguments = ["--database-url", url_of(*postgres), "--log-level", "ERROR", "--purge-interval", "0", *more]
    with replica(directory, *arguments) as server, server.client() as client:
        yield server, client


@pytest.mark.parametrize("fault", PROMISED)
@pytest.mark.parametrize("standby_first", [False, True])
@pytest.mark.timeout(180)
def test_a_promoted_standby_has_all_that_was_acknowledged_and_service_is_whole_at_once(
    standby_first: bool, fault: str, tmp_path: Path
) -> None:
    with pair() as (primary, standby):
        make_synchronous(primary)
        hosts = (standby, primary) if standby_first else (primary, standby)
        with serving_from(tmp_path, *hosts) as (server, client):
            ledger = Ledger([client])
            with ledger.kept():
                ledger.wait_for(100)
                primary.kill() if fault == "kill" else primary.freeze()
                await_health(server.address, NOT_SERVING)
                before = [*ledger.acknowledged]
                standby.execute("select pg_promote()")
                promoted = time.monotonic()
                ledger.wait_for(1)
                assert time.monotonic() - promoted < PROMISED[fault]
                server.await_serving()
                assert time.monotonic() - promoted < PROMISED[fault]
                ledger.wait_for(100)
            assert wrongs(standby.url, ledger.acknowledged) == []
            assert len(ledger.acknowledged) >= len(before) + 100


@pytest.mark.timeout(180)
def test_without_synchronous_replication_what_was_acknowledged_last_is_lost(tmp_path: Path) -> None:
    """The control of the test above."""
    with pair() as (primary, standby), serving_from(tmp_path, primary, standby) as (_, client):
        ledger = Ledger([client])
        with ledger.kept():
            ledger.wait_for(20)
            set_up(standby, "primary_conninfo", "")
            receivers = "select count(*) from pg_stat_wal_receiver"
            wait_until(lambda: standby.execute(receivers) == [(0,)], "the standby goes on to stream")
            ledger.wait_for(20)
            primary.kill()
            before = [*ledger.acknowledged]
            standby.execute("select pg_promote()")
            ledger.wait_for(1)
        assert any("is acknowledged and stored at []" in line for line in wrongs(standby.url, before))


@pytest.mark.parametrize(("first", "repeated"), [(30, 30), (2, 30)], ids=["by-the-server", "by-the-deadline"])
@pytest.mark.timeout(180)
def test_what_does_not_reach_the_synchronous_standby_is_not_acknowledged(
    first: int, repeated: int, tmp_path: Path
) -> None:
    """A statement that is stopped while it waits for the standby is committed without, and called a success."""
    with pair() as (primary, standby):
        with serving_from(tmp_path, primary, more=("--statement-timeout", "3s")) as (_, client):
            make_synchronous(primary)
            standby.freeze()
            messages = [Message(role="user", content="hello")]
            request = AddMemoryRequest(session_id="s", messages=messages, request_id=str(uuid4()))
            for timeout in (first, repeated):
                with pytest.raises(grpc.RpcError) as refused:
                    client.memory.AddMemory(request, timeout=timeout)
                assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                # That is the trap: the primary has it, and shows it to everybody.
                wait_until(lambda: primary.execute(STORED) == [(1,)], "the primary has not committed")
            standby.thaw()
            client.memory.AddMemory(request, timeout=DEADLINE)
        wait_until(lambda: standby.execute(STORED) == [(1,)], "the standby has nothing")


@pytest.mark.timeout(180)
def test_doctor_judges_the_host_that_a_server_would_use() -> None:
    with pair() as (primary, standby):
        migrate(primary.url, "english")
        # The standby may not know of the schema yet, the primary does.
        assert verdicts(standby, primary) == verdicts(primary, standby) == {"ok"}
        assert "error" in verdicts(standby)
        primary.kill()
        assert "error" in verdicts(primary, standby)
        standby.execute("select pg_promote()")
        assert verdicts(primary, standby) == verdicts(standby, primary) == {"ok"}


def verdicts(*postgres: Cluster) -> set[str]:
    """What `recalld doctor` thinks of the database that these are."""
    return {finding.verdict for finding in examine(Settings.load({"listen": ":0", "database_url": url_of(*postgres)}))}
