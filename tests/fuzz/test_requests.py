"""Requests of every method with hostile values in their fields."""

from __future__ import annotations

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall.v1.memory_pb2 import (
    MESSAGE_ORDER_SEQ_DESC,
    AddMemoryRequest,
    GetMemoryRequest,
    GetMemoryResponse,
    ListMessagesRequest,
    ListMessagesResponse,
    Message,
    SearchMemoryRequest,
)
from recall.v1.session_pb2 import (
    CreateSessionRequest,
    GetSessionRequest,
    GetSessionResponse,
    ListSessionsRequest,
    ListSessionsResponse,
    SessionFilter,
)
from tests.fuzz import values
from tests.fuzz.account import plain
from tests.fuzz.conftest import examples
from tests.fuzz.methods import METHODS, Method, method_of
from tests.fuzz.mutations import delimited, mutated, nested_struct
from tests.fuzz.oracle import INVALID
from tests.fuzz.requests import forged_tokens, requests, token_field
from tests.fuzz.sweep import good, sweep
from tests.fuzz.target import Target

pytestmark = pytest.mark.timeout(600)
OK = grpc.StatusCode.OK
# What the good request of each method meets: what it creates may be there already, what it undeletes be live.
GOOD_CODES = (OK, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.FAILED_PRECONDITION)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whatever_a_field_holds_a_request_is_answered_by_the_contract(method: Method, target: Target) -> None:
    target.restock()
    assert target.call(good(method.request)).code in GOOD_CODES
    refused = sum(target.call(request).code is INVALID for request in sweep(method.request))
    assert refused
    target.lives()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whatever_its_fields_hold_a_request_is_answered_by_the_contract(method: Method, target: Target) -> None:
    codes = set()

    @examples(40)
    @given(requests(method.request))
    def attack(data: bytes) -> None:
        codes.add(target.ask(method, data).code)

    target.restock()
    attack()
    target.lives()
    assert OK in codes  # otherwise hardly anything would get past validation


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_whatever_its_bytes_are_a_request_is_answered_by_the_contract(method: Method, target: Target) -> None:
    understood = set()

    @examples(60)
    @given(mutated(method.request))
    def attack(data: bytes) -> None:
        answer = target.ask(method, data)
        understood.add(not (answer.code is INVALID and answer.violation == "request"))

    attack()
    target.lives()
    assert understood == {True, False}


@pytest.mark.parametrize("levels", [33, 34, 50, 1000, 10_000])
def test_nesting_past_every_limit_is_refused(levels: int, target: Target) -> None:
    data = CreateSessionRequest(session_id="deep").SerializeToString() + delimited(3, nested_struct(levels))
    assert target.ask(method_of(CreateSessionRequest()), data).code is INVALID
    assert target.call(GetSessionRequest(session_id="deep")).code is grpc.StatusCode.NOT_FOUND


# Of objects no more than 33 levels fit into what protobuf parses.
@pytest.mark.parametrize(("levels", "lists"), [(32, False), (33, False), (32, True), (33, True), (40, True)])
def test_metadata_is_nested_32_levels_or_refused(levels: int, lists: bool, target: Target) -> None:
    document = values.nested(levels, lists=lists)
    created = target.call(CreateSessionRequest(metadata=values.struct_of(document)))
    assert created.code is (OK if levels <= 32 else INVALID)


@examples(100)
@given(content=values.contents, key=st.sampled_from(values.STORABLE), value=st.sampled_from(values.STORABLE))
def test_every_text_comes_back_as_it_was_sent(target: Target, content: str, key: str, value: str) -> None:
    message = Message(role="user", content=content, metadata=values.struct_of({key: [value]}))
    assert target.call(AddMemoryRequest(session_id="literal", messages=[message])).code is OK
    answer = target.call(GetMemoryRequest(session_id="literal", last_n=1))
    [found] = GetMemoryResponse.FromString(answer.responses[0]).messages
    assert found.content.encode() == content.encode()
    assert plain(found.metadata) == {key: [value]}


@pytest.mark.parametrize("text", values.STORABLE)
def test_a_text_finds_what_has_it_and_nothing_else(text: str, target: Target) -> None:
    """No character means anything to a filter or an id: not %, not _, not a quote."""
    session_id = f"found/{text}"
    created = target.call(CreateSessionRequest(session_id=session_id, metadata=values.struct_of({"exactly": text})))
    if created.code is INVALID:  # a control character
        assert created.violation == "session_id"
        return
    wanted = SessionFilter(metadata=values.struct_of({"exactly": text}))
    listed = ListSessionsResponse.FromString(target.call(ListSessionsRequest(filter=wanted)).responses[0])
    assert [session.session_id for session in listed.sessions] == [session_id]
    got = GetSessionResponse.FromString(target.call(GetSessionRequest(session_id=session_id)).responses[0])
    assert got.session.session_id.encode() == session_id.encode()


@examples(100)
@given(query=values.hostile_texts)
def test_a_search_takes_any_query(target: Target, query: str) -> None:
    answer = target.call(SearchMemoryRequest(query=query, roles=["user", "%"]))
    good = "\0" not in query and query.strip() and len(query) <= 4096
    assert answer.code is (OK if good else INVALID)


@pytest.mark.parametrize("method", [method for method in METHODS if token_field(method.request)], ids=str)
def test_a_forged_token_leads_nowhere_else(method: Method, target: Target) -> None:
    """Whoever computes its check can skip rows, and name no place that there is not."""
    name = token_field(method.request)
    assert name
    codes = set()
    for token in forged_tokens(good(method.request)):
        request = good(method.request)
        setattr(request, name, token)
        answer = target.call(request)
        codes.add(answer.code)
        assert answer.code is OK or answer.reason == "INVALID_PAGE_TOKEN"
    assert codes == {OK, INVALID}


def test_a_token_of_one_listing_is_none_of_another(target: Target) -> None:
    for number in range(3):
        target.call(AddMemoryRequest(session_id="pages", messages=[Message(role="user", content=str(number))]))
    first = target.call(ListMessagesRequest(session_id="pages", page_size=1))
    token = ListMessagesResponse.FromString(first.responses[0]).next_page_token
    assert target.call(ListMessagesRequest(session_id="pages", page_token=token)).code is OK
    for other in (
        ListMessagesRequest(session_id="live", page_token=token),
        ListMessagesRequest(session_id="pages", page_token=token, order=MESSAGE_ORDER_SEQ_DESC),
        ListSessionsRequest(page_token=token),
    ):
        assert target.call(other).reason == "INVALID_PAGE_TOKEN"
