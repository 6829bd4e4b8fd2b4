"""Purging on Postgres: tombstone by tombstone, in small transactions, safe to run twice and to kill at any point."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, LiteralString, NamedTuple
from uuid import UUID

import psycopg

from recalld.domain import INTERNAL_CALL, Call, PurgeProgress, PurgeQuery
from recalld.errors import Contention, DeadlineExceeded, reason_of
from recalld.storage.keys import session_key, user_key
from recalld.storage.rows import Row, SubjectStore, Values
from recalld.storage.sql import compose, statements

log = logging.getLogger(__name__)

_SQL = statements("purge")
_PICK = {
    scope: compose(_SQL["pick"], scope=_SQL[scope], only=_SQL[only])
    for scope, only in (("of_session", "only_session"), ("below", "only_session"), ("of_user", "all"), ("all", "all"))
}
_REMOVE_USERS = {scope: compose(_SQL["remove_users"], scope=_SQL[scope]) for scope in ("this_user", "all")}
_COUNT_USERS = {scope: compose(_SQL["count_users"], scope=_SQL[scope]) for scope in ("this_user", "all")}

# Later than any deletion.
_FOREVER: Final = datetime.max.replace(tzinfo=UTC)

# Errors that can be due to one session: another transaction keeps it locked, it takes too long, its page is damaged.
_ERRORS_OF_ONE_SESSION: Final = (Contention, DeadlineExceeded, psycopg.Error)

# Failed sessions in a row after which the cause is taken to be the database, and the purge ends.
_MOST_IN_A_ROW: Final = 10


class _Tombstone(NamedTuple):
    """Messages first_seq to last_seq of a session, deleted at delete_time; `whole` when the session was deleted.

    `others`: whether removing the session would remove what other tombstones stand for.
    """

    session_key: UUID
    last_seq: int
    delete_time: datetime
    first_seq: int
    whole: bool
    others: bool


class PurgeStore(SubjectStore):
    """The part of recalld.domain.Store about purging."""

    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        """Purges tombstone by tombstone, then users.

        A session that cannot be purged is passed over, and the first such error is raised at the end. That yields too,
        so that the caller can stop there as after any step.
        """
        sessions = messages = users = 0
        failed: dict[UUID, Exception] = {}
        in_a_row = 0
        for tombstone in self._tombstones(call, query):
            if tombstone.session_key in failed:  # the tombstones of a session must be purged in order
                continue
            try:
                for more_sessions, more_messages in self._steps(call, query, tombstone):
                    sessions += more_sessions
                    messages += more_messages
                    yield PurgeProgress(sessions, messages, users)
                in_a_row = 0
            except _ERRORS_OF_ONE_SESSION as error:
                in_a_row += 1
                if in_a_row == _MOST_IN_A_ROW or call.remaining() == 0:
                    raise
                failed[tombstone.session_key] = error
                log.warning("the purge passes over session_key %s: %s", tombstone.session_key, reason_of(error))
                yield PurgeProgress(sessions, messages, users)
        if not query.session_id:
            for more_users in self._user_steps(call, query):
                users += more_users
                yield PurgeProgress(sessions, messages, users)
        yield PurgeProgress(sessions, messages, users)
        if failed:
            raise next(iter(failed.values()))

    def due_namespaces(self, cutoff: datetime) -> list[str]:
        """The namespaces in which something was deleted at or before the cutoff and is not purged yet."""
        with self._database.connection(INTERNAL_CALL) as connection:
            return [namespace for (namespace,) in connection.execute(_SQL["due_namespaces"], {"cutoff": cutoff})]

    def _tombstones(self, call: Call, query: PurgeQuery) -> Iterator[_Tombstone]:
        """The tombstones to purge, oldest deletion first.

        Before the tombstone of a whole session come all others of that session: its own last step would remove them all
        at once, however many messages they have. By time they may come later, even after the cutoff: servers' clocks
        differ.
        """
        scope = "of_session" if query.session_id else "of_user" if query.user_id else "all"
        values: Values = {
            "namespace": call.namespace,
            "cutoff": query.cutoff,
            "session_key": session_key(call.namespace, query.session_id),
            "user_id": query.user_id,
            "after_time": None,
            "after_key": None,
            "after_seq": 0,
        }
        for tombstone in self._picked(call, scope, values):
            if tombstone.others:
                below = values | tombstone._asdict() | {"cutoff": _FOREVER}
                if query.dry_run:  # those up to the cutoff are counted at their own turn
                    below |= {
                        "after_time": query.cutoff,
                        "after_key": tombstone.session_key,
                        "after_seq": tombstone.last_seq,
                    }
                for other in self._picked(call, "below", below):
                    yield other._replace(whole=False)  # as of this one the session is not deleted any more
            yield tombstone

    def _picked(self, call: Call, scope: str, values: Values) -> Iterator[_Tombstone]:
        """Tombstones page by page. No connection is held while they are processed."""
        while True:
            with self._database.connection(call) as connection:
                rows = connection.execute(_PICK[scope], values).fetchall()
            if not rows:
                return
            for row in rows:
                last = _Tombstone(*row)
                yield last
            values = values | {
                "after_time": last.delete_time,
                "after_key": last.session_key,
                "after_seq": last.last_seq,
            }

    def _steps(self, call: Call, query: PurgeQuery, tombstone: _Tombstone) -> Iterator[tuple[int, int]]:
        """Purges one tombstone in batches. Yields how many sessions and messages each has removed."""
        values = tombstone._asdict()
        first_seq = tombstone.first_seq
        while True:
            next_seq = first_seq + query.batch_size
            done = next_seq > tombstone.last_seq
            values |= {"first_seq": first_seq, "next_seq": next_seq}
            if query.dry_run:
                names = ["count_batch"]
            elif not done:
                names = ["remove_batch"]
            elif tombstone.whole:
                # If the session has been undeleted since, only the messages of the tombstone are removed.
                names = ["remove_session", "remove_last"]
            else:
                names = ["remove_last"]
            for name in names:
                sessions, messages, *_ = self._row(call, _SQL[name], values)
                yield sessions, messages
                if sessions:
                    return
            if done:
                return
            first_seq = next_seq

    def _user_steps(self, call: Call, query: PurgeQuery) -> Iterator[int]:
        """Removes, in batches, deleted users that have no session left. Yields how many each has removed."""
        values: Values = {
            "namespace": call.namespace,
            "cutoff": query.cutoff,
            "user_key": user_key(call.namespace, query.user_id),
            "batch_size": query.batch_size,
            "after_time": None,
            "after_key": None,
        }
        scope = "this_user" if query.user_id else "all"
        if query.dry_run:
            (count,) = self._row(call, _COUNT_USERS[scope], values)
            yield count
            return
        while last := self._find_row(call, _REMOVE_USERS[scope], values):
            values["after_time"], values["after_key"], picked, removed = last
            yield removed
            if picked < query.batch_size:
                return

    def _row(self, call: Call, statement: LiteralString, values: Values) -> Row:
        row = self._find_row(call, statement, values)
        assert row is not None
        return row

    def _find_row(self, call: Call, statement: LiteralString, values: Values) -> Row | None:
        with self._database.connection(call) as connection:
            return connection.execute(statement, values).fetchone()
