"""The rules of recalld, executable: a store that keeps everything in memory.

This is the specification that the contract suite and the state machine hold the Postgres store to. It prefers being
obviously right to being fast: one lock around everything, and every question answered by looking at all there is.
What it keeps, and the rules that need no store, are in tests/kept.py.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from functools import wraps
from threading import Lock
from typing import Concatenate, ParamSpec, TypeVar
from uuid import NAMESPACE_OID, uuid5

from recalld import domain, errors
from recalld.domain import (
    AddedMemory,
    Call,
    Match,
    Memory,
    Message,
    MessageChange,
    MessagePage,
    Metadata,
    NewMemory,
    Position,
    Profile,
    PurgeProgress,
    PurgeQuery,
    SearchQuery,
    Session,
    SessionChange,
    SessionOrder,
    SessionPage,
    SessionQuery,
    User,
    UserChange,
    UserPage,
)
from tests.kept import KeptSession, Namespace, changed, check_etag, contains, new_etag, tokens, within, words

_P = ParamSpec("_P")
_R = TypeVar("_R")


def utc_now() -> datetime:
    return datetime.now(UTC)


def _one_at_a_time(
    method: Callable[Concatenate[ReferenceStore, _P], _R],
) -> Callable[Concatenate[ReferenceStore, _P], _R]:
    @wraps(method)
    def locked(self: ReferenceStore, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked


class ReferenceStore:
    """An in-memory recalld.domain.Store, safe to call from many threads."""

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._lock = Lock()
        self._namespaces: defaultdict[str, Namespace] = defaultdict(Namespace)

    @_one_at_a_time
    def erase(self) -> None:
        """Forgets everything, as if it were new."""
        self._namespaces.clear()

    # sessions

    @_one_at_a_time
    def create_session(self, call: Call, session_id: str, user_id: str, metadata: Metadata) -> Session:
        space, now = self._namespaces[call.namespace], self._clock()
        space.check_user(user_id)
        old = space.sessions.get(session_id)
        if old is not None and old.live:
            raise errors.SessionAlreadyExists(session_id)
        if old is None:
            return self._new_session(call, session_id, user_id, metadata, now).session
        return old.set(now, user_id=user_id, metadata=metadata, create_time=now, delete_time=None, etag=new_etag())

    def _new_session(
        self, call: Call, session_id: str, user_id: str, metadata: Metadata | None, now: datetime
    ) -> KeptSession:
        kept = KeptSession(
            Session(session_id, user_id, metadata or {}, 0, 0, now, now, None, new_etag()),
            uuid5(NAMESPACE_OID, f"{call.namespace}\0{session_id}"),
        )
        self._namespaces[call.namespace].sessions[session_id] = kept
        return kept

    @_one_at_a_time
    def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
        space = self._namespaces[call.namespace]
        if show_deleted and session_id in space.sessions:
            return space.sessions[session_id].session
        return space.live_session(session_id).session

    @_one_at_a_time
    def update_session(self, call: Call, session_id: str, change: SessionChange) -> Session:
        space = self._namespaces[call.namespace]
        kept = space.live_session(session_id)
        user_id = kept.session.user_id if change.user_id is None else change.user_id
        space.check_user(user_id)
        check_etag(change.etag, kept.session.etag)
        document = changed(kept.session.metadata, change.metadata)
        return kept.set(self._clock(), user_id=user_id, metadata=document, etag=new_etag())

    @_one_at_a_time
    def delete_session(self, call: Call, session_id: str, *, etag: str = "") -> Session:
        kept = self._namespaces[call.namespace].live_session(session_id)
        check_etag(etag, kept.session.etag)
        kept.delete(self._clock())
        return kept.session

    @_one_at_a_time
    def undelete_session(self, call: Call, session_id: str) -> Session:
        space = self._namespaces[call.namespace]
        kept = space.sessions.get(session_id)
        if kept is None:
            raise errors.SessionNotFound(session_id)
        if kept.live:
            raise errors.NotDeleted("session", session_id)
        space.check_user(kept.session.user_id)
        return kept.set(self._clock(), delete_time=None, etag=new_etag())

    @_one_at_a_time
    def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
        by_create_time = query.order in (SessionOrder.CREATE_TIME_ASC, SessionOrder.CREATE_TIME_DESC)
        descending = query.order in (SessionOrder.CREATE_TIME_DESC, SessionOrder.UPDATE_TIME_DESC)

        def position(kept: KeptSession) -> Position:
            session = kept.session
            minute = session.update_time.replace(second=0, microsecond=0)
            return Position(session.create_time if by_create_time else minute, kept.key)

        found = [
            (kept.session, position(kept))
            for kept in self._namespaces[call.namespace].sessions.values()
            if (query.show_deleted or kept.live)
            and query.user_id in ("", kept.session.user_id)
            and contains(kept.session.metadata, query.metadata or {})
            and within(kept.session.create_time, query.create_time_from, query.create_time_to)
            and within(kept.session.update_time, query.update_time_from, query.update_time_to)
        ]
        return SessionPage(*_page(found, after, limit, descending=descending))

    # memory

    @_one_at_a_time
    def add_memory(self, call: Call, memory: NewMemory) -> AddedMemory:
        space, now = self._namespaces[call.namespace], self._clock()
        kept = space.sessions.get(memory.session_id)
        if kept is not None and (repeated := kept.first_result(memory.messages)) is not None:
            return repeated
        last_seq = kept.session.last_seq if kept is not None else 0
        if memory.expected_last_seq not in (None, last_seq):
            raise errors.SeqMismatch(last_seq)
        created = kept is None
        undeleted = kept is not None and not kept.live
        if kept is None:
            space.check_user(memory.user_id)
            kept = self._new_session(call, memory.session_id, memory.user_id, memory.metadata, now)
        elif not kept.live:
            space.check_user(kept.session.user_id)
            kept.set(now, delete_time=None, etag=new_etag())
        return kept.append(memory.messages, now, session_created=created, session_undeleted=undeleted)

    @_one_at_a_time
    def get_memory(self, call: Call, session_id: str, last_n: int, max_tokens: int, after_seq: int) -> Memory:
        kept = self._namespaces[call.namespace].sessions.get(session_id)
        if kept is None or not kept.live:
            return Memory(None, [])
        chosen: list[Message] = []
        left = max_tokens or math.inf
        for message in reversed(kept.live_messages()):
            left -= tokens(message)
            if message.seq <= after_seq or len(chosen) == last_n or left < 0:
                break
            chosen.insert(0, message)
        return Memory(kept.session, chosen)

    @_one_at_a_time
    def list_messages(
        self, call: Call, session_id: str, after_seq: int | None, limit: int, *, descending: bool = False
    ) -> MessagePage:
        messages = self._namespaces[call.namespace].live_session(session_id).live_messages()
        if descending:
            following = [m for m in reversed(messages) if after_seq is None or m.seq < after_seq]
        else:
            following = [m for m in messages if after_seq is None or m.seq > after_seq]
        return MessagePage(following[:limit], more=len(following) > limit)

    @_one_at_a_time
    def get_message(self, call: Call, session_id: str, message_id: str) -> Message:
        return self._namespaces[call.namespace].live_message(session_id, message_id)[1].message

    @_one_at_a_time
    def update_message(self, call: Call, session_id: str, message_id: str, change: MessageChange) -> Message:
        session, kept = self._namespaces[call.namespace].live_message(session_id, message_id)
        old, now = kept.message, self._clock()
        kept.message = old._replace(
            content=old.content if change.content is None else change.content,
            role=old.role if change.role is None else change.role,
            token_count=old.token_count if change.token_count is None else change.token_count,
            metadata=changed(old.metadata, change.metadata),
            update_time=max(old.update_time, now),
        )
        session.set(now)
        return kept.message

    @_one_at_a_time
    def delete_message(self, call: Call, session_id: str, message_id: str) -> Message:
        session, kept = self._namespaces[call.namespace].live_message(session_id, message_id)
        kept.delete_time = self._clock()
        session.set(kept.delete_time, message_count=session.session.message_count - 1)
        return kept.message

    @_one_at_a_time
    def clear_memory(self, call: Call, session_id: str) -> Session:
        kept, now = self._namespaces[call.namespace].live_session(session_id), self._clock()
        kept.delete_messages(now)
        return kept.set(now, message_count=0)

    @_one_at_a_time
    def search_memory(self, call: Call, query: SearchQuery) -> Sequence[Match]:
        terms = words(query.query)
        found = {
            (kept.session.session_id, message.seq): (message, common)
            for kept in self._namespaces[call.namespace].sessions.values()
            if query.session_id in ("", kept.session.session_id) and query.user_id in ("", kept.session.user_id)
            for message in kept.live_messages()
            if (not query.roles or message.role in query.roles)
            and contains(message.metadata, query.metadata or {})
            and within(message.create_time, query.create_time_from, query.create_time_to)
            and (common := terms & words(f"{message.role} {message.content}"))
        }
        holders = Counter(term for _, common in found.values() for term in common)
        rarity = {term: math.log(1 + (len(found) - n + 0.5) / (n + 0.5)) for term, n in holders.items()}
        own = {place: sum(rarity[term] for term in common) for place, (_, common) in found.items()}
        matches = [
            Match(
                session_id,
                message,
                own[session_id, seq] + 0.25 * sum(own.get((session_id, seq + k), 0) for k in (-1, 1)),
            )
            for (session_id, seq), (message, _) in found.items()
        ]
        matches.sort(key=lambda match: (match.score, match.message.create_time, match.message.seq), reverse=True)
        return matches[: query.limit]

    # users

    @_one_at_a_time
    def create_user(self, call: Call, user_id: str, profile: Profile) -> User:
        users, now = self._namespaces[call.namespace].users, self._clock()
        if user_id in users and users[user_id].delete_time is None:
            raise errors.UserAlreadyExists(user_id)
        users[user_id] = User(
            user_id=user_id,
            email=profile.email,
            first_name=profile.first_name,
            last_name=profile.last_name,
            metadata=profile.metadata or {},
            create_time=now,
            update_time=now,
            delete_time=None,
            etag=new_etag(),
        )
        return users[user_id]

    @_one_at_a_time
    def get_user(self, call: Call, user_id: str, *, show_deleted: bool = False) -> User:
        space = self._namespaces[call.namespace]
        if show_deleted and user_id in space.users:
            return space.users[user_id]
        return space.live_user(user_id)

    @_one_at_a_time
    def update_user(self, call: Call, user_id: str, change: UserChange) -> User:
        space = self._namespaces[call.namespace]
        old = space.live_user(user_id)
        check_etag(change.etag, old.etag)
        space.users[user_id] = old._replace(
            email=old.email if change.email is None else change.email,
            first_name=old.first_name if change.first_name is None else change.first_name,
            last_name=old.last_name if change.last_name is None else change.last_name,
            metadata=changed(old.metadata, change.metadata),
            update_time=self._clock(),
            etag=new_etag(),
        )
        return space.users[user_id]

    @_one_at_a_time
    def delete_user(self, call: Call, user_id: str, *, etag: str = "") -> User:
        space, now = self._namespaces[call.namespace], self._clock()
        user = space.live_user(user_id)
        check_etag(etag, user.etag)
        for kept in space.sessions_of(user_id):
            if kept.live:
                kept.delete(now)
        space.users[user_id] = user._replace(update_time=now, delete_time=now, etag=new_etag())
        return space.users[user_id]

    @_one_at_a_time
    def undelete_user(self, call: Call, user_id: str) -> User:
        users = self._namespaces[call.namespace].users
        if user_id not in users:
            raise errors.UserNotFound(user_id)
        if users[user_id].delete_time is None:
            raise errors.NotDeleted("user", user_id)
        users[user_id] = users[user_id]._replace(update_time=self._clock(), delete_time=None, etag=new_etag())
        return users[user_id]

    @_one_at_a_time
    def list_users(self, call: Call, after: Position | None, limit: int, *, show_deleted: bool = False) -> UserPage:
        found = [
            (user, Position(user.create_time, uuid5(NAMESPACE_OID, user.user_id)))
            for user in self._namespaces[call.namespace].users.values()
            if show_deleted or user.delete_time is None
        ]
        return UserPage(*_page(found, after, limit))

    # purge

    @_one_at_a_time
    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        space = self._namespaces[call.namespace]
        if query.dry_run:
            space = deepcopy(space)
        return iter([space.purge(query)])


_Row = TypeVar("_Row", Session, User)


def _page(
    found: Iterable[tuple[_Row, Position]], after: Position | None, limit: int, *, descending: bool = False
) -> tuple[list[tuple[_Row, Position]], Position | None]:
    """What lies behind `after`, at most `limit` of it, and where the next page begins."""
    behind = [
        (row, position)
        for row, position in found
        if after is None or (position < after if descending else position > after)
    ]
    behind.sort(key=lambda each: each[1], reverse=descending)
    return behind[:limit], behind[limit - 1][1] if len(behind) > limit else None


_: type[domain.Store] = ReferenceStore
