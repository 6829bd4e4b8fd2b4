from __future__ import annotations

import pytest

from recalld import limits
from recalld.domain import Call, MetadataChange, NewMemory, Profile, Store, UserChange
from recalld.errors import EtagMismatch, LimitExceeded, NotDeleted, SessionNotFound, UserAlreadyExists, UserNotFound
from tests.contract.asking import read, said, write
from tests.contract.clock import Clock


def test_a_created_user_is_kept_as_given(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile("ada@example.com", "Ada", "Lovelace", {"a": [1, None]}))
    assert (created.user_id, created.email) == ("ada", "ada@example.com")
    assert (created.first_name, created.last_name, created.metadata) == ("Ada", "Lovelace", {"a": [1, None]})
    assert created.delete_time is None
    assert created.create_time == created.update_time
    assert created.etag
    assert store.get_user(call, "ada") == created


def test_a_user_needs_nothing_but_an_id(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile())
    assert (created.email, created.first_name, created.last_name, created.metadata) == ("", "", "", {})


def test_creating_a_live_user_is_refused_and_changes_nothing(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile(email="a"))
    with pytest.raises(UserAlreadyExists) as refusal:
        store.create_user(call, "ada", Profile(email="b"))
    assert refusal.value.resource_name == "ada"
    assert store.get_user(call, "ada") == created


def test_creating_over_a_deleted_user_starts_afresh_without_its_sessions(
    store: Store, call: Call, clock: Clock
) -> None:
    old = store.create_user(call, "ada", Profile("a", "b", "c", {"d": 1}))
    store.create_session(call, "s", "ada", {})
    deleted = store.delete_user(call, "ada")
    clock.advance(hours=1)
    fresh = store.create_user(call, "ada", Profile(email="new"))
    assert (fresh.email, fresh.first_name, fresh.last_name, fresh.metadata) == ("new", "", "", {})
    assert fresh.delete_time is None
    assert fresh.create_time == fresh.update_time > old.create_time
    assert fresh.etag not in (old.etag, deleted.etag)
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")
    assert store.undelete_session(call, "s").user_id == "ada"


def test_an_unknown_user_is_not_found(store: Store, call: Call) -> None:
    for show_deleted in (False, True):
        with pytest.raises(UserNotFound) as refusal:
            store.get_user(call, "ada", show_deleted=show_deleted)
        assert refusal.value.resource_name == "ada"


# --- updating


def test_an_update_of_a_user_leaves_alone_what_it_does_not_name(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile("a", "b", "c", {"d": 1}))
    for change, fields in [
        (UserChange(email="x"), {"email": "x"}),
        (UserChange(first_name="x"), {"first_name": "x"}),
        (UserChange(last_name=""), {"last_name": ""}),
        (UserChange(metadata=MetadataChange({"d": None, "e": {"f": 2}})), {"metadata": {"e": {"f": 2}}}),
        (UserChange(metadata=MetadataChange({"g": None}, replace=True)), {"metadata": {"g": None}}),
        (UserChange(), {}),
    ]:
        before = store.get_user(call, "ada")
        after = store.update_user(call, "ada", change)
        assert after == before._replace(update_time=after.update_time, etag=after.etag, **fields)  # type: ignore[arg-type]
        assert after.update_time > before.update_time
        assert after.etag != before.etag
        assert store.get_user(call, "ada") == after


@pytest.mark.parametrize("deleted", [False, True])
def test_a_user_who_is_not_live_can_be_neither_updated_nor_deleted(store: Store, call: Call, deleted: bool) -> None:
    if deleted:
        store.create_user(call, "ada", Profile())
        store.delete_user(call, "ada")
    with pytest.raises(UserNotFound):
        store.update_user(call, "ada", UserChange(email="x"))
    with pytest.raises(UserNotFound):
        store.delete_user(call, "ada")


def test_an_update_of_a_user_needs_the_current_etag_if_it_has_one(store: Store, call: Call) -> None:
    stale = store.create_user(call, "ada", Profile()).etag
    current = store.update_user(call, "ada", UserChange(email="x", etag=stale))
    for etag in (stale, "\u00e9"):
        with pytest.raises(EtagMismatch):
            store.update_user(call, "ada", UserChange(email="y", etag=etag))
    assert store.get_user(call, "ada") == current


def test_a_users_metadata_cannot_grow_beyond_its_limit(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile(metadata={"a": "x" * 10_000}))
    patch = {"b": "y" * (limits.MAX_METADATA_BYTES - 10_000)}
    with pytest.raises(LimitExceeded):
        store.update_user(call, "ada", UserChange(email="x", metadata=MetadataChange(patch)))
    assert store.get_user(call, "ada") == created


# --- deleting and undeleting


def test_a_deleted_user_shows_only_to_those_who_ask_for_it(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile(email="a"))
    deleted = store.delete_user(call, "ada")
    assert deleted.delete_time is not None
    assert deleted == created._replace(
        delete_time=deleted.delete_time, update_time=deleted.delete_time, etag=deleted.etag
    )
    assert deleted.etag != created.etag
    with pytest.raises(UserNotFound):
        store.get_user(call, "ada")
    assert store.get_user(call, "ada", show_deleted=True) == deleted


def test_deleting_a_user_deletes_its_live_sessions_and_their_messages_with_it(
    store: Store, call: Call, clock: Clock
) -> None:
    store.create_user(call, "ada", Profile())
    store.create_user(call, "bob", Profile())
    for session_id, user_id in [("s", "ada"), ("t", "ada"), ("earlier", "ada"), ("u", "bob"), ("v", "")]:
        store.add_memory(call, NewMemory(session_id, [said("hello")], user_id))
    earlier = store.delete_session(call, "earlier")
    etags = [store.get_session(call, session_id).etag for session_id in ("s", "t")]
    clock.advance(hours=1)
    deleted = store.delete_user(call, "ada")
    for session_id, etag in zip(("s", "t"), etags, strict=True):
        session = store.get_session(call, session_id, show_deleted=True)
        assert session.delete_time == session.update_time == deleted.delete_time
        assert (session.message_count, session.last_seq, session.user_id) == (0, 1, "ada")
        assert session.etag != etag
        assert read(store, call, session_id) == []
    assert store.get_session(call, "earlier", show_deleted=True) == earlier
    assert read(store, call, "u") == read(store, call, "v") == ["hello"]


def test_a_user_with_many_sessions_is_deleted_whole(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    for number in range(250):
        store.create_session(call, f"s{number}", "ada", {})
    store.delete_user(call, "ada")
    for number in range(250):
        with pytest.raises(SessionNotFound):
            store.get_session(call, f"s{number}")


def test_a_delete_of_a_user_with_another_etag_is_refused(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    with pytest.raises(EtagMismatch):
        store.delete_user(call, "ada", etag="other")
    assert store.get_user(call, "ada") == created
    assert store.get_session(call, "s").user_id == "ada"
    store.delete_user(call, "ada", etag=created.etag)
    with pytest.raises(UserNotFound):
        store.get_user(call, "ada")


def test_undeleting_a_user_leaves_its_sessions_deleted(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile(email="a", metadata={"b": 1}))
    store.create_session(call, "s", "ada", {})
    deleted = store.delete_user(call, "ada")
    revived = store.undelete_user(call, "ada")
    assert revived == created._replace(update_time=revived.update_time, etag=revived.etag)
    assert revived.etag not in (created.etag, deleted.etag)
    assert store.get_user(call, "ada") == revived
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")
    write(store, call, "s", "comes back by being written to")
    assert store.get_session(call, "s").user_id == "ada"


def test_an_unknown_user_cannot_be_undeleted(store: Store, call: Call) -> None:
    with pytest.raises(UserNotFound):
        store.undelete_user(call, "ada")


def test_a_live_user_cannot_be_undeleted(store: Store, call: Call) -> None:
    created = store.create_user(call, "ada", Profile())
    with pytest.raises(NotDeleted) as refusal:
        store.undelete_user(call, "ada")
    assert (refusal.value.resource_type, refusal.value.resource_name) == ("user", "ada")
    assert store.get_user(call, "ada") == created
