from __future__ import annotations

from collections.abc import Callable
from uuid import uuid4

import pytest

from recalld import limits
from recalld.domain import Call, MessageChange, MessagePage, Metadata, MetadataChange, NewMemory, Store
from recalld.errors import LimitExceeded, MessageNotFound, SessionNotFound
from tests.contract.asking import contents_of, id_of, read, said, write
from tests.contract.clock import Clock

# --- listing


def _all_pages(store: Store, call: Call, limit: int, *, descending: bool) -> list[MessagePage]:
    pages: list[MessagePage] = []
    after_seq = None
    while not pages or pages[-1].more:
        pages.append(store.list_messages(call, "s", after_seq, limit, descending=descending))
        after_seq = pages[-1].messages[-1].seq
    return pages


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 1000])
def test_pages_together_hold_every_live_message_in_order(
    store: Store, call: Call, limit: int, descending: bool
) -> None:
    write(store, call, "s", "cleared", "too")
    store.clear_memory(call, "s")
    added = write(store, call, "s", "one", "two", "x", "three", "four", "five")
    store.delete_message(call, "s", added.messages[2].message_id)
    pages = _all_pages(store, call, limit, descending=descending)
    listed = [message for page in pages for message in page.messages]
    expected = ["one", "two", "three", "four", "five"]
    assert contents_of(listed) == (expected[::-1] if descending else expected)
    assert all(len(page.messages) <= limit for page in pages)
    assert all(message == store.get_message(call, "s", message.message_id) for message in listed)


@pytest.mark.parametrize("descending", [False, True])
def test_a_session_without_messages_is_an_empty_page(store: Store, call: Call, descending: bool) -> None:
    write(store, call, "s", "one")
    store.clear_memory(call, "s")
    page = store.list_messages(call, "s", None, 10, descending=descending)
    assert not page.messages
    assert not page.more


def test_a_page_goes_on_behind_a_message_that_was_deleted_meanwhile(store: Store, call: Call) -> None:
    added = write(store, call, "s", "one", "two", "three")
    store.delete_message(call, "s", added.messages[1].message_id)
    assert contents_of(store.list_messages(call, "s", 2, 10).messages) == ["three"]
    assert contents_of(store.list_messages(call, "s", 2, 10, descending=True).messages) == ["one"]


def test_messages_written_meanwhile_are_listed_behind_those_there_were(store: Store, call: Call) -> None:
    write(store, call, "s", "one", "two")
    first = store.list_messages(call, "s", None, 1)
    write(store, call, "s", "three")
    rest = store.list_messages(call, "s", first.messages[-1].seq, 10)
    assert contents_of([*first.messages, *rest.messages]) == ["one", "two", "three"]


@pytest.mark.parametrize("deleted", [False, True])
def test_messages_of_a_session_that_is_not_live_cannot_be_listed(store: Store, call: Call, deleted: bool) -> None:
    if deleted:
        write(store, call, "s", "one")
        store.delete_session(call, "s")
    for descending in (False, True):
        with pytest.raises(SessionNotFound):
            store.list_messages(call, "s", None, 10, descending=descending)


# --- what is gone


def _delete_message(store: Store, call: Call, message_id: str) -> None:
    store.delete_message(call, "s", message_id)


def _clear(store: Store, call: Call, message_id: str) -> None:
    store.clear_memory(call, "s")


def _delete_session(store: Store, call: Call, message_id: str) -> None:
    store.delete_session(call, "s")


def _undelete_session(store: Store, call: Call, message_id: str) -> None:
    store.delete_session(call, "s")
    store.undelete_session(call, "s")


def _recreate_session(store: Store, call: Call, message_id: str) -> None:
    store.delete_session(call, "s")
    store.create_session(call, "s", "", {})


def _revive_by_writing(store: Store, call: Call, message_id: str) -> None:
    store.delete_session(call, "s")
    write(store, call, "s", "two")


@pytest.mark.parametrize(
    "remove", [_delete_message, _clear, _delete_session, _undelete_session, _recreate_session, _revive_by_writing]
)
def test_a_deleted_message_can_be_neither_read_nor_changed(
    store: Store, call: Call, remove: Callable[[Store, Call, str], None]
) -> None:
    (added,) = write(store, call, "s", "one").messages
    remove(store, call, added.message_id)
    with pytest.raises(MessageNotFound) as refusal:
        store.get_message(call, "s", added.message_id)
    assert refusal.value.resource_name == added.message_id
    with pytest.raises(MessageNotFound):
        store.update_message(call, "s", added.message_id, MessageChange("other"))
    with pytest.raises(MessageNotFound):
        store.delete_message(call, "s", added.message_id)
    assert "one" not in read(store, call, "s")


def test_an_unknown_message_is_not_found(store: Store, call: Call) -> None:
    (added,) = write(store, call, "s", "one").messages
    write(store, call, "t", "another session's")
    for session_id, message_id in [("s", str(uuid4())), ("t", added.message_id), ("unknown", added.message_id)]:
        with pytest.raises(MessageNotFound):
            store.get_message(call, session_id, message_id)
        with pytest.raises(MessageNotFound):
            store.update_message(call, session_id, message_id, MessageChange("other"))
        with pytest.raises(MessageNotFound):
            store.delete_message(call, session_id, message_id)
    assert read(store, call, "s") == ["one"]


# --- updating


def test_an_update_changes_a_message_in_place(store: Store, call: Call) -> None:
    sent = said("one", metadata={"a": 1}, token_count=3)
    store.add_memory(call, NewMemory("s", [sent, said("two")]))
    before = store.get_message(call, "s", id_of(sent))
    change = MessageChange("edited", "assistant", 5, MetadataChange({"b": {"c": 2}}))
    after = store.update_message(call, "s", id_of(sent), change)
    assert after == before._replace(
        content="edited",
        role="assistant",
        token_count=5,
        metadata={"a": 1, "b": {"c": 2}},
        update_time=after.update_time,
    )
    assert after.update_time > before.update_time
    assert store.get_message(call, "s", id_of(sent)) == after
    assert read(store, call, "s") == ["edited", "two"]


def test_an_update_of_a_message_leaves_alone_what_it_does_not_name(store: Store, call: Call) -> None:
    sent = said("one", role="tool", metadata={"a": 1}, token_count=3)
    store.add_memory(call, NewMemory("s", [sent]))
    for change in (MessageChange(), MessageChange(content="x"), MessageChange(role="y"), MessageChange(token_count=4)):
        before = store.get_message(call, "s", id_of(sent))
        after = store.update_message(call, "s", id_of(sent), change)
        assert after == before._replace(
            content=before.content if change.content is None else change.content,
            role=before.role if change.role is None else change.role,
            token_count=before.token_count if change.token_count is None else change.token_count,
            update_time=after.update_time,
        )


def test_a_message_can_be_emptied(store: Store, call: Call) -> None:
    sent = said("one", metadata={"a": 1}, token_count=3)
    store.add_memory(call, NewMemory("s", [sent]))
    change = MessageChange(content="", token_count=0, metadata=MetadataChange({}, replace=True))
    after = store.update_message(call, "s", id_of(sent), change)
    assert (after.content, after.token_count, after.metadata) == ("", 0, {})
    assert store.get_message(call, "s", id_of(sent)) == after


def test_a_messages_metadata_merges_and_null_removes(store: Store, call: Call) -> None:
    sent = said("one", metadata={"a": {"x": 1, "y": 2}, "b": 1})
    store.add_memory(call, NewMemory("s", [sent]))
    change = MessageChange(metadata=MetadataChange({"a": {"x": None}, "b": None, "c": [None]}))
    assert store.update_message(call, "s", id_of(sent), change).metadata == {"a": {"y": 2}, "c": [None]}
    assert store.get_message(call, "s", id_of(sent)).metadata == {"a": {"y": 2}, "c": [None]}


def test_a_messages_metadata_cannot_grow_beyond_its_limit(store: Store, call: Call) -> None:
    sent = said("one", metadata={"a": "x" * 10_000})
    store.add_memory(call, NewMemory("s", [sent]))
    before = store.get_message(call, "s", id_of(sent))
    patch = {"b": "y" * (limits.MAX_METADATA_BYTES - 10_000)}
    with pytest.raises(LimitExceeded):
        store.update_message(call, "s", id_of(sent), MessageChange("other", metadata=MetadataChange(patch)))
    assert store.get_message(call, "s", id_of(sent)) == before


def test_an_update_of_a_message_counts_towards_the_tokens_that_fit(store: Store, call: Call) -> None:
    (added,) = write(store, call, "s", "one").messages
    store.update_message(call, "s", added.message_id, MessageChange(content="four char words"))
    assert not store.get_memory(call, "s", 10, 3, 0).messages
    assert store.get_memory(call, "s", 10, 4, 0).messages


def test_an_update_of_a_message_moves_its_sessions_update_time(store: Store, call: Call) -> None:
    (added,) = write(store, call, "s", "one").messages
    before = store.get_session(call, "s")
    message = store.update_message(call, "s", added.message_id, MessageChange("other"))
    assert store.get_session(call, "s") == before._replace(update_time=message.update_time)


# --- deleting


def test_deleting_a_message_returns_it_and_leaves_a_gap(store: Store, call: Call) -> None:
    added = write(store, call, "s", "one", "two", "three").messages
    before = store.get_message(call, "s", added[2].message_id)
    assert store.delete_message(call, "s", added[2].message_id) == before
    session = store.get_session(call, "s")
    assert (session.message_count, session.last_seq) == (2, 3)
    assert [each.seq for each in write(store, call, "s", "four").messages] == [4]
    assert read(store, call, "s") == ["one", "two", "four"]


def test_every_message_can_be_deleted_singly(store: Store, call: Call) -> None:
    for added in write(store, call, "s", "one", "two").messages:
        store.delete_message(call, "s", added.message_id)
    assert store.get_session(call, "s").message_count == 0
    assert store.clear_memory(call, "s").message_count == 0
    assert store.delete_session(call, "s").message_count == 0


def test_numbers_that_postgres_writes_out_in_full_hide_no_message_and_hinder_no_merge(store: Store, call: Call) -> None:
    """5e-324 is 6 bytes of JSON, and 326 as Postgres shows it; 1e308 is 309."""
    extreme: Metadata = {"tiny": [5e-324] * 4000, "huge": [1e308] * 4000}
    message = said("extreme", metadata=extreme)
    store.add_memory(call, NewMemory("s", [said("before"), message, said("after")]))

    assert read(store, call, "s") == ["before", "extreme", "after"]
    assert contents_of(store.list_messages(call, "s", None, 10).messages) == ["before", "extreme", "after"]
    change = MessageChange(metadata=MetadataChange({"more": 1}))
    assert store.update_message(call, "s", id_of(message), change).metadata == {**extreme, "more": 1}


def test_a_message_is_never_changed_before_it_was_written(store: Store, call: Call, clock: Clock) -> None:
    """The clock of the server that changes it may be behind that of the one that wrote it."""
    (added,) = store.add_memory(call, NewMemory("s", [said("hello")])).messages
    clock.advance(hours=-1)
    changed = store.update_message(call, "s", added.message_id, MessageChange(content="bye"))
    assert changed.update_time == changed.create_time == added.create_time
