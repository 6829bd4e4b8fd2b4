"""What bounds a search: the messages that it reads, counted in the plans that really ran.

80,000 messages of one namespace lie beside 3,000 of each of two others, of which one has many sessions, and 300 of a
third. Everywhere every message has the word `common`, and one in three the word `frequent`; in the largest namespace
every other one has `elsewhere` too, but for those of the user `eve`, who has many sessions. The word `needle` is in the
first message of two sessions, where no search for the newest comes, `pin` in one of eve's; `former` was said in all
messages of a long session but the newest.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from recalld.domain import LocalCall, SearchQuery
from recalld.limits import MAX_SEARCHED_NEWEST, MAX_SEARCHED_RARE
from recalld.storage import PostgresStore
from recalld.storage.keys import session_key
from tests.contract.asking import search, write
from tests.integration.test_plans import Watched, explain_everything, nodes, plans_of, watching
from tests.postgres import Databases

NOW = datetime(2026, 6, 1, tzinfo=UTC)
BIG, MIDDLE, WIDE, SMALL = (LocalCall(name) for name in ("big", "middle", "wide", "small"))
LONG = 40_000  # messages of the session `long`, which is one of the user `ada`, whose others have half as many together
SESSIONS = [("big", "long", "ada", LONG)]
SESSIONS += [("big", f"s{n}", "ada" if n < 100 else f"u{n}", 200 if n < 100 else 20) for n in range(1_100)]
SESSIONS += [("big", f"e{n}", "eve", 2) for n in range(1_100)]
SESSIONS += [("middle", f"s{n}", "", 30) for n in range(100)]
SESSIONS += [("wide", f"s{n}", "", 2) for n in range(1_500)]
SESSIONS += [("small", f"s{n}", "", 30) for n in range(10)]


@pytest.fixture(scope="module")
def watched(databases: Databases) -> Iterator[Watched]:
    with databases.copy() as url:
        _populate(url)
        with watching(url) as database:
            yield database


@pytest.fixture
def store(watched: Watched) -> PostgresStore:
    return PostgresStore(watched)


def _populate(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "create temporary table new (namespace text, session_id text, user_id text, n bigint, k uuid)"
        )
        with connection.cursor() as cursor, cursor.copy("copy new from stdin") as copy:
            for namespace, session_id, user_id, messages in SESSIONS:
                copy.write_row((namespace, session_id, user_id, messages, session_key(namespace, session_id)))
        connection.execute(
            """
            insert into recalld.session (session_key, namespace, session_id, user_id, metadata, message_count, last_seq,
                                         cleared_seq, version, create_time, update_time, active_time)
            select k, namespace, session_id, nullif(user_id, ''), '{}', n, n, 0, 1, %(now)s, %(now)s,
                   %(now)s - case when session_id in ('s1', 'e1', 'long') then interval '1 day' else interval '0' end
              from new
            """,
            {"now": NOW},
        )
        connection.execute(
            """
            insert into recalld.message (session_key, seq, create_time, message_id, namespace_hash, role, content)
            select k, seq, %(now)s, gen_random_uuid(), recalld.namespace_hash(namespace),
                   case when seq %% 2 = 0 then 'user' else 'assistant' end,
                   case when seq = 1 and session_id in ('s1', 'long') then 'needle ' else '' end
                   || case when seq = 1 and session_id = 'e1' then 'pin ' else '' end
                   || 'common word' || seq %% 20 || case when seq %% 3 = 0 then ' frequent' else '' end
                   || case when session_id = 'long' and seq < n - 1000 then ' former' else '' end
                   || case when namespace = 'big' and user_id <> 'eve' and seq %% 2 = 1 then ' elsewhere' else '' end
              from new, generate_series(1, n) as seq
            """,
            {"now": NOW},
        )
        connection.execute("vacuum analyze")
        explain_everything(connection)


def messages_read(plans: list[dict[str, Any]]) -> float:
    """The rows of messages that were read, those that a filter dropped too.

    On the way it is made sure that none was read from end to end, and that no document was made only to be compared.
    """
    rows = 0.0
    for plan in plans:
        for node in nodes(plan["Plan"]):
            if node.get("Relation Name") == "message":
                assert node["Node Type"] != "Seq Scan", plan
                assert "to_tsvector" not in node.get("Filter", ""), plan
                dropped = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
                rows += (node["Actual Rows"] + dropped) * node["Actual Loops"]
    return rows


def indexes(plans: list[dict[str, Any]]) -> set[str]:
    return {node["Index Name"] for plan in plans for node in nodes(plan["Plan"]) if "Index Name" in node}


SCOPES: dict[str, dict[str, Any]] = {
    "a namespace": {},
    "a long session": {"session_id": "long"},
    "a user": {"user_id": "ada"},
}
QUERIES = {
    "a common word": "common",
    "a word that was common once": "former",
    "common words": "common frequent elsewhere word1 word2 word3",
    "a common word and a rare one": "common needle",
    "a rare word": "needle",
    "no word that is there": "nothing",
}

# A sample that tells which terms are rare; what is counted to learn whether they are; the newest, and the rare and the
# newest once more to rank them; and the answer.
MOST_READ = 200 + 5 * MAX_SEARCHED_RARE + MAX_SEARCHED_NEWEST + MAX_SEARCHED_RARE + MAX_SEARCHED_NEWEST + 10


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("query", QUERIES)
def test_a_search_reads_a_bounded_number_of_messages(
    store: PostgresStore, watched: Watched, scope: str, query: str
) -> None:
    asked = SearchQuery(QUERIES[query], 10, **SCOPES[scope])

    plans = plans_of(watched, lambda: store.search_memory(BIG, asked))

    assert 0 < messages_read(plans) <= MOST_READ < LONG


def test_however_many_words_are_looked_for_the_index_is_asked_for_few_and_finds_the_rarest(
    store: PostgresStore, watched: Watched
) -> None:
    unknown = " ".join(f"unknown{n}" for n in range(300))
    asked = SearchQuery(f"common needle {unknown}", 10)

    plans = plans_of(watched, lambda: store.search_memory(BIG, asked), runs=2)

    assert 0 < sum("message_by_text" in indexes([plan]) for plan in plans) <= 128 + 28
    assert {match.message.seq for match in store.search_memory(BIG, asked)[:2]} == {1}


@pytest.mark.parametrize("scope", SCOPES)
def test_a_rare_word_is_found_by_the_index_alone(store: PostgresStore, watched: Watched, scope: str) -> None:
    asked = SearchQuery("needle", 10, **SCOPES[scope])

    plans = plans_of(watched, lambda: store.search_memory(BIG, asked))

    assert "message_by_text" in indexes(plans)
    assert messages_read(plans) < 300


@pytest.mark.parametrize("scope", SCOPES)
def test_a_rare_word_is_found_however_common_the_others_are(store: PostgresStore, scope: str) -> None:
    found = search(store, BIG, SearchQuery("common frequent elsewhere needle", 2, **SCOPES[scope]))

    assert all(content.startswith("needle") for content in found[: 1 if scope == "a long session" else 2])


@pytest.mark.parametrize("query", ["common", "elsewhere", "needle", "common frequent elsewhere needle nothing"])
def test_a_small_namespace_asks_no_index_that_it_shares_with_a_large_one(
    store: PostgresStore, watched: Watched, query: str
) -> None:
    plans = plans_of(watched, lambda: store.search_memory(SMALL, SearchQuery(query, 10)))

    assert "message_by_text" not in indexes(plans)
    # Once for its document, once for its rank, and what is returned once more.
    assert messages_read(plans) <= 2 * 300 + 10


@pytest.mark.parametrize("call", [MIDDLE, WIDE], ids=["in few sessions", "in many sessions"])
def test_what_another_namespace_has_much_of_costs_no_message_read(
    store: PostgresStore, watched: Watched, call: LocalCall
) -> None:
    plans = plans_of(watched, lambda: store.search_memory(call, SearchQuery("elsewhere", 10)))

    assert "message_by_text" in indexes(plans)
    assert messages_read(plans) < 300
    assert search(store, call, SearchQuery("elsewhere", 10)) == []


def test_what_other_users_have_much_of_is_read_up_to_a_bound_and_a_rare_word_is_found_all_the_same(
    store: PostgresStore, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recalld.storage.memory.MAX_SEARCHED_RARE", 100)
    asked = SearchQuery("elsewhere pin", 10, user_id="eve")

    plans = plans_of(watched, lambda: store.search_memory(BIG, asked))

    # Of others at most 16 times what is taken, of which one word gets half.
    assert 8 * 100 < messages_read(plans) - 200 - MAX_SEARCHED_NEWEST < 16 * 100
    [found] = store.search_memory(BIG, asked)
    assert (found.session_id, found.message.seq) == ("e1", 1)


def test_the_previous_release_finds_words_by_the_index_too(watched: Watched) -> None:
    """Its servers look for words alone, while this one's come to replace them."""
    with watched.connection(BIG) as connection:
        [(plan,)] = connection.execute(
            "explain (format json) select from recalld.message as m"
            " where recalld.searchable(m.role, m.content) @@ to_tsquery(recalld.search_language(), 'needle')"
        )

    assert "message_by_text" in indexes(plan)


@pytest.mark.parametrize("call", [MIDDLE, WIDE], ids=["in few sessions", "in many sessions"])
def test_messages_from_before_they_told_their_namespace_are_found(
    store: PostgresStore, watched: Watched, call: LocalCall
) -> None:
    former = "update recalld.message set namespace_hash = null where session_key = %s"
    with watched.connection(call) as connection, connection.transaction(force_rollback=True):
        connection.execute(former, (session_key(call.namespace, "s1"),))
        found = connection.execute(
            "select session_id, seq from recalld.search(%s, null, null, 'needle', null, null, null, null, 10, 2000,"
            " 5000, 10000, 1000000)",
            (call.namespace,),
        ).fetchall()

    assert found == [("s1", 1)]


def test_namespaces_that_the_index_takes_for_one_find_nothing_of_each_other(
    postgres_store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recalld.storage.memory.MAX_SEARCHED_NEWEST", 0)  # so that the index is asked
    one, other = LocalCall("shop-68"), LocalCall("shop-87")
    for call in (one, other):
        write(postgres_store, call, "s", f"needle of {call.namespace}")
    with postgres_store._database.connection(one) as connection:
        hashes = connection.execute("select count(distinct namespace_hash), count(*) from recalld.message").fetchone()
        assert hashes == (1, 2)

    for call in (one, other):
        assert search(postgres_store, call, SearchQuery("needle", 10)) == [f"needle of {call.namespace}"]


def test_what_another_namespace_has_much_of_is_found_where_it_is_rare(store: PostgresStore) -> None:
    """Which terms are rare is told by the namespace itself: `needle` in one, `elsewhere` in the other."""
    assert search(store, MIDDLE, SearchQuery("common needle elsewhere", 1))[0].startswith("needle")
    assert "elsewhere" in search(store, BIG, SearchQuery("elsewhere", 1))[0]


def test_filters_narrow_what_is_found_and_make_no_search_look_further(store: PostgresStore, watched: Watched) -> None:
    rare, common = (SearchQuery(word, 10, roles=["assistant"]) for word in ("needle", "common"))
    assert len(store.search_memory(BIG, rare)) == 2

    plans = plans_of(watched, lambda: store.search_memory(BIG, SearchQuery("common", 10, roles=["nobody"])))

    assert messages_read(plans) <= MOST_READ
    assert {match.message.role for match in store.search_memory(BIG, common)} == {"assistant"}
