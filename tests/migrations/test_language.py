"""The language that messages are searched in: who changes it, and what a change that was broken off leaves behind."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from recalld.domain import LocalCall, NewMemory
from recalld.errors import StorageUnavailable
from recalld.storage import PostgresStore, check_schema, migrate
from tests.contract.asking import said
from tests.migrations.test_sql import upgrade
from tests.postgres import Databases, open_database
from tests.waiting import wait_until

# By language a word that its stemmer, and not the other's, finds in the messages.
WORDS = {"german": "Haus", "english": "rivers"}

CHANGED = {language: [f"search language {language}"] for language in WORDS}


@pytest.fixture
def url(database_url: str) -> str:
    """A database with two messages, searched in English."""
    with open_database(database_url) as database:
        store = PostgresStore(database)
        store.add_memory(LocalCall("default"), NewMemory("s", [said("Die Häuser am Fluss"), said("the river runs")]))
    return database_url


def finds(url: str, language: str) -> bool:
    """Whether the database searches in the language, and the index has the messages in it."""
    with psycopg.connect(url) as connection:
        connection.execute("set enable_seqscan = off")
        plainly = "recalld.searchable(role, content) @@ plainto_tsquery(recalld.search_language(), %s)"
        found = connection.execute(f"select from recalld.message where {plainly}".encode(), (WORDS[language],))
        return found.fetchone() is not None


def unfinished(url: str) -> list[str]:
    """The indexes that are not valid."""
    with psycopg.connect(url) as connection:
        return [
            name
            for (name,) in connection.execute(
                "select relname from pg_index join pg_class on oid = indexrelid where not indisvalid"
            )
        ]


def comment(url: str) -> str | None:
    with psycopg.connect(url) as connection:
        [(text,)] = connection.execute("select obj_description('recalld.message_by_text'::regclass)")
        return text and str(text)


class Killed(BaseException):
    """The end of a process, as far as the database notices."""


@contextmanager
def killed_before(statement: int) -> Iterator[None]:
    """No statement is sent any more from this one on, counted from 1."""
    execute = psycopg.Cursor.execute
    numbers = itertools.count(1)

    def counted(self: psycopg.Cursor[Any], *args: Any, **options: Any) -> Any:
        if next(numbers) >= statement:
            raise Killed
        return execute(self, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psycopg.Cursor, "execute", counted)
        yield


@contextmanager
def broken_off(url: str, language: str) -> Iterator[None]:
    """A change of the language whose process ends while the index is rebuilt; until then the context lasts."""
    reindexing = (
        "pg_stat_activity where datname = current_database() and query ~ '^reindex' and wait_event_type = 'Lock'"
    )
    with (
        psycopg.connect(url) as writing,
        psycopg.connect(url, autocommit=True) as watching,
        ThreadPoolExecutor(1) as threads,
    ):
        writing.execute("lock table recalld.message in row exclusive mode")
        changing = threads.submit(migrate, url, language, change_language=True)
        is_waiting = f"select from {reindexing}".encode()
        wait_until(lambda: watching.execute(is_waiting).fetchone() is not None, "the index is not rebuilt")
        yield
        watching.execute(f"select pg_terminate_backend(pid) from {reindexing}".encode())
        with pytest.raises(StorageUnavailable):
            changing.result(30)


def test_a_change_that_is_killed_before_any_statement_is_done_by_the_next_run(url: str) -> None:
    languages = itertools.cycle(["german", "english"])
    for statement in itertools.count(1):
        language = next(languages)
        ended = True
        with killed_before(statement):
            try:
                migrate(url, language, change_language=True)
            except Killed:
                ended = False
        migrate(url, language, change_language=True)
        assert finds(url, language), f"killed before statement {statement}"
        assert comment(url) is None
        if ended:
            break
    assert statement > 10, "it has more statements than that"


def test_a_change_that_ends_while_the_index_is_rebuilt_is_told_of_and_completed(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with broken_off(url, "german"):
        pass
    assert unfinished(url) == ["message_by_text_ccnew"]
    assert not finds(url, "german")

    # As a server does at start, one that migrates and one that does not.
    assert migrate(url, "german") == []
    check_schema(url)
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert "search language to german is not done" in message
        assert "`recalld migrate` completes it" in message

    assert migrate(url, "german", change_language=True) == CHANGED["german"]
    assert unfinished(url) == []
    assert finds(url, "german")
    assert migrate(url, "german", change_language=True) == []
    caplog.clear()
    check_schema(url)
    assert caplog.messages == []


def test_a_change_that_was_broken_off_can_be_taken_back(url: str) -> None:
    with broken_off(url, "german"):
        pass
    assert migrate(url, "english", change_language=True) == CHANGED["english"]
    assert finds(url, "english")
    assert comment(url) is None


def test_what_others_say_of_the_index_stays(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("comment on index recalld.message_by_text is 'it''s ours\n'")
    check_schema(url)
    assert migrate(url, "english", change_language=True) == []
    assert caplog.messages == []

    with broken_off(url, "german"):
        assert str(comment(url)).startswith("it's ours\n\n[recalld: ")
    assert migrate(url, "german", change_language=True) == CHANGED["german"]
    assert comment(url) == "it's ours\n"


def test_of_two_that_change_the_language_at_once_one_does(url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        changing = [threads.submit(migrate, url, "german", change_language=True) for _ in range(4)]
        assert sorted(each.result(30) for each in changing) == [[], [], [], CHANGED["german"]]
    assert finds(url, "german")


def test_a_database_without_messages_takes_the_language_unasked(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert migrate(database_url, "german") == CHANGED["german"]
    assert migrate(database_url, "german") == []
    assert caplog.messages == []


def test_a_new_database_whose_first_migration_was_killed_gets_the_language_that_is_set(databases: Databases) -> None:
    with databases.empty() as url:
        upgrade(url, "0001")
        assert migrate(url, "german")[-1:] == CHANGED["german"]


def test_servers_that_start_at_once_on_a_database_without_messages_agree(database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        starting = [threads.submit(migrate, database_url, "german") for _ in range(4)]
        assert sorted(each.result(30) for each in starting) == [[], [], [], CHANGED["german"]]
