from __future__ import annotations

from typing import Any

import pytest

from recalld.domain import (
    Call,
    Metadata,
    MetadataChange,
    Profile,
    PurgeQuery,
    SessionChange,
    SessionOrder,
    SessionQuery,
    Store,
)
from tests.contract.asking import purge, session_ids, session_pages, sessions, users, write
from tests.contract.clock import Clock

_ASCENDING = [SessionOrder.CREATE_TIME_ASC, SessionOrder.UPDATE_TIME_ASC]


def _create(store: Store, call: Call, count: int) -> list[str]:
    created = [f"s{number}" for number in range(count)]
    for session_id in created:
        store.create_session(call, session_id, "", {})
    return created


# --- sessions


def test_without_sessions_the_listing_is_one_empty_page(store: Store, call: Call) -> None:
    page = store.list_sessions(call, SessionQuery(), None, 10)
    assert not page.sessions
    assert page.next is None


@pytest.mark.parametrize("page", [1, 2, 3, 7, 8, 1000])
@pytest.mark.parametrize("order", SessionOrder)
def test_pages_together_hold_every_session_once_in_order(
    store: Store, call: Call, clock: Clock, order: SessionOrder, page: int
) -> None:
    created = []
    for number in range(7):
        created.append(f"s{number}")
        store.create_session(call, created[-1], "", {})
        clock.advance(minutes=1)
    pages = list(session_pages(store, call, SessionQuery(order=order), page=page))
    listed = [session.session_id for batch in pages for session in batch]
    assert listed == (created if order in _ASCENDING else created[::-1])
    assert all(len(batch) <= page for batch in pages)


@pytest.mark.parametrize("order", SessionOrder)
def test_a_listing_shows_sessions_as_they_are(store: Store, call: Call, order: SessionOrder) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {"a": [1]})
    write(store, call, "s", "one")
    write(store, call, "t", "two")
    listed = sessions(store, call, SessionQuery(order=order))
    assert sorted(listed, key=lambda each: each.session_id) == [
        store.get_session(call, "s"),
        store.get_session(call, "t"),
    ]


def test_sessions_of_one_instant_are_all_listed(store: Store, call: Call) -> None:
    """Update time orders to the minute, so these are all at the same place, and only their keys tell them apart."""
    created = _create(store, call, 20)
    for order in (SessionOrder.UPDATE_TIME_ASC, SessionOrder.UPDATE_TIME_DESC):
        assert sorted(session_ids(store, call, SessionQuery(order=order), page=3)) == sorted(created)


def test_a_change_moves_a_session_in_the_order_of_update_time_only(store: Store, call: Call, clock: Clock) -> None:
    _create(store, call, 2)
    clock.advance(minutes=2)
    write(store, call, "s0", "one")
    assert session_ids(store, call, SessionQuery(order=SessionOrder.UPDATE_TIME_DESC)) == ["s0", "s1"]
    assert session_ids(store, call, SessionQuery(order=SessionOrder.CREATE_TIME_DESC)) == ["s1", "s0"]
    clock.advance(minutes=2)
    store.update_session(call, "s1", SessionChange(metadata=MetadataChange({"a": 1})))
    assert session_ids(store, call, SessionQuery(order=SessionOrder.UPDATE_TIME_DESC)) == ["s1", "s0"]
    assert session_ids(store, call, SessionQuery(order=SessionOrder.UPDATE_TIME_ASC)) == ["s0", "s1"]


def test_a_page_can_be_asked_for_behind_any_session(store: Store, call: Call) -> None:
    created = _create(store, call, 5)
    page = store.list_sessions(call, SessionQuery(), None, 5)
    for number, (session, position) in enumerate(page.sessions):
        assert session.session_id == created[number]
        rest = store.list_sessions(call, SessionQuery(), position, 10)
        assert [each.session_id for each, _ in rest.sessions] == created[number + 1 :]


@pytest.mark.parametrize("order", SessionOrder)
def test_what_is_created_deleted_and_purged_meanwhile_hides_no_live_session(
    store: Store, call: Call, clock: Clock, order: SessionOrder
) -> None:
    created = _create(store, call, 12)
    doomed = created[::3]
    pages = session_pages(store, call, SessionQuery(order=order), page=2)
    listed: list[str] = []
    for number, batch in enumerate(pages):
        listed += [session.session_id for session in batch]
        if number < len(doomed):
            store.delete_session(call, doomed[number])
            store.create_session(call, f"new{number}", "", {})
        if number == len(doomed):
            purge(store, call, PurgeQuery(clock()))
    assert len(listed) == len(set(listed))
    assert set(created) - set(doomed) <= set(listed)


def test_a_listing_goes_on_behind_a_session_that_was_purged(store: Store, call: Call, clock: Clock) -> None:
    created = _create(store, call, 4)
    first = store.list_sessions(call, SessionQuery(), None, 2)
    store.delete_session(call, created[1])
    purge(store, call, PurgeQuery(clock()))
    rest = store.list_sessions(call, SessionQuery(), first.next, 10)
    assert [session.session_id for session, _ in rest.sessions] == created[2:]


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize("order", SessionOrder)
def test_deleted_sessions_are_listed_for_those_who_ask(
    store: Store, call: Call, clock: Clock, order: SessionOrder, page: int
) -> None:
    created = _create(store, call, 4)
    clock.advance(minutes=1)
    store.delete_session(call, "s1")
    clock.advance(minutes=1)
    store.delete_session(call, "s0")
    assert sorted(session_ids(store, call, SessionQuery(order=order), page=page)) == ["s2", "s3"]
    listed = sessions(store, call, SessionQuery(order=order, show_deleted=True), page=page)
    assert {each.session_id for each in listed if each.delete_time} == {"s0", "s1"}
    assert all(each == store.get_session(call, each.session_id, show_deleted=True) for each in listed)
    by_update = [*sorted(session_ids(store, call)), "s1", "s0"]
    if order is SessionOrder.CREATE_TIME_ASC:
        assert [each.session_id for each in listed] == created
    elif order is SessionOrder.CREATE_TIME_DESC:
        assert [each.session_id for each in listed] == created[::-1]
    elif order is SessionOrder.UPDATE_TIME_ASC:
        assert [each.session_id for each in listed][2:] == by_update[2:]
    else:
        assert [each.session_id for each in listed][:2] == by_update[:1:-1]


def test_a_session_created_again_is_listed_by_its_new_create_time(store: Store, call: Call) -> None:
    _create(store, call, 3)
    store.delete_session(call, "s0")
    store.create_session(call, "s0", "", {})
    assert session_ids(store, call) == ["s1", "s2", "s0"]


# --- filters


@pytest.mark.parametrize("page", [1, 2, 100])
@pytest.mark.parametrize("order", SessionOrder)
def test_only_the_sessions_of_a_user_are_listed(store: Store, call: Call, order: SessionOrder, page: int) -> None:
    for user_id in ("ada", "bob"):
        store.create_user(call, user_id, Profile())
    for number in range(9):
        store.create_session(call, f"s{number}", ("ada", "bob", "")[number % 3], {})
    store.delete_session(call, "s3")
    query = SessionQuery(order=order, user_id="ada")
    assert sorted(session_ids(store, call, query, page=page)) == ["s0", "s6"]
    query = SessionQuery(order=order, user_id="ada", show_deleted=True)
    assert sorted(session_ids(store, call, query, page=page)) == ["s0", "s3", "s6"]
    assert session_ids(store, call, SessionQuery(order=order, user_id="unknown"), page=page) == []


_DOCUMENT: dict[str, Any] = {
    "text": "x",
    "number": 1,
    "yes": True,
    "null": None,
    "object": {"a": 1, "b": {"c": "d", "e": 2}},
    "list": [1, "two", {"a": 1, "b": 2}, [3, 4], True],
    "empty": {},
}


@pytest.mark.parametrize(
    "pattern",
    [
        {},
        {"text": "x"},
        {"text": "x", "number": 1},
        {"number": 1.0},
        {"null": None},
        {"yes": True},
        {"object": {}},
        {"object": {"a": 1}},
        {"object": {"b": {"c": "d"}}},
        {"list": []},
        {"list": [1]},
        {"list": ["two", 1, 1]},
        {"list": [{"a": 1}]},
        {"list": [{"a": 1}, {"b": 2}]},
        {"list": [[4]]},
        {"list": [True]},
        {"empty": {}},
        _DOCUMENT,
    ],
)
def test_a_metadata_filter_finds_what_contains_it(store: Store, call: Call, pattern: dict[str, Any]) -> None:
    store.create_session(call, "s", "", _DOCUMENT)
    assert session_ids(store, call, SessionQuery(metadata=pattern)) == ["s"]


@pytest.mark.parametrize(
    "pattern",
    [
        {"text": "y"},
        {"text": "X"},
        {"other": "x"},
        {"text": "x", "number": 2},
        {"number": "1"},
        {"number": True},
        {"yes": 1},
        {"yes": False},
        {"null": {}},
        {"other": None},
        {"text": None},
        {"object": {"a": 2}},
        {"object": {"c": "d"}},
        {"object": []},
        {"list": 1},
        {"list": {}},
        {"list": [2]},
        {"list": [3]},
        {"list": [{"a": 1, "b": 1}]},
        {"list": [[1]]},
        {"list": [[3, 1]]},
        {"list": [False]},
        {"empty": []},
        {"empty": {"a": 1}},
    ],
)
def test_a_metadata_filter_leaves_out_what_does_not_contain_it(
    store: Store, call: Call, pattern: dict[str, Any]
) -> None:
    store.create_session(call, "s", "", _DOCUMENT)
    assert session_ids(store, call, SessionQuery(metadata=pattern)) == []


@pytest.mark.parametrize("page", [1, 3, 100])
@pytest.mark.parametrize("order", SessionOrder)
def test_a_sparse_filter_finds_every_match_over_all_pages(
    store: Store, call: Call, order: SessionOrder, page: int
) -> None:
    for number in range(30):
        store.create_session(call, f"s{number:02}", "", {"rare": number % 10 == 7})
    query = SessionQuery(order=order, metadata={"rare": True})
    assert sorted(session_ids(store, call, query, page=page)) == ["s07", "s17", "s27"]


@pytest.mark.parametrize("order", SessionOrder)
def test_time_ranges_hold_their_start_but_not_their_end(
    store: Store, call: Call, clock: Clock, order: SessionOrder
) -> None:
    times = []
    for number in range(4):
        times.append(store.create_session(call, f"s{number}", "", {}).create_time)
        clock.advance(seconds=25)

    def found(query: SessionQuery) -> list[str]:
        return sorted(session_ids(store, call, query, page=2))

    assert found(SessionQuery(order, create_time_from=times[1])) == ["s1", "s2", "s3"]
    assert found(SessionQuery(order, create_time_to=times[1])) == ["s0"]
    assert found(SessionQuery(order, create_time_from=times[1], create_time_to=times[3])) == ["s1", "s2"]
    assert found(SessionQuery(order, create_time_from=times[1], create_time_to=times[1])) == []
    assert found(SessionQuery(order, create_time_from=times[3], create_time_to=times[1])) == []
    assert found(SessionQuery(order, update_time_from=times[2])) == ["s2", "s3"]
    assert found(SessionQuery(order, update_time_to=times[2])) == ["s0", "s1"]
    assert found(SessionQuery(order, update_time_from=times[2], update_time_to=times[3])) == ["s2"]


@pytest.mark.parametrize("order", SessionOrder)
def test_the_two_time_ranges_look_at_different_times(
    store: Store, call: Call, clock: Clock, order: SessionOrder
) -> None:
    _create(store, call, 2)
    later = clock.advance(seconds=90)
    write(store, call, "s0", "one")
    assert session_ids(store, call, SessionQuery(order, update_time_from=later)) == ["s0"]
    assert session_ids(store, call, SessionQuery(order, update_time_to=later)) == ["s1"]
    assert session_ids(store, call, SessionQuery(order, create_time_from=later)) == []
    assert sorted(session_ids(store, call, SessionQuery(order, create_time_to=later))) == ["s0", "s1"]


def test_all_conditions_of_a_filter_must_hold(store: Store, call: Call, clock: Clock) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "early", "ada", {"a": 1})
    start = clock()
    store.create_session(call, "right", "ada", {"a": 1})
    store.create_session(call, "nobody's", "", {"a": 1})
    store.create_session(call, "other metadata", "ada", {"a": 2})
    end = clock()
    store.create_session(call, "late", "ada", {"a": 1})
    query = SessionQuery(user_id="ada", metadata={"a": 1}, create_time_from=start, create_time_to=end)
    assert session_ids(store, call, query) == ["right"]
    assert session_ids(store, call, query, page=1) == ["right"]


# --- users


def test_without_users_the_listing_is_empty(store: Store, call: Call) -> None:
    assert users(store, call) == []


@pytest.mark.parametrize("page", [1, 2, 5, 6, 1000])
def test_pages_together_hold_every_user_once_oldest_first(store: Store, call: Call, page: int) -> None:
    created = [store.create_user(call, f"u{number}", Profile()) for number in range(5)]
    assert users(store, call, page=page) == created


@pytest.mark.parametrize("page", [1, 2, 100])
def test_deleted_users_are_listed_for_those_who_ask(store: Store, call: Call, page: int) -> None:
    for number in range(4):
        store.create_user(call, f"u{number}", Profile())
    deleted = store.delete_user(call, "u1")
    assert [user.user_id for user in users(store, call, page=page)] == ["u0", "u2", "u3"]
    listed = users(store, call, show_deleted=True, page=page)
    assert [user.user_id for user in listed] == ["u0", "u1", "u2", "u3"]
    assert listed[1] == deleted


def test_users_created_and_deleted_meanwhile_hide_no_live_user(store: Store, call: Call) -> None:
    for number in range(6):
        store.create_user(call, f"u{number}", Profile())
    first = store.list_users(call, None, 2)
    store.delete_user(call, "u1")
    store.delete_user(call, "u3")
    store.create_user(call, "u6", Profile())
    rest = store.list_users(call, first.next, 100)
    assert [user.user_id for user, _ in [*first.users, *rest.users]] == ["u0", "u1", "u2", "u4", "u5", "u6"]


def _large(n: int) -> Metadata:
    """Metadata of 60,000 bytes as JSON, which Postgres writes out to 50 times as much in every other case."""
    return {"n": n, "large": [5e-324] * 9000 if n % 2 else "x" * 60_000}


def test_a_page_holds_no_more_than_fits_and_the_pages_together_everything(store: Store, call: Call) -> None:
    for n in range(20):
        store.create_session(call, f"s{n:02}", "", _large(n))
        store.create_user(call, f"u{n:02}", Profile(metadata=_large(n)))

    for order in SessionOrder:
        pages = list(session_pages(store, call, SessionQuery(order=order), page=15))
        assert sorted(session.session_id for page in pages for session in page) == [f"s{n:02}" for n in range(20)]
        assert all(session.metadata == _large(int(session.session_id[1:])) for page in pages for session in page)
    assert [user.user_id for user in users(store, call, page=15)] == [f"u{n:02}" for n in range(20)]


def test_a_filter_finds_what_lies_behind_pages_that_do_not_fit(store: Store, call: Call) -> None:
    for n in range(20):
        store.create_session(call, f"s{n:02}", "", _large(n))
    assert session_ids(store, call, SessionQuery(metadata={"n": 17}), page=5) == ["s17"]


@pytest.mark.parametrize("page", [5, 100])
def test_a_filter_finds_what_does_not_fit_before_what_does_not_match(store: Store, call: Call, page: int) -> None:
    for n in range(20):
        store.create_session(call, f"s{n:02}", "", {**_large(n), "wanted": True})
    store.create_session(call, "unwanted", "", {})
    expected = [f"s{n:02}" for n in range(20)]
    assert session_ids(store, call, SessionQuery(metadata={"wanted": True}), page=page) == expected
