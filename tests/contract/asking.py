"""Short ways to ask a store for what tests ask for all the time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import uuid4

from recalld.domain import (
    AddedMemory,
    Call,
    Message,
    Metadata,
    NewMemory,
    NewMessage,
    PurgeProgress,
    PurgeQuery,
    SearchQuery,
    Session,
    SessionQuery,
    Store,
    User,
)

EVERYTHING = 1_000_000


def said(content: str, *, role: str = "user", metadata: Metadata | None = None, token_count: int = 0) -> NewMessage:
    """A message with an id of its own."""
    return NewMessage(str(uuid4()), role, content, metadata or {}, token_count)


def id_of(message: NewMessage) -> str:
    """The id of a message that was said."""
    assert message.message_id is not None
    return message.message_id


def write(store: Store, call: Call, session_id: str, *contents: str) -> AddedMemory:
    """Appends one message for each content, in one call."""
    return store.add_memory(call, NewMemory(session_id, [said(content) for content in contents]))


def read(store: Store, call: Call, session_id: str) -> list[str]:
    """The contents of a session's live messages; empty when it is unknown or deleted."""
    return contents_of(store.get_memory(call, session_id, EVERYTHING, 0, 0).messages)


def contents_of(messages: Iterable[Message]) -> list[str]:
    return [message.content for message in messages]


def sessions(store: Store, call: Call, query: SessionQuery | None = None, *, page: int = 100) -> list[Session]:
    """The whole listing, page by page."""
    return [session for batch in session_pages(store, call, query, page=page) for session in batch]


def session_pages(
    store: Store, call: Call, query: SessionQuery | None = None, *, page: int = 100
) -> Iterator[list[Session]]:
    after = None
    while True:
        found = store.list_sessions(call, query or SessionQuery(), after, page)
        yield [session for session, _ in found.sessions]
        if (after := found.next) is None:
            return


def session_ids(store: Store, call: Call, query: SessionQuery | None = None, *, page: int = 100) -> list[str]:
    return [session.session_id for session in sessions(store, call, query, page=page)]


def users(store: Store, call: Call, *, show_deleted: bool = False, page: int = 100) -> list[User]:
    found: list[User] = []
    after = None
    while True:
        batch = store.list_users(call, after, page, show_deleted=show_deleted)
        found += [user for user, _ in batch.users]
        if (after := batch.next) is None:
            return found


def search(store: Store, call: Call, query: SearchQuery) -> list[str]:
    return [match.message.content for match in store.search_memory(call, query)]


def purge(store: Store, call: Call, query: PurgeQuery) -> PurgeProgress:
    """The totals of a purge."""
    *_, totals = store.purge(call, query)
    return totals
