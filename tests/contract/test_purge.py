"""Purging, with times chosen so that each test says exactly what is old enough."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recalld.domain import (
    Call,
    MessageChange,
    MetadataChange,
    NewMemory,
    Profile,
    PurgeProgress,
    PurgeQuery,
    SessionChange,
    SessionQuery,
    Store,
    UserChange,
)
from recalld.errors import EtagMismatch, MessageIdConflict, SessionNotFound, UserNotFound
from tests.contract.asking import purge, read, said, session_ids, users, write
from tests.contract.clock import Clock

_NOTHING = PurgeProgress(0, 0, 0)


def test_with_nothing_to_purge_there_is_progress_all_the_same(store: Store, call: Call, clock: Clock) -> None:
    assert list(store.purge(call, PurgeQuery(clock())))[-1] == _NOTHING


def test_what_is_live_is_never_purged(store: Store, call: Call, clock: Clock) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    write(store, call, "s", "one")
    store.create_session(call, "empty", "", {})
    clock.advance(days=1000)
    before = store.get_session(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == _NOTHING
    assert store.get_session(call, "s") == before
    assert read(store, call, "s") == ["one"]
    assert session_ids(store, call) == ["s", "empty"]


def test_a_deleted_session_is_purged_with_all_its_messages(store: Store, call: Call, clock: Clock) -> None:
    write(store, call, "s", "one", "two", "three")
    store.delete_session(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(1, 3, 0)
    for show_deleted in (False, True):
        with pytest.raises(SessionNotFound):
            store.get_session(call, "s", show_deleted=show_deleted)
    with pytest.raises(SessionNotFound):
        store.undelete_session(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == _NOTHING


def test_a_deleted_session_without_messages_is_purged(store: Store, call: Call, clock: Clock) -> None:
    store.create_session(call, "never written", "", {})
    write(store, call, "cleared", "one")
    store.clear_memory(call, "cleared")
    store.delete_session(call, "never written")
    store.delete_session(call, "cleared")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(2, 1, 0)
    assert session_ids(store, call, SessionQuery(show_deleted=True)) == []


def test_what_was_deleted_after_the_cutoff_stays(store: Store, call: Call, clock: Clock) -> None:
    write(store, call, "old", "one")
    write(store, call, "young", "two")
    at = store.delete_session(call, "old").delete_time
    assert at is not None
    store.delete_session(call, "young")
    assert purge(store, call, PurgeQuery(at)) == PurgeProgress(1, 1, 0)
    assert session_ids(store, call, SessionQuery(show_deleted=True)) == ["young"]
    assert store.undelete_session(call, "young").last_seq == 1


def test_a_purged_session_id_begins_again_at_seq_1_with_another_etag(store: Store, call: Call, clock: Clock) -> None:
    etag = store.create_session(call, "s", "", {"a": 1}).etag
    write(store, call, "s", "one", "two")
    store.delete_session(call, "s")
    purge(store, call, PurgeQuery(clock()))
    added = write(store, call, "s", "three")
    assert added.session_created
    assert [each.seq for each in added.messages] == [1]
    session = store.get_session(call, "s")
    assert (session.metadata, session.last_seq) == ({}, 1)
    assert session.etag != etag
    with pytest.raises(EtagMismatch):
        store.update_session(call, "s", SessionChange(metadata=MetadataChange({"b": 2}), etag=etag))
    with pytest.raises(EtagMismatch):
        store.delete_session(call, "s", etag=etag)
    assert store.get_session(call, "s") == session


def test_an_etag_of_a_user_that_was_purged_is_of_no_use_for_its_successor(
    store: Store, call: Call, clock: Clock
) -> None:
    etag = store.create_user(call, "ada", Profile()).etag
    store.delete_user(call, "ada")
    purge(store, call, PurgeQuery(clock()))
    clock.advance(days=1)
    user = store.create_user(call, "ada", Profile())
    assert user.etag != etag
    with pytest.raises(EtagMismatch):
        store.update_user(call, "ada", UserChange(email="x", etag=etag))
    with pytest.raises(EtagMismatch):
        store.delete_user(call, "ada", etag=etag)
    assert store.get_user(call, "ada") == user


def test_purged_message_ids_are_free_again(store: Store, call: Call, clock: Clock) -> None:
    memory = NewMemory("s", [said("one")])
    store.add_memory(call, memory)
    store.clear_memory(call, "s")
    store.add_memory(call, memory)
    assert read(store, call, "s") == []
    purge(store, call, PurgeQuery(clock()))
    assert [each.seq for each in store.add_memory(call, memory).messages] == [2]
    assert read(store, call, "s") == ["one"]


def test_a_call_that_is_purged_in_part_cannot_be_repeated(store: Store, call: Call, clock: Clock) -> None:
    memory = NewMemory("s", [said("one"), said("two")])
    added = store.add_memory(call, memory)
    store.delete_message(call, "s", added.messages[0].message_id)
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(0, 1, 0)
    with pytest.raises(MessageIdConflict):
        store.add_memory(call, memory)
    assert read(store, call, "s") == ["two"]


# --- the messages of sessions that stay


def test_deleted_messages_of_a_live_session_are_purged_and_the_others_stay(
    store: Store, call: Call, clock: Clock
) -> None:
    write(store, call, "s", "cleared", "cleared too")
    store.clear_memory(call, "s")
    (_, two, _) = write(store, call, "s", "one", "two", "three").messages
    store.delete_message(call, "s", two.message_id)
    before = store.get_session(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(0, 3, 0)
    assert store.get_session(call, "s") == before
    assert read(store, call, "s") == ["one", "three"]
    assert purge(store, call, PurgeQuery(clock())) == _NOTHING
    store.delete_session(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(1, 2, 0)


def test_a_session_cleared_more_often_than_the_retention_is_purged_all_the_same(
    store: Store, call: Call, clock: Clock
) -> None:
    write(store, call, "s", "day 0", "day 0 too")
    store.clear_memory(call, "s")
    write(store, call, "s", "day 1")
    noon = clock.advance(hours=12)
    clock.advance(hours=12)
    store.clear_memory(call, "s")
    write(store, call, "s", "day 2")
    assert purge(store, call, PurgeQuery(noon)) == PurgeProgress(0, 2, 0)
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(0, 1, 0)
    assert read(store, call, "s") == ["day 2"]


def test_a_session_deleted_again_and_again_is_purged_of_what_went_first(store: Store, call: Call, clock: Clock) -> None:
    write(store, call, "s", "one")
    store.delete_session(call, "s")
    cutoff = clock()
    clock.advance(days=1)
    write(store, call, "s", "two", "three")
    store.delete_session(call, "s")
    assert purge(store, call, PurgeQuery(cutoff)) == PurgeProgress(0, 1, 0)
    assert store.get_session(call, "s", show_deleted=True).last_seq == 3
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(1, 2, 0)


def test_a_message_deleted_singly_keeps_the_time_of_its_own_deletion(store: Store, call: Call, clock: Clock) -> None:
    (one, _) = write(store, call, "s", "one", "two").messages
    store.delete_message(call, "s", one.message_id)
    cutoff = clock()
    clock.advance(days=1)
    store.clear_memory(call, "s")
    assert purge(store, call, PurgeQuery(cutoff)) == PurgeProgress(0, 1, 0)
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(0, 1, 0)


def test_clearing_without_messages_does_not_postpone_the_purge(store: Store, call: Call, clock: Clock) -> None:
    write(store, call, "s", "one")
    store.clear_memory(call, "s")
    cutoff = clock()
    clock.advance(days=1)
    store.clear_memory(call, "s")
    store.delete_session(call, "s")
    assert purge(store, call, PurgeQuery(cutoff)) == PurgeProgress(0, 1, 0)


@pytest.mark.parametrize("how", ["undelete", "write", "create"])
def test_a_revived_session_stays_but_its_old_messages_go(store: Store, call: Call, clock: Clock, how: str) -> None:
    write(store, call, "s", "one", "two")
    store.delete_session(call, "s")
    cutoff = clock()
    clock.advance(days=1)
    if how == "undelete":
        store.undelete_session(call, "s")
    elif how == "create":
        store.create_session(call, "s", "", {})
    else:
        write(store, call, "s", "three")
    before = store.get_session(call, "s")
    assert purge(store, call, PurgeQuery(cutoff)) == PurgeProgress(0, 2, 0)
    assert store.get_session(call, "s") == before
    assert read(store, call, "s") == (["three"] if how == "write" else [])
    assert write(store, call, "s", "next").messages[0].seq == before.last_seq + 1


def test_a_revived_session_is_as_young_as_its_last_deletion(store: Store, call: Call, clock: Clock) -> None:
    store.create_session(call, "s", "", {})
    store.delete_session(call, "s")
    cutoff = clock()
    clock.advance(days=1)
    store.undelete_session(call, "s")
    store.delete_session(call, "s")
    assert purge(store, call, PurgeQuery(cutoff)) == _NOTHING
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(1, 0, 0)


# --- users


def test_a_deleted_user_is_purged_with_its_sessions(store: Store, call: Call, clock: Clock) -> None:
    store.create_user(call, "ada", Profile())
    for session_id in ("s", "t"):
        store.add_memory(call, NewMemory(session_id, [said("one"), said("two")], "ada"))
    store.delete_user(call, "ada")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(2, 4, 1)
    with pytest.raises(UserNotFound):
        store.get_user(call, "ada", show_deleted=True)
    with pytest.raises(UserNotFound):
        store.undelete_user(call, "ada")
    assert store.create_user(call, "ada", Profile()).delete_time is None


def test_a_deleted_user_stays_as_long_as_a_session_is_left_of_it(store: Store, call: Call, clock: Clock) -> None:
    """Else a session could come back to life whose user nobody can bring back."""
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    store.delete_user(call, "ada")
    cutoff = clock()
    clock.advance(days=1)
    store.undelete_user(call, "ada")
    store.undelete_session(call, "s")
    store.delete_session(call, "s")
    store.delete_user(call, "ada")
    assert purge(store, call, PurgeQuery(cutoff)) == _NOTHING
    assert purge(store, call, PurgeQuery(clock(), session_id="s")) == PurgeProgress(1, 0, 0)
    assert purge(store, call, PurgeQuery(cutoff)) == _NOTHING
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(0, 0, 1)


def test_a_user_deleted_before_the_cutoff_waits_for_a_session_deleted_after_it(
    store: Store, call: Call, clock: Clock
) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    deleted = store.delete_user(call, "ada")
    clock.advance(days=1)
    store.undelete_user(call, "ada")
    store.undelete_session(call, "s")
    assert deleted.delete_time is not None
    assert purge(store, call, PurgeQuery(deleted.delete_time)) == _NOTHING
    assert store.get_session(call, "s").user_id == "ada"
    assert [user.user_id for user in users(store, call)] == ["ada"]


def test_a_live_user_is_kept_when_its_sessions_are_purged(store: Store, call: Call, clock: Clock) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    store.delete_session(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(1, 0, 0)
    assert store.get_user(call, "ada").user_id == "ada"


# --- scopes


def _delete_much(store: Store, call: Call) -> None:
    """Ada with a deleted session, Bob with a cleared one, and one of nobody, all ready to be purged."""
    store.create_user(call, "ada", Profile())
    store.create_user(call, "bob", Profile())
    for session_id, user_id in [("of ada", "ada"), ("of bob", "bob"), ("of nobody", "")]:
        store.add_memory(call, NewMemory(session_id, [said("one"), said("two")], user_id))
    store.clear_memory(call, "of bob")
    store.delete_session(call, "of nobody")
    store.delete_user(call, "ada")


@pytest.mark.parametrize(
    ("session_id", "user_id", "removed"),
    [
        ("of ada", "", PurgeProgress(1, 2, 0)),
        ("of bob", "", PurgeProgress(0, 2, 0)),
        ("of nobody", "", PurgeProgress(1, 2, 0)),
        ("unknown", "", _NOTHING),
        ("", "ada", PurgeProgress(1, 2, 1)),
        ("", "bob", PurgeProgress(0, 2, 0)),
        ("", "unknown", _NOTHING),
        ("", "", PurgeProgress(2, 6, 1)),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_a_purge_keeps_to_its_scope_and_counts_alike_in_a_dry_run(
    store: Store, call: Call, clock: Clock, session_id: str, user_id: str, removed: PurgeProgress, batch_size: int
) -> None:
    _delete_much(store, call)
    query = PurgeQuery(clock(), session_id, user_id, batch_size=batch_size)
    assert purge(store, call, replace(query, dry_run=True)) == removed
    assert purge(store, call, replace(query, dry_run=True)) == removed, "the dry run removed something"
    assert purge(store, call, query) == removed
    assert purge(store, call, query) == _NOTHING
    total = PurgeProgress(2, 6, 1)
    rest = PurgeProgress(*(all_of - part for all_of, part in zip(total, removed, strict=True)))
    assert purge(store, call, PurgeQuery(clock())) == rest


def test_totals_only_grow(store: Store, call: Call, clock: Clock) -> None:
    _delete_much(store, call)
    progress = list(store.purge(call, PurgeQuery(clock(), batch_size=1)))
    assert progress == sorted(progress)
    assert progress[-1] == PurgeProgress(2, 6, 1)


def test_a_purge_that_is_broken_off_can_be_taken_up_again(store: Store, call: Call, clock: Clock) -> None:
    write(store, call, "s", *(f"message {number}" for number in range(10)))
    store.delete_session(call, "s")
    running = iter(store.purge(call, PurgeQuery(clock(), batch_size=3)))
    removed = next(running)
    if (close := getattr(running, "close", None)) is not None:
        close()
    rest = purge(store, call, PurgeQuery(clock()))
    assert (removed.messages + rest.messages, removed.sessions + rest.sessions) == (10, 1)
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s", show_deleted=True)


def test_what_is_edited_before_its_deletion_is_purged_like_the_rest(store: Store, call: Call, clock: Clock) -> None:
    (added,) = write(store, call, "s", "one").messages
    store.update_message(call, "s", added.message_id, MessageChange("edited"))
    store.clear_memory(call, "s")
    assert purge(store, call, PurgeQuery(clock())) == PurgeProgress(0, 1, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 1000])
def test_users_are_removed_in_batches_and_all_of_them(store: Store, call: Call, clock: Clock, batch_size: int) -> None:
    for number in range(7):
        store.create_user(call, f"u{number}", Profile())
        store.delete_user(call, f"u{number}")
    store.create_user(call, "live", Profile())

    totals = purge(store, call, PurgeQuery(clock(), batch_size=batch_size))

    assert totals.users == 7
    assert [user.user_id for user in users(store, call, show_deleted=True)] == ["live"]
