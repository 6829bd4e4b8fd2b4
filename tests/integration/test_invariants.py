"""What must hold in the tables whatever concurrent callers do: stated in SQL, checked after everything at once."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import (
    AddMemoryRequest,
    ClearMemoryRequest,
    DeleteMessageRequest,
    GetMemoryRequest,
    Message,
    UpdateMessageRequest,
)
from recall.v1.session_pb2 import (
    CreateSessionRequest,
    DeleteSessionRequest,
    UndeleteSessionRequest,
    UpdateSessionRequest,
)
from recall.v1.user_pb2 import CreateUserRequest, DeleteUserRequest, UndeleteUserRequest
from recalld.client import Client
from tests.integration.conftest import connected, serving

THREADS = 16
CALLS = 300  # of each thread
SESSIONS = [f"s{n}" for n in range(6)]
USERS = [f"u{n}" for n in range(3)]
MESSAGE_IDS = [str(UUID(int=n)) for n in range(1, 31)]

# Each query finds the rows that break a rule.
VIOLATIONS = {
    "message_count is the number of live messages": """
        select session_id from recalld.session as s
         where message_count <> (select count(*) from recalld.message as m
                                  where m.session_key = s.session_key
                                    and m.seq > s.cleared_seq and m.delete_time is null)""",
    "no message is without its session, or beyond its last_seq": """
        select seq from recalld.message left join recalld.session using (session_key)
         where last_seq is null or seq > last_seq""",
    "a deleted session has nothing above its watermark": """
        select session_id from recalld.session where deleted and (cleared_seq <> last_seq or message_count <> 0)""",
    "a deleted session has the tombstone that purging will find it by": """
        select session_id from recalld.session as s
         where deleted and not exists (select from recalld.tombstone as t
                                        where t.session_key = s.session_key and t.whole
                                          and t.delete_time = s.delete_time and t.last_seq = s.last_seq)""",
    "no tombstone is without its session": """
        select session_key from recalld.tombstone left join recalld.session as s using (session_key)
         where s.session_key is null""",
    "no live message lies in a tombstone's range": """
        select m.seq from recalld.tombstone as t join recalld.session as s using (session_key)
          join recalld.message as m on m.session_key = t.session_key and m.seq between t.first_seq and t.last_seq
         where m.seq > s.cleared_seq and m.delete_time is null""",
    "every deleted message lies in a tombstone's range": """
        select m.seq from recalld.message as m join recalld.session as s using (session_key)
         where (m.seq <= s.cleared_seq or m.delete_time is not null)
           and not exists (select from recalld.tombstone as t
                            where t.session_key = m.session_key and m.seq between t.first_seq and t.last_seq)""",
    "no live session belongs to a user that is not live": """
        select session_id from recalld.session as s
         where not deleted and user_id is not null
           and not exists (select from recalld.app_user as u
                            where (u.namespace, u.user_id) = (s.namespace, s.user_id) and not u.deleted)""",
    "every message tells its namespace": """
        select m.seq from recalld.message as m join recalld.session as s using (session_key)
         where m.namespace_hash is distinct from recalld.namespace_hash(s.namespace)""",
    "active_time is update_time to the minute": """
        select session_id from recalld.session where active_time <> date_trunc('minute', update_time)""",
    "an id is marked as made by the server if it is that of its place": """
        select seq from recalld.message
         where (id_derived is true) <> (message_id = recalld.message_id(session_key, seq))""",
    "no two messages of a session have the same id": """
        select message_id from recalld.message group by session_key, message_id having count(*) > 1""",
    "of a message that was updated it is known what was sent": """
        select seq from recalld.message where (update_time is null) <> (sent_digest is null)""",
    "only the first message of a session has created it": """
        select seq from recalld.message where outcome = 1 and seq > 1""",
}


def violations(url: str) -> dict[str, Any]:
    with psycopg.connect(url) as connection:
        return broken_rules(connection)


def broken_rules(connection: psycopg.Connection) -> dict[str, Any]:
    """The rules that the rows seen in this transaction break, each with what breaks it."""
    found = {rule: connection.execute(query).fetchall() for rule, query in VIOLATIONS.items()}
    return {rule: rows for rule, rows in found.items() if rows}


def operations(client: Client, chance: random.Random) -> list[tuple[int, Callable[[], Any]]]:
    """Everything that can be done to a random session or user, with how often to do it."""
    session_id, user_id = chance.choice(SESSIONS), chance.choice(USERS)

    def add() -> None:
        ids = chance.sample(MESSAGE_IDS, chance.randint(1, 4))
        messages = [
            Message(message_id=each if chance.random() < 0.5 else "", role="user", content=f"always {each}")
            for each in ids
        ]
        request = AddMemoryRequest(session_id=session_id, messages=messages)
        if chance.random() < 0.4:
            request.user_id = user_id
        if chance.random() < 0.15:
            request.expected_last_seq = chance.randint(0, 30)
        seqs = [message.seq for message in client.memory.AddMemory(request, timeout=30).messages]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))

    def get() -> None:
        memory = client.memory.GetMemory(GetMemoryRequest(session_id=session_id, last_n=1000), timeout=30)
        assert len(memory.messages) == memory.session.message_count

    def purge() -> None:
        request = PurgeRequest(older_than=Duration(), batch_size=chance.choice([1, 2, 1000]))
        if (scope := chance.random()) < 0.3:
            request.session_id = session_id
        elif scope < 0.6:
            request.user_id = user_id
        list(client.admin.Purge(request, timeout=30))

    def update_message() -> None:
        request = UpdateMessageRequest(session_id=session_id, message_id=chance.choice(MESSAGE_IDS), content="edited")
        client.memory.UpdateMessage(request, timeout=30)

    def delete_message() -> None:
        request = DeleteMessageRequest(session_id=session_id, message_id=chance.choice(MESSAGE_IDS))
        client.memory.DeleteMessage(request, timeout=30)

    sessions, users = client.sessions, client.users
    return [
        (30, add),
        (8, get),
        (8, lambda: sessions.DeleteSession(DeleteSessionRequest(session_id=session_id), timeout=30)),
        (7, lambda: sessions.UndeleteSession(UndeleteSessionRequest(session_id=session_id), timeout=30)),
        (6, lambda: sessions.CreateSession(CreateSessionRequest(session_id=session_id, user_id=user_id), timeout=30)),
        (5, lambda: sessions.UpdateSession(UpdateSessionRequest(session_id=session_id, user_id=user_id), timeout=30)),
        (5, lambda: client.memory.ClearMemory(ClearMemoryRequest(session_id=session_id), timeout=30)),
        (10, delete_message),
        (5, update_message),
        (5, lambda: users.CreateUser(CreateUserRequest(user_id=user_id), timeout=30)),
        (3, lambda: users.DeleteUser(DeleteUserRequest(user_id=user_id), timeout=30)),
        (3, lambda: users.UndeleteUser(UndeleteUserRequest(user_id=user_id), timeout=30)),
        (5, purge),
    ]


def test_the_tables_hold_together_whatever_is_done_to_them_at_once(client: Client, database_url: str) -> None:
    def work(seed: int) -> Counter[str]:
        chance = random.Random(seed)
        outcomes: Counter[str] = Counter()
        for _ in range(CALLS):
            weights, choices = zip(*operations(client, chance), strict=True)
            try:
                chance.choices(choices, weights)[0]()
                outcomes["OK"] += 1
            except grpc.RpcError as error:
                outcomes[error.code().name] += 1
        return outcomes

    with ThreadPoolExecutor(THREADS) as threads:
        outcomes = sum(threads.map(work, range(THREADS)), Counter[str]())

    assert set(outcomes) <= {"OK", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED"}
    assert outcomes["OK"] > THREADS * CALLS / 4
    assert violations(database_url) == {}

    for user_id in USERS:
        client.users.DeleteUser(DeleteUserRequest(user_id=user_id, allow_missing=True), timeout=30)
    for session_id in SESSIONS:
        client.sessions.DeleteSession(DeleteSessionRequest(session_id=session_id, allow_missing=True), timeout=30)
    assert violations(database_url) == {}
    list(client.admin.Purge(PurgeRequest(older_than=Duration()), timeout=30))
    with psycopg.connect(database_url) as connection:
        for table in ("session", "message", "tombstone", "app_user"):
            assert connection.execute(f"select count(*) from recalld.{table}").fetchone() == (0,), table


# What breaks each rule, in every part that can be broken by itself.
DAMAGES = {
    "message_count is the number of live messages": [
        "update recalld.session set message_count = message_count - 1 where session_id = 'live'",
        "update recalld.session set cleared_seq = 1 where session_id = 'live'",
        "update recalld.message set delete_time = now() where seq = 3",
        "delete from recalld.message where seq = 3",
    ],
    "no message is without its session, or beyond its last_seq": [
        "delete from recalld.session where session_id = 'live'",
        "update recalld.session set last_seq = 3 where session_id = 'live'",
    ],
    "a deleted session has nothing above its watermark": [
        "update recalld.session set cleared_seq = 0 where deleted",
        "update recalld.session set delete_time = now() where session_id = 'live'",
    ],
    "a deleted session has the tombstone that purging will find it by": [
        "delete from recalld.tombstone where whole",
        "update recalld.tombstone set session_key = recalld.session_key('default', 'live') where whole",
        "update recalld.tombstone set whole = false",
        "update recalld.tombstone set delete_time = delete_time + interval '1 second'",
        "update recalld.tombstone set last_seq = last_seq + 1",
    ],
    "no tombstone is without its session": [
        "delete from recalld.session where deleted",
    ],
    "no live message lies in a tombstone's range": [
        "update recalld.message set delete_time = null where delete_time is not null",
        "update recalld.session set cleared_seq = 0, message_count = last_seq where session_id = 'cleared'",
        "update recalld.session set cleared_seq = cleared_seq - 1 where session_id = 'cleared'",
        "update recalld.tombstone set first_seq = 1 where first_seq = 2",
        "update recalld.tombstone set last_seq = 3 where last_seq = 2",
    ],
    "every deleted message lies in a tombstone's range": [
        "delete from recalld.tombstone where not whole",
        "update recalld.session set cleared_seq = last_seq, message_count = 0 where session_id = 'live'",
        "update recalld.message set delete_time = now() where seq = 3",
        "update recalld.tombstone set first_seq = 2",
        "update recalld.tombstone set last_seq = 1",
    ],
    "no live session belongs to a user that is not live": [
        "update recalld.app_user set delete_time = now()",
        "update recalld.app_user set namespace = 'another'",
        "delete from recalld.app_user",
        "update recalld.session set user_id = 'nobody' where session_id = 'live'",
    ],
    "every message tells its namespace": [
        "update recalld.message set namespace_hash = null",
        "update recalld.message set namespace_hash = namespace_hash # 1",
    ],
    "active_time is update_time to the minute": [
        "update recalld.session set active_time = active_time - interval '1 minute'",
        "update recalld.session set update_time = update_time + interval '1 minute'",
        "update recalld.session set active_time = active_time + interval '1 second'",
    ],
    "an id is marked as made by the server if it is that of its place": [
        "update recalld.message set id_derived = true where seq = 1",
        "update recalld.message set id_derived = null where id_derived",
        "update recalld.message set message_id = recalld.message_id(session_key, seq) where seq = 1",
    ],
    "no two messages of a session have the same id": [
        "update recalld.message set message_id = recalld.message_id(session_key, 4), id_derived = true where seq = 1",
    ],
    "of a message that was updated it is known what was sent": [
        "update recalld.message set sent_digest = null where update_time is not null",
        "update recalld.message set update_time = now()",
    ],
    "only the first message of a session has created it": [
        "update recalld.message set outcome = 1",
    ],
}


@pytest.fixture(scope="module")
def whole(shared_database_url: str) -> str:
    """A database in which no rule is broken, with something for each to be broken by."""
    with serving(shared_database_url) as server, connected(server) as client:

        def add(session_id: str, *ids: str) -> None:
            messages = [Message(message_id=each, role="user", content="hello") for each in ids]
            request = AddMemoryRequest(session_id=session_id, user_id="u", messages=messages)
            client.memory.AddMemory(request, timeout=30)

        client.users.CreateUser(CreateUserRequest(user_id="u"), timeout=30)
        for session_id in ("live", "cleared", "deleted"):
            add(session_id, *MESSAGE_IDS[:2])
        client.memory.DeleteMessage(DeleteMessageRequest(session_id="live", message_id=MESSAGE_IDS[1]), timeout=30)
        client.memory.ClearMemory(ClearMemoryRequest(session_id="cleared"), timeout=30)
        for session_id in ("live", "cleared"):
            add(session_id, MESSAGE_IDS[2])
            add(session_id, "")
        update = UpdateMessageRequest(session_id="live", message_id=MESSAGE_IDS[2], role="assistant")
        client.memory.UpdateMessage(update, timeout=30)
        client.sessions.DeleteSession(DeleteSessionRequest(session_id="deleted"), timeout=30)
    return shared_database_url


@pytest.mark.parametrize(("rule", "damage"), [(rule, each) for rule, damages in DAMAGES.items() for each in damages])
def test_a_rule_is_seen_to_be_broken(whole: str, rule: str, damage: str) -> None:
    """The control of the test above: each of its rules can fail."""
    with psycopg.connect(whole) as connection:
        assert broken_rules(connection) == {}

        assert connection.execute(damage.encode()).rowcount

        assert rule in broken_rules(connection)
        connection.rollback()


def test_no_rule_is_without_damage() -> None:
    assert DAMAGES.keys() == VIOLATIONS.keys()
