"""Sessions on Postgres."""

from __future__ import annotations

from typing import LiteralString
from uuid import UUID

from recalld import errors, metadata
from recalld.domain import Call, Metadata, Position, Session, SessionChange, SessionOrder, SessionPage, SessionQuery
from recalld.limits import MAX_EXAMINED, MAX_PAGE_BYTES
from recalld.storage.database import Connection
from recalld.storage.keys import session_key, user_key
from recalld.storage.rows import (
    SubjectStore,
    Values,
    check_merged,
    etag_condition,
    metadata_change,
    session_of,
    to_minute,
)
from recalld.storage.sql import compose, statements

_SQL = statements("session")

_WIDTH = _SQL["columns"].count(",") + 1

# Attempts at a transaction that fails because a row was changed between reading and locking it.
ATTEMPTS = 10

# Rows that one statement examines for a filter that no index answers.
_EXAMINE = 1000


def _listing(order: SessionOrder, of_user: bool, show_deleted: bool) -> LiteralString:
    """The statement for one order and scope. Indexes keep live and deleted sessions apart; here they are merged."""
    descending = order in (SessionOrder.CREATE_TIME_DESC, SessionOrder.UPDATE_TIME_DESC)
    by_create = order in (SessionOrder.CREATE_TIME_ASC, SessionOrder.CREATE_TIME_DESC)
    words = {
        "place": "create_time" if by_create else "active_time",
        "direction": "desc" if descending else "asc",
        "beyond": "<" if descending else ">",
        "first": "%(high)s" if descending else "%(low)s",
        "last": "%(low)s" if descending else "%(high)s",
        "within": ">=" if descending else "<=",
        "start": "'infinity'" if descending else "'-infinity'",
        "end": "'-infinity'" if descending else "'infinity'",
        "start_key": f"'{UUID(int=2**128 - 1 if descending else 0)}'",
        "of_user": _SQL["of_user" if of_user else "of_anybody"],
    }
    pages = compose(_SQL["list_page"], **words, deleted="false")
    if show_deleted:
        deleted = compose(_SQL["list_page"], **words, deleted="true")
        pages = compose(_SQL["list_both"], **words, live=pages, deleted=deleted)
    return compose(_SQL["list"], **words, columns=_SQL["columns"], pages=pages)


_CREATE, _GET, _UPDATE, _DELETE, _CLEAR, _UNDELETE = (
    compose(_SQL[name], columns=_SQL["columns"]) for name in ("create", "get", "update", "delete", "clear", "undelete")
)
_LIST = {
    (order, of_user, show_deleted): _listing(order, of_user, show_deleted)
    for order in SessionOrder
    for of_user in (False, True)
    for show_deleted in (False, True)
}


class SessionStore(SubjectStore):
    """The part of recalld.domain.Store about sessions."""

    def create_session(self, call: Call, session_id: str, user_id: str, document: Metadata) -> Session:
        values = {
            "session_key": session_key(call.namespace, session_id),
            "namespace": call.namespace,
            "session_id": session_id,
            "user_id": user_id,
            "metadata": metadata.to_json(document),
            **self._times(),
        }
        with self._database.connection(call) as connection, connection.transaction():
            lock_user(connection, call.namespace, user_id)
            row = connection.execute(_CREATE, values).fetchone()
            if row is None:
                raise errors.SessionAlreadyExists(session_id)
            return session_of(row)

    def get_session(self, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
        with self._database.connection(call) as connection:
            return get(connection, call, session_id, show_deleted=show_deleted)

    def update_session(self, call: Call, session_id: str, change: SessionChange) -> Session:
        values = {
            "session_key": session_key(call.namespace, session_id),
            "user_id": change.user_id,
            **metadata_change(change.metadata),
            **etag_condition(change.etag),
            **self._times(),
        }
        with self._database.connection(call) as connection, connection.transaction():
            if change.user_id:
                get(connection, call, session_id)
                lock_user(connection, call.namespace, change.user_id)
            row = connection.execute(_UPDATE, values).fetchone()
            if row is None:
                raise _missing_or_changed(connection, call, session_id, change.etag)
            session = session_of(row)
            check_merged(session.metadata)
            return session

    def delete_session(self, call: Call, session_id: str, *, etag: str = "") -> Session:
        values = {"session_key": session_key(call.namespace, session_id), **etag_condition(etag), **self._times()}
        with self._database.connection(call) as connection:
            row = connection.execute(_DELETE, values).fetchone()
            if row is None:
                raise _missing_or_changed(connection, call, session_id, etag)
            return session_of(row)

    def undelete_session(self, call: Call, session_id: str) -> Session:
        with self._database.connection(call) as connection:
            for _ in range(ATTEMPTS):
                session = get(connection, call, session_id, show_deleted=True)
                if session.delete_time is None:
                    raise errors.NotDeleted("session", session_id)
                with connection.transaction():
                    lock_user(connection, call.namespace, session.user_id)
                    if revived := revive(connection, call, session, self._times()):
                        return revived
        raise errors.Contention

    def clear_memory(self, call: Call, session_id: str) -> Session:
        values = {"session_key": session_key(call.namespace, session_id), **self._times()}
        with self._database.connection(call) as connection:
            row = connection.execute(_CLEAR, values).fetchone()
            if row is None:
                raise errors.SessionNotFound(session_id)
            return session_of(row)

    def list_sessions(self, call: Call, query: SessionQuery, after: Position | None, limit: int) -> SessionPage:
        by_create = query.order in (SessionOrder.CREATE_TIME_ASC, SessionOrder.CREATE_TIME_DESC)
        # Conditions without an index are checked row by row, on a bounded number of rows for each page.
        create_range = (query.create_time_from, query.create_time_to)
        update_range = (query.update_time_from and to_minute(query.update_time_from), query.update_time_to)
        low, high = create_range if by_create else update_range
        # The index on create time is exact. The one on update time is by minute, so that range is also checked by row.
        others = update_range if by_create else (*create_range, *update_range)
        filtered = any(condition is not None for condition in (query.metadata, *others))
        examine = max(limit + 1, _EXAMINE) if filtered else limit + 1
        values: Values = {
            "namespace": call.namespace,
            "user_id": query.user_id,
            "metadata": None if query.metadata is None else metadata.to_json(query.metadata),
            "create_from": query.create_time_from,
            "create_to": query.create_time_to,
            "update_from": query.update_time_from,
            "update_to": query.update_time_to,
            "low": low,
            "high": high,
            "examine": examine,
            "max_bytes": MAX_PAGE_BYTES,
        }
        statement = _LIST[query.order, bool(query.user_id), query.show_deleted]
        found: list[tuple[Session, Position]] = []
        examined = 0
        while True:
            values["after_time"], values["after_key"] = after or (None, None)
            with self._database.connection(call) as connection:
                rows = connection.execute(statement, values).fetchall()
            for row in rows:
                time, key, matches, fits, _ = row[_WIDTH:]
                # Rows that do not match or fit are left out, except the last row that was examined.
                if len(found) == limit or not fits:
                    return SessionPage(found, found[-1][1])
                after = Position(time, key)
                if matches:
                    found.append((session_of(row[:_WIDTH]), after))
            if not rows or rows[-1][-1] < examine:
                return SessionPage(found, None)
            examined += examine
            if len(found) == limit or examined >= MAX_EXAMINED:
                return SessionPage(found, after)


# --- steps that appending takes too


def find(connection: Connection, call: Call, session_id: str) -> Session | None:
    """The session, live or deleted."""
    row = connection.execute(_GET, {"session_key": session_key(call.namespace, session_id)}).fetchone()
    return session_of(row) if row else None


def get(connection: Connection, call: Call, session_id: str, *, show_deleted: bool = False) -> Session:
    """Raises SessionNotFound."""
    session = find(connection, call, session_id)
    if session is None or (session.delete_time and not show_deleted):
        raise errors.SessionNotFound(session_id)
    return session


def revive(connection: Connection, call: Call, session: Session, times: Values) -> Session | None:
    """Undeletes a session as it was last read; None when it has changed since.

    In a transaction that has its user locked.
    """
    values = {
        "session_key": session_key(call.namespace, session.session_id),
        "user_id": session.user_id,
        **times,
    }
    row = connection.execute(_UNDELETE, values).fetchone()
    return session_of(row) if row else None


def lock_session(connection: Connection, call: Call, session: Session) -> bool | None:
    """Locks a session until the transaction ends. Whether it is live; None if it is gone or has another user."""
    values = {"session_key": session_key(call.namespace, session.session_id), "user_id": session.user_id}
    row = connection.execute(_SQL["lock_session"], values).fetchone()
    return None if row is None else bool(row[0])


def lock_user(connection: Connection, namespace: str, user_id: str) -> None:
    """Keeps a user live until the transaction ends; does nothing for "". Raises UserMissing."""
    if user_id:
        values = {"user_key": user_key(namespace, user_id)}
        if connection.execute(_SQL["lock_user"], values).fetchone() is None:
            raise errors.UserMissing(user_id)


def _missing_or_changed(connection: Connection, call: Call, session_id: str, etag: str) -> errors.RecallError:
    """Why no row met the conditions of an update. Without an etag there is one condition only: being live."""
    session = find(connection, call, session_id) if etag else None
    return errors.SessionNotFound(session_id) if session is None or session.delete_time else errors.EtagMismatch()
