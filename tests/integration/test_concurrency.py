"""What concurrent callers are promised, on the real Postgres through the real server."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import (
    MESSAGE_ORDER_SEQ_DESC,
    AddMemoryRequest,
    DeleteMessageRequest,
    GetMemoryRequest,
    ListMessagesRequest,
    Message,
)
from recall.v1.session_pb2 import (
    SESSION_ORDER_CREATE_TIME_DESC,
    SESSION_ORDER_UNSPECIFIED,
    CreateSessionRequest,
    DeleteSessionRequest,
    GetSessionRequest,
    ListSessionsRequest,
    SessionFilter,
    StreamSessionsRequest,
    UpdateSessionRequest,
)
from recall.v1.user_pb2 import CreateUserRequest, DeleteUserRequest
from recalld.client import Client
from recalld.domain import LocalCall, NewMemory, Profile, PurgeQuery
from recalld.errors import NotDeleted
from recalld.storage import PostgresStore, memory, users
from recalld.storage.appends import append
from recalld.storage.sessions import find
from tests.contract.asking import purge as purge_store
from tests.contract.asking import said
from tests.integration.callers import lock_waits
from tests.processes import DEADLINE
from tests.waiting import wait_until

Result = TypeVar("Result")


def at_once(tasks: Iterable[Callable[[], Result]]) -> list[Result]:
    """Runs the tasks in as many threads, all released at the same moment; their results in order."""
    tasks = list(tasks)
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], Result]) -> Result:
        barrier.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as threads:
        return list(threads.map(run, tasks))


def outcome(call: Callable[[], Any]) -> str:
    """The name of the status that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def add(client: Client, session_id: str, *contents: str, **fields: Any) -> Any:
    messages = [Message(role="user", content=content) for content in contents]
    return client.memory.AddMemory(AddMemoryRequest(session_id=session_id, messages=messages, **fields), timeout=30)


def purge(client: Client, request: PurgeRequest) -> None:
    *_, last = client.admin.Purge(request, timeout=30)
    assert last.done


def all_messages(client: Client, session_id: str, **fields: Any) -> list[Message]:
    found: list[Message] = []
    token = ""
    while True:
        page = client.memory.ListMessages(
            ListMessagesRequest(session_id=session_id, page_token=token, page_size=1000, **fields), timeout=30
        )
        found += page.messages
        if not (token := page.next_page_token):
            return found


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


def test_64_concurrent_first_writers_of_a_session_all_succeed(client: Client) -> None:
    added = at_once(partial(add, client, "s", f"from {n}") for n in range(64))

    assert [answer.session_created for answer in added].count(True) == 1
    assert sorted(answer.messages[0].seq for answer in added) == list(range(1, 65))
    assert {message.content for message in all_messages(client, "s")} == {f"from {n}" for n in range(64)}


def test_64_concurrent_first_writers_of_a_user_s_session_all_succeed(client: Client) -> None:
    client.users.CreateUser(CreateUserRequest(user_id="u"), timeout=30)

    added = at_once(partial(add, client, "s", f"from {n}", user_id="u") for n in range(64))

    assert [answer.session_created for answer in added].count(True) == 1
    assert client.sessions.GetSession(GetSessionRequest(session_id="s"), timeout=30).session.user_id == "u"
    assert [message.seq for message in all_messages(client, "s")] == list(range(1, 65))


def test_of_concurrent_creators_exactly_one_succeeds(client: Client) -> None:
    create = CreateSessionRequest(session_id="s")

    outcomes = at_once([lambda: outcome(lambda: client.sessions.CreateSession(create, timeout=30))] * 32)

    assert Counter(outcomes) == {"OK": 1, "ALREADY_EXISTS": 31}


def test_concurrent_merges_of_different_keys_all_survive(client: Client) -> None:
    client.sessions.CreateSession(CreateSessionRequest(session_id="s"), timeout=30)

    def merge(n: int) -> None:
        patch = struct(**{f"key{n}": n, "shared": {f"inner{n}": n}})
        client.sessions.UpdateSession(UpdateSessionRequest(session_id="s", metadata=patch), timeout=30)

    at_once(partial(merge, n) for n in range(32))

    metadata = client.sessions.GetSession(GetSessionRequest(session_id="s"), timeout=30).session.metadata
    assert {f"key{n}" for n in range(32)} | {"shared"} == set(metadata)
    shared = metadata["shared"]
    assert isinstance(shared, Struct)
    assert set(shared) == {f"inner{n}" for n in range(32)}


def test_of_concurrent_updates_with_the_same_etag_exactly_one_succeeds(client: Client) -> None:
    etag = client.sessions.CreateSession(CreateSessionRequest(session_id="s"), timeout=30).session.etag
    update = UpdateSessionRequest(session_id="s", etag=etag, metadata=struct(a=1))

    outcomes = at_once([lambda: outcome(lambda: client.sessions.UpdateSession(update, timeout=30))] * 16)

    assert Counter(outcomes) == {"OK": 1, "ABORTED": 15}


def test_concurrent_compare_and_append_is_a_lock(client: Client) -> None:
    def claim() -> str:
        return outcome(lambda: add(client, "s", "mine", expected_last_seq=0))

    assert Counter(at_once([claim] * 16)) == {"OK": 1, "ABORTED": 15}
    assert len(all_messages(client, "s")) == 1


def test_a_reader_never_finds_a_message_below_one_that_it_has_seen(client: Client) -> None:
    """Writers append to one session, several messages a call; a reader polls with the last seq it saw."""
    writers, calls, size = 8, 25, 3
    writing = threading.Event()
    writing.set()
    seen: list[int] = []

    def follow() -> None:
        last = 0
        while True:
            still_writing = writing.is_set()
            request = GetMemoryRequest(session_id="s", after_seq=last, last_n=1000)
            found = [message.seq for message in client.memory.GetMemory(request, timeout=30).messages]
            seen.extend(found)
            last = max(found, default=last)
            if not still_writing and not found:
                return

    def write(writer: int) -> None:
        for n in range(calls):
            added = add(client, "s", *(f"{writer}.{n}.{k}" for k in range(size)))
            seqs = [message.seq for message in added.messages]
            assert seqs == list(range(seqs[0], seqs[0] + size))

    with ThreadPoolExecutor(1) as following:
        follower = following.submit(follow)
        at_once(partial(write, writer) for writer in range(writers))
        writing.clear()
        follower.result()

    total = writers * calls * size
    assert seen == list(range(1, total + 1))
    backwards = all_messages(client, "s", order=MESSAGE_ORDER_SEQ_DESC)
    assert [message.seq for message in backwards] == list(range(total, 0, -1))


def test_a_call_repeated_by_16_threads_at_once_is_stored_once(client: Client) -> None:
    request_id = str(uuid4())

    answers = at_once([lambda: add(client, "s", "one", "two", request_id=request_id)] * 16)

    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert [message.content for message in all_messages(client, "s")] == ["one", "two"]


def test_a_message_is_deleted_once_and_counted_once_however_many_delete_it(client: Client) -> None:
    """While others append to the same session."""
    doomed = [message.message_id for message in add(client, "s", *(f"{n}" for n in range(8))).messages]

    outcomes = at_once(
        [
            *(
                partial(
                    outcome, partial(client.memory.DeleteMessage, DeleteMessageRequest(session_id="s", message_id=m))
                )
                for m in doomed * 4
            ),
            *(partial(outcome, partial(add, client, "s", "x", "y")) for _ in range(8)),
        ]
    )

    assert Counter(outcomes) == {"OK": 16, "NOT_FOUND": 24}
    session = client.sessions.GetSession(GetSessionRequest(session_id="s"), timeout=30).session
    assert (session.message_count, session.last_seq) == (16, 24)
    assert [message.content for message in all_messages(client, "s")] == ["x", "y"] * 8


@pytest.mark.parametrize("order", [SESSION_ORDER_UNSPECIFIED, SESSION_ORDER_CREATE_TIME_DESC])
def test_a_listing_is_complete_whatever_is_created_deleted_and_purged_meanwhile(client: Client, order: Any) -> None:
    """By pages and by stream: sessions that live throughout appear exactly once."""
    lasting = {f"lasting-{n}" for n in range(200)}
    for n in range(200):
        add(client, f"lasting-{n}", "x")
        if n % 4 == 0:
            add(client, f"doomed-{n}", "x")
    listing = threading.Event()
    listing.set()

    def disturb(worker: int) -> None:
        n = 0
        while listing.is_set():
            n += 1
            add(client, f"passing-{worker}-{n}", "x")
            add(client, f"lasting-{n * 7 % 200}", "changed")
            client.sessions.DeleteSession(
                DeleteSessionRequest(session_id=f"passing-{worker}-{n // 2}", allow_missing=True), timeout=10
            )
            client.sessions.DeleteSession(
                DeleteSessionRequest(session_id=f"doomed-{n % 200}", allow_missing=True), timeout=10
            )
            if n % 5 == 0:
                list(client.admin.Purge(PurgeRequest(older_than=Duration()), timeout=30))

    def pages() -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = ListSessionsRequest(page_size=7, page_token=token, order_by=order)
            page = client.sessions.ListSessions(request, timeout=30)
            found += (session.session_id for session in page.sessions)
            if not (token := page.next_page_token):
                return found

    def stream() -> list[str]:
        request = StreamSessionsRequest(chunk_size=7, order_by=order)
        return [
            session.session_id
            for chunk in client.sessions.StreamSessions(request, timeout=60)
            for session in chunk.sessions
        ]

    with ThreadPoolExecutor(3) as disturbing:
        disturbers = [disturbing.submit(disturb, worker) for worker in range(3)]
        try:
            for read in (pages, stream, pages, stream):
                found = Counter(read())
                assert {session_id: found[session_id] for session_id in lasting} == dict.fromkeys(lasting, 1)
        finally:
            listing.clear()
        for disturber in disturbers:
            disturber.result()


def test_purge_racing_with_a_reviving_write_never_loses_a_live_message(client: Client) -> None:
    """1,000 times: a deleted session is purged and written to at the same moment. The new message must be there."""
    lost: list[str] = []

    def race(worker: int) -> None:
        with ThreadPoolExecutor(1) as purging:
            for n in range(125):
                session_id = f"s-{worker}-{n % 5}"
                add(client, session_id, "old", "old")
                client.sessions.DeleteSession(DeleteSessionRequest(session_id=session_id), timeout=30)
                request = PurgeRequest(session_id=session_id, older_than=Duration(), batch_size=1 + n % 3)
                purged = purging.submit(purge, client, request)
                written = add(client, session_id, f"new {n}")
                purged.result()
                found = client.memory.GetMemory(GetMemoryRequest(session_id=session_id), timeout=30)
                contents = [message.content for message in found.messages]
                if contents != [f"new {n}"] or found.session.last_seq != written.messages[0].seq:
                    lost.append(f"{session_id}: {contents}, {found.session.last_seq} {written.messages[0].seq}")

    at_once(partial(race, worker) for worker in range(8))

    assert lost == []


def test_concurrent_purges_of_the_same_session_all_complete(client: Client) -> None:
    """With different batch sizes, so that they meet at different places."""
    for n in range(10):
        contents = ["x"] * 1000
        for _ in range(4):
            add(client, f"s{n}", *contents)
        client.sessions.DeleteSession(DeleteSessionRequest(session_id=f"s{n}"), timeout=30)

        at_once(
            partial(purge, client, PurgeRequest(older_than=Duration(), batch_size=size))
            for size in (300, 1000, 3000, 10_000)
        )

    everything = ListSessionsRequest(show_deleted=True)
    assert list(client.sessions.ListSessions(everything, timeout=30).sessions) == []


def test_deleting_a_user_races_with_writing_to_its_sessions_without_leaving_an_orphan(client: Client) -> None:
    """Whoever comes first: in the end no live session belongs to a deleted user."""
    for n in range(40):
        client.users.CreateUser(CreateUserRequest(user_id=f"u{n}"), timeout=30)
        add(client, f"known-{n}", "x", user_id=f"u{n}")
        client.sessions.DeleteSession(DeleteSessionRequest(session_id=f"known-{n}"), timeout=30)

        outcomes = at_once(
            [
                partial(outcome, partial(client.users.DeleteUser, DeleteUserRequest(user_id=f"u{n}"), timeout=30)),
                partial(outcome, partial(add, client, f"new-{n}", "x", user_id=f"u{n}")),
                partial(outcome, partial(add, client, f"known-{n}", "revived")),
            ]
        )

        assert outcomes[0] == "OK"
        assert set(outcomes[1:]) <= {"OK", "FAILED_PRECONDITION"}
        request = ListSessionsRequest(filter=SessionFilter(user_id=f"u{n}"))
        assert list(client.sessions.ListSessions(request, timeout=30).sessions) == []


def test_a_dry_run_counts_once_what_was_cleared_while_its_user_was_deleted(
    database_url: str, postgres_store: PostgresStore
) -> None:
    """The deletion waits for a clear that is under way, whose watermark it has not seen."""
    call = LocalCall("default")
    postgres_store.create_user(call, "u", Profile())
    for session_id in ("cleared", "written to"):
        postgres_store.create_session(call, session_id, "u", {})
        postgres_store.add_memory(call, NewMemory(session_id, [said("x") for _ in range(3)]))
    clear = """
        with s as (
            update recalld.session set message_count = 0, cleared_seq = 3 where session_id = 'cleared' returning *
        )
        insert into recalld.tombstone (session_key, last_seq, delete_time, first_seq, namespace, whole)
        select session_key, 3, now(), 1, namespace, false from s
        """
    with ThreadPoolExecutor() as threads, lock_waits(database_url) as waiting:
        with psycopg.connect(database_url) as clearing:
            clearing.execute(clear)
            deletion = threads.submit(postgres_store.delete_user, call, "u")
            wait_until(lambda: waiting() == 1, "the deletion does not wait")
        deletion.result(DEADLINE)

    query = PurgeQuery(datetime.max.replace(tzinfo=UTC), dry_run=True)
    assert purge_store(postgres_store, call, query).messages == 6
    assert purge_store(postgres_store, call, replace(query, dry_run=False)) == (2, 6, 1)


def test_a_user_that_is_deleted_while_it_is_undeleted_was_live_and_not_unknown(
    postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = LocalCall("default")
    postgres_store.create_user(call, "u", Profile())
    find_user = users._find

    def once_deleted(*arguments: Any) -> Any:
        postgres_store.delete_user(call, "u")
        return find_user(*arguments)

    monkeypatch.setattr(users, "_find", once_deleted)
    with pytest.raises(NotDeleted):
        postgres_store.undelete_user(call, "u")


def test_a_delete_without_an_etag_never_complains_of_one(client: Client) -> None:
    """While others revive what it deletes."""
    delete = DeleteSessionRequest(session_id="s")
    tasks = [partial(outcome, partial(client.sessions.DeleteSession, delete, timeout=30))] * 4
    tasks += [partial(outcome, partial(add, client, "s", "x"))] * 4

    def repeat(task: Callable[[], str]) -> Counter[str]:
        return Counter(task() for _ in range(100))

    outcomes = sum(at_once(partial(repeat, task) for task in tasks), Counter[str]())

    assert set(outcomes) <= {"OK", "NOT_FOUND"}


def test_a_write_that_met_a_deleted_session_that_is_revived_keeps_it_from_being_deleted_again(
    database_url: str, postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others delete and revive it all the time, every attempt to write could come too late."""
    call = LocalCall("default")
    postgres_store.add_memory(call, NewMemory("s", [said("before")]))
    postgres_store.delete_session(call, "s")
    with ThreadPoolExecutor() as threads, lock_waits(database_url) as waiting:
        deletions: list[Future[Any]] = []

        def revived_once_found(*arguments: Any) -> Any:
            found = find(*arguments)
            postgres_store.undelete_session(call, "s")
            return found

        def deleted_before(*arguments: Any) -> Any:
            deletions.append(threads.submit(postgres_store.delete_session, call, "s"))
            wait_until(lambda: waiting() == 1 or deletions[0].done(), "it is not deleted")
            return append(*arguments)

        monkeypatch.setattr(memory, "ATTEMPTS", 1)
        monkeypatch.setattr(memory, "find", revived_once_found)
        monkeypatch.setattr(memory, "append", deleted_before)
        assert postgres_store.add_memory(call, NewMemory("s", [said("after")])).messages[0].seq == 2
        assert [deletion.result(DEADLINE).last_seq for deletion in deletions] == [2]
