"""`recalld migrate --distributed` where there is no Citus. What it does where there is one: tests/distributed."""

from __future__ import annotations

import psycopg
import pytest

from recalld.cli import run
from recalld.storage import distributed
from tests.postgres import Databases


@pytest.mark.parametrize("options", [[], ["--sql"], ["--grant-to", "recalld_nobody"]])
def test_a_plain_postgres_is_refused_in_one_line_and_nothing_is_changed(
    options: list[str], databases: Databases, capsys: pytest.CaptureFixture[str]
) -> None:
    with databases.empty() as url:
        assert run(["migrate", "--distributed", *options, "--database-url", url]) == 1
        captured = capsys.readouterr()
        [line] = captured.err.splitlines()
        assert line.startswith("recalld: --distributed needs Citus: ")
        assert "create extension citus" in line
        assert captured.out == ""
        with psycopg.connect(url) as connection:
            assert connection.execute("select to_regnamespace('recalld')").fetchone() == (None,)


def test_a_migrated_one_is_refused_too_and_goes_on_as_it_was(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["migrate", "--distributed", "--database-url", database_url]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert run(["migrate", "--database-url", database_url]) == 0


def test_a_plain_postgres_is_not_distributed_with_or_without_a_schema(databases: Databases, database_url: str) -> None:
    with databases.empty() as empty_url:
        for url in (empty_url, database_url):
            with psycopg.connect(url) as connection:
                assert not distributed(connection)
