"""UserService: what a request means, and what its response holds."""

from __future__ import annotations

from datetime import UTC
from typing import Any, cast
from uuid import UUID

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from recall.v1 import user_pb2
from recalld.domain import MetadataChange, UserChange
from tests.unit.rpc import NOW, RETENTION, RecordingStore, RpcFailed, Services, struct

EMPTIED = MetadataChange({}, replace=True)


def create(services: Services, user_id: str = "u", **arguments: Any) -> user_pb2.User:
    return cast("user_pb2.User", services.call(user_pb2.CreateUserRequest(user_id=user_id, **arguments)).user)


def test_a_user_comes_back_as_it_was_created(services: Services) -> None:
    created = create(services, email="a@b.c", first_name="Ada", last_name="L", metadata=struct(plan="pro"))
    assert (created.user_id, created.email, created.first_name, created.last_name) == ("u", "a@b.c", "Ada", "L")
    assert created.metadata == struct(plan="pro")
    assert created.create_time.ToDatetime(UTC) == NOW
    assert not created.HasField("purge_time")
    assert services.call(user_pb2.GetUserRequest(user_id="u")).user == created


def test_an_empty_user_id_gets_one_made_by_the_server(services: Services) -> None:
    assert UUID(create(services, "").user_id) != UUID(create(services, "").user_id)


def test_a_deleted_user_tells_when_it_may_be_purged_and_can_be_undeleted(services: Services) -> None:
    create(services)
    deleted = services.call(user_pb2.DeleteUserRequest(user_id="u")).user
    assert deleted.purge_time.ToDatetime(UTC) == NOW + RETENTION
    assert services.call(user_pb2.GetUserRequest(user_id="u", show_deleted=True)).user == deleted
    assert not services.call(user_pb2.UndeleteUserRequest(user_id="u")).user.HasField("delete_time")


def test_deleting_an_unknown_user_is_not_found_unless_that_is_allowed(services: Services) -> None:
    with pytest.raises(RpcFailed) as raised:
        services.call(user_pb2.DeleteUserRequest(user_id="u"))
    assert raised.value.reason == "USER_NOT_FOUND"
    assert not services.call(user_pb2.DeleteUserRequest(user_id="u", allow_missing=True)).HasField("user")


@pytest.mark.parametrize(
    ("arguments", "paths", "change"),
    [
        ({}, None, UserChange()),
        ({"email": "e", "last_name": "l"}, None, UserChange(email="e", last_name="l")),
        ({"metadata": struct(a=1)}, None, UserChange(metadata=MetadataChange({"a": 1}))),
        ({"email": "e"}, ["first_name"], UserChange(first_name="")),
        ({"metadata": struct(a=1)}, ["metadata"], UserChange(metadata=MetadataChange({"a": 1}, replace=True))),
        ({"email": "e"}, ["*"], UserChange(email="e", first_name="", last_name="", metadata=EMPTIED)),
    ],
)
def test_an_update_changes_what_its_mask_names_or_what_is_not_empty(
    services: Services, store: RecordingStore, arguments: dict[str, Any], paths: list[str] | None, change: UserChange
) -> None:
    create(services)
    mask = None if paths is None else FieldMask(paths=paths)
    services.call(user_pb2.UpdateUserRequest(user_id="u", update_mask=mask, **arguments))
    assert store.calls[-1] == ("update_user", ("u", change), {})


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_pages_and_chunks_hold_every_user_once(services: Services, size: int) -> None:
    ids = {create(services, f"u{number}").user_id for number in range(5)}
    paged, token = list[str](), ""
    while True:
        page = services.call(user_pb2.ListUsersRequest(page_size=size, page_token=token))
        paged += [user.user_id for user in page.users]
        token = page.next_page_token
        if not token:
            break
    chunks = services.stream(user_pb2.StreamUsersRequest(chunk_size=size))
    assert paged == [user.user_id for chunk in chunks for user in chunk.users]
    assert sorted(paged) == sorted(ids)
    resumed = services.stream(user_pb2.StreamUsersRequest(chunk_size=size, resume_token=chunks[0].resume_token))
    assert resumed == chunks[1:]


def test_deleted_users_are_listed_when_asked_for(services: Services) -> None:
    create(services)
    services.call(user_pb2.DeleteUserRequest(user_id="u"))
    assert not services.call(user_pb2.ListUsersRequest()).users
    assert len(services.call(user_pb2.ListUsersRequest(show_deleted=True)).users) == 1
    (chunk,) = services.stream(user_pb2.StreamUsersRequest(show_deleted=True))
    assert len(chunk.users) == 1
