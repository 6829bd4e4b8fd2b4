"""Random programs of calls, each sent to recalld over Postgres and over the reference: all answers must be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from psycopg import sql

from recalld.domain import Call, PurgeProgress, PurgeQuery, Session, Store
from recalld.storage import PostgresStore
from tests.model.driver import Sides
from tests.model.program import Recalld
from tests.model.sides import METHODS, Clock, side_of
from tests.postgres import open_database
from tests.reference import ReferenceStore


@pytest.fixture
def sides(database_url: str) -> Iterator[Sides]:
    clock = Clock()
    with open_database(database_url) as database, psycopg.connect(database_url, autocommit=True) as connection:

        def erase() -> None:
            for table in ("session", "message", "app_user", "tombstone"):
                connection.execute(sql.SQL("delete from recalld.{}").format(sql.Identifier(table)))

        with sides_of(PostgresStore(database, clock=clock), clock, erase) as both:
            yield both


@contextmanager
def sides_of(store: Store, clock: Clock, erase_store: Callable[[], None]) -> Iterator[Sides]:
    """The store to be tested, and a reference beside it."""
    reference_store = ReferenceStore(clock)
    with side_of(store, clock) as real, side_of(reference_store, clock) as reference:

        def erase() -> None:
            erase_store()
            reference_store.erase()
            real.forget()
            reference.forget()

        yield Sides(real, reference, reference_store, clock, erase)


_REACHABLE_ERRORS = {
    ("INVALID_ARGUMENT", "INVALID_FIELD"),
    ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN"),
    ("NOT_FOUND", "SESSION_NOT_FOUND"),
    ("NOT_FOUND", "MESSAGE_NOT_FOUND"),
    ("NOT_FOUND", "USER_NOT_FOUND"),
    ("ALREADY_EXISTS", "SESSION_ALREADY_EXISTS"),
    ("ALREADY_EXISTS", "USER_ALREADY_EXISTS"),
    ("ALREADY_EXISTS", "MESSAGE_ID_CONFLICT"),
    ("FAILED_PRECONDITION", "USER_NOT_FOUND"),
    ("FAILED_PRECONDITION", "NOT_DELETED"),
    ("ABORTED", "ETAG_MISMATCH"),
    ("ABORTED", "SEQ_MISMATCH"),
    ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED"),
}
_EVENTS = {
    "session created",
    "session undeleted",
    "call repeated",
    "search found",
    "sessions purged",
    "messages purged",
    "users purged",
    "listing ended",
    "listing ended among changes",
}


# Hypothesis goes over from new programs to variations of those it had after ten of them, so many short runs reach more
# than a long one.
_RUNS = 12
_SETTINGS = settings(
    max_examples=10, stateful_step_count=50, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


@pytest.mark.timeout(600)
def test_every_answer_is_the_references_answer(sides: Sides) -> None:
    """And the programs together reach every method, every error that a quiet server can answer, and every event."""
    program: Any = partial(Recalld, sides)
    for _ in range(_RUNS):
        run_state_machine_as_test(program, settings=_SETTINGS)
    assert set(sides.calls) == set(METHODS)
    assert set(sides.errors) == _REACHABLE_ERRORS
    assert {event for event, count in sides.events.items() if count} == _EVENTS


# --- negative controls: what is wrong is found


class ClearsOnlyTheCount(ReferenceStore):
    def clear_memory(self, call: Call, session_id: str) -> Session:
        kept = self._namespaces[call.namespace].live_session(session_id)
        return kept.set(self._clock(), message_count=0)


class KeepsTheEtagWhenUndeleting(ReferenceStore):
    def undelete_session(self, call: Call, session_id: str) -> Session:
        super().undelete_session(call, session_id)
        kept = self._namespaces[call.namespace].sessions[session_id]
        return kept.set(kept.session.update_time, etag="always the same")


class PurgesTooEarly(ReferenceStore):
    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        return super().purge(call, replace(query, cutoff=query.cutoff + timedelta(hours=1)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("wrong", [ClearsOnlyTheCount, KeepsTheEtagWhenUndeleting, PurgesTooEarly])
def test_a_store_that_breaks_a_rule_is_found_out(wrong: type[ReferenceStore]) -> None:
    clock = Clock()
    store = wrong(clock)
    with sides_of(store, clock, store.erase) as both:
        program: Any = partial(Recalld, both)
        without_shrinking = settings(_SETTINGS, max_examples=200, phases=[Phase.generate], report_multiple_bugs=False)
        with pytest.raises(AssertionError):
            run_state_machine_as_test(program, settings=without_shrinking)
