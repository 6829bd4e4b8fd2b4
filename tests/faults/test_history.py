"""Callers' answers while servers and Postgres are killed: some order of the calls must explain them all."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest

from recalld.client import Client
from recalld.domain import AddedMemory, AddedMessage, Call, Memory, NewMemory, Session
from recalld.storage import PostgresStore
from recalld.storage.keys import session_key
from tests.faults.cluster import Cluster, cluster
from tests.faults.history import Add, Added, History, Purge, Purged, Refused
from tests.faults.linearizability import contradictions
from tests.faults.recorded import Callers
from tests.faults.replica import Replica, await_rest, replica
from tests.integration.conftest import connected, serving
from tests.waiting import wait_until

SEED = 20_240_817

# Otherwise it would say little that nothing is wrong. What chance did not bring is waited for so many more rounds.
MORE_ROUNDS = 5
MUST_HAPPEN = [
    *("created", "undeleted", "purged", "repeated", "Get", "Delete", "Undelete"),
    *("SEQ_MISMATCH", "NOT_DELETED", "SESSION_NOT_FOUND", "Add of unknown outcome", "Delete of unknown outcome"),
]


def summary(history: History) -> Counter[str]:
    """How often what came of calls."""
    found: Counter[str] = Counter()
    requests: Counter[tuple[str, str]] = Counter()
    for call in history.calls:
        match call.operation, call.answer:
            case operation, None:
                found[f"{type(operation).__name__} of unknown outcome"] += 1
            case Add(request), Added() as added:
                found["created"] += added.created
                found["undeleted"] += added.undeleted
                requests[call.session_id, request] += 1
            case Purge(), Purged(sessions, _):
                found["purged"] += sessions
            case _, Refused(reason):
                found[reason] += 1
            case operation, _:
                found[type(operation).__name__] += 1
    found["repeated"] = sum(count - 1 for count in requests.values())
    return found


def missing(history: History) -> list[str]:
    """What must happen and did not yet."""
    found = summary(history)
    return [kind for kind in MUST_HAPPEN if not found[kind]]


@contextmanager
def at_work(callers: Callers, history: History) -> Iterator[Thread]:
    """Callers call meanwhile; it begins when they are well under way."""
    enough = Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            callers.work(enough)
        except BaseException as error:
            failures.append(error)

    thread = Thread(target=work)
    thread.start()
    try:
        await_calls(history, 30, thread)
        yield thread
    finally:
        enough.set()
        thread.join()
    for failure in failures:
        raise failure


def await_calls(history: History, number: int, callers: Thread) -> None:
    """Returns when so many more calls were made."""
    aim = len(history.calls) + number
    wait_until(lambda: len(history.calls) >= aim or not callers.is_alive(), "the callers are stuck", within=60)


# --- real processes, and what befalls them


def kill_server(replicas: list[Replica], database: Cluster, chance: random.Random, history: History) -> None:
    victim = chance.choice(replicas)
    victim.kill()
    victim.start()
    victim.await_serving()


def kill_postgres(replicas: list[Replica], database: Cluster, chance: random.Random, history: History) -> None:
    database.kill()
    database.start()
    for each in replicas:
        each.await_serving()


def end_connections(replicas: list[Replica], database: Cluster, chance: random.Random, history: History) -> None:
    database.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'recalld'")


def freeze_postgres(replicas: list[Replica], database: Cluster, chance: random.Random, history: History) -> None:
    """Until calls have missed their deadlines: those that were under way."""
    database.freeze()
    under_way = [call for call in history.calls if call.returned is None]
    wait_until(lambda: all(call.returned for call in under_way), "no call misses its deadline")
    database.thaw()
    for each in replicas:
        each.await_serving()


FAULTS = [kill_server, kill_postgres, end_connections, freeze_postgres]


@pytest.mark.parametrize(
    "rounds", [pytest.param(1, id="once"), pytest.param(8, id="often", marks=[pytest.mark.faults])]
)
@pytest.mark.timeout(600)
def test_some_order_explains_every_answer_whatever_is_killed(rounds: int, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    history = History()
    with cluster() as database, ExitStack() as stack:
        arguments = ["--database-url", database.url, "--log-level", "WARNING", "--purge-interval", "0"]
        replicas = [stack.enter_context(replica(tmp_path, *arguments)) for _ in range(2)]
        clients = [stack.enter_context(each.client()) for each in replicas]
        callers = Callers(clients, history, chance, sessions=6, callers=8)
        done = 0
        while done < rounds or (missing(history) and done < rounds + MORE_ROUNDS):
            done += 1
            for fault in FAULTS:
                with at_work(callers, history) as thread:
                    fault(replicas, database, chance, history)
                    await_calls(history, 100, thread)
                await_rest(replicas, database)
                history.rest()
                callers.read_all()

    assert not missing(history), summary(history)
    assert contradictions(history) == {}


# --- servers that are broken on purpose


class Forgetful(PostgresStore):
    """Acknowledges one write in twenty without storing it."""

    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        if random.random() > 0.05:
            return super().add_memory(call, memory)
        session = self.get_session(call, memory.session_id, show_deleted=True)
        messages = [
            AddedMessage(each.message_id or str(uuid4()), seq, self._clock())
            for seq, each in enumerate(memory.messages, session.last_seq + 1)
        ]
        return AddedMemory(messages, session_created=False, session_undeleted=session.delete_time is not None)


class Doubling(PostgresStore):
    """Knows no repetition of a call."""

    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        renamed = [each._replace(message_id=str(uuid4())) for each in memory.messages]
        return super().add_memory(call, replace(memory, messages=renamed))


class Stale(PostgresStore):
    """Answers one read in twenty with what the read before it found, as a replica that lags behind would."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._before: dict[tuple[str, int], Memory] = {}

    def get_memory(self, call: Call, session_id: str, last_n: int, max_tokens: int, after_seq: int) -> Memory:
        memory = super().get_memory(call, session_id, last_n, max_tokens, after_seq)
        before = self._before.setdefault((session_id, after_seq), memory)
        self._before[session_id, after_seq] = memory
        return before if random.random() < 0.05 else memory


class HalfHearted(PostgresStore):
    """Stores one call in twenty message by message, and answers with the last."""

    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        if random.random() > 0.05:
            return super().add_memory(call, memory)
        for each in memory.messages[:-1]:
            super().add_memory(call, replace(memory, messages=[each]))
        return super().add_memory(call, replace(memory, messages=memory.messages[-1:]))


class Careless(PostgresStore):
    """Undeletes by taking back the watermark, and so the messages come back with the session."""

    def undelete_session(self, call: Call, session_id: str) -> Session:
        session = super().undelete_session(call, session_id)
        with self._database.connection(call) as connection:
            connection.execute(
                """with s as (update recalld.session set cleared_seq = 0, message_count = last_seq
                               where session_key = %s returning session_key)
                   delete from recalld.tombstone using s where tombstone.session_key = s.session_key""",
                [session_key(call.namespace, session_id)],
            )
        return session


@pytest.mark.parametrize("store", [Forgetful, Doubling, Stale, HalfHearted, Careless, PostgresStore])
def test_a_broken_server_is_found_out(
    store: type[PostgresStore], monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    """The control of the test above: its load and its checker find what is wrong, and nothing when nothing is."""
    monkeypatch.setattr("recalld.app.PostgresStore", store)
    history = History()
    with serving(database_url) as server, connected(server) as client:
        callers = Callers([Client(client.channel)], history, random.Random(SEED), sessions=2, callers=4)
        # Chance may not bring what shows it at once: which calls meet is up to the machine.
        for _ in range(1 + MORE_ROUNDS):
            with at_work(callers, history) as thread:
                await_calls(history, 600, thread)
            found = contradictions(history)
            if found or store is PostgresStore:
                break
    assert bool(found) is (store is not PostgresStore)
