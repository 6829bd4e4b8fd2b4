from __future__ import annotations

from typing import Any

import pytest

from recalld.domain import Call, MessageChange, NewMemory, Profile, SearchQuery, Store
from tests.contract.asking import said, search, write
from tests.contract.clock import Clock


def test_any_term_may_match(store: Store, call: Call) -> None:
    write(store, call, "s", "red apple", "green pear", "blue plum")
    assert sorted(search(store, call, SearchQuery("apple pear", 10))) == ["green pear", "red apple"]
    assert search(store, call, SearchQuery("cherry", 10)) == []


def test_case_does_not_matter(store: Store, call: Call) -> None:
    write(store, call, "s", "Red APPLE")
    assert search(store, call, SearchQuery("apple", 10)) == ["Red APPLE"]
    assert search(store, call, SearchQuery("RED", 10)) == ["Red APPLE"]


def test_the_role_is_searched_too(store: Store, call: Call) -> None:
    store.add_memory(call, NewMemory("s", [said("apple", role="librarian"), said("pear")]))
    assert search(store, call, SearchQuery("librarian", 10)) == ["apple"]


def test_best_comes_first(store: Store, call: Call) -> None:
    write(store, call, "s", "apple tree", "apple pear", "river pear")
    found = store.search_memory(call, SearchQuery("apple pear", 10))
    assert found[0].message.content == "apple pear"
    assert len(found) == 3
    scores = [match.score for match in found]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[1] > 0


def test_equally_good_matches_come_newest_first(store: Store, call: Call) -> None:
    for session_id, content in ("s", "apple one"), ("t", "apple two"), ("u", "apple three"):
        write(store, call, session_id, content)
    assert search(store, call, SearchQuery("apple", 10)) == ["apple three", "apple two", "apple one"]


def test_a_rare_term_counts_more_than_a_frequent_one(store: Store, call: Call) -> None:
    for session_id, content in ("s", "apple one"), ("t", "pear two"), ("u", "apple three"), ("v", "apple four"):
        write(store, call, session_id, content)
    assert search(store, call, SearchQuery("apple pear", 10))[0] == "pear two"


def test_a_match_next_to_another_counts_more_than_one_alone(store: Store, call: Call) -> None:
    write(store, call, "s", "apple one", "apple two", "pear", "pear")
    write(store, call, "t", "apple three", "pear", "apple four")
    assert search(store, call, SearchQuery("apple", 10)) == ["apple two", "apple one", "apple four", "apple three"]
    assert search(store, call, SearchQuery("pear", 1, session_id="t")) == ["pear"]


def test_no_more_are_found_than_asked_for_and_those_are_the_best(store: Store, call: Call) -> None:
    write(store, call, "s", "apple pear", *(f"apple {number}" for number in range(10)))
    assert search(store, call, SearchQuery("apple pear", 1)) == ["apple pear"]
    assert len(search(store, call, SearchQuery("apple pear", 4))) == 4


def test_a_match_is_the_message_with_its_session(store: Store, call: Call) -> None:
    (added,) = write(store, call, "s", "apple").messages
    (match,) = store.search_memory(call, SearchQuery("apple", 10))
    assert match.session_id == "s"
    assert match.message == store.get_message(call, "s", added.message_id)


def test_search_can_be_kept_to_a_session_or_a_users_sessions(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    store.create_session(call, "t", "ada", {})
    for session_id in ("s", "t", "u"):
        write(store, call, session_id, f"apple {session_id}")
    assert search(store, call, SearchQuery("apple", 10, session_id="s")) == ["apple s"]
    assert search(store, call, SearchQuery("apple", 10, user_id="ada")) == ["apple t", "apple s"]
    assert search(store, call, SearchQuery("apple", 10)) == ["apple u", "apple t", "apple s"]
    assert search(store, call, SearchQuery("apple", 10, session_id="unknown")) == []
    assert search(store, call, SearchQuery("apple", 10, user_id="unknown")) == []


def test_search_can_be_kept_to_roles_and_metadata(store: Store, call: Call) -> None:
    messages = [
        said("apple 1", role="user", metadata={"tags": ["a", "b"]}),
        said("apple 2", role="assistant", metadata={"tags": ["b"]}),
        said("apple 3", role="system"),
    ]
    for message in messages:
        store.add_memory(call, NewMemory(message.content, [message]))
    assert search(store, call, SearchQuery("apple", 10, roles=["user"])) == ["apple 1"]
    assert search(store, call, SearchQuery("apple", 10, roles=["system", "user"])) == ["apple 3", "apple 1"]
    assert search(store, call, SearchQuery("apple", 10, roles=["nobody"])) == []
    assert search(store, call, SearchQuery("apple", 10, metadata={"tags": ["b"]})) == ["apple 2", "apple 1"]
    assert search(store, call, SearchQuery("apple", 10, metadata={"tags": ["a"]})) == ["apple 1"]
    assert search(store, call, SearchQuery("apple", 10, metadata={})) == ["apple 3", "apple 2", "apple 1"]


def test_search_can_be_kept_to_a_time_range(store: Store, call: Call, clock: Clock) -> None:
    times = []
    for number in range(3):
        times.append(write(store, call, "s", f"apple {number}").messages[0].create_time)
        clock.advance(hours=1)
    query = SearchQuery("apple", 10, create_time_from=times[1])
    assert search(store, call, query) == ["apple 2", "apple 1"]
    query = SearchQuery("apple", 10, create_time_to=times[1])
    assert search(store, call, query) == ["apple 0"]
    query = SearchQuery("apple", 10, create_time_from=times[1], create_time_to=times[2])
    assert search(store, call, query) == ["apple 1"]


def test_deleted_messages_are_not_found(store: Store, call: Call) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "of a deleted user", "ada", {})
    write(store, call, "of a deleted user", "apple 0")
    store.delete_user(call, "ada")
    write(store, call, "deleted", "apple 1")
    store.delete_session(call, "deleted")
    write(store, call, "cleared", "apple 2")
    store.clear_memory(call, "cleared")
    write(store, call, "revived", "apple 3")
    store.delete_session(call, "revived")
    write(store, call, "revived", "apple 4")
    (added, _) = write(store, call, "s", "apple 5", "apple 6").messages
    store.delete_message(call, "s", added.message_id)
    assert search(store, call, SearchQuery("apple", 10)) == ["apple 6", "apple 4"]
    for session_id in ("of a deleted user", "deleted", "cleared"):
        assert search(store, call, SearchQuery("apple", 10, session_id=session_id)) == []


def test_an_edited_message_is_found_by_what_it_says_now(store: Store, call: Call) -> None:
    (added,) = write(store, call, "s", "apple").messages
    store.update_message(call, "s", added.message_id, MessageChange("pear"))
    assert search(store, call, SearchQuery("apple", 10)) == []
    assert search(store, call, SearchQuery("pear", 10)) == ["pear"]


@pytest.mark.parametrize("scope", [{}, {"session_id": "s"}, {"user_id": "ada"}], ids=["namespace", "session", "user"])
def test_among_very_many_a_rare_term_is_found_and_of_a_common_one_the_newest(
    store: Store, call: Call, scope: dict[str, Any]
) -> None:
    store.create_user(call, "ada", Profile())
    store.create_session(call, "s", "ada", {})
    (needle, *_) = write(store, call, "s", "needle", "pear").messages
    for start in range(0, 6000, 1000):
        write(store, call, "s", *(f"apple {number}" for number in range(start, start + 1000)))

    (found, *_) = store.search_memory(call, SearchQuery("apple needle", 10, **scope))
    assert found.message.message_id == needle.message_id
    assert search(store, call, SearchQuery("needle", 10, **scope)) == ["needle"]
    # The last has a match on one side only.
    assert search(store, call, SearchQuery("apple", 3, **scope)) == ["apple 5998", "apple 5997", "apple 5996"]
    assert search(store, call, SearchQuery("cherry", 3, **scope)) == []

    store.delete_message(call, "s", needle.message_id)
    assert search(store, call, SearchQuery("needle", 10, **scope)) == []


@pytest.mark.parametrize(
    "query", ["& | ! ( ) : *", "'", "apple' & | !", "\\", '"', "apple:*", "<->", "%", "", "\ufffd\u2028\U0001f44d"]
)
def test_a_query_has_no_syntax_to_get_wrong(store: Store, call: Call, query: str) -> None:
    write(store, call, "s", "apple", "pear")
    assert search(store, call, SearchQuery(query, 10)) == (["apple"] if "apple" in query else [])


def test_a_query_of_many_terms_is_answered(store: Store, call: Call) -> None:
    write(store, call, "s", "apple 799")
    query = " ".join(f"word{number}" for number in range(500))
    assert search(store, call, SearchQuery(query, 10)) == []
    assert search(store, call, SearchQuery(query + " apple", 10)) == ["apple 799"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        "a_" * 500_000,  # the square of the length, for the text search parser
        "~/" * 500_000,
        "a-1-" * 250_000,
        "<!-- " * 200_000,
        "<a " * 300_000,
        " ".join(map(str, range(150_000))),  # more than a tsvector holds
        "𐐷 " * 200_000,
    ],
    ids=["underscores", "paths", "hyphens", "comments", "tags", "numbers", "wide characters"],
)
def test_any_message_can_be_stored_and_its_beginning_searched(store: Store, call: Call, text: str) -> None:
    write(store, call, "s", *[f"apple {text}"] * 4)
    assert len(search(store, call, SearchQuery("apple", 10))) >= 3  # as many as fit into a reply
