"""Users on Postgres."""

from __future__ import annotations

from recalld import errors, metadata
from recalld.domain import Call, Position, Profile, User, UserChange, UserPage
from recalld.limits import MAX_PAGE_BYTES
from recalld.storage.database import Connection
from recalld.storage.keys import user_key
from recalld.storage.rows import SubjectStore, check_merged, etag_condition, metadata_change, user_of
from recalld.storage.sql import compose, statements

_SESSION_SQL = statements("session")
_SQL = statements("user")

_CREATE, _GET, _UPDATE, _DELETE, _UNDELETE = (
    compose(_SQL[name], columns=_SQL["columns"]) for name in ("create", "get", "update", "delete", "undelete")
)
_LIVE = compose(_SQL["list_page"], deleted="false")
_DELETED = compose(_SQL["list_page"], deleted="true")
_LIST_LIVE = compose(_SQL["list"], columns=_SQL["columns"], pages=_LIVE)
_BOTH = compose(_SQL["list_both"], live=_LIVE, deleted=_DELETED)
_LIST_BOTH = compose(_SQL["list"], columns=_SQL["columns"], pages=_BOTH)


class UserStore(SubjectStore):
    """The part of recalld.domain.Store about users."""

    def create_user(self, call: Call, user_id: str, profile: Profile) -> User:
        values = {
            "user_key": user_key(call.namespace, user_id),
            "namespace": call.namespace,
            "user_id": user_id,
            "email": profile.email,
            "first_name": profile.first_name,
            "last_name": profile.last_name,
            "metadata": metadata.to_json(profile.metadata or {}),
            **self._times(),
        }
        with self._database.connection(call) as connection:
            row = connection.execute(_CREATE, values).fetchone()
        if row is None:
            raise errors.UserAlreadyExists(user_id)
        return user_of(row)

    def get_user(self, call: Call, user_id: str, *, show_deleted: bool = False) -> User:
        with self._database.connection(call) as connection:
            return _get(connection, call, user_id, show_deleted=show_deleted)

    def update_user(self, call: Call, user_id: str, change: UserChange) -> User:
        values = {
            "user_key": user_key(call.namespace, user_id),
            "email": change.email,
            "first_name": change.first_name,
            "last_name": change.last_name,
            **metadata_change(change.metadata),
            **etag_condition(change.etag),
            **self._times(),
        }
        with self._database.connection(call) as connection, connection.transaction():
            row = connection.execute(_UPDATE, values).fetchone()
            if row is None:
                raise _missing_or_changed(connection, call, user_id, change.etag)
            user = user_of(row)
            check_merged(user.metadata)
            return user

    def delete_user(self, call: Call, user_id: str, *, etag: str = "") -> User:
        values = {
            "user_key": user_key(call.namespace, user_id),
            "namespace": call.namespace,
            "user_id": user_id,
            **etag_condition(etag),
            **self._times(),
        }
        with self._database.connection(call) as connection, connection.transaction():
            # The user's row first: from then on no session can be attached to it or revived for it.
            row = connection.execute(_DELETE, values).fetchone()
            if row is None:
                raise _missing_or_changed(connection, call, user_id, etag)
            while connection.execute(_SESSION_SQL["live_of_user"], values).fetchone():
                connection.execute(_SESSION_SQL["delete_of_user"], values)
            return user_of(row)

    def undelete_user(self, call: Call, user_id: str) -> User:
        values = {"user_key": user_key(call.namespace, user_id), **self._times()}
        with self._database.connection(call) as connection:
            row = connection.execute(_UNDELETE, values).fetchone()
            if row is None:
                # Be it deleted by now: what is there was live when it was to be undeleted.
                _get(connection, call, user_id, show_deleted=True)
                raise errors.NotDeleted("user", user_id)
            return user_of(row)

    def list_users(self, call: Call, after: Position | None, limit: int, *, show_deleted: bool = False) -> UserPage:
        after_time, after_key = after or (None, None)
        values = {
            "namespace": call.namespace,
            "after_time": after_time,
            "after_key": after_key,
            "limit": limit + 1,
            "max_bytes": MAX_PAGE_BYTES,
        }
        with self._database.connection(call) as connection:
            rows = connection.execute(_LIST_BOTH if show_deleted else _LIST_LIVE, values).fetchall()
        users = []
        for row in rows[:limit]:
            user = user_of(row[:-2])
            users.append((user, Position(user.create_time, row[-2])))
        return UserPage(users, users[-1][1] if rows and rows[-1][-1] > len(users) else None)


def _find(connection: Connection, call: Call, user_id: str) -> User | None:
    """The user, live or deleted."""
    row = connection.execute(_GET, {"user_key": user_key(call.namespace, user_id)}).fetchone()
    return user_of(row) if row else None


def _get(connection: Connection, call: Call, user_id: str, *, show_deleted: bool = False) -> User:
    """Raises UserNotFound."""
    user = _find(connection, call, user_id)
    if user is None or (user.delete_time and not show_deleted):
        raise errors.UserNotFound(user_id)
    return user


def _missing_or_changed(connection: Connection, call: Call, user_id: str, etag: str) -> errors.RecallError:
    """Why no row met the conditions of an update. Without an etag there is one condition only: being live."""
    user = _find(connection, call, user_id) if etag else None
    return errors.UserNotFound(user_id) if user is None or user.delete_time else errors.EtagMismatch()
