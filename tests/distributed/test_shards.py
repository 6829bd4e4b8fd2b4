"""What each call costs a Citus: the commands that the coordinator sends to its nodes, as it tells of them itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from recalld.domain import (
    Call,
    LocalCall,
    MessageChange,
    MetadataChange,
    NewMemory,
    Profile,
    PurgeQuery,
    SessionChange,
    SessionQuery,
    UserChange,
)
from recalld.errors import UserAlreadyExists
from recalld.storage import Database, PostgresStore
from recalld.storage.database import Connection
from recalld.storage.sql import statements
from tests.contract.asking import said, write
from tests.distributed.citus import SHARDS

CALL = LocalCall("default")
MERGE = MetadataChange({"a": 1}, replace=False)
EVERYTHING_SO_FAR = datetime.now(UTC) + timedelta(days=1)


class Watched(Database):
    """Notes what is sent to the nodes."""

    def __init__(self, url: str) -> None:
        super().__init__(url, size=1)
        self.commands: list[str] = []

    @contextmanager
    def connection(self, call: Call, *, traced: bool = True) -> Iterator[Connection]:
        with super().connection(call, traced=traced) as connection:
            connection.execute("set citus.log_remote_commands = on")
            connection.add_notice_handler(self._note)
            try:
                yield connection
            finally:
                connection.remove_notice_handler(self._note)

    def _note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        text = diagnostic.message_primary or ""
        if text.startswith("issuing "):
            self.commands.append(text.removeprefix("issuing ").lstrip())

    def statements(self) -> list[str]:
        """What was sent, without the ends of transactions."""
        return [command for command in self.commands if not command.startswith(("BEGIN", "COMMIT"))]


@pytest.fixture(scope="module")
def watched(distributed_url: str) -> Iterator[Watched]:
    database = Watched(distributed_url)
    database.open()
    yield database
    database.close()


@pytest.fixture
def store(watched: Watched) -> PostgresStore:
    """A user's session, and one with three messages that is nobody's."""
    store = PostgresStore(watched)
    store.prepare()
    with suppress(UserAlreadyExists):
        store.create_user(CALL, "u", Profile("", "", "", {}))
    store.add_memory(CALL, NewMemory("of u", [said("zero")], user_id="u"))
    write(store, CALL, "s", "one", "two", "three")
    watched.commands.clear()
    return store


def message_id(store: PostgresStore) -> str:
    return store.get_memory(CALL, "s", 1, 0, 0).messages[0].message_id


# Every call that has one session, or one user, to do with.
ON_ONE_SHARD: dict[str, Callable[[PostgresStore], object]] = {
    "AddMemory": lambda store: write(store, CALL, "s", "more"),
    "AddMemory, many messages": lambda store: write(store, CALL, "s", *map(str, range(100))),
    "AddMemory, a new session": lambda store: write(store, CALL, str(uuid4()), "first"),
    "AddMemory to a user's session": lambda store: store.add_memory(CALL, NewMemory("of u", [said("x")], user_id="u")),
    "GetMemory": lambda store: store.get_memory(CALL, "s", 12, 0, 0),
    "GetMemory, nothing there": lambda store: store.get_memory(CALL, "none", 12, 0, 0),
    "ListMessages": lambda store: store.list_messages(CALL, "s", 0, 2),
    "ListMessages, newest first": lambda store: store.list_messages(CALL, "s", None, 2, descending=True),
    "GetSession": lambda store: store.get_session(CALL, "s"),
    "CreateSession": lambda store: store.create_session(CALL, str(uuid4()), "", {}),
    "UpdateSession": lambda store: store.update_session(CALL, "s", SessionChange(metadata=MERGE)),
    "CreateUser": lambda store: store.create_user(CALL, str(uuid4()), Profile("", "", "", {})),
    "GetUser": lambda store: store.get_user(CALL, "u"),
    "UpdateUser": lambda store: store.update_user(CALL, "u", UserChange(metadata=MERGE)),
}


@pytest.mark.parametrize("call", ON_ONE_SHARD.values(), ids=ON_ONE_SHARD.keys())
def test_a_call_about_one_session_is_one_statement_on_one_shard(
    call: Callable[[PostgresStore], object], store: PostgresStore, watched: Watched
) -> None:
    call(store)
    assert len(watched.statements()) == 1, watched.commands


def test_a_message_is_read_and_edited_on_one_shard(store: PostgresStore, watched: Watched) -> None:
    found = message_id(store)
    watched.commands.clear()
    store.get_message(CALL, "s", found)
    store.update_message(CALL, "s", found, MessageChange(content="edited"))
    assert len(watched.statements()) == 2, watched.commands


def test_purging_a_session_stays_on_its_shard(store: PostgresStore, watched: Watched) -> None:
    write(store, CALL, "gone", "one")
    store.delete_session(CALL, "gone")
    watched.commands.clear()
    *_, removed = store.purge(CALL, PurgeQuery(cutoff=EVERYTHING_SO_FAR, session_id="gone"))
    assert removed.sessions == 1
    # To pick what there is to do, until there is no more, and to do it.
    assert len(watched.statements()) == 3, watched.commands


def test_listing_asks_every_shard(store: PostgresStore, watched: Watched) -> None:
    """The control: what goes to more than one shard is seen."""
    store.list_sessions(CALL, SessionQuery(), None, 10)
    assert len(watched.statements()) == SHARDS, watched.commands


@pytest.mark.parametrize("messages", [1, 2])
def test_a_taken_message_id_is_told_as_such_in_a_transaction_too(messages: int, watched: Watched) -> None:
    """There append runs on the node that was asked; a repeated call is known by this error alone."""
    now = datetime.now(UTC)
    values: dict[str, Any] = {
        "session_key": uuid4(),
        "namespace": "default",
        "session_id": "taken",
        "user_id": "",
        "metadata": "{}",
        "create": True,
        "expected_last_seq": None,
        "outcome": None,
        "time": now,
        "message_ids": [uuid4() for _ in range(messages)],
        "roles": ["user"] * messages,
        "contents": ["x"] * messages,
        "metadatas": [None] * messages,
        "token_counts": [None] * messages,
    }
    append = statements("memory")["append"]
    with watched.connection(CALL) as connection:
        connection.execute(append, values)
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            connection.execute(append, values)
