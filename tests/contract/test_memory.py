from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from recalld.domain import Call, Memory, MessageChange, MetadataChange, NewMemory, NewMessage, Profile, Store
from recalld.errors import MessageIdConflict, SeqMismatch, SessionNotFound, UserMissing
from tests.contract.asking import contents_of, id_of, read, said, write

# --- appending


def test_writing_to_an_unknown_session_creates_it(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    added = store.add_memory(call, NewMemory("s", [said("one"), said("two")], "ada", {"a": 1}))
    assert (added.session_created, added.session_undeleted) == (True, False)
    session = store.get_session(call, "s")
    assert (session.user_id, session.metadata) == ("ada", {"a": 1})
    assert (session.message_count, session.last_seq) == (2, 2)


def test_messages_are_kept_as_sent_in_their_order(store: Store, call: Call) -> None:
    sent = [
        said("hello", metadata={"a": {"b": [1, None, True, 0.5]}}),
        said("", role="assistant", token_count=7),
        said("\U0001f44d 'quoted' \\ \n %s {} \u2028", role="any role at all"),
    ]
    added = store.add_memory(call, NewMemory("s", sent))
    kept = store.get_memory(call, "s", 10, 0, 0).messages
    assert [(m.message_id, m.role, m.content, m.metadata, m.token_count) for m in kept] == [
        (m.message_id, m.role, m.content, m.metadata, m.token_count) for m in sent
    ]
    assert [m.seq for m in kept] == [1, 2, 3]
    assert [(m.message_id, m.seq, m.create_time) for m in kept] == list(added.messages)
    assert all(m.update_time == m.create_time for m in kept)


def test_seq_counts_on_from_call_to_call(store: Store, call: Call) -> None:
    write(store, call, "s", "one", "two")
    added = write(store, call, "s", "three")
    assert [each.seq for each in added.messages] == [3]
    assert (added.session_created, added.session_undeleted) == (False, False)
    session = store.get_session(call, "s")
    assert (session.message_count, session.last_seq) == (3, 3)


def test_user_and_metadata_of_a_write_do_not_touch_a_session_that_exists(store: Store, call: Call) -> None:
    store.create_session(call, "s", "", {"a": 1})
    store.add_memory(call, NewMemory("s", [said("one")], "nobody-known", {"b": 2}))
    session = store.get_session(call, "s")
    assert (session.user_id, session.metadata, session.message_count) == ("", {"a": 1}, 1)


def test_a_write_cannot_create_a_session_for_a_user_who_is_not_live(store: Store, call: Call) -> None:
    store.create_user(call, "gone", Profile())
    store.delete_user(call, "gone")
    for user_id in ("unknown", "gone"):
        with pytest.raises(UserMissing) as refusal:
            store.add_memory(call, NewMemory("s", [said("one")], user_id))
        assert refusal.value.resource_name == user_id
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s", show_deleted=True)


def test_a_thousand_messages_fit_in_one_call(store: Store, call: Call) -> None:
    contents = [f"message {number}" for number in range(1000)]
    assert [added.seq for added in write(store, call, "s", *contents).messages] == list(range(1, 1001))
    assert read(store, call, "s") == contents


# --- reviving


def test_writing_to_a_deleted_session_revives_it_without_its_messages(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    created = store.create_session(call, "s", "ada", {"a": 1})
    write(store, call, "s", "one", "two")
    store.delete_session(call, "s")
    added = store.add_memory(call, NewMemory("s", [said("three")], "nobody-known", {"b": 2}))
    assert (added.session_created, added.session_undeleted) == (False, True)
    assert [each.seq for each in added.messages] == [3]
    session = store.get_session(call, "s")
    assert (session.user_id, session.metadata, session.create_time) == ("ada", {"a": 1}, created.create_time)
    assert (session.message_count, session.last_seq, session.delete_time) == (1, 3, None)
    assert read(store, call, "s") == ["three"]


def test_a_session_of_a_deleted_user_is_not_revived_by_a_write(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_user(call, "bob", Profile())
    store.create_session(call, "s", "ada", {})
    store.delete_user(call, "ada")
    deleted = store.get_session(call, "s", show_deleted=True)
    with pytest.raises(UserMissing) as refusal:
        store.add_memory(call, NewMemory("s", [said("one")], "bob"))
    assert refusal.value.resource_name == "ada"
    assert store.get_session(call, "s", show_deleted=True) == deleted
    store.undelete_user(call, "ada")
    assert store.add_memory(call, NewMemory("s", [said("one")])).session_undeleted


# --- compare and append


def test_a_write_that_expects_the_last_seq_appends(store: Store, call: Call) -> None:
    store.add_memory(call, NewMemory("s", [said("one"), said("two")], expected_last_seq=0))
    store.add_memory(call, NewMemory("s", [said("three")], expected_last_seq=2))
    assert read(store, call, "s") == ["one", "two", "three"]


@pytest.mark.parametrize("expected", [0, 1, 3])
def test_a_write_that_expects_another_last_seq_is_told_the_actual_one(store: Store, call: Call, expected: int) -> None:
    write(store, call, "s", "one", "two")
    before = store.get_session(call, "s")
    with pytest.raises(SeqMismatch) as refusal:
        store.add_memory(call, NewMemory("s", [said("three")], expected_last_seq=expected))
    assert refusal.value.last_seq == 2
    assert store.get_session(call, "s") == before


def test_an_unknown_session_has_last_seq_0(store: Store, call: Call) -> None:
    with pytest.raises(SeqMismatch) as refusal:
        store.add_memory(call, NewMemory("s", [said("one")], expected_last_seq=1))
    assert refusal.value.last_seq == 0
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")


def test_the_last_seq_of_a_deleted_session_counts(store: Store, call: Call) -> None:
    write(store, call, "s", "one", "two")
    store.delete_session(call, "s")
    with pytest.raises(SeqMismatch) as refusal:
        store.add_memory(call, NewMemory("s", [said("three")], expected_last_seq=0))
    assert refusal.value.last_seq == 2
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")
    assert store.add_memory(call, NewMemory("s", [said("three")], expected_last_seq=2)).session_undeleted


def test_the_last_seq_is_checked_before_the_user(store: Store, call: Call) -> None:
    with pytest.raises(SeqMismatch):
        store.add_memory(call, NewMemory("s", [said("one")], "nobody-known", expected_last_seq=5))
    store.create_user(call, "ada", Profile())
    store.create_session(call, "t", "ada", {})
    store.delete_user(call, "ada")
    with pytest.raises(SeqMismatch):
        store.add_memory(call, NewMemory("t", [said("one")], expected_last_seq=5))


# --- repeating


def test_repeating_a_call_returns_its_result_and_stores_nothing(store: Store, call: Call) -> None:
    memory = NewMemory("s", [said("one"), said("two", metadata={"b": 1, "a": [2, None]}, token_count=3)])
    first = store.add_memory(call, memory)
    write(store, call, "s", "three")
    before = store.get_session(call, "s")
    assert store.add_memory(call, memory) == first
    assert first.session_created
    assert store.get_session(call, "s") == before
    assert read(store, call, "s") == ["one", "two", "three"]


def test_repeating_the_call_that_revived_a_session_says_again_that_it_did(store: Store, call: Call) -> None:
    write(store, call, "s", "one")
    store.delete_session(call, "s")
    memory = NewMemory("s", [said("two"), said("three")])
    first = store.add_memory(call, memory)
    assert first.session_undeleted
    assert store.add_memory(call, memory) == first


def test_repeating_a_call_to_a_session_deleted_since_revives_nothing(store: Store, call: Call) -> None:
    memory = NewMemory("s", [said("one")])
    first = store.add_memory(call, memory)
    deleted = store.delete_session(call, "s")
    assert store.add_memory(call, memory) == first
    assert store.get_session(call, "s", show_deleted=True) == deleted


def test_repeating_a_call_ignores_what_has_changed_since(store: Store, call: Call) -> None:
    """Neither the last seq nor the user of the call matters any more, nor what became of its messages."""
    store.create_user(call, "ada", Profile())
    memory = NewMemory("s", [said("one"), said("two")], "ada", {"a": 1}, expected_last_seq=0)
    first = store.add_memory(call, memory)
    store.update_message(call, "s", first.messages[0].message_id, MessageChange("edited", "other", 9))
    change = MessageChange(metadata=MetadataChange({"a": 1}))
    store.update_message(call, "s", first.messages[0].message_id, change)
    assert store.add_memory(call, memory) == first
    store.delete_message(call, "s", first.messages[0].message_id)
    assert store.add_memory(call, memory) == first
    store.clear_memory(call, "s")
    assert store.add_memory(call, memory) == first
    store.delete_user(call, "ada")
    assert store.add_memory(call, memory) == first
    assert read(store, call, "s") == []


def test_an_edited_message_is_known_by_what_was_first_sent(store: Store, call: Call) -> None:
    message = said("one")
    store.add_memory(call, NewMemory("s", [message]))
    store.update_message(call, "s", id_of(message), MessageChange("two"))
    store.update_message(call, "s", id_of(message), MessageChange("three"))
    for content in ("two", "three"):
        with pytest.raises(MessageIdConflict):
            store.add_memory(call, NewMemory("s", [message._replace(content=content)]))
    assert store.add_memory(call, NewMemory("s", [message])).messages[0].seq == 1


def _variants(message: NewMessage) -> list[NewMessage]:
    return [
        message._replace(content="other"),
        message._replace(role="other"),
        message._replace(metadata={"a": 2}),
        message._replace(metadata={}),
        message._replace(token_count=9),
        message._replace(token_count=0),
    ]


def test_an_id_with_other_content_conflicts_and_stores_nothing(store: Store, call: Call) -> None:
    first, second = said("one"), said("two", metadata={"a": 1}, token_count=3)
    store.add_memory(call, NewMemory("s", [first, second]))
    before = store.get_session(call, "s")
    for other in _variants(second):
        with pytest.raises(MessageIdConflict) as refusal:
            store.add_memory(call, NewMemory("s", [first, other]))
        assert refusal.value.resource_name == second.message_id
    assert store.get_session(call, "s") == before
    assert read(store, call, "s") == ["one", "two"]


def test_a_call_with_new_and_used_ids_conflicts_and_stores_nothing(store: Store, call: Call) -> None:
    used = said("one")
    store.add_memory(call, NewMemory("s", [used]))
    for messages in ([used, said("new")], [said("new"), used], [said("new"), used._replace(content="other")]):
        with pytest.raises(MessageIdConflict) as refusal:
            store.add_memory(call, NewMemory("s", messages))
        assert refusal.value.resource_name == used.message_id
    assert read(store, call, "s") == ["one"]
    assert store.get_session(call, "s").last_seq == 1


def test_used_ids_in_another_order_or_with_gaps_conflict(store: Store, call: Call) -> None:
    one, two, three = messages = [said("one"), said("two"), said("three")]
    store.add_memory(call, NewMemory("s", messages))
    with pytest.raises(MessageIdConflict) as refusal:
        store.add_memory(call, NewMemory("s", [one, three]))
    assert refusal.value.resource_name == three.message_id
    with pytest.raises(MessageIdConflict):
        store.add_memory(call, NewMemory("s", [two, one]))
    assert read(store, call, "s") == ["one", "two", "three"]


def test_an_id_that_was_deleted_is_not_free_again(store: Store, call: Call) -> None:
    message = said("one")
    store.add_memory(call, NewMemory("s", [message]))
    store.delete_message(call, "s", id_of(message))
    with pytest.raises(MessageIdConflict):
        store.add_memory(call, NewMemory("s", [message._replace(content="other")]))
    store.delete_session(call, "s")
    with pytest.raises(MessageIdConflict):
        store.add_memory(call, NewMemory("s", [message._replace(content="other")]))
    with pytest.raises(SessionNotFound):
        store.get_session(call, "s")


def test_a_used_id_is_found_before_the_last_seq_and_the_user_are_checked(store: Store, call: Call) -> None:
    message = said("one")
    store.add_memory(call, NewMemory("s", [message]))
    with pytest.raises(MessageIdConflict):
        store.add_memory(call, NewMemory("s", [message._replace(content="other")], expected_last_seq=77))


def test_the_same_id_may_be_used_in_two_sessions(store: Store, call: Call) -> None:
    message = said("one")
    for session_id in ("s", "t"):
        assert store.add_memory(call, NewMemory(session_id, [message])).session_created
        assert read(store, call, session_id) == ["one"]


def test_no_seq_is_lost_to_refused_and_repeated_calls(store: Store, call: Call) -> None:
    message = said("one")
    store.add_memory(call, NewMemory("s", [message]))
    store.add_memory(call, NewMemory("s", [message]))
    with pytest.raises(MessageIdConflict):
        store.add_memory(call, NewMemory("s", [message._replace(content="other")]))
    with pytest.raises(SeqMismatch):
        store.add_memory(call, NewMemory("s", [said("x")], expected_last_seq=9))
    assert [added.seq for added in write(store, call, "s", "two").messages] == [2]


# --- reading


def test_an_unknown_or_deleted_session_is_an_empty_memory(store: Store, call: Call) -> None:
    assert _empty(store.get_memory(call, "s", 10, 0, 0))
    write(store, call, "s", "one")
    store.delete_session(call, "s")
    assert _empty(store.get_memory(call, "s", 10, 0, 0))


def _empty(memory: Memory) -> bool:
    return memory.session is None and not memory.messages


def test_a_session_without_messages_is_a_memory_of_that_session(store: Store, call: Call) -> None:
    created = store.create_session(call, "s", "", {})
    memory = store.get_memory(call, "s", 10, 0, 0)
    assert memory.session == created
    assert not memory.messages


def test_memory_is_the_newest_messages_oldest_first_with_their_session(store: Store, call: Call) -> None:
    write(store, call, "s", "one", "two", "three")
    memory = store.get_memory(call, "s", 2, 0, 0)
    assert contents_of(memory.messages) == ["two", "three"]
    assert memory.session == store.get_session(call, "s")


def test_memory_after_a_seq_leaves_out_what_the_caller_has(store: Store, call: Call) -> None:
    write(store, call, "s", "one", "two", "three", "four")
    assert contents_of(store.get_memory(call, "s", 10, 0, 2).messages) == ["three", "four"]
    assert contents_of(store.get_memory(call, "s", 1, 0, 2).messages) == ["four"]
    for after_seq in (4, 5, 2**63 - 1):
        memory = store.get_memory(call, "s", 10, 0, after_seq)
        assert not memory.messages
        assert memory.session is not None


@pytest.mark.parametrize(
    ("max_tokens", "contents"),
    [
        (1, []),
        (2, ["\u00e9\u00e9\u00e9"]),
        (6, ["\u00e9\u00e9\u00e9"]),
        (7, ["", "counted", "\u00e9\u00e9\u00e9"]),  # an uncounted empty message takes nothing
        (10, ["", "counted", "\u00e9\u00e9\u00e9"]),
        (11, ["fourteen chars", "", "counted", "\u00e9\u00e9\u00e9"]),
        (0, ["one", "fourteen chars", "", "counted", "\u00e9\u00e9\u00e9"]),
        (2**31 - 1, ["one", "fourteen chars", "", "counted", "\u00e9\u00e9\u00e9"]),
    ],
)
def test_the_newest_messages_are_taken_as_long_as_their_tokens_fit(
    store: Store, call: Call, max_tokens: int, contents: list[str]
) -> None:
    """A count that was sent holds; without one it is the bytes in UTF-8 divided by four, rounded up."""
    messages = [
        said("one", token_count=100),
        said("fourteen chars"),  # 4
        said(""),  # 0
        said("counted", token_count=5),
        said("\u00e9\u00e9\u00e9"),  # 6 bytes: 2
    ]
    store.add_memory(call, NewMemory("s", messages))
    assert contents_of(store.get_memory(call, "s", 10, max_tokens, 0).messages) == contents


def test_an_older_message_that_fits_is_not_taken_behind_one_that_does_not(store: Store, call: Call) -> None:
    messages = [said("small", token_count=1), said("large", token_count=50), said("newest", token_count=1)]
    store.add_memory(call, NewMemory("s", messages))
    assert contents_of(store.get_memory(call, "s", 10, 10, 0).messages) == ["newest"]


def test_deleted_messages_take_no_place_in_memory(store: Store, call: Call) -> None:
    added = write(store, call, "s", "one", "two", "three", "four")
    store.delete_message(call, "s", added.messages[2].message_id)
    assert contents_of(store.get_memory(call, "s", 2, 0, 0).messages) == ["two", "four"]


# --- clearing


def test_clearing_deletes_the_messages_and_keeps_the_session(store: Store, call: Call) -> None:
    store.create_session(call, "s", "", {"a": 1})
    write(store, call, "s", "one", "two")
    cleared = store.clear_memory(call, "s")
    assert (cleared.message_count, cleared.last_seq, cleared.metadata) == (0, 2, {"a": 1})
    assert cleared == store.get_session(call, "s")
    assert read(store, call, "s") == []
    assert [added.seq for added in write(store, call, "s", "three").messages] == [3]
    assert read(store, call, "s") == ["three"]
    assert store.get_session(call, "s").message_count == 1


def test_clearing_twice_is_no_error(store: Store, call: Call) -> None:
    write(store, call, "s", "one")
    store.clear_memory(call, "s")
    assert store.clear_memory(call, "s").message_count == 0


@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_not_live_cannot_be_cleared(store: Store, call: Call, deleted: bool) -> None:
    if deleted:
        write(store, call, "s", "one")
        store.delete_session(call, "s")
    with pytest.raises(SessionNotFound):
        store.clear_memory(call, "s")


def test_ids_made_elsewhere_do_not_matter(store: Store, call: Call) -> None:
    """UUIDs of any version are ids, not only random ones."""
    message = said("one")._replace(message_id=str(uuid4()))
    nil = said("two")._replace(message_id=str(UUID(int=0)))
    store.add_memory(call, NewMemory("s", [message, nil]))
    assert store.get_message(call, "s", id_of(nil)).content == "two"
