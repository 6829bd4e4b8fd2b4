"""AdminService: what a purge is asked to remove, and how it reports."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from recall.v1 import admin_pb2, session_pb2
from recalld.domain import Call, PurgeProgress, PurgeQuery, Store
from tests.reference import ReferenceStore
from tests.unit.rpc import NOW, RETENTION, RecordingStore, Services


class StepwiseStore(ReferenceStore):
    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        yield PurgeProgress(0, 5, 0)
        yield PurgeProgress(1, 7, 2)


class IdleStore(ReferenceStore):
    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]:
        return iter(())


def reports(store: Store) -> list[tuple[int, int, int, bool]]:
    responses = Services(store).stream(admin_pb2.PurgeRequest())
    return [(each.sessions, each.messages, each.users, each.done) for each in responses]


def test_a_purge_reports_its_progress_and_then_that_it_is_done() -> None:
    assert reports(StepwiseStore()) == [(0, 5, 0, False), (1, 7, 2, False), (1, 7, 2, True)]


def test_a_purge_with_nothing_to_remove_reports_that_it_is_done() -> None:
    assert reports(IdleStore()) == [(0, 0, 0, True)]


@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ({}, PurgeQuery(NOW - RETENTION)),
        ({"older_than": Duration()}, PurgeQuery(NOW + timedelta(minutes=1))),
        ({"older_than": Duration(seconds=60, nanos=1500)}, PurgeQuery(NOW - timedelta(seconds=60, microseconds=1))),
        (
            {"older_than": Duration(seconds=315_576_000_000)},
            PurgeQuery(datetime(1, 1, 1, tzinfo=UTC)),
        ),
        ({"session_id": "s", "dry_run": True}, PurgeQuery(NOW - RETENTION, session_id="s", dry_run=True)),
        ({"user_id": "u"}, PurgeQuery(NOW - RETENTION, user_id="u")),
        ({"batch_size": 1}, PurgeQuery(NOW - RETENTION, batch_size=1)),
        ({"batch_size": 10_000}, PurgeQuery(NOW - RETENTION, batch_size=10_000)),
        ({"batch_size": 10_001}, PurgeQuery(NOW - RETENTION, batch_size=10_000)),
    ],
)
def test_a_purge_reaches_the_store_whole(arguments: dict[str, Any], query: PurgeQuery) -> None:
    store = RecordingStore(ReferenceStore())
    Services(store).stream(admin_pb2.PurgeRequest(**arguments))
    assert store.calls == [("purge", (query,), {})]


def test_what_was_purged_is_gone() -> None:
    services = Services(ReferenceStore(lambda: NOW - RETENTION))
    services.call(session_pb2.CreateSessionRequest(session_id="s"))
    services.call(session_pb2.DeleteSessionRequest(session_id="s"))
    *_, last = services.stream(admin_pb2.PurgeRequest())
    assert (last.sessions, last.done) == (1, True)
    assert not services.call(session_pb2.ListSessionsRequest(show_deleted=True)).sessions
