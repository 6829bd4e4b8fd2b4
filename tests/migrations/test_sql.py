"""`recalld migrate --sql`: what a database administrator runs by hand makes the schema that `recalld migrate` makes."""

from __future__ import annotations

import subprocess
from importlib.resources import files

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

from recalld.cli import run
from recalld.storage import migrate
from recalld.storage.migrate import newest_revision
from tests.faults.cluster import programs
from tests.postgres import Databases

REVISIONS = [f"{number:04}" for number in range(1, int(newest_revision()) + 1)]


def upgrade(url: str, revision: str) -> None:
    """Brings a database to a revision that is not the newest."""
    config = Config()
    config.set_main_option("script_location", str(files("recalld.storage") / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool)
    with engine.connect() as connection:
        config.attributes.update(connection=connection, on_version_apply=lambda **_: None, lock_timeout=30)
        command.upgrade(config, revision)


def schema(url: str) -> list[str]:
    """Everything there is in the database, as the SQL that makes it, and the revision that it calls itself."""
    command = [str(programs() / "pg_dump"), "--dbname", url, "--schema-only"]
    dump = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    with psycopg.connect(url) as connection:
        revisions = connection.execute("select version_num from recalld.alembic_version").fetchall()
    # Newer versions put a random word at either end.
    return [line for line in dump.splitlines() if "restrict " not in line] + [str(revisions)]


@pytest.mark.parametrize("before", [None, *REVISIONS[:-1]])
def test_psql_makes_of_it_what_migrate_makes(
    before: str | None, databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    with databases.empty() as by_hand, databases.empty() as by_command:
        if before is not None:
            upgrade(by_hand, before)
        assert run(["migrate", "--sql", "--database-url", by_hand]) == 0
        script = capsys.readouterr().out
        psql = [str(programs() / "psql"), "--dbname", by_hand, "--no-psqlrc", "--set", "ON_ERROR_STOP=1", "--quiet"]
        subprocess.run(psql, input=script, text=True, timeout=60, check=True)

        migrate(by_command, "english")
        assert schema(by_hand) == schema(by_command)
        assert migrate(by_hand, "english") == []


def test_it_changes_nothing_and_is_empty_when_there_is_nothing_to_do(
    databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    with databases.empty() as url:
        assert run(["migrate", "--sql", "--database-url", url]) == 0
        assert "create table recalld.session" in capsys.readouterr().out
        with psycopg.connect(url) as connection:
            assert connection.execute("select to_regnamespace('recalld')").fetchone() == (None,)
        migrate(url, "english")
        assert run(["migrate", "--sql", "--database-url", url]) == 0
        assert capsys.readouterr().out == ""
