"""Every RPC on a distributed database, by way of either kind of node, for a role without rights to spare."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message, SearchMemoryRequest
from recall.v1.session_pb2 import GetSessionRequest, ListSessionsRequest
from recalld.cli import run
from recalld.storage import Lease
from tests.distributed.citus import Citus
from tests.integration.callers import Caller, a_round, calling, create_key
from tests.integration.conftest import serving
from tests.postgres import open_database


@pytest.fixture(scope="module", params=["coordinator", "worker"])
def url(request: pytest.FixtureRequest, citus: Citus, distributed_url: str) -> str:
    """The database as a role sees it that was granted what a server needs."""
    with psycopg.connect(distributed_url, autocommit=True) as owner:
        owner.execute("do $$ begin create role server login; exception when duplicate_object then null; end $$")
    assert run(["migrate", "--database-url", distributed_url, "--grant-to", "server"]) == 0
    way = distributed_url if request.param == "coordinator" else citus.on_worker(distributed_url)
    return way.replace("postgres@", "server@")


@pytest.fixture(scope="module")
def caller(distributed_url: str, url: str) -> Iterator[Caller]:
    key = create_key(distributed_url, f"n-{uuid4().hex}")
    with serving(url, auth=True, migrate=False) as server, calling(server, key) as caller:
        yield caller


def test_every_rpc_works(caller: Caller) -> None:
    for request in a_round():
        caller.call(request, timeout=30)


def test_a_message_is_found(caller: Caller) -> None:
    caller.call(AddMemoryRequest(session_id="found", messages=[Message(role="user", content="a red apple")]))
    for request in (SearchMemoryRequest(query="apples"), SearchMemoryRequest(query="apples", session_id="found")):
        [answer] = caller.call(request)
        assert [result.message.content for result in answer.results] == ["a red apple"]


def test_many_first_writers_of_one_session_all_succeed_and_seq_is_dense(caller: Caller) -> None:
    writers, each = 16, 5

    def write(writer: int) -> None:
        for number in range(each):
            message = Message(role="user", content=f"{writer} {number}")
            caller.call(AddMemoryRequest(session_id="crowded", messages=[message]), timeout=60)

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(write, range(writers)))

    [memory] = caller.call(GetMemoryRequest(session_id="crowded", last_n=1000))
    assert [message.seq for message in memory.messages] == list(range(1, writers * each + 1))
    assert {message.content for message in memory.messages} == {f"{w} {n}" for w in range(writers) for n in range(each)}


def test_a_repeated_call_is_answered_as_the_first_and_stores_nothing(caller: Caller) -> None:
    messages = [Message(message_id=str(uuid4()), role="user", content=str(number)) for number in range(3)]
    request = AddMemoryRequest(session_id="repeated", messages=messages)
    [first], [second] = caller.call(request), caller.call(request)
    assert first == second
    [session] = caller.call(GetSessionRequest(session_id="repeated"))
    assert session.session.message_count == 3


def test_paging_through_sessions_of_all_shards_yields_each_once(caller: Caller) -> None:
    ids = [f"page-{number:02}" for number in range(30)]
    for session_id in ids:
        caller.call(AddMemoryRequest(session_id=session_id, messages=[Message(role="user", content="x")]))
    found: list[str] = []
    token = ""
    while True:
        [page] = caller.call(ListSessionsRequest(page_size=7, page_token=token))
        found += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert sorted(each for each in found if each.startswith("page-")) == ids
    assert len(found) == len(set(found))


def test_a_lease_that_one_node_gave_is_refused_by_every_other(citus: Citus, distributed_url: str) -> None:
    ttl = timedelta(seconds=30)
    with open_database(distributed_url) as one, open_database(citus.on_worker(distributed_url)) as other:
        holder, waiter = Lease(one, "work", ttl), Lease(other, "work", ttl)
        assert holder.take()
        assert not waiter.take()
        assert holder.renew()
        assert not waiter.renew()
        holder.give_back(timedelta(0))
        assert waiter.take()
