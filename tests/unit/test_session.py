"""SessionService: what a request means, and what its response holds."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from recall.v1 import session_pb2, user_pb2
from recalld.access import Principal, Scope
from recalld.domain import MetadataChange, SessionChange, SessionOrder, SessionQuery
from tests.reference import ReferenceStore
from tests.unit.rpc import NOW, RETENTION, RecordingStore, RpcFailed, Services, struct

ERA = datetime(1970, 1, 1, tzinfo=UTC)


def create(services: Services, session_id: str = "s", **arguments: Any) -> session_pb2.Session:
    response = services.call(session_pb2.CreateSessionRequest(session_id=session_id, **arguments))
    return cast("session_pb2.Session", response.session)


def test_a_session_comes_back_as_it_was_created(services: Services) -> None:
    services.call(user_pb2.CreateUserRequest(user_id="u"))
    created = create(services, user_id="u", metadata=struct(topic="tea"))
    assert (created.session_id, created.user_id, created.metadata) == ("s", "u", struct(topic="tea"))
    assert created.create_time.ToDatetime(UTC) == created.update_time.ToDatetime(UTC) == NOW
    assert created.etag
    assert services.call(session_pb2.GetSessionRequest(session_id="s")).session == created


def test_an_empty_session_id_gets_one_made_by_the_server(services: Services) -> None:
    first, second = create(services, ""), create(services, "")
    assert UUID(first.session_id) != UUID(second.session_id)


def test_a_live_session_has_no_delete_time_and_no_purge_time(services: Services) -> None:
    session = create(services)
    assert not session.HasField("delete_time")
    assert not session.HasField("purge_time")


def test_a_deleted_session_tells_when_it_may_be_purged(services: Services) -> None:
    create(services)
    deleted = services.call(session_pb2.DeleteSessionRequest(session_id="s")).session
    assert deleted.delete_time.ToDatetime(UTC) == NOW
    assert deleted.purge_time.ToDatetime(UTC) == NOW + RETENTION
    revealed = services.call(session_pb2.GetSessionRequest(session_id="s", show_deleted=True)).session
    assert revealed == deleted


def test_the_epoch_is_a_time_like_any_other() -> None:
    session = create(Services(ReferenceStore(lambda: ERA)))
    assert session.HasField("create_time")
    assert session.create_time == Timestamp()


def test_deleting_an_unknown_session_is_not_found_unless_that_is_allowed(services: Services) -> None:
    with pytest.raises(RpcFailed) as raised:
        services.call(session_pb2.DeleteSessionRequest(session_id="s"))
    assert raised.value.reason == "SESSION_NOT_FOUND"
    response = services.call(session_pb2.DeleteSessionRequest(session_id="s", allow_missing=True))
    assert not response.HasField("session")


def test_allowing_a_missing_session_allows_no_other_error(services: Services) -> None:
    create(services)
    with pytest.raises(RpcFailed) as raised:
        services.call(session_pb2.DeleteSessionRequest(session_id="s", allow_missing=True, etag="old"))
    assert raised.value.reason == "ETAG_MISMATCH"


def test_undelete_brings_the_session_back(services: Services) -> None:
    create(services, metadata=struct(a=1))
    services.call(session_pb2.DeleteSessionRequest(session_id="s"))
    undeleted = services.call(session_pb2.UndeleteSessionRequest(session_id="s")).session
    assert undeleted.metadata == struct(a=1)
    assert not undeleted.HasField("delete_time")


# --- updates


MERGED, REPLACED, EMPTIED = MetadataChange({"a": 1}), MetadataChange({"a": 1}, replace=True), MetadataChange({}, True)


@pytest.mark.parametrize(
    ("arguments", "paths", "change"),
    [
        ({}, None, SessionChange()),
        ({}, [], SessionChange()),
        ({"metadata": struct()}, None, SessionChange()),
        ({"metadata": struct(a=1)}, None, SessionChange(metadata=MERGED)),
        ({"metadata": struct(a=1)}, [], SessionChange(metadata=MERGED)),
        ({"user_id": "u"}, None, SessionChange(user_id="u")),
        ({"metadata": struct(a=1)}, ["metadata"], SessionChange(metadata=REPLACED)),
        ({}, ["metadata"], SessionChange(metadata=EMPTIED)),
        ({"metadata": struct(a=1)}, ["user_id"], SessionChange(user_id="")),
        ({"user_id": "u"}, ["metadata"], SessionChange(metadata=EMPTIED)),
        ({"user_id": "u"}, ["*"], SessionChange(metadata=EMPTIED, user_id="u")),
        ({}, ["user_id", "metadata"], SessionChange(metadata=EMPTIED, user_id="")),
    ],
)
def test_an_update_changes_what_its_mask_names_or_what_is_not_empty(
    services: Services, store: RecordingStore, arguments: dict[str, Any], paths: list[str] | None, change: SessionChange
) -> None:
    services.call(user_pb2.CreateUserRequest(user_id="u"))
    create(services)
    mask = None if paths is None else FieldMask(paths=paths)
    services.call(session_pb2.UpdateSessionRequest(session_id="s", update_mask=mask, **arguments))
    assert store.calls[-1] == ("update_session", ("s", change), {})


def test_the_etag_guards_an_update(services: Services) -> None:
    etag = create(services).etag
    update = session_pb2.UpdateSessionRequest(session_id="s", metadata=struct(a=1), etag=etag)
    assert services.call(update).session.metadata == struct(a=1)
    with pytest.raises(RpcFailed) as raised:
        services.call(update)
    assert (raised.value.code, raised.value.reason) == ("ABORTED", "ETAG_MISMATCH")


# --- listings


@pytest.mark.parametrize(("asked", "limit"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_page_and_chunk_sizes_have_a_default_and_a_maximum(
    services: Services, store: RecordingStore, asked: int, limit: int
) -> None:
    services.call(session_pb2.ListSessionsRequest(page_size=asked))
    services.stream(session_pb2.StreamSessionsRequest(chunk_size=asked))
    assert [arguments[2] for _, arguments, _ in store.calls] == [limit, limit]


def test_a_filter_reaches_the_store_whole(services: Services, store: RecordingStore) -> None:
    wanted = session_pb2.SessionFilter(
        user_id="u",
        metadata=struct(a=1),
        create_time_from=Timestamp(seconds=1, nanos=1999),
        create_time_to=Timestamp(seconds=2),
        update_time_from=Timestamp(seconds=4),
        update_time_to=Timestamp(seconds=3),
    )
    services.call(
        session_pb2.ListSessionsRequest(
            filter=wanted, order_by=session_pb2.SESSION_ORDER_UPDATE_TIME_DESC, show_deleted=True
        )
    )
    services.stream(
        session_pb2.StreamSessionsRequest(
            filter=wanted, order_by=session_pb2.SESSION_ORDER_UPDATE_TIME_DESC, show_deleted=True
        )
    )
    query = SessionQuery(
        order=SessionOrder.UPDATE_TIME_DESC,
        show_deleted=True,
        user_id="u",
        metadata={"a": 1},
        create_time_from=datetime(1970, 1, 1, 0, 0, 1, 2, tzinfo=UTC),
        create_time_to=datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC),
        update_time_from=datetime(1970, 1, 1, 0, 0, 4, tzinfo=UTC),
        update_time_to=datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC),
    )
    assert [arguments[0] for _, arguments, _ in store.calls] == [query, query]


def test_no_filter_is_no_condition(services: Services, store: RecordingStore) -> None:
    services.call(session_pb2.ListSessionsRequest(filter=session_pb2.SessionFilter(metadata=struct())))
    assert store.calls == [("list_sessions", (SessionQuery(), None, 100), {})]


@pytest.mark.parametrize(
    ("number", "order"),
    [
        (session_pb2.SESSION_ORDER_UNSPECIFIED, SessionOrder.CREATE_TIME_ASC),
        *((session_pb2.SessionOrder.Value(f"SESSION_ORDER_{order.name}"), order) for order in SessionOrder),
    ],
)
def test_each_order_means_its_own(
    services: Services, store: RecordingStore, number: session_pb2.SessionOrder.ValueType, order: SessionOrder
) -> None:
    services.call(session_pb2.ListSessionsRequest(order_by=number))
    assert store.calls[0][1][0].order is order


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pages_and_chunks_hold_every_session_once(services: Services, size: int) -> None:
    ids = {create(services, f"s{number}").session_id for number in range(7)}
    paged, token = list[str](), ""
    while True:
        page = services.call(session_pb2.ListSessionsRequest(page_size=size, page_token=token))
        assert len(page.sessions) <= size
        paged += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    chunks = services.stream(session_pb2.StreamSessionsRequest(chunk_size=size))
    assert all(len(chunk.sessions) <= size for chunk in chunks)
    streamed = [session.session_id for chunk in chunks for session in chunk.sessions]
    assert paged == streamed
    assert sorted(paged) == sorted(ids)


def test_a_stream_goes_on_behind_any_of_its_chunks(services: Services) -> None:
    for number in range(5):
        create(services, f"s{number}")
    request = session_pb2.StreamSessionsRequest(chunk_size=2)
    chunks = services.stream(request)
    assert [len(chunk.sessions) for chunk in chunks] == [2, 2, 1]
    for place, chunk in enumerate(chunks):
        request.resume_token = chunk.resume_token
        assert services.stream(request) == chunks[place + 1 :]


def test_a_list_without_sessions_is_a_stream_without_chunks(services: Services) -> None:
    assert services.stream(session_pb2.StreamSessionsRequest()) == []


def test_a_token_of_another_namespace_is_refused(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    create(services, "a")
    create(services, "b")
    token = services.call(session_pb2.ListSessionsRequest(page_size=1)).next_page_token
    other = Principal("other", frozenset(Scope), "")
    monkeypatch.setattr("recalld.services.call.principal", ContextVar("principal", default=other))
    with pytest.raises(RpcFailed) as raised:
        services.call(session_pb2.ListSessionsRequest(page_token=token))
    assert (raised.value.code, raised.value.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")
    assert raised.value.field == "page_token"


def test_a_damaged_resume_token_is_refused(services: Services) -> None:
    with pytest.raises(RpcFailed) as raised:
        services.stream(session_pb2.StreamSessionsRequest(resume_token="nonsense"))
    assert (raised.value.reason, raised.value.field) == ("INVALID_PAGE_TOKEN", "resume_token")
