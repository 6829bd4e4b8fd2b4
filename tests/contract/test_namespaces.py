"""Two applications that use the same ids for everything must not notice each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from recalld.domain import (
    Call,
    LocalCall,
    MessageChange,
    NewMemory,
    NewMessage,
    Profile,
    PurgeProgress,
    PurgeQuery,
    SearchQuery,
    SessionChange,
    SessionOrder,
    SessionQuery,
    Store,
    UserChange,
)
from recalld.errors import NotFound, UserMissing
from tests.contract.asking import id_of, purge, read, search, sessions, users, write
from tests.contract.clock import Clock

_MESSAGE = NewMessage(str(UUID(int=1)), "user", "apple", {}, 0)


def _fill(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {"a": 1})
    store.add_memory(call, NewMemory("s", [_MESSAGE]))


def test_the_same_ids_can_be_used_in_each(store: Store, call: Call, other_call: Call) -> None:
    for each in (call, other_call):
        _fill(store, each)
        assert store.get_session(each, "s").last_seq == 1
        assert read(store, each, "s") == ["apple"]


_ASKING: dict[str, Callable[[Store, Call], Any]] = {
    "get_session": lambda store, call: store.get_session(call, "s", show_deleted=True),
    "update_session": lambda store, call: store.update_session(call, "s", SessionChange()),
    "delete_session": lambda store, call: store.delete_session(call, "s"),
    "undelete_session": lambda store, call: store.undelete_session(call, "s"),
    "list_messages": lambda store, call: store.list_messages(call, "s", None, 10),
    "get_message": lambda store, call: store.get_message(call, "s", id_of(_MESSAGE)),
    "update_message": lambda store, call: store.update_message(call, "s", id_of(_MESSAGE), MessageChange("x")),
    "delete_message": lambda store, call: store.delete_message(call, "s", id_of(_MESSAGE)),
    "clear_memory": lambda store, call: store.clear_memory(call, "s"),
    "get_user": lambda store, call: store.get_user(call, "ada", show_deleted=True),
    "update_user": lambda store, call: store.update_user(call, "ada", UserChange()),
    "delete_user": lambda store, call: store.delete_user(call, "ada"),
    "undelete_user": lambda store, call: store.undelete_user(call, "ada"),
}


@pytest.mark.parametrize("method", _ASKING)
@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_in_one_is_unknown_in_the_other(
    store: Store, call: Call, other_call: Call, method: str, deleted: bool
) -> None:
    _fill(store, call)
    if deleted:
        store.delete_user(call, "ada")
    before = store.get_session(call, "s", show_deleted=True)
    with pytest.raises(NotFound):
        _ASKING[method](store, other_call)
    assert store.get_session(call, "s", show_deleted=True) == before


@pytest.mark.parametrize("order", SessionOrder)
def test_listings_and_searches_show_only_ones_own(
    store: Store, call: Call, other_call: Call, order: SessionOrder
) -> None:
    _fill(store, call)
    assert sessions(store, other_call, SessionQuery(order=order, show_deleted=True)) == []
    assert sessions(store, other_call, SessionQuery(order=order, user_id="ada")) == []
    assert users(store, other_call, show_deleted=True) == []
    for query in (
        SearchQuery("apple", 10),
        SearchQuery("apple", 10, session_id="s"),
        SearchQuery("apple", 10, user_id="ada"),
    ):
        assert search(store, other_call, query) == []
    assert read(store, other_call, "s") == []


def test_a_place_in_one_listing_shows_nothing_of_the_other(store: Store, call: Call, other_call: Call) -> None:
    for number in range(3):
        store.create_session(call, f"s{number}", "", {})
    place = store.list_sessions(call, SessionQuery(), None, 1).next
    store.create_session(other_call, "t", "", {})
    found = store.list_sessions(other_call, SessionQuery(), place, 10)
    assert [session.session_id for session, _ in found.sessions] == ["t"]


def test_a_session_cannot_belong_to_the_other_ones_user(store: Store, call: Call, other_call: Call) -> None:
    store.create_user(call, "ada", Profile())
    with pytest.raises(UserMissing):
        store.create_session(other_call, "s", "ada", {})
    with pytest.raises(UserMissing):
        store.add_memory(other_call, NewMemory("s", [_MESSAGE], "ada"))
    store.create_session(other_call, "s", "", {})
    with pytest.raises(UserMissing):
        store.update_session(other_call, "s", SessionChange(user_id="ada"))


def test_deleting_and_purging_touch_only_ones_own(store: Store, call: Call, other_call: Call, clock: Clock) -> None:
    for each in (call, other_call):
        _fill(store, each)
        store.delete_user(each, "ada")
    for query in (
        PurgeQuery(clock(), dry_run=True),
        PurgeQuery(clock(), session_id="s"),
        PurgeQuery(clock()),
    ):
        purge(store, call, query)
    assert store.get_session(other_call, "s", show_deleted=True).last_seq == 1
    assert purge(store, other_call, PurgeQuery(clock())) == PurgeProgress(1, 1, 1)


def test_deleting_a_user_leaves_its_namesakes_sessions_alone(store: Store, call: Call, other_call: Call) -> None:
    for each in (call, other_call):
        _fill(store, each)
    store.delete_user(call, "ada")
    assert read(store, other_call, "s") == ["apple"]
    assert store.get_user(other_call, "ada").delete_time is None


def test_no_choice_of_names_makes_two_namespaces_meet(store: Store, call: Call) -> None:
    """("ab", "c") and ("a", "bc") are different sessions, whatever separates the parts of a key."""
    base = call.namespace
    pairs = [(base + "ab", "c"), (base + "a", "bc"), (base, "abc"), (base + "abc/", "c"), (base + "abc", "/c")]
    for namespace, session_id in pairs:
        assert write(store, LocalCall(namespace), session_id, f"{namespace} {session_id}").session_created
    for namespace, session_id in pairs:
        assert read(store, LocalCall(namespace), session_id) == [f"{namespace} {session_id}"]
