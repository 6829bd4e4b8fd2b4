"""A search finds on a Citus what it finds on a plain Postgres with the same messages, by way of either kind of node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from random import Random
from typing import Any

import pytest

from recalld.domain import LocalCall, NewMemory, Profile, SearchQuery
from recalld.storage import PostgresStore, memory, migrate
from tests.contract.asking import said
from tests.contract.clock import Clock
from tests.distributed.citus import Citus
from tests.distributed.test_shards import Watched
from tests.postgres import Databases, open_database

CALL, OTHER = LocalCall("default"), LocalCall("other")
SESSIONS = 40
COMMON = [f"common{number}" for number in range(5)]
RARE = [f"rare{number}" for number in range(40)]


def _populate(store: PostgresStore) -> None:
    random = Random(1)
    store.create_user(CALL, "ada", Profile("", "", "", {}))
    for number in range(SESSIONS):
        contents = [
            " ".join(random.sample(COMMON, 2) + random.sample(RARE, 1 if random.random() < 0.3 else 0))
            for _ in range(random.randrange(1, 30))
        ]
        user_id = "ada" if number % 4 == 0 else ""
        store.add_memory(CALL, NewMemory(f"s{number}", [said(content) for content in contents], user_id=user_id))
        store.add_memory(OTHER, NewMemory(f"s{number}", [said("rare1 rare2 elsewhere")]))
    long = [said(f"{COMMON[n % 5]} {RARE[n % 40] if n % 7 == 0 else ''}") for n in range(200)]
    store.add_memory(CALL, NewMemory("long", long))
    store.clear_memory(CALL, "s1")
    store.delete_session(CALL, "s2")


@pytest.fixture(scope="module")
def stores(databases: Databases, citus: Citus, distributed_url: str) -> Iterator[list[PostgresStore]]:
    """A plain one; those of the coordinator and of a worker."""
    with ExitStack() as stack, databases.copy() as plain_url:
        ways = [plain_url, distributed_url, citus.on_worker(distributed_url)]
        made = [PostgresStore(stack.enter_context(open_database(way)), clock=Clock()) for way in ways]
        for store in made:
            store.prepare()
        _populate(made[0])
        _populate(made[1])
        yield made


def found(store: PostgresStore, query: SearchQuery) -> list[tuple[str, int, float]]:
    matches = store.search_memory(CALL, query)
    return [(match.session_id, match.message.seq, round(match.score, 9)) for match in matches]


@pytest.mark.parametrize("newest", [30, 2_000], ids=["by the index and the newest", "by looking at all"])
@pytest.mark.parametrize(
    "scope", [{}, {"session_id": "long"}, {"user_id": "ada"}], ids=["namespace", "session", "user"]
)
@pytest.mark.parametrize("query", ["common1", "rare1", "rare1 rare2 rare3", "common1 common2 rare7", "nothing"])
def test_it_is_the_same_as_on_one_node(
    stores: list[PostgresStore], monkeypatch: pytest.MonkeyPatch, query: str, scope: dict[str, Any], newest: int
) -> None:
    monkeypatch.setattr(memory, "MAX_SEARCHED_NEWEST", newest)
    asked = SearchQuery(query, 20, **scope)

    plain, *distributed = (found(store, asked) for store in stores)

    assert distributed == [plain, plain]
    assert bool(plain) == (query != "nothing")


def test_a_search_in_one_session_stays_on_its_shard(stores: list[PostgresStore], distributed_url: str) -> None:
    watched = Watched(distributed_url)
    watched.open()
    try:
        assert found(PostgresStore(watched), SearchQuery("rare7", 20, session_id="long"))
        # The session, its newest messages, their ranks, and what is returned; each on one shard.
        assert len(watched.statements()) == 4, watched.commands
    finally:
        watched.close()


def test_one_shard_is_enough(citus: Citus) -> None:
    """There Citus sends whole statements to it, and would send what calls a function that asks the shards."""
    with citus.empty() as url:
        migrate(f"{url}?options=-c%20citus.shard_count%3D1", "english", distribute=True)
        with open_database(url) as database:
            store = PostgresStore(database)
            store.add_memory(CALL, NewMemory("s", [said("a red apple")]))
            for session_id in "", "s":
                assert [each[:2] for each in found(store, SearchQuery("apples", 10, session_id=session_id))] == [
                    ("s", 1)
                ]
