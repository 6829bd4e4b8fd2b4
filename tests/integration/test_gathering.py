"""Calls that come at the same time share statements: they answer as if each had its own, and none fails another."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import psycopg
import pytest

from recall.v1.memory_pb2 import (
    AddMemoryRequest,
    GetMemoryRequest,
    Message,
)
from recall.v1.session_pb2 import DeleteSessionRequest
from recalld.client import Client
from recalld.limits import KIB
from recalld.services.overload import CallThreads
from recalld.storage.keys import session_key
from tests.faults.waiting import tables_locked
from tests.integration.callers import lock_waits, row_locked
from tests.integration.conftest import connected, serving
from tests.waiting import wait_until

DEADLINE = 20.0
CALLS = 24


class Statements:
    """What the threads that gather have Postgres do, and what is done aside, for one call each.

    Attributes:
        calls: how many the server has taken on.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.aside: list[str] = []
        self.calls = 0


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    seen = Statements()
    execute = psycopg.Cursor.execute

    def noting(cursor: Any, query: Any, *args: Any, **options: Any) -> Any:
        if threading.current_thread().name.startswith(("recalld-gather", "recalld-call")):
            seen.texts.append(str(query))
        if threading.current_thread().name.startswith("recalld-aside"):
            seen.aside.append(str(query))
        return execute(cursor, query, *args, **options)

    counted = CallThreads.counted

    def counting(threads: CallThreads, submit: Any) -> Any:
        seen.calls += 1
        return counted(threads, submit)

    monkeypatch.setattr(psycopg.Cursor, "execute", noting)
    monkeypatch.setattr(CallThreads, "counted", counting)
    return seen


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that come while a group waits become the next, however slowly they come: no other thread takes them on."""
    monkeypatch.setattr("recalld.gathering._PATIENCE", 60.0)


@pytest.fixture
def client(database_url: str) -> Iterator[Client]:
    with serving(database_url) as server, connected(server) as client:
        yield client


def adding(session_id: str, content: str = "hello", **fields: Any) -> AddMemoryRequest:
    return AddMemoryRequest(session_id=session_id, messages=[Message(role="user", content=content)], **fields)


def contents(client: Client, session_id: str) -> list[str]:
    request = GetMemoryRequest(session_id=session_id, last_n=1000)
    return [message.content for message in client.memory.GetMemory(request, timeout=DEADLINE).messages]


@contextmanager
def at_once(database_url: str, statements: Statements, calls: int = CALLS) -> Iterator[None]:
    """Calls that are begun within have to wait, for statements that a lock keeps; when all have come, those go on."""
    with tables_locked(database_url) as wait_for:
        del statements.texts[:], statements.aside[:]
        statements.calls = 0
        yield
        # The first four have found no company, and wait each for itself.
        wait_for(5)
        wait_until(lambda: statements.calls >= calls, "not all calls have come")


def begin(method: Any, requests: Sequence[Any], timeout: float = DEADLINE) -> list[Any]:
    return [method.future(request, timeout=timeout) for request in requests]


# --- adding


def test_one_call_alone_is_one_statement(client: Client, statements: Statements) -> None:
    for number in range(5):
        client.memory.AddMemory(adding(f"s{number}"), timeout=DEADLINE)
    assert len(statements.texts) == 5


@pytest.mark.usefixtures("patient")
def test_calls_at_once_are_a_few_statements_and_all_answered_with_their_own(
    client: Client, statements: Statements, database_url: str
) -> None:
    for session in range(4):
        client.memory.AddMemory(adding(f"s{session}", "before"), timeout=DEADLINE)
    with at_once(database_url, statements):
        calls = begin(client.memory.AddMemory, [adding(f"s{number % 4}", str(number)) for number in range(CALLS)])
    answers = [call.result() for call in calls]
    assert 1 <= len(statements.texts) <= CALLS // 2
    for session in range(4):
        own = [answer.messages[0] for answer in answers[session::4]]
        assert sorted(message.seq for message in own) == list(range(2, CALLS // 4 + 2))
        found = client.memory.GetMemory(GetMemoryRequest(session_id=f"s{session}"), timeout=DEADLINE).messages[1:]
        assert [message.message_id for message in found] == [
            message.message_id for message in sorted(own, key=lambda message: message.seq)
        ]
        by_number = {str(number): answers[number].messages[0].seq for number in range(session, CALLS, 4)}
        assert {message.content: message.seq for message in found} == by_number


def test_a_call_that_fails_takes_no_other_with_it(client: Client, statements: Statements, database_url: str) -> None:
    message_id = str(uuid4())
    taken = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="first", message_id=message_id)])
    client.memory.AddMemory(taken, timeout=DEADLINE)
    taken.messages[0].content = "another"
    with at_once(database_url, statements):
        others = begin(client.memory.AddMemory, [adding(f"s{number}") for number in range(CALLS // 2)])
        conflicting = client.memory.AddMemory.future(taken, timeout=DEADLINE)
        others += begin(client.memory.AddMemory, [adding(f"s{number}") for number in range(CALLS // 2, CALLS)])
        nobodys = client.memory.AddMemory.future(adding("t", user_id="nobody"), timeout=DEADLINE)
    assert [call.result().messages[0].seq for call in others] == [1] * CALLS
    # At most one more for each of the others: itself alone.
    assert len(statements.texts) < 2 * CALLS
    assert conflicting.code() == grpc.StatusCode.ALREADY_EXISTS
    assert nobodys.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert contents(client, "s") == ["first"]


def test_a_call_repeated_at_once_is_stored_once(client: Client, statements: Statements, database_url: str) -> None:
    request = adding("s", request_id=str(uuid4()))
    with at_once(database_url, statements):
        calls = begin(client.memory.AddMemory, [request] * CALLS)
    answers = [call.result() for call in calls]
    assert answers == answers[:1] * CALLS
    assert contents(client, "s") == ["hello"]


def test_a_deleted_session_among_others_is_revived(client: Client, statements: Statements, database_url: str) -> None:
    client.memory.AddMemory(adding("s0", "old"), timeout=DEADLINE)
    client.sessions.DeleteSession(DeleteSessionRequest(session_id="s0"), timeout=DEADLINE)
    with at_once(database_url, statements):
        calls = begin(client.memory.AddMemory, [adding(f"s{number}", "new") for number in range(CALLS)])
    assert [call.result().session_undeleted for call in calls] == [True] + [False] * (CALLS - 1)
    assert contents(client, "s0") == ["new"]


def test_a_session_that_somebody_has_locked_holds_up_its_own_writers_only(client: Client, database_url: str) -> None:
    for session in ("locked", "free"):
        client.memory.AddMemory(adding(session), timeout=DEADLINE)
    with row_locked(database_url, "default", "locked") as waiting:
        writing = [adding("locked", str(number)) for number in range(CALLS)]
        stuck = begin(client.memory.AddMemory, writing, timeout=2 * DEADLINE)
        wait_until(lambda: waiting() >= 1, "nobody waits for the lock")
        for number in range(CALLS):
            client.memory.AddMemory(adding("free", str(number)), timeout=DEADLINE)
        assert not any(call.done() for call in stuck)
        # All but the first few, who found no company, wait together.
        assert waiting() <= 5
    assert sorted(call.result().messages[0].seq for call in stuck) == list(range(2, CALLS + 2))
    assert len(contents(client, "free")) == CALLS + 1


def test_many_sessions_that_somebody_has_locked_leave_connections_for_others(client: Client, database_url: str) -> None:
    locked = [f"locked{number}" for number in range(CALLS)]
    for session in (*locked, "free"):
        client.memory.AddMemory(adding(session), timeout=DEADLINE)
    with psycopg.connect(database_url) as holding:
        holding.execute("select from recalld.session where session_id like 'locked%' for update")
        stuck = begin(client.memory.AddMemory, [adding(session) for session in locked], timeout=2 * DEADLINE)
        for _ in range(5):
            client.memory.AddMemory(adding("free"), timeout=DEADLINE)
        assert not any(call.done() for call in stuck)
    assert [call.result().messages[0].seq for call in stuck] == [2] * CALLS


def test_a_session_that_somebody_is_creating_holds_up_its_own_writers_only(client: Client, database_url: str) -> None:
    """Nobody can see that it is there, and so that it is locked."""
    with lock_waits(database_url) as waiting, psycopg.connect(database_url) as creating:
        creating.execute(
            """insert into recalld.session (session_key, namespace, session_id, metadata, message_count, last_seq,
                                            cleared_seq, version, create_time, update_time, active_time)
               values (%s, 'default', 'new', '{}', 0, 0, 0, 1, now(), now(), date_bin('1 minute', now(), 'epoch'))""",
            [session_key("default", "new")],
        )
        for _ in range(3):
            others = begin(client.memory.AddMemory, [adding(f"s{number}") for number in range(CALLS // 2)])
            stuck = client.memory.AddMemory.future(adding("new"), timeout=2 * DEADLINE)
            others += begin(client.memory.AddMemory, [adding(f"s{number}") for number in range(CALLS // 2, CALLS)])
            assert {call.code() for call in others} == {grpc.StatusCode.OK}
            assert not stuck.done()
            stuck.cancel()
            wait_until(lambda: waiting() == 0, "a call that was given up waits on")
    assert client.memory.AddMemory(adding("new"), timeout=DEADLINE).messages[0].seq == 1


def test_those_who_wait_for_a_lock_in_vain_are_told_and_do_not_wait_anew(
    statements: Statements, database_url: str
) -> None:
    limits = {"lock_timeout": timedelta(seconds=1)}
    with serving(database_url, **limits) as server, connected(server) as client:
        client.memory.AddMemory(adding("locked"), timeout=DEADLINE)
        del statements.texts[:]
        with row_locked(database_url, "default", "locked"):
            stuck = begin(client.memory.AddMemory, [adding("locked", str(number)) for number in range(CALLS)])
            assert {call.code() for call in stuck} == {grpc.StatusCode.ABORTED}
        # The first few alone, the others together.
        assert len(statements.texts) < CALLS / 2


def test_a_caller_who_gives_up_is_told_in_time_and_the_others_go_on(
    client: Client, statements: Statements, database_url: str
) -> None:
    with at_once(database_url, statements):
        patient = begin(client.memory.AddMemory, [adding("s", str(number)) for number in range(CALLS)])
        hasty = client.memory.AddMemory.future(adding("s", "hasty"), timeout=0.5)
        cancelled = client.memory.AddMemory.future(adding("s", "cancelled"), timeout=DEADLINE)
        cancelled.cancel()
        assert hasty.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len({call.result().messages[0].seq for call in patient}) == CALLS
    assert set(contents(client, "s")) >= {str(number) for number in range(CALLS)}


# --- reading


@pytest.mark.usefixtures("patient")
def test_reads_at_once_are_a_few_statements_and_each_gets_what_it_asked_for(
    client: Client, statements: Statements, database_url: str
) -> None:
    for session in range(3):
        messages = [Message(role="user", content=f"{session} {number}", token_count=number + 1) for number in range(10)]
        client.memory.AddMemory(AddMemoryRequest(session_id=f"s{session}", messages=messages), timeout=DEADLINE)
    requests = [
        GetMemoryRequest(session_id=session_id, **fields)
        for session_id in ("s0", "s1", "s2", "unknown")
        for fields in ({}, {"last_n": 3}, {"last_n": 10, "max_tokens": 20}, {"after_seq": 8}, {"last_n": 500})
    ]
    expected = [client.memory.GetMemory(request, timeout=DEADLINE) for request in requests]
    with at_once(database_url, statements, len(requests)):
        calls = begin(client.memory.GetMemory, requests)
    assert [call.result() for call in calls] == expected
    assert [len(answer.messages) for answer in expected[:5]] == [10, 3, 2, 2, 10]
    assert 1 <= len(statements.texts) <= len(requests) / 2


def damage(database_url: str, content: str) -> None:
    """Has every reading of messages with this content fail, as if their place on the disk were damaged."""
    with psycopg.connect(database_url) as connection:
        columns = connection.execute("select * from recalld.message limit 0").description or ()
        others = ", ".join(column.name for column in columns if column.name != "content")
        for statement in (
            """create function recalld.unreadable() returns text language plpgsql as
               $$ begin raise exception using errcode = 'data_corrupted'; end $$""",
            "alter table recalld.message rename to readable",
            f"""create view recalld.message as
                select {others}, case when content = '{content}' then recalld.unreadable() else content end as content
                  from recalld.readable""",
        ):
            connection.execute(statement.encode())


def test_a_message_that_cannot_be_read_fails_only_who_reads_it(client: Client, database_url: str) -> None:
    names = [f"s{number}" for number in range(CALLS)]
    names.insert(CALLS // 2, "damaged")
    for name in names:
        client.memory.AddMemory(adding(name, content=name), timeout=DEADLINE)
    damage(database_url, "damaged")
    with tables_locked(database_url) as wait_for:
        calls = begin(client.memory.GetMemory, [GetMemoryRequest(session_id=name) for name in names])
        wait_for(2)
    assert [name for name, call in zip(names, calls, strict=True) if call.code() != grpc.StatusCode.OK] == ["damaged"]
    assert calls[CALLS // 2].code() == grpc.StatusCode.INTERNAL


def test_an_answer_too_large_to_share_a_statement_comes_whole(
    client: Client, statements: Statements, database_url: str
) -> None:
    large = ["x" * 100_000 + str(number) for number in range(4)]
    for content in large:
        client.memory.AddMemory(adding("large", content), timeout=DEADLINE)
    client.memory.AddMemory(adding("small"), timeout=DEADLINE)
    with at_once(database_url, statements, calls=8):
        calls = begin(client.memory.GetMemory, [GetMemoryRequest(session_id=name) for name in ("small", "large") * 4])
    found = [[message.content for message in call.result().messages] for call in calls]
    assert found == [["hello"], large] * 4


# --- what is too large to share a statement


def adding_messages(number: int, characters: int, of_metadata: int) -> AddMemoryRequest:
    """So many messages, of so many characters together, of which so many are of their metadata as JSON."""
    request = AddMemoryRequest(session_id="s", messages=[Message(role="user") for _ in range(number)])
    request.messages[0].content = "ä" * (characters - of_metadata)
    if of_metadata:
        request.messages[0].metadata.update({"k": "x" * (of_metadata - len('{"k":""}'))})
    return request


@pytest.mark.parametrize(
    ("messages", "characters", "of_metadata", "shares"),
    [
        (8, 100, 0, True),
        (9, 100, 0, False),
        (2, 16_384, 0, True),
        (2, 16_385, 0, False),
        (2, 16_384, 10_000, True),
        (2, 16_385, 10_000, False),
    ],
)
def test_what_is_added_shares_a_statement_up_to_8_messages_and_16384_characters(
    messages: int,
    characters: int,
    of_metadata: int,
    shares: bool,
    client: Client,
    statements: Statements,
    database_url: str,
) -> None:
    request = adding_messages(messages, characters, of_metadata)
    client.memory.AddMemory(adding("s"), timeout=DEADLINE)
    with at_once(database_url, statements):
        calls = begin(client.memory.AddMemory, [request] * CALLS)
    assert {call.code() for call in calls} == {grpc.StatusCode.OK}
    assert any("append_group" in text for text in statements.texts) == shares
    assert bool(statements.aside) != shares


@pytest.mark.parametrize(("last_n", "shares"), [(100, True), (101, False)])
def test_what_is_read_shares_a_statement_up_to_100_messages(
    last_n: int, shares: bool, client: Client, statements: Statements, database_url: str
) -> None:
    client.memory.AddMemory(adding("s"), timeout=DEADLINE)
    with at_once(database_url, statements):
        calls = begin(client.memory.GetMemory, [GetMemoryRequest(session_id="s", last_n=last_n)] * CALLS)
    assert {call.code() for call in calls} == {grpc.StatusCode.OK}
    assert any("session_keys" in text for text in statements.texts) == shares
    assert bool(statements.aside) != shares


@pytest.mark.parametrize(("size", "shares"), [(128 * KIB - 1, True), (128 * KIB, False)])
def test_what_is_read_is_read_again_from_128_kib_on(
    size: int, shares: bool, client: Client, statements: Statements, database_url: str
) -> None:
    metadata = '{"k": "' + "x" * 1000 + '"}'  # as Postgres writes it
    messages = [
        Message(role="user", content="x" * 1000),
        Message(role="user", content="x" * (size - 1000 - len(metadata))),
    ]
    messages[0].metadata.update({"k": "x" * 1000})
    client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=messages), timeout=DEADLINE)
    with at_once(database_url, statements):
        calls = begin(client.memory.GetMemory, [GetMemoryRequest(session_id="s")] * CALLS)
    assert {len(call.result().messages) for call in calls} == {2}
    assert any("session_keys" in text for text in statements.texts)
    assert bool(statements.aside) != shares
