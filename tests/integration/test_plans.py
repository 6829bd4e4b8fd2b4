"""What the hot paths cost Postgres: how many statements, and which plans on 20,000 sessions and 200,000 messages.

The plans are those that really ran: auto_explain sends them along with the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from recalld.domain import (
    Call,
    LocalCall,
    MetadataChange,
    NewMemory,
    NewMessage,
    Position,
    PurgeQuery,
    SearchQuery,
    SessionChange,
    SessionOrder,
    SessionQuery,
)
from recalld.errors import MessageNotFound
from recalld.gathering import Gathering
from recalld.spare_threads import SpareThreads
from recalld.storage import Database, PostgresStore
from recalld.storage.database import Connection
from recalld.storage.keys import session_key
from tests.postgres import Databases

SESSIONS = 20_000
MESSAGES_EACH = 10
BIG = 5_000  # messages of one session that is much longer than the planner's statistics make it
PAGE = 100
DEADLINE = 30.0
CALL = LocalCall("default")
NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Watched(Database):
    """Notes the plan of every statement, those inside functions too if asked, and every transaction block."""

    def __init__(self, url: str) -> None:
        super().__init__(url, size=1)
        self.plans: list[dict[str, Any]] = []
        self.transactions = 0

    @contextmanager
    def connection(self, call: Call, *, traced: bool = True) -> Iterator[Connection]:
        with super().connection(call, traced=traced) as connection, pytest.MonkeyPatch.context() as patch:
            transaction = connection.transaction

            def counted(*args: Any, **options: Any) -> Any:
                self.transactions += 1
                return transaction(*args, **options)

            patch.setattr(connection, "transaction", counted)
            connection.add_notice_handler(self._note)
            try:
                yield connection
            finally:
                connection.remove_notice_handler(self._note)

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if "plan:" in text:
            self.plans.append(json.loads(text.partition("plan:")[2]))


@contextmanager
def watching(url: str) -> Iterator[Watched]:
    """The database, open to the end of the context."""
    database = Watched(url)
    database.open()
    try:
        yield database
    finally:
        database.close()


@pytest.fixture(scope="module")
def watched(databases: Databases) -> Iterator[Watched]:
    with databases.copy() as url:
        _populate(url)
        with watching(url) as database:
            yield database


def _populate(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create temporary table new (n bigint, session_key uuid, messages bigint)")
        with connection.cursor() as cursor, cursor.copy("copy new from stdin") as copy:
            for n in range(SESSIONS):
                copy.write_row((n, session_key("default", f"s{n}"), BIG if n == 1 else MESSAGES_EACH))
        connection.execute(
            """
            insert into recalld.session (session_key, namespace, session_id, user_id, metadata, message_count, last_seq,
                                         cleared_seq, version, create_time, update_time, active_time, delete_time)
            select session_key, 'default', 's' || n, 'u' || n %% 1000, jsonb_build_object('n', n),
                   case when n %% 10 = 0 then 0 else messages end, messages,
                   case when n %% 10 = 0 then messages else 0 end, 1, time, time, date_bin('1 minute', time, 'epoch'),
                   case when n %% 10 = 0 then %(now)s end
              from new, lateral (select %(now)s - n * interval '1 minute' as time) as t
            """,
            {"now": NOW},
        )
        connection.execute(
            """
            insert into recalld.message (session_key, seq, create_time, message_id, role, content)
            select session_key, seq, %(now)s, gen_random_uuid(), 'user', 'message ' || seq || ' of ' || n
              from new, generate_series(1, messages) as seq
            """,
            {"now": NOW},
        )
        connection.execute(
            """
            with s as (
                insert into recalld.session (session_key, namespace, session_id, metadata, message_count, last_seq,
                                             cleared_seq, version, create_time, update_time, active_time)
                values (%(key)s, 'default', 'sparse', '{}', 3, %(messages)s, 0, 1, %(now)s, %(now)s,
                        date_bin('1 minute', %(now)s, 'epoch'))
            )
            insert into recalld.message (session_key, seq, create_time, message_id, role, content, delete_time)
            select %(key)s, seq, %(now)s, gen_random_uuid(), 'user', 'x',
                   case when seq <= %(messages)s - 3 then %(now)s end
              from generate_series(1, %(messages)s) as seq
            """,
            {"key": session_key("default", "sparse"), "messages": BIG, "now": NOW},
        )
        connection.execute(
            """
            insert into recalld.tombstone (session_key, last_seq, delete_time, first_seq, namespace, whole)
            select session_key, last_seq, delete_time, 1, namespace, true from recalld.session where deleted
            """
        )
        connection.execute("vacuum analyze")
        explain_everything(connection)


def explain_everything(connection: psycopg.Connection[Any]) -> None:
    """Makes later connections to the database send the plan of whatever runs."""
    (name,) = connection.execute("select current_database()").fetchone() or ("",)
    for setting, value in {
        "session_preload_libraries": "auto_explain",
        "auto_explain.log_min_duration": "0",
        "auto_explain.log_analyze": "on",
        "auto_explain.log_timing": "off",
        "auto_explain.log_buffers": "on",
        "auto_explain.log_format": "json",
        "auto_explain.log_level": "log",
        "client_min_messages": "log",
    }.items():
        connection.execute(
            psycopg.sql.SQL("alter database {} set {} = {}").format(
                psycopg.sql.Identifier(name), psycopg.sql.SQL(setting), psycopg.sql.Literal(value)
            )
        )


@pytest.fixture
def store(watched: Watched) -> PostgresStore:
    return PostgresStore(watched)


def plans_of(
    watched: Watched, action: Callable[[], Any], *, nested: bool = True, runs: int = 8
) -> list[dict[str, Any]]:
    """The plans of the last run of the action, after enough others for Postgres to have settled on a plan."""
    with watched.connection(CALL) as connection:
        connection.execute("select set_config('auto_explain.log_nested_statements', %s, false)", [str(nested)])
    for _ in range(runs):
        watched.plans.clear()
        watched.transactions = 0
        action()
    return list(watched.plans)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def said(content: str = "hi") -> NewMessage:
    return NewMessage(str(uuid4()), "user", content, {}, 0)


def _get_unknown_message(store: PostgresStore) -> None:
    with pytest.raises(MessageNotFound):
        store.get_message(CALL, "s3", str(UUID(int=0)))


def _list_sessions(store: PostgresStore, order: SessionOrder, after: Position | None) -> None:
    assert len(store.list_sessions(CALL, SessionQuery(order=order), after, PAGE).sessions) == PAGE


MIDDLE = Position(NOW - timedelta(minutes=SESSIONS // 2), UUID(int=0))

# Each with the most rows that any one step of its plan may touch.
HOT: dict[str, tuple[Callable[[PostgresStore], Any], int]] = {
    "AddMemory": (lambda store: store.add_memory(CALL, NewMemory("s3", [said()])), 1),
    "AddMemory, new session": (lambda store: store.add_memory(CALL, NewMemory(str(uuid4()), [said()])), 1),
    "GetMemory": (lambda store: store.get_memory(CALL, "s2", 12, 0, 0), 12),
    "GetMemory, long session": (lambda store: store.get_memory(CALL, "s1", 12, 0, 0), 12),
    "GetMemory, all but three deleted one by one": (lambda store: store.get_memory(CALL, "sparse", 12, 0, 0), 3),
    "GetMemory, max_tokens": (lambda store: store.get_memory(CALL, "s1", 50, 20, 0), 50),
    "ListMessages": (lambda store: store.list_messages(CALL, "s1", None, PAGE), PAGE + 1),
    "ListMessages, middle": (lambda store: store.list_messages(CALL, "s1", BIG // 2, PAGE), PAGE + 1),
    "ListMessages, newest first": (
        lambda store: store.list_messages(CALL, "s1", BIG // 2, PAGE, descending=True),
        PAGE + 1,
    ),
    "GetMessage": (_get_unknown_message, 1),
    **{
        f"ListSessions, {order.value}, {where}": (partial(_list_sessions, order=order, after=after), PAGE + 1)
        for order in SessionOrder
        for where, after in (("first page", None), ("middle", MIDDLE))
    },
    "ListSessions of a user": (
        lambda store: store.list_sessions(CALL, SessionQuery(user_id="u5"), None, PAGE),
        PAGE + 1,
    ),
    "ListSessions, deleted too": (
        lambda store: store.list_sessions(CALL, SessionQuery(show_deleted=True), MIDDLE, PAGE),
        2 * PAGE + 1,
    ),
    "Purge, picking": (lambda store: next(store.purge(CALL, PurgeQuery(NOW, dry_run=True))), 1000),
}


@pytest.mark.parametrize("name", HOT)
def test_a_hot_path_uses_indexes_and_touches_no_more_rows_than_it_answers_with(
    store: PostgresStore, watched: Watched, name: str
) -> None:
    action, most = HOT[name]

    plans = plans_of(watched, lambda: action(store))

    assert plans
    for plan in plans:
        for node in nodes(plan["Plan"]):
            assert node["Node Type"] != "Seq Scan", plan
            # Rows that a filter drops are touched too. One more is the session's own.
            touched = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            assert touched * node["Actual Loops"] <= most + 1, (node, plan)


@pytest.mark.parametrize("of_user", ["", "u5"])
@pytest.mark.parametrize("order", SessionOrder)
def test_no_page_of_a_listing_reads_more_than_the_first(
    store: PostgresStore, watched: Watched, order: SessionOrder, of_user: str
) -> None:
    """Also of the index: entries that a scan passes over are no rows of a plan."""

    def pages(depth: float) -> int:
        after = Position(NOW - timedelta(minutes=SESSIONS * depth), UUID(int=0))
        query = SessionQuery(order=order, user_id=of_user)
        (plan,) = plans_of(watched, lambda: store.list_sessions(CALL, query, after, 10))
        return int(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])

    assert max(pages(depth) for depth in (0.05, 0.5, 0.95)) <= 30


@pytest.fixture
def gathering() -> Iterator[Gathering]:
    spare = SpareThreads("aside")
    gathering = Gathering(1, most=32, aside=spare.run)
    yield gathering
    gathering.shutdown()
    spare.close()


def append_together(store: PostgresStore, gathering: Gathering, sessions: Sequence[str]) -> None:
    """As many calls as sessions, which share a statement."""
    all_there = Event()
    gathering.submit(all_there.wait, DEADLINE)
    calls = [gathering.submit(store.add_memory, CALL, NewMemory(session, [said()])) for session in sessions]
    all_there.set()
    for call in calls:
        assert call.result(DEADLINE).messages


def test_groups_of_appends_share_a_plan_by_keys_be_it_made_when_the_tables_were_empty(
    databases: Databases, gathering: Gathering
) -> None:
    with databases.copy() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("vacuum analyze")  # so that the planner knows them to be empty
            explain_everything(connection)
        with watching(url) as watched:
            store = PostgresStore(watched)
            plans = plans_of(watched, lambda: append_together(store, gathering, ["s1", "s2"]), runs=1)

    scans = [node for plan in plans for node in nodes(plan["Plan"]) if node.get("Relation Name") == "session"]
    assert scans
    for scan in scans:
        assert scan["Node Type"] != "Seq Scan", scan
    conditions = [node["Index Cond"] for plan in plans for node in nodes(plan["Plan"]) if "Index Cond" in node]
    assert conditions
    for condition in conditions:
        assert "$" in condition, f"planned for the values of one group: {condition}"


def test_a_group_of_appends_has_as_many_statements_for_many_sessions_as_for_two(
    store: PostgresStore, watched: Watched, gathering: Gathering
) -> None:
    few, many = (
        plans_of(watched, partial(append_together, store, gathering, [f"s{n}" for n in sessions]))
        for sessions in (range(11, 13), range(21, 29))
    )

    assert len(few) == len(many) == 4, [plan["Query Text"] for plan in many]


def test_a_filter_that_matches_nothing_examines_a_bounded_number_of_sessions(
    store: PostgresStore, watched: Watched
) -> None:
    query = SessionQuery(metadata={"no": "such"})

    plans = plans_of(watched, lambda: store.list_sessions(CALL, query, None, PAGE))

    examined = sum(
        node["Actual Rows"] for plan in plans for node in nodes(plan["Plan"]) if node["Node Type"] == "Index Scan"
    )
    assert 0 < examined <= 10_000 < SESSIONS


def test_a_search_of_the_namespace_reaches_messages_by_the_full_text_index(
    store: PostgresStore, watched: Watched
) -> None:
    store.add_memory(CALL, NewMemory("s3", [said("a zebra")]))

    plans = plans_of(watched, lambda: store.search_memory(CALL, SearchQuery("zebras", 10)))

    scans = [node for plan in plans for node in nodes(plan["Plan"]) if node.get("Relation Name") == "message"]
    indexes = {node.get("Index Name") for plan in plans for node in nodes(plan["Plan"])}
    assert "message_by_text" in indexes
    assert all(node["Node Type"] != "Seq Scan" for node in scans)
    assert [match.message.content for match in store.search_memory(CALL, SearchQuery("zebras", 10))] == ["a zebra"]


ONE_STATEMENT: dict[str, Callable[[PostgresStore], Any]] = {
    "AddMemory": lambda store: store.add_memory(CALL, NewMemory("s3", [said()])),
    "AddMemory, new session": lambda store: store.add_memory(CALL, NewMemory(str(uuid4()), [said(), said()])),
    "AddMemory, user given": lambda store: store.add_memory(CALL, NewMemory("s3", [said()], user_id="u3")),
    "GetMemory": lambda store: store.get_memory(CALL, "s2", 12, 0, 0),
    "GetSession": lambda store: store.get_session(CALL, "s2"),
    "ListMessages": lambda store: store.list_messages(CALL, "s1", None, PAGE),
    "ListSessions": lambda store: store.list_sessions(CALL, SessionQuery(), None, PAGE),
    "ClearMemory": lambda store: store.clear_memory(CALL, "s4"),
}


@pytest.mark.parametrize("name", ONE_STATEMENT)
def test_an_rpc_is_one_statement_and_no_transaction_block(store: PostgresStore, watched: Watched, name: str) -> None:
    plans = plans_of(watched, lambda: ONE_STATEMENT[name](store), nested=False)

    assert (len(plans), watched.transactions) == (1, 0)


def test_deleting_a_message_is_one_statement_and_no_transaction_block(store: PostgresStore, watched: Watched) -> None:
    added = iter(store.add_memory(CALL, NewMemory("s3", [said() for _ in range(8)])).messages)

    plans = plans_of(watched, lambda: store.delete_message(CALL, "s3", next(added).message_id), nested=False)

    assert (len(plans), watched.transactions) == (1, 0)


def test_recognising_a_repetition_locks_no_row(store: PostgresStore, watched: Watched) -> None:
    """One that shared a session's row, while appends to it failed and succeeded, made Postgres answer XX000."""
    repeated = NewMemory("s3", [said(), said()])

    plans = plans_of(watched, lambda: store.add_memory(CALL, repeated), nested=False)

    kinds = {node["Node Type"] for plan in plans for node in nodes(plan["Plan"])}
    assert "Index Scan" in kinds
    assert "LockRows" not in kinds


def test_a_merge_is_one_statement_in_a_transaction_block(store: PostgresStore, watched: Watched) -> None:
    change = SessionChange(MetadataChange({"a": 1}))

    plans = plans_of(watched, lambda: store.update_session(CALL, "s2", change), nested=False)

    assert (len(plans), watched.transactions) == (1, 1)


def test_deleting_a_session_is_one_statement_that_touches_one_row_whatever_its_size(
    store: PostgresStore, watched: Watched
) -> None:
    deleted = iter(f"s{n}" for n in range(11, 10_000, 10))
    small = plans_of(watched, lambda: store.delete_session(CALL, next(deleted)), nested=False)
    watched.plans.clear()
    store.delete_session(CALL, "s1")
    big = list(watched.plans)

    assert watched.transactions == 0
    for plans in (small, big):
        assert len(plans) == 1
        assert max(node["Actual Rows"] for node in nodes(plans[0]["Plan"])) == 1
