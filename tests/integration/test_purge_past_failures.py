"""What cannot be purged keeps nothing else from being purged, and is told at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from recalld.domain import LocalCall, NewMemory, Profile, PurgeProgress, PurgeQuery
from recalld.errors import Contention, DeadlineExceeded, StorageUnavailable
from recalld.storage import Database, PostgresStore
from recalld.storage.keys import session_key
from tests.contract.asking import purge, said, users, write
from tests.contract.clock import Clock

CALL = LocalCall("default")
SESSIONS = 24

DAMAGED = "raise exception 'secret' using errcode = 'data_corrupted'"
TOO_SLOW = "raise exception using errcode = 'query_canceled'"  # as the statement's timeout has it


class Deleted:
    """Sessions s0 to s23, each with three messages, deleted in this order; and how the purge is kept from some."""

    def __init__(self, url: str, database: Database) -> None:
        self._url = url
        self.clock = Clock()
        self.store = PostgresStore(database, clock=self.clock)
        for n in range(SESSIONS):
            write(self.store, CALL, f"s{n}", "one", "two", "three")
            self.store.delete_session(CALL, f"s{n}")
            self.clock.advance(seconds=1)

    @property
    def query(self) -> PurgeQuery:
        return PurgeQuery(self.clock())

    def purge(self) -> tuple[PurgeProgress, Exception | None]:
        """What was removed, and what it ended with."""
        totals = PurgeProgress(0, 0, 0)
        progress = self.store.purge(CALL, self.query)
        try:
            while True:
                totals = next(progress)
        except StopIteration:
            return totals, None
        except Exception as error:
            return totals, error

    def left(self) -> dict[str, int]:
        """The sessions that are left, and how many messages of each."""
        statement = """
            select s.session_id, (select count(*) from recalld.message as m where m.session_key = s.session_key)
              from recalld.session as s
        """
        with psycopg.connect(self._url) as connection:
            return dict(connection.execute(statement).fetchall())

    @contextmanager
    def locked(self, *numbers: int) -> Iterator[None]:
        """Meanwhile somebody has these sessions locked."""
        keys = [session_key("default", f"s{n}") for n in numbers]
        with psycopg.connect(self._url) as connection:
            connection.execute("select from recalld.session where session_key = any(%s) for update", [keys])
            yield
            connection.rollback()

    @contextmanager
    def failing(self, content: str, how: str = DAMAGED) -> Iterator[None]:
        """Meanwhile nobody can delete a message that says this; counts the attempts in a sequence."""
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("create sequence if not exists recalld.tries")
            connection.execute(
                f"""create function recalld.fail() returns trigger language plpgsql as
                    $$ begin if old.content = '{content}' then {how}; end if; return old; end $$""".encode()
            )
            connection.execute(
                "create trigger fail before delete on recalld.message for each row execute function recalld.fail()"
            )
            yield
            connection.execute("drop function recalld.fail cascade")


@pytest.fixture
def deleted(database_url: str) -> Iterator[Deleted]:
    database = Database(database_url, lock_timeout=0.2)
    database.open()
    try:
        yield Deleted(database_url, database)
    finally:
        database.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_locked_session_is_passed_over_and_purged_by_the_next(
    deleted: Deleted, caplog: pytest.LogCaptureFixture
) -> None:
    with deleted.locked(0, 7):
        totals, error = deleted.purge()
    assert (totals, type(error)) == (PurgeProgress(SESSIONS - 2, 3 * (SESSIONS - 2), 0), Contention)
    assert deleted.left() == {"s0": 3, "s7": 3}
    keys = [session_key("default", name) for name in ("s0", "s7")]
    assert warnings(caplog) == [f"the purge passes over session_key {key}: CONTENTION" for key in keys]
    assert deleted.purge() == (PurgeProgress(2, 6, 0), None)


@pytest.mark.parametrize(
    ("how", "kind", "why"),
    [
        (DAMAGED, psycopg.errors.DataCorrupted, "DataCorrupted"),
        (TOO_SLOW, DeadlineExceeded, "DEADLINE_EXCEEDED"),
    ],
    ids=["damaged", "slow"],
)
def test_so_is_one_that_fails(
    deleted: Deleted, caplog: pytest.LogCaptureFixture, how: str, kind: type[Exception], why: str
) -> None:
    write(deleted.store, CALL, "bad", "bad")
    deleted.store.delete_session(CALL, "bad")
    deleted.clock.advance(seconds=1)
    write(deleted.store, CALL, "last", "good")
    deleted.store.delete_session(CALL, "last")
    with deleted.failing("bad", how):
        totals, error = deleted.purge()
    assert totals == PurgeProgress(SESSIONS + 1, 3 * SESSIONS + 1, 0)
    assert isinstance(error, kind)
    assert deleted.left() == {"bad": 1}
    assert warnings(caplog) == [f"the purge passes over session_key {session_key('default', 'bad')}: {why}"]
    assert deleted.purge() == (PurgeProgress(1, 1, 0), None)


def test_a_session_is_not_removed_before_what_could_not_be_removed_of_it(deleted: Deleted) -> None:
    """It would go in one step, however much it is: the batch would not be kept to."""
    write(deleted.store, CALL, "s", *["bad"] * 5)
    deleted.store.clear_memory(CALL, "s")
    deleted.clock.advance(seconds=1)
    write(deleted.store, CALL, "s", "good")
    deleted.store.delete_session(CALL, "s")
    with deleted.failing("bad", f"if nextval('recalld.tries') = 1 then {DAMAGED}; end if"):
        totals, error = deleted.purge()
    assert isinstance(error, psycopg.errors.DataCorrupted)
    assert (totals.sessions, deleted.left()) == (SESSIONS, {"s": 6})


def test_users_of_other_sessions_go_all_the_same(deleted: Deleted) -> None:
    for user in ("a", "b"):
        deleted.store.create_user(CALL, user, Profile())
        deleted.store.add_memory(CALL, NewMemory(f"of-{user}", [said(user)], user_id=user))
        deleted.store.delete_user(CALL, user)
        deleted.clock.advance(seconds=1)
    with deleted.failing("a"):
        totals, error = deleted.purge()
    assert (totals.users, type(error)) == (1, psycopg.errors.DataCorrupted)
    assert [user.user_id for user in users(deleted.store, CALL, show_deleted=True)] == ["a"]


def test_who_purges_can_stop_at_each_that_is_passed_over(deleted: Deleted) -> None:
    """The server on schedule, which renews its lease meanwhile."""
    progress = deleted.store.purge(CALL, deleted.query)
    with deleted.locked(0, 1, 2):
        assert [next(progress) for _ in range(4)] == [*[PurgeProgress(0, 0, 0)] * 3, PurgeProgress(1, 3, 0)]
    assert set(deleted.left()) == {f"s{n}" for n in range(SESSIONS) if n != 3}


def test_when_many_fail_in_a_row_the_purge_ends(deleted: Deleted) -> None:
    with deleted.locked(*range(1, 12)):
        totals, error = deleted.purge()
    assert (totals.sessions, type(error)) == (1, Contention)
    assert set(deleted.left()) == {f"s{n}" for n in range(1, SESSIONS)}


def test_many_that_fail_here_and_there_do_not_end_it(deleted: Deleted) -> None:
    with deleted.locked(*range(0, SESSIONS, 2)):
        totals, error = deleted.purge()
    assert (totals.sessions, type(error)) == (SESSIONS // 2, Contention)


def test_what_is_no_fault_of_a_session_ends_the_purge_at_once(
    deleted: Deleted, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    progress = deleted.store.purge(CALL, deleted.query)
    next(progress)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("alter table recalld.message rename to gone")
        with pytest.raises(StorageUnavailable):
            next(progress)
    assert not [text for text in warnings(caplog) if "passes over" in text]


def test_a_call_that_is_over_ends_the_purge_at_once(deleted: Deleted, caplog: pytest.LogCaptureFixture) -> None:
    class Over(LocalCall):
        def remaining(self) -> Any:
            return 0 if over else None

    over = False
    progress = deleted.store.purge(Over("default"), deleted.query)
    next(progress)
    over = True
    with pytest.raises(DeadlineExceeded):
        next(progress)
    assert warnings(caplog) == []


def test_a_dry_run_counts_what_it_cannot_remove(deleted: Deleted) -> None:
    with deleted.failing("one"):
        totals = purge(deleted.store, CALL, PurgeQuery(deleted.clock() + timedelta(seconds=1), dry_run=True))
    assert totals == PurgeProgress(SESSIONS, 3 * SESSIONS, 0)
