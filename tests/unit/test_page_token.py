"""A page token holds for the listing that it came from, and for no other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from recall.v1 import memory_pb2, session_pb2, user_pb2
from recalld.domain import Position
from recalld.errors import InvalidPageToken
from recalld.services.page_token import _POSITION, PageTokens

HERE = Position(datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC), UUID(int=2**127 + 5))
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

times = st.datetimes(timezones=st.just(UTC))
positions = st.builds(Position, times, st.uuids())


def sessions(namespace: str = "default", **arguments: object) -> PageTokens:
    return PageTokens(namespace, session_pb2.ListSessionsRequest(**arguments))  # type: ignore[arg-type]


def token(position: Position = HERE) -> str:
    return sessions().at_position(position)


def refused(tokens: PageTokens) -> str:
    with pytest.raises(InvalidPageToken) as raised:
        tokens.position()
    return raised.value.field


@given(positions)
def test_a_position_survives_its_token(position: Position) -> None:
    assert sessions(page_token=token(position)).position() == position


@given(st.integers(1, 2**62))
def test_a_seq_survives_its_token(seq: int) -> None:
    issued = PageTokens("default", memory_pb2.ListMessagesRequest(session_id="s")).at_seq(seq)
    request = memory_pb2.ListMessagesRequest(session_id="s", page_token=issued)
    assert PageTokens("default", request).seq() == seq


def test_no_token_is_the_start_and_the_end() -> None:
    assert sessions().position() is None
    assert sessions().seq() is None
    assert sessions().at_position(None) == ""
    assert sessions().at_seq(None) == ""


def test_the_page_size_may_differ() -> None:
    assert sessions(page_token=token(), page_size=7).position() == HERE


@pytest.mark.parametrize(
    "tokens",
    [
        sessions("other", page_token=token()),
        sessions(page_token=token(), show_deleted=True),
        sessions(page_token=token(), order_by=session_pb2.SESSION_ORDER_CREATE_TIME_DESC),
        sessions(page_token=token(), filter=session_pb2.SessionFilter(user_id="u")),
        PageTokens("default", user_pb2.ListUsersRequest(page_token=token())),
    ],
    ids=["namespace", "show_deleted", "order_by", "filter", "method"],
)
def test_a_token_of_another_listing_is_refused(tokens: PageTokens) -> None:
    assert refused(tokens) == "page_token"


def test_a_page_token_is_no_resume_token() -> None:
    assert refused(PageTokens("default", session_pb2.StreamSessionsRequest(resume_token=token()))) == "resume_token"


def test_the_same_metadata_filter_in_another_order_of_keys_is_the_same_listing() -> None:
    def filtered(keys: str, page_token: str = "") -> PageTokens:
        request = session_pb2.ListSessionsRequest(page_token=page_token)
        for key in keys:
            request.filter.metadata.fields[key].bool_value = True
        return PageTokens("default", request)

    keys = ALPHABET[:20]
    assert filtered(keys[::-1], filtered(keys).at_position(HERE)).position() == HERE


@given(st.integers(0, len(token()) - 1), st.sampled_from(ALPHABET))
def test_any_changed_character_is_noticed(index: int, character: str) -> None:
    damaged = token()[:index] + character + token()[index + 1 :]
    if damaged != token():
        assert refused(sessions(page_token=damaged)) == "page_token"


@pytest.mark.parametrize(
    "damaged",
    ["x", "====", "no token", "é", "AAAA", token()[:-1], token() + "A", token() + "=", token() + "\n", token()[1:]],
)
def test_what_is_no_token_is_refused(damaged: str) -> None:
    assert refused(sessions(page_token=damaged)) == "page_token"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_no_text_breaks_the_decoder(text: str) -> None:
    assert refused(sessions(page_token=text)) == "page_token"


@pytest.mark.parametrize("microseconds", [2**63 - 1, -(2**63)])
def test_a_forged_time_off_the_calendar_is_refused(microseconds: int) -> None:
    forged = sessions()._issue(_POSITION.pack(microseconds, bytes(16)))
    assert refused(sessions(page_token=forged)) == "page_token"


def test_a_message_token_is_no_session_token() -> None:
    seq_sized = sessions()._issue(bytes(8))
    assert refused(sessions(page_token=seq_sized)) == "page_token"


def test_tokens_are_url_safe_and_short() -> None:
    assert len(token()) <= 64
    assert set(token()) <= set(ALPHABET)


def test_standard_base64_is_no_spelling_of_a_token() -> None:
    position = next(
        place
        for place in (Position(HERE.time + timedelta(microseconds=n), HERE.key) for n in range(1000))
        if "-" in token(place)
    )
    assert refused(sessions(page_token=token(position).replace("-", "+"))) == "page_token"


def kinds() -> list[Message]:
    return [
        session_pb2.ListSessionsRequest(),
        session_pb2.StreamSessionsRequest(),
        user_pb2.ListUsersRequest(),
        user_pb2.StreamUsersRequest(),
        memory_pb2.ListMessagesRequest(),
    ]


def test_every_listing_has_tokens_of_its_own() -> None:
    assert len({PageTokens("default", request).at_position(HERE) for request in kinds()}) == len(kinds())
