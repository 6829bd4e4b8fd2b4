"""kill -9 of server and Postgres, again and again under load: nothing acknowledged is lost, nothing half done."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psycopg
import pytest

from recalld.client import Client
from recalld.domain import Call, LocalCall, NewMemory, PurgeQuery
from recalld.storage import Database, PostgresStore, migrate
from recalld.storage.rows import utc_now
from tests.contract.asking import said
from tests.faults.cluster import Cluster, cluster
from tests.faults.ledger import Ledger, wrongs
from tests.faults.replica import Replica, replica
from tests.integration.conftest import connected, serving
from tests.integration.test_invariants import operations, violations

SEED = 5


@contextmanager
def everything_else(channel: grpc.Channel) -> Iterator[None]:
    """Meanwhile two callers delete, purge, update and so on, whatever becomes of it."""
    client = Client(channel)
    enough = threading.Event()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        while not enough.is_set():
            weights, choices = zip(*operations(client, chance), strict=True)
            try:
                chance.choices(choices, weights)[0]()
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    enough.wait(0.1)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join()


def kill(victim: Replica | Cluster) -> None:
    victim.kill()
    victim.start()


@pytest.mark.parametrize(
    "cycles", [pytest.param(10, id="10-times"), pytest.param(200, id="200-times", marks=[pytest.mark.faults])]
)
@pytest.mark.timeout(1200)
def test_whatever_is_killed_nothing_acknowledged_is_lost(cycles: int, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    with cluster() as database:
        arguments = ["--database-url", database.url, "--log-level", "ERROR", "--purge-interval", "0"]
        with replica(tmp_path, *arguments) as server, server.client() as client:
            ledger = Ledger([client])
            with ledger.kept(), everything_else(client.channel):
                for cycle in range(cycles):
                    # Also while the server has only begun to find its way back from the cycle before.
                    ledger.wait_for(chance.randint(1, 40))
                    victim: Replica | Cluster = database if cycle % 2 else server
                    kill(victim)
                    acknowledged = ledger.acknowledged[-500:]
                    assert wrongs(database.url, acknowledged) == []
                    assert violations(database.url) == {}
                ledger.wait_for(1)
            assert wrongs(database.url, ledger.acknowledged) == []
            assert violations(database.url) == {}
            assert ledger.repeated >= cycles / 2, "hardly any call was under way when something was killed"


def test_a_database_that_does_not_wait_for_its_disk_is_found_out(tmp_path: Path) -> None:
    """The control of the test above: with synchronous_commit off, what was acknowledged last is lost."""
    with cluster(synchronous_commit="off", wal_writer_delay="10s") as database:
        arguments = ["--database-url", database.url, "--log-level", "WARNING", "--purge-interval", "0"]
        with replica(tmp_path, *arguments) as server, server.client() as client:
            assert "synchronous_commit is off" in server.process.stderr
            ledger = Ledger([client])
            lost: list[str] = []
            database.execute("checkpoint")  # of the schema
            with ledger.kept():
                for _ in range(10):
                    ledger.wait_for(40)
                    database.kill()
                    acknowledged = [*ledger.acknowledged]
                    database.start()
                    if lost := wrongs(database.url, acknowledged):
                        break
    assert any("is acknowledged and stored at []" in each for each in lost)


@pytest.mark.parametrize("remove", [PostgresStore.delete_session, PostgresStore.clear_memory])
def test_what_a_purge_has_finished_is_gone_for_good_and_what_others_write_meanwhile_is_kept(
    remove: Callable[[PostgresStore, Call, str], object],
) -> None:
    call = LocalCall("default")
    with cluster(wal_writer_delay="10s") as server:
        migrate(server.url, "english")
        with opened(server.url) as store:
            store.add_memory(call, NewMemory("purged", [said(str(number)) for number in range(30)]))
            remove(store, call, "purged")
            purge = store.purge(call, PurgeQuery(utc_now(), batch_size=10))
            assert next(purge).messages == 10  # which waited for nothing; what comes next has the same connection
            store.add_memory(call, NewMemory("other", [said("kept")]))
            kill(server)
        with opened(server.url) as store:
            assert [message.content for message in store.get_memory(call, "other", 12, 0, 0).messages] == ["kept"]
            *_, done = store.purge(call, PurgeQuery(utc_now(), batch_size=10))
            assert done.messages == 20
            kill(server)
        assert server.execute("select count(*) from recalld.tombstone") == [(0,)]
        assert server.execute("select count(*) from recalld.message") == [(1,)]


@pytest.mark.parametrize("batch_size", [1, 10, 1000])
@pytest.mark.parametrize("remove", [PostgresStore.delete_session, PostgresStore.clear_memory])
def test_a_purge_that_outlives_the_database_does_again_what_was_lost(
    remove: Callable[[PostgresStore, Call, str], object], batch_size: int
) -> None:
    """Between two batches it has no connection, and so does not notice."""
    call = LocalCall("default")
    with cluster(wal_writer_delay="10s") as server:
        migrate(server.url, "english")
        with opened(server.url) as store:
            store.add_memory(call, NewMemory("purged", [said(str(number)) for number in range(30)]))
            store.add_memory(call, NewMemory("purged", [said(str(number)) for number in range(3)]))
            remove(store, call, "purged")
            store.add_memory(call, NewMemory("purged", [said("kept")]))
            purge = store.purge(call, PurgeQuery(utc_now(), batch_size=batch_size))
            removed = next(purge).messages
            before = server.execute("select first_seq from recalld.tombstone")
            kill(server)
            if batch_size < 33:
                assert removed == batch_size
                assert server.execute("select first_seq from recalld.tombstone") < before, "nothing was lost"
            *_, done = purge
            assert done.messages >= 33
        assert violations(server.url) == {}
        assert server.execute("select content from recalld.message") == [("kept",)]


@contextmanager
def opened(url: str) -> Iterator[PostgresStore]:
    """A store that has one connection."""
    database = Database(url, size=1)
    database.open()
    try:
        yield PostgresStore(database)
    finally:
        database.close()


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("select", None),
        ("delete from recalld.message where seq = 2", "has a gap"),
        ("delete from recalld.message where seq = (select max(seq) from recalld.message)", "has a gap"),
        ("update recalld.message set seq = -seq", "is acknowledged and stored at"),
        ("delete from recalld.session", "is acknowledged and stored at []"),
        ("update recalld.message set content = '0 1 2' where seq = 1", "messages is stored at"),
    ],
)
def test_what_was_written_down_is_looked_for(damage: str, found: str | None, database_url: str) -> None:
    """The control of what the tests above look for."""
    with serving(database_url) as server, connected(server) as client:
        ledger = Ledger([Client(client.channel)], writers=1)
        with ledger.kept():
            ledger.wait_for(10)
    assert wrongs(database_url, ledger.acknowledged) == []
    with psycopg.connect(database_url) as connection:
        connection.execute(damage.encode())
    lines = wrongs(database_url, ledger.acknowledged)
    assert any(found in line for line in lines) if found else lines == []
