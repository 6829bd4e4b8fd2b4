"""`recalld migrate --distributed` on a real Citus: all or nothing, once, and never a row lost."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import psycopg
import pytest

from recalld.cli import run
from recalld.cli.doctor import examine
from recalld.domain import LocalCall, SearchQuery
from recalld.settings import Settings
from recalld.storage import MigrationError, PostgresStore, distributed, distribution, migrate
from recalld.storage.keys import session_key
from recalld.storage.migrate import newest_revision
from tests.contract.asking import read, search, session_ids, write
from tests.distributed.citus import Citus
from tests.faults.cluster import programs
from tests.migrations.test_sql import REVISIONS, upgrade
from tests.postgres import open_database
from tests.waiting import wait_until

CALL = LocalCall("default")
BY_SESSION = {"recalld.session", "recalld.message", "recalld.tombstone"}
EVERYWHERE = {"recalld.api_key", "recalld.lease", "recalld.alembic_version"}
DISTRIBUTED = [
    f"distribution of recalld.{name}"
    for name in ("session", "message", "tombstone", "app_user", "api_key", "lease", "alembic_version", "append")
]

SHAPE = """
select table_name::text, citus_table_type, distribution_column, colocation_id
  from citus_tables
 where table_name::text like 'recalld.%'
"""


def shape(url: str) -> dict[str, tuple[str, str, int]]:
    """By table: its kind, the column that it is distributed by, and with whom it is colocated."""
    with psycopg.connect(url) as connection:
        return {str(name): (kind, column, colocation) for name, kind, column, colocation in connection.execute(SHAPE)}


def is_distributed(url: str) -> bool:
    with psycopg.connect(url) as connection:
        return distributed(connection)


def test_an_empty_database_gets_schema_and_distribution_and_a_second_run_finds_nothing_to_do(citus: Citus) -> None:
    with citus.empty() as url:
        assert migrate(url, "english", distribute=True)[-len(DISTRIBUTED) :] == DISTRIBUTED
        assert migrate(url, "english", distribute=True) == []
        assert migrate(url, "english") == []

        found = shape(url)
        assert {name for name, (_, column, _) in found.items() if column == "session_key"} == BY_SESSION
        assert len({found[name][2] for name in BY_SESSION}) == 1
        assert found["recalld.app_user"][:2] == ("distributed", "user_key")
        assert {name for name, (kind, _, _) in found.items() if kind == "reference"} == EVERYWHERE
        assert is_distributed(url)
        assert is_distributed(citus.on_worker(url))


def test_what_was_written_before_is_all_there_and_no_copy_is_left_behind(citus: Citus) -> None:
    with citus.apart() as url:
        migrate(url, "english")
        with open_database(url) as database:
            store = PostgresStore(database)
            for number in range(50):
                write(store, CALL, f"s{number}", "one", "two")

        with pytest.raises(MigrationError, match=r"needs Citus: .*create extension citus"):
            migrate(url, "english", distribute=True)
        citus.join(url)
        assert not is_distributed(url)
        # Functions from before Citus came are not on its nodes either.
        assert set(migrate(url, "english", distribute=True)) > set(DISTRIBUTED)

        for way in (url, citus.on_worker(url)):
            with open_database(way) as database:
                store = PostgresStore(database)
                assert sorted(session_ids(store, CALL)) == sorted(f"s{number}" for number in range(50))
                assert [read(store, CALL, f"s{number}") for number in range(50)] == [["one", "two"]] * 50
                write(store, LocalCall("another"), "new", "three")
        with psycopg.connect(url) as connection:
            on_coordinator = "select sum(pg_relation_size(oid)) from pg_class where relname in ('session', 'message')"
            assert connection.execute(on_coordinator).fetchone() == (0,)


def test_being_killed_half_way_changes_nothing_and_the_next_run_does_it_all(citus: Citus) -> None:
    with citus.empty() as url:
        migrate(url, "english")
        command = [sys.executable, "-m", "recalld", "migrate", "--distributed", "--database-url", url]
        with psycopg.connect(url) as holding, psycopg.connect(url, autocommit=True) as watching:
            # By then the tables before it are distributed, in the same transaction.
            holding.execute("lock table recalld.lease in share mode")
            waiting = (
                "select count(*) from pg_locks where relation = 'recalld.lease'::regclass and not granted"
                " and exists (select from pg_stat_activity where query like '%%create_distributed_table%%')"
            )
            migrating = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_until(lambda: watching.execute(waiting).fetchone() == (1,), "it does not come to the locked table")
            migrating.kill()
            migrating.wait(10)
        wait_until(lambda: shape(url) == {}, "tables of a killed migration are distributed")
        assert not is_distributed(url)

        assert migrate(url, "english", distribute=True) == DISTRIBUTED


def test_of_two_that_distribute_at_once_one_does_and_both_succeed(citus: Citus) -> None:
    with citus.empty() as url, ThreadPoolExecutor(2) as threads:
        migrate(url, "english")
        done = [threads.submit(migrate, url, "english", distribute=True) for _ in range(2)]
        assert sorted(each.result(60) for each in done) == [[], DISTRIBUTED]


def test_a_worker_is_the_wrong_place_and_nothing_is_changed(citus: Citus, capsys: pytest.CaptureFixture[str]) -> None:
    with citus.empty() as url:
        assert run(["migrate", "--distributed", "--database-url", citus.on_worker(url)]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "coordinator" in line
        with psycopg.connect(url) as connection:
            assert connection.execute("select to_regnamespace('recalld')").fetchone() == (None,)


def test_what_a_later_version_adds_is_distributed_without_being_asked_for(citus: Citus) -> None:
    with citus.copy() as url:
        with psycopg.connect(url) as connection:
            connection.execute("select undistribute_table('recalld.lease')")
        assert [f.verdict for f in examine(settings(url)) if f.subject == "citus"] == ["warning"]

        assert migrate(url, "english") == ["distribution of recalld.lease"]
        assert [f.verdict for f in examine(settings(url)) if f.subject == "citus"] == ["ok"]


@pytest.mark.parametrize("revision", ["0003", "0010"])
def test_what_was_distributed_by_an_earlier_version_is_brought_up_to_date(citus: Citus, revision: str) -> None:
    with citus.empty() as url:
        upgrade(url, revision)
        with psycopg.connect(url, autocommit=True) as connection:
            distribution.distribute(connection)
            connection.execute(
                "select recalld.append(%s, 'default', 's', '', '{}', true, null, null, now(), %s::uuid[],"
                " '{user}', '{hello before}', '{null}', '{null}')",
                (session_key("default", "s"), [uuid4()]),
            )

        steps = [step for step in migrate(url, "english") if not step.startswith("distribution")]

        assert [step[:4] for step in steps] == REVISIONS[REVISIONS.index(revision) + 1 :]
        assert migrate(url, "english") == []
        for way in (url, citus.on_worker(url)):
            with open_database(way) as database:
                store = PostgresStore(database)
                store.prepare()
                write(store, CALL, "s", "hello after")
                assert {"hello before", "hello after"} == set(search(store, CALL, SearchQuery("hello", 10)))


def test_the_search_language_changes_on_all_nodes(citus: Citus) -> None:
    with citus.copy() as url, open_database(url) as database:
        assert migrate(url, "german") == ["search language german"], "there are no messages yet"
        assert migrate(url, "english") == ["search language english"]
        store = PostgresStore(database)
        for number in range(20):
            write(store, CALL, f"s{number}", "Die Häuser am Fluss")
        assert migrate(url, "german") == []
        assert store.search_memory(CALL, SearchQuery("Haus", 100)) == []
        assert migrate(url, "german", change_language=True) == ["search language german"]
        assert len(store.search_memory(CALL, SearchQuery("Haus", 100))) == 20


def settings(url: str) -> Settings:
    return Settings.load({"listen": "127.0.0.1:0", "database_url": url})


def test_psql_makes_of_it_what_migrate_makes(citus: Citus, capsys: pytest.CaptureFixture[str]) -> None:
    with citus.empty() as by_hand, citus.copy() as by_command:
        assert run(["migrate", "--distributed", "--sql", "--database-url", by_hand]) == 0
        script = capsys.readouterr().out
        psql = [str(programs() / "psql"), "--dbname", by_hand, "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--quiet"]
        subprocess.run(psql, input=script, text=True, timeout=60, check=True, stdout=subprocess.DEVNULL)

        assert shape(by_hand) == shape(by_command)
        assert migrate(by_hand, "english", distribute=True) == []
        assert run(["migrate", "--distributed", "--sql", "--database-url", by_hand]) == 0
        assert capsys.readouterr().out == ""
        with psycopg.connect(citus.on_worker(by_hand)) as connection:
            assert connection.execute("select version_num from recalld.alembic_version").fetchall() == [
                (newest_revision(),)
            ]


def test_the_owner_of_the_database_needs_no_further_rights(citus: Citus) -> None:
    role = f"owner_{uuid4().hex}"
    with citus.empty() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"create role {role} login".encode())
            connection.execute(f"grant create on database {connection.info.dbname} to {role}".encode())
        try:
            assert migrate(url.replace("postgres@", f"{role}@"), "english", distribute=True)[-8:] == DISTRIBUTED
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(b"drop schema if exists recalld cascade")
                connection.execute(f"drop owned by {role}".encode())
                connection.execute(f"drop role {role}".encode())
