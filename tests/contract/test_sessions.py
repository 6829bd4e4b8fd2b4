from __future__ import annotations

from typing import Any

import pytest

from recalld import limits
from recalld.domain import Call, MetadataChange, NewMemory, Profile, SessionChange, Store
from recalld.errors import (
    EtagMismatch,
    LimitExceeded,
    NotDeleted,
    SessionAlreadyExists,
    SessionNotFound,
    UserMissing,
)
from tests.contract.asking import read, said, write
from tests.contract.clock import Clock

# --- creating


def test_a_created_session_is_kept_as_given(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    created = store.create_session(call, "s", "ada", {"topic": "ships", "nested": {"list": [1, 2.5, None, True, "x"]}})
    assert (created.session_id, created.user_id) == ("s", "ada")
    assert created.metadata == {"topic": "ships", "nested": {"list": [1, 2.5, None, True, "x"]}}
    assert (created.message_count, created.last_seq, created.delete_time) == (0, 0, None)
    assert created.create_time == created.update_time
    assert created.etag
    assert store.get_session(call, "s") == created


def test_a_created_session_keeps_nulls_in_its_metadata(store: Store, call: Call) -> None:
    store.create_session(call, "s", "", {"a": None})
    assert store.get_session(call, "s").metadata == {"a": None}


def test_creating_a_live_session_is_refused_and_changes_nothing(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {"a": 1})
    with pytest.raises(SessionAlreadyExists) as refusal:
        store.create_session(call, "s", "", {"b": 2})
    assert refusal.value.resource_name == "s"
    assert store.get_session(call, "s") == created


def test_a_session_that_was_written_to_exists(store: Store, call: Call) -> None:
    write(store, call, "s", "hello")
    with pytest.raises(SessionAlreadyExists):
        store.create_session(call, "s", "", {})


def test_the_user_is_looked_at_before_the_session_is_created(store: Store, call: Call) -> None:
    store.create_session(call, "s", "", {})
    with pytest.raises(UserMissing):
        store.create_session(call, "s", "nobody-known", {})


def test_creating_over_a_deleted_session_starts_afresh_but_seq_goes_on(store: Store, call: Call, clock: Clock) -> None:
    store.create_user(call, "ada", Profile())
    old = store.create_session(call, "s", "ada", {"old": 1})
    write(store, call, "s", "one", "two")
    deleted = store.delete_session(call, "s")
    clock.advance(hours=1)
    fresh = store.create_session(call, "s", "", {"new": 2})
    assert (fresh.user_id, fresh.metadata, fresh.delete_time) == ("", {"new": 2}, None)
    assert (fresh.message_count, fresh.last_seq) == (0, 2)
    assert fresh.create_time > old.create_time
    assert fresh.update_time == fresh.create_time
    assert fresh.etag not in (old.etag, deleted.etag)
    assert read(store, call, "s") == []
    assert [added.seq for added in write(store, call, "s", "three").messages] == [3]
    assert read(store, call, "s") == ["three"]


@pytest.mark.parametrize("over_deleted", [False, True])
def test_a_session_cannot_be_created_for_an_unknown_user(store: Store, call: Call, over_deleted: bool) -> None:
    if over_deleted:
        store.create_session(call, "s", "", {})
        store.delete_session(call, "s")
    with pytest.raises(UserMissing) as refusal:
        store.create_session(call, "s", "nobody-known", {})
    assert refusal.value.resource_name == "nobody-known"
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")


def test_a_session_cannot_be_created_for_a_deleted_user(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.delete_user(call, "ada")
    with pytest.raises(UserMissing):
        store.create_session(call, "s", "ada", {})


@pytest.mark.parametrize(
    "session_id", ["a", "x" * limits.MAX_ID_CHARACTERS, "\U0001f44d" * limits.MAX_ID_CHARACTERS, "a/b c'\"%_\\", " a "]
)
def test_any_identifier_can_be_used(store: Store, call: Call, session_id: str) -> None:
    store.create_session(call, session_id, "", {})
    write(store, call, session_id, "hello")
    assert store.get_session(call, session_id).session_id == session_id
    assert read(store, call, session_id) == ["hello"]


def test_identifiers_are_compared_byte_for_byte(store: Store, call: Call) -> None:
    alike = ["caf\u00e9", "cafe\u0301", "CAFE\u0301", "cafe\u0301 "]
    for session_id in alike:
        store.create_session(call, session_id, "", {"is": session_id})
    assert [store.get_session(call, session_id).metadata["is"] for session_id in alike] == alike


# --- reading


def test_an_unknown_session_is_not_found(store: Store, call: Call) -> None:
    for show_deleted in (False, True):
        with pytest.raises(SessionNotFound) as refusal:
            store.get_session(call, "s", show_deleted=show_deleted)
        assert refusal.value.resource_name == "s"


# --- updating


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    # RFC 7396, appendix A, as far as both sides are objects.
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": 1}, {"a": {"b": None, "c": 2}}, {"a": {"c": 2}}),
        ({"a": 1}, {"a": [None, {"b": None}]}, {"a": [None, {"b": None}]}),
        ({"a": 1}, {}, {"a": 1}),
    ],
)
def test_metadata_merges_by_json_merge_patch(
    store: Store, call: Call, target: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]
) -> None:
    store.create_session(call, "s", "", target)
    updated = store.update_session(call, "s", SessionChange(metadata=MetadataChange(patch)))
    assert updated.metadata == result
    assert store.get_session(call, "s") == updated


def test_metadata_can_be_replaced_whole(store: Store, call: Call) -> None:
    store.create_session(call, "s", "", {"a": 1, "b": 2})
    change = SessionChange(metadata=MetadataChange({"c": None}, replace=True))
    assert store.update_session(call, "s", change).metadata == {"c": None}
    assert store.get_session(call, "s").metadata == {"c": None}


def test_an_update_leaves_alone_what_it_does_not_name(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {"a": 1})
    write(store, call, "s", "hello")
    before = store.get_session(call, "s")
    after = store.update_session(call, "s", SessionChange(metadata=MetadataChange({"b": 2})))
    assert after == before._replace(metadata={"a": 1, "b": 2}, update_time=after.update_time, etag=after.etag)
    assert after.update_time > before.update_time


def test_a_session_is_attached_to_a_user_and_detached(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "", {"a": 1})
    attached = store.update_session(call, "s", SessionChange(user_id="ada"))
    assert (attached.user_id, attached.metadata) == ("ada", {"a": 1})
    assert store.update_session(call, "s", SessionChange(user_id="")).user_id == ""
    assert store.get_session(call, "s").user_id == ""


def test_a_session_cannot_be_attached_to_a_user_who_is_not_live(store: Store, call: Call) -> None:
    store.create_user(call, "gone", Profile())
    store.delete_user(call, "gone")
    created = store.create_session(call, "s", "", {})
    for user_id in ("unknown", "gone"):
        with pytest.raises(UserMissing):
            store.update_session(call, "s", SessionChange(user_id=user_id, metadata=MetadataChange({"a": 1})))
    assert store.get_session(call, "s") == created


@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_not_live_cannot_be_updated(store: Store, call: Call, deleted: bool) -> None:
    if deleted:
        store.create_session(call, "s", "", {})
        store.delete_session(call, "s")
    with pytest.raises(SessionNotFound):
        store.update_session(call, "s", SessionChange(metadata=MetadataChange({"a": 1})))


def test_an_update_with_the_current_etag_succeeds_and_changes_it(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {})
    updated = store.update_session(call, "s", SessionChange(metadata=MetadataChange({"a": 1}), etag=created.etag))
    assert updated.etag != created.etag
    assert store.get_session(call, "s").etag == updated.etag


@pytest.mark.parametrize(
    "etag",
    [
        *("stale", "x", "\u00e9", "0" * 1000, "0.-1", "0.8000000000000000", "0.-8000000000000001", "-1.1"),
        *("0." + "f" * 5000, "-" + "f" * 12 + ".1"),
    ],
)
def test_an_update_with_another_etag_is_refused_and_changes_nothing(store: Store, call: Call, etag: str) -> None:
    stale = store.create_session(call, "s", "", {}).etag
    current = store.update_session(call, "s", SessionChange(metadata=MetadataChange({"a": 1})))
    with pytest.raises(EtagMismatch):
        store.update_session(
            call, "s", SessionChange(metadata=MetadataChange({"b": 2}), etag=stale if etag == "stale" else etag)
        )
    assert store.get_session(call, "s") == current


def test_an_update_looks_for_the_session_then_for_the_user_then_at_the_etag(store: Store, call: Call) -> None:
    change = SessionChange(user_id="nobody-known", etag="wrong")
    with pytest.raises(SessionNotFound):
        store.update_session(call, "s", change)
    store.create_session(call, "s", "", {})
    with pytest.raises(UserMissing):
        store.update_session(call, "s", change)


def test_only_changes_of_the_session_itself_change_its_etag(store: Store, call: Call) -> None:
    etag = store.create_session(call, "s", "", {}).etag
    added = write(store, call, "s", "one", "two")
    store.delete_message(call, "s", added.messages[0].message_id)
    store.clear_memory(call, "s")
    assert store.get_session(call, "s").etag == etag
    seen = [etag]
    seen.append(store.update_session(call, "s", SessionChange(metadata=MetadataChange({"a": 1}))).etag)
    seen.append(store.delete_session(call, "s").etag)
    seen.append(store.undelete_session(call, "s").etag)
    seen.append(store.delete_session(call, "s").etag)
    write(store, call, "s", "revives")
    seen.append(store.get_session(call, "s").etag)
    seen.append(store.delete_session(call, "s").etag)
    seen.append(store.create_session(call, "s", "", {}).etag)
    assert len(set(seen)) == len(seen)


# The longest value of {"a": ..., "b": ...} that fits: 64 KiB less the punctuation and the other value.
_FITS = limits.MAX_METADATA_BYTES - len('{"a":"","b":""}') - 10_000


def test_a_merge_may_fill_the_metadata_to_its_limit(store: Store, call: Call) -> None:
    store.create_session(call, "s", "", {"a": "x" * 10_000})
    change = SessionChange(metadata=MetadataChange({"b": "\u00e9" * (_FITS // 2) + "y" * (_FITS % 2)}))
    assert store.update_session(call, "s", change).metadata.keys() == {"a", "b"}


def test_a_merge_beyond_the_limit_of_metadata_is_refused_and_changes_nothing(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {"a": "x" * 10_000})
    with pytest.raises(LimitExceeded) as refusal:
        store.update_session(call, "s", SessionChange(metadata=MetadataChange({"b": "y" * (_FITS + 1)})))
    assert refusal.value.field == "metadata"
    assert store.get_session(call, "s") == created


# --- deleting and undeleting


def test_a_deleted_session_shows_only_to_those_who_ask_for_it(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {"a": 1})
    write(store, call, "s", "one", "two")
    deleted = store.delete_session(call, "s")
    assert deleted.delete_time is not None
    assert deleted.update_time == deleted.delete_time
    assert (deleted.message_count, deleted.last_seq, deleted.metadata) == (0, 2, {"a": 1})
    assert deleted.create_time == created.create_time
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")
    assert store.get_session(call, "s", show_deleted=True) == deleted


@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_not_live_cannot_be_deleted(store: Store, call: Call, deleted: bool) -> None:
    if deleted:
        store.create_session(call, "s", "", {})
        store.delete_session(call, "s")
    with pytest.raises(SessionNotFound):
        store.delete_session(call, "s")


def test_a_delete_with_another_etag_is_refused(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {})
    with pytest.raises(EtagMismatch):
        store.delete_session(call, "s", etag="other")
    assert store.get_session(call, "s") == created
    store.delete_session(call, "s", etag=created.etag)
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")


def test_undeleting_brings_back_the_session_without_its_messages(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    created = store.create_session(call, "s", "ada", {"a": 1})
    write(store, call, "s", "one", "two")
    deleted = store.delete_session(call, "s")
    revived = store.undelete_session(call, "s")
    assert revived == deleted._replace(
        delete_time=None, update_time=revived.update_time, etag=revived.etag, message_count=0
    )
    assert (revived.user_id, revived.metadata, revived.create_time) == ("ada", {"a": 1}, created.create_time)
    assert store.get_session(call, "s") == revived
    assert read(store, call, "s") == []
    assert [added.seq for added in write(store, call, "s", "three").messages] == [3]


def test_an_unknown_session_cannot_be_undeleted(store: Store, call: Call) -> None:
    with pytest.raises(SessionNotFound):
        store.undelete_session(call, "s")


def test_a_live_session_cannot_be_undeleted(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {})
    with pytest.raises(NotDeleted):
        store.undelete_session(call, "s")
    assert store.get_session(call, "s") == created


def test_a_session_of_a_deleted_user_cannot_be_undeleted_before_the_user_is(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    store.delete_user(call, "ada")
    with pytest.raises(UserMissing) as refusal:
        store.undelete_session(call, "s")
    assert refusal.value.resource_name == "ada"
    store.undelete_user(call, "ada")
    assert store.undelete_session(call, "s").user_id == "ada"


# --- the time of the last change


def test_every_change_of_a_session_or_its_messages_moves_its_update_time(store: Store, call: Call) -> None:
    times = [store.create_session(call, "s", "", {}).update_time]

    def now() -> None:
        times.append(store.get_session(call, "s", show_deleted=True).update_time)

    (one, _) = write(store, call, "s", "one", "two").messages
    now()
    store.delete_message(call, "s", one.message_id)
    now()
    store.clear_memory(call, "s")
    now()
    store.update_session(call, "s", SessionChange(metadata=MetadataChange({"a": 1})))
    now()
    store.delete_session(call, "s")
    now()
    store.undelete_session(call, "s")
    now()
    store.delete_session(call, "s")
    now()
    store.add_memory(call, NewMemory("s", [said("revives")]))
    now()
    assert times == sorted(set(times))
