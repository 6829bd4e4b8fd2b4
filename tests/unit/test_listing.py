"""No reply is larger than it may be, and what is cut off comes with the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall.v1 import memory_pb2, session_pb2, user_pb2
from recalld import limits
from recalld.domain import Call, Match, Message, Position, SearchQuery, Session, SessionPage, SessionQuery
from recalld.services import listing
from tests.reference import ReferenceStore
from tests.unit.rpc import NOW, Services, struct

LARGE = struct(a=[0] * 30_000)  # 60 KB of JSON, 330 KB on the wire


def text(size: int) -> memory_pb2.Message:
    return memory_pb2.Message(content="x" * size)


# --- cutting


@given(st.lists(st.integers(0, 40_000)), st.integers(0, 100_000))
def test_as_many_as_fit_are_taken_but_at_least_one(sizes: list[int], limit: int) -> None:
    messages = [text(size) for size in sizes]
    taken = listing.fitting(messages, limit)
    assert taken == messages[: len(taken)]
    assert taken or not messages
    assert len(taken) <= 1 or memory_pb2.GetMemoryResponse(messages=taken).ByteSize() <= limit


def test_cutting_wastes_no_room() -> None:
    messages = [text(100_000)] * 10
    limit = memory_pb2.GetMemoryResponse(messages=messages).ByteSize() + 64
    assert listing.fitting(messages, limit) == messages
    assert listing.fitting(messages, limit - 200) == messages[:-1]


def test_what_is_behind_the_cut_is_not_converted() -> None:
    converted = []

    def convert(size: int) -> memory_pb2.Message:
        converted.append(size)
        return text(size)

    messages, following = listing.page([(limits.MAX_PAGE_BYTES // 2, seq) for seq in range(1, 9)], None, convert)
    assert (len(messages), following, len(converted)) == (1, 1, 2)


# --- pages and chunks


@pytest.fixture
def large() -> Services:
    """Twelve large sessions, twelve large users."""
    services = Services(ReferenceStore())
    for number in range(12):
        session = session_pb2.CreateSessionRequest(session_id=f"s{number:02}", metadata=LARGE)
        user = user_pb2.CreateUserRequest(user_id=f"u{number:02}", metadata=LARGE)
        services.call(session)
        services.call(user)
    return services


def test_a_page_is_cut_to_3_mib_and_the_next_goes_on(large: Services) -> None:
    sizes, seen, token = [], list[str](), ""
    while True:
        page = large.call(session_pb2.ListSessionsRequest(page_token=token))
        sizes.append(page.ByteSize())
        seen += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert seen == [f"s{number:02}" for number in range(12)]
    assert 2_000_000 < max(sizes) <= limits.MAX_PAGE_BYTES


def test_a_chunk_is_cut_to_1_mib_and_can_be_resumed_from(large: Services) -> None:
    chunks = large.stream(session_pb2.StreamSessionsRequest())
    assert [session.session_id for chunk in chunks for session in chunk.sessions] == [f"s{n:02}" for n in range(12)]
    assert 500_000 < max(chunk.ByteSize() for chunk in chunks) <= limits.MAX_CHUNK_BYTES
    resumed = large.stream(session_pb2.StreamSessionsRequest(resume_token=chunks[0].resume_token))
    assert resumed == chunks[1:]


class Numbers:
    """Rows to fetch, which a test can delete; it notes how many were asked for."""

    def __init__(self, count: int) -> None:
        self.rows = [(number, Position(NOW, UUID(int=number))) for number in range(1, count + 1)]
        self.asked: list[int] = []

    def fetch(self, after: Position | None, count: int) -> tuple[list[tuple[int, Position]], Position | None]:
        self.asked.append(count)
        found = [row for row in self.rows if after is None or row[1].key > after.key]
        return found[:count], found[count - 1][1] if len(found) > count else None

    def chunks(self, size: int) -> Iterator[list[int]]:
        for messages, place in listing.chunks(
            self.fetch, None, size, lambda number: session_pb2.Session(last_seq=number)
        ):
            assert place.key.int == messages[-1].last_seq
            yield [message.last_seq for message in messages]


def test_after_the_first_chunk_fetches_are_for_more_and_more() -> None:
    numbers = Numbers(2505)
    chunks = list(numbers.chunks(100))
    assert [number for chunk in chunks for number in chunk] == list(range(1, 2506))
    assert max(map(len, chunks)) == 100
    assert numbers.asked == [100, 200, 400, 800, 1000, 1000]


def test_what_is_deleted_while_a_slow_reader_has_not_read_it_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(listing, "monotonic", lambda: now)
    numbers = Numbers(50)
    chunks = numbers.chunks(10)
    assert next(chunks) == list(range(1, 11))
    assert next(chunks) == list(range(11, 21))
    del numbers.rows[20:35]
    now = 2.0
    assert list(chunks) == [list(range(36, 46)), list(range(46, 51))]
    assert numbers.asked == [10, 20, 10, 20]


def test_users_are_cut_alike(large: Services) -> None:
    page = large.call(user_pb2.ListUsersRequest())
    assert page.ByteSize() <= limits.MAX_PAGE_BYTES
    rest = large.call(user_pb2.ListUsersRequest(page_token=page.next_page_token))
    assert [user.user_id for user in [*page.users, *rest.users]] == [f"u{n:02}" for n in range(12)]
    chunks = large.stream(user_pb2.StreamUsersRequest())
    assert all(chunk.ByteSize() <= limits.MAX_CHUNK_BYTES for chunk in chunks)
    assert sum(len(chunk.users) for chunk in chunks) == 12


def test_empty_pages_are_followed_and_send_no_chunk() -> None:
    here = Position(NOW, UUID(int=1))
    there = Position(NOW, UUID(int=2))

    class SparseStore(ReferenceStore):
        """Finds its one session at the third look."""

        def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
            if after is None:
                return SessionPage([], here)
            if after == here:
                return SessionPage([], there)
            found = Session("s", "", {}, 0, 0, NOW, NOW, None, "etag")
            return SessionPage([(found, Position(NOW, UUID(int=3)))], None)

    services = Services(SparseStore())
    (chunk,) = services.stream(session_pb2.StreamSessionsRequest())
    assert [session.session_id for session in chunk.sessions] == ["s"]
    page = services.call(session_pb2.ListSessionsRequest())
    assert not page.sessions
    assert page.next_page_token


# --- messages


@pytest.fixture
def long() -> Services:
    """One session of five messages of almost 1 MiB each."""
    services = Services(ReferenceStore())
    for number in range(5):
        message = memory_pb2.Message(role="user", content=f"{number} tea " + "x" * (limits.MIB - 64))
        services.call(memory_pb2.AddMemoryRequest(session_id="s", messages=[message], metadata=LARGE))
    return services


def numbers(messages: Sequence[Any]) -> list[str]:
    return [message.content[0] for message in messages]


def test_memory_too_large_for_a_reply_loses_its_oldest_messages(long: Services) -> None:
    memory = long.call(memory_pb2.GetMemoryRequest(session_id="s"))
    assert numbers(memory.messages) == ["3", "4"]
    assert memory.ByteSize() <= limits.MAX_PAGE_BYTES


@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_a_page_of_messages_is_cut_and_the_next_goes_on(long: Services, order: str) -> None:
    request = memory_pb2.ListMessagesRequest(session_id="s", order=f"MESSAGE_ORDER_SEQ_{order}")  # type: ignore[arg-type]
    seen = list[str]()
    while True:
        page = long.call(request)
        assert page.ByteSize() <= limits.MAX_PAGE_BYTES
        seen += numbers(page.messages)
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert seen == sorted("01234", reverse=order == "DESC")


def test_search_results_too_large_for_a_reply_lose_the_worst() -> None:
    class RichStore(ReferenceStore):
        def search_memory(self, call: Call, query: SearchQuery) -> Sequence[Match]:
            contents = [f"{number}" + "x" * (limits.MIB - 1024) for number in range(9)]
            found = [Message(str(UUID(int=1)), 1, "user", content, {}, 0, NOW, NOW) for content in contents]
            return [Match("s", message, 9.0 - place) for place, message in enumerate(found)]

    response = Services(RichStore()).call(memory_pb2.SearchMemoryRequest(query="x"))
    assert numbers([result.message for result in response.results]) == ["0", "1", "2"]
    assert response.ByteSize() <= limits.MAX_PAGE_BYTES
