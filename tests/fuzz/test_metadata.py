"""Hostile call metadata, and forged credentials of every kind."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import jwt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import SecretStr

from recall.v1.admin_pb2 import PurgeRequest
from recall.v1.memory_pb2 import AddMemoryRequest, GetMemoryRequest, Message
from tests.fuzz import http2, oracle
from tests.fuzz.conftest import examples
from tests.fuzz.http2 import Connection, call_headers, frame, grpc_message, header_block
from tests.fuzz.methods import METHODS, Method, method_of
from tests.fuzz.target import DEADLINE, Metadata, Target, ask, attacked
from tests.postgres import Databases

KIB = 1024
OK = grpc.StatusCode.OK

# grpcio sends no other characters; what it does not send, tests/fuzz/test_sockets.py sends by hand.
_keys = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1, max_size=20).filter(
    lambda key: not key.startswith(("grpc-", "-")) and not key.endswith("-bin")
)
_values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60)
_texts = st.tuples(_keys, _values)
_binaries = st.tuples(_keys.map(lambda key: f"{key}-bin"), st.binary(max_size=60))
_KNOWN = ["user-agent", "x-forwarded-for", "traceparent", "x-request-id", "cookie", "baggage", "via"]
_known = st.tuples(st.sampled_from(_KNOWN), _values)


@examples(50)
@given(metadata=st.lists(_texts | _binaries | _known, max_size=12), method=st.sampled_from(METHODS))
def test_metadata_that_means_nothing_changes_nothing(metadata: Metadata, method: Method, target: Target) -> None:
    assert target.ask(method, b"\xff", metadata).violation == "request"
    assert target.call(GetMemoryRequest(session_id="live"), metadata).code is OK


@pytest.mark.parametrize("size", [4 * KIB, 7 * KIB])
@pytest.mark.parametrize("key", ["x-large", "x-large-bin", "authorization"])
def test_metadata_within_the_limit_is_taken(key: str, size: int, target: Target) -> None:
    # A binary value goes over the wire as base64.
    value: Any = b"\xff" * (size * 3 // 4) if key.endswith("-bin") else "x" * size
    assert target.call(GetMemoryRequest(session_id="live"), [(key, value)]).code is OK


@pytest.mark.parametrize("parts", [1, 100])
def test_metadata_past_the_limit_is_refused_before_the_call(parts: int, target: Target) -> None:
    metadata = [(f"x-large-{part}", "x" * (17 * KIB // parts)) for part in range(parts)]
    request = AddMemoryRequest(session_id="too large", messages=[Message(role="user")])
    answer = ask(target.channel, method_of(request), request.SerializeToString(), metadata)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    target.lives()


def test_metadata_between_the_limits_is_taken_or_refused_whole(target: Target) -> None:
    """By chance, as gRPC has it: the nearer to the hard limit, the more likely refused."""
    request = GetMemoryRequest(session_id="live")
    for size in range(8 * KIB, 17 * KIB, KIB):
        answer = ask(target.channel, method_of(request), request.SerializeToString(), [("x-large", "x" * size)])
        assert answer.code in (OK, grpc.StatusCode.RESOURCE_EXHAUSTED)
    target.lives()


@pytest.mark.parametrize("size", [4 * KIB * KIB + 1, 16 * KIB * KIB])
def test_a_request_past_the_limit_is_refused_before_the_call(size: int, target: Target) -> None:
    answer = ask(target.channel, METHODS[0], b"\0" * size)
    assert answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    target.lives()


# --- forged credentials


def _token(header: Any, claims: Any, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


_SECRET = "s" * 64
_CLAIMS = {"sub": "root", "iss": "recalld", "aud": "recalld", "exp": 4_102_444_800, "scope": "read write admin"}
_CLAIMS["namespace"] = "default"
_SIGNED = b"\x01" * 32
FORGED = {
    "empty": "",
    "no credential": "Bearer",
    "a space": "Bearer ",
    "spaces": "Bearer      ",
    "no scheme": "x" * 40,
    "another scheme": "Basic " + base64.b64encode(b"root:root").decode(),
    "two schemes": "Bearer Bearer x",
    "two credentials": "Bearer a, Bearer b",
    "lower case": "bearer x",
    "a word": "Bearer null",
    "sql": "Bearer ' or 1=1 --",
    "a pattern": "Bearer %",
    "dots": "Bearer ...",
    "two dots": "Bearer ..",
    "of the form of a key": "Bearer recalld_" + "0" * 12 + "_" + "0" * 43,
    "alg none": "Bearer " + _token({"alg": "none", "typ": "JWT"}, _CLAIMS),
    "alg None": "Bearer " + _token({"alg": "nOnE"}, _CLAIMS, _SIGNED),
    "alg of no kind": "Bearer " + _token({"alg": {"a": 1}}, _CLAIMS, _SIGNED),
    "no alg": "Bearer " + _token({}, _CLAIMS, _SIGNED),
    "hs256 by guess": "Bearer " + _token({"alg": "HS256"}, _CLAIMS, _SIGNED),
    "rs256 by guess": "Bearer " + _token({"alg": "RS256"}, _CLAIMS, b"\x01" * 256),
    "a key of its own": "Bearer " + _token({"alg": "HS256", "jwk": {"kty": "oct", "k": "AQ"}}, _CLAIMS, _SIGNED),
    "a key from elsewhere": "Bearer " + _token({"alg": "RS256", "jku": "http://127.0.0.1:9/"}, _CLAIMS, _SIGNED),
    "a path as key id": "Bearer " + _token({"alg": "HS256", "kid": "../../../dev/null"}, _CLAIMS, _SIGNED),
    "a critical header": "Bearer " + _token({"alg": "HS256", "crit": ["exp"]}, _CLAIMS, _SIGNED),
    "expired": "Bearer " + _token({"alg": "HS256"}, _CLAIMS | {"exp": 1}, _SIGNED),
    "a huge exp": "Bearer " + _token({"alg": "HS256"}, _CLAIMS | {"exp": 1e308}, _SIGNED),
    "exp of no kind": "Bearer " + _token({"alg": "HS256"}, _CLAIMS | {"exp": []}, _SIGNED),
    "claims of no kind": "Bearer " + _token({"alg": "HS256"}, [1], _SIGNED),
    "header of no kind": "Bearer " + _token(None, _CLAIMS, _SIGNED),
    "deep": "Bearer " + base64.urlsafe_b64encode(b"[" * 3000).decode().rstrip("=") + ".e30.AAAA",
    "long": "Bearer " + "x" * (7 * KIB),
    "of dots": "Bearer " + "." * (7 * KIB),
}

# Servers to forge credentials for, by their settings. With authentication off the values mean nothing; with `auth` each
# must end in one of oracle.REFUSALS.
SERVERS: dict[str, dict[str, Any]] = {
    "open": {},
    "keys": {"auth": True},
    "tokens": {"auth": True, "jwt_secret": SecretStr(_SECRET), "jwt_issuer": "recalld", "jwt_audience": "recalld"},
}


@pytest.fixture(scope="module", params=SERVERS, ids=str)
def guarded(request: pytest.FixtureRequest, databases: Databases) -> Iterator[tuple[Target, bool]]:
    """A target, and whether it checks credentials."""
    settings = SERVERS[request.param]
    with databases.copy() as url, attacked(url, **settings) as target:
        yield target, bool(settings.get("auth"))


def _forge(guarded: tuple[Target, bool], metadata: Metadata) -> None:
    target, checks = guarded
    for request in (
        AddMemoryRequest(session_id="forged", messages=[Message(role="user")]),
        GetMemoryRequest(session_id="forged"),
        PurgeRequest(dry_run=True),
    ):
        if not checks:
            assert target.call(request, metadata).code is OK
            continue
        answer = ask(target.channel, method_of(request), request.SerializeToString(), metadata)
        oracle.check(answer, [], refusals=True)
        assert answer.code is oracle.UNAUTHENTICATED
        assert answer.reason in oracle.REFUSALS[answer.code]
    target.balance()  # of a guarded server: that nothing was written


@pytest.mark.parametrize("credential", FORGED.values(), ids=FORGED.keys())
def test_a_forged_credential_opens_nothing(credential: str, guarded: tuple[Target, bool]) -> None:
    _forge(guarded, [("authorization", credential)])


@pytest.mark.parametrize("first", ["", "Bearer a", "Basic YTpi"])
def test_nor_do_several(first: str, guarded: tuple[Target, bool]) -> None:
    _forge(guarded, [("authorization", first), ("authorization", "Bearer b"), ("authorization", "Bearer b")])


def test_nor_does_a_header_of_another_name(guarded: tuple[Target, bool]) -> None:
    _forge(guarded, [("authorization-bin", b"Bearer \xff"), ("proxy-authorization", "Bearer x"), ("x-api-key", "x")])


@examples(30)
@given(credential=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=80))
def test_nor_does_any_text(credential: str, guarded: tuple[Target, bool]) -> None:
    _forge(guarded, [("authorization", f"Bearer {credential}")])


_BYTES = [b"Bearer\tx", b"Bearer \xff\xfe\x00", b"Bearer \xc3\x28", b"Bearer x\ny", b"\0", b"Bearer \0"]


@pytest.mark.parametrize("value", _BYTES)
def test_nor_do_bytes_that_no_client_library_sends(value: bytes, guarded: tuple[Target, bool]) -> None:
    target, checks = guarded
    add = method_of(AddMemoryRequest())
    request = AddMemoryRequest(session_id="forged by hand", messages=[Message(role="user")])
    if not checks:
        return  # tests/fuzz/test_sockets.py sends them where they mean nothing
    with Connection(target.server.address, DEADLINE) as connection:
        connection.open()
        block = header_block(call_headers(add.path.encode(), (b"authorization", value)))
        connection.send(frame(http2.HEADERS, http2.END_HEADERS, 1, block))
        connection.send(frame(http2.DATA, http2.END_STREAM, 1, grpc_message(request.SerializeToString())))
        answer = connection.answer(1)
    assert answer is not None
    assert b"grpc-status\x0216" in answer
    assert b"the credential is not valid here" in answer
    target.balance()


# --- a genuine one


@pytest.fixture(scope="module")
def tokens(databases: Databases) -> Iterator[Target]:
    """A target that takes tokens."""
    with databases.copy() as url, attacked(url, **SERVERS["tokens"]) as target:
        yield target


_GENUINE = jwt.encode(_CLAIMS, _SECRET)


def _with(token: str, target: Target) -> oracle.Answer:
    request = GetMemoryRequest(session_id="genuine")
    metadata = [("authorization", f"Bearer {token}")]
    return ask(target.channel, method_of(request), request.SerializeToString(), metadata)


def test_a_genuine_token_opens(tokens: Target) -> None:
    """The control of what is refused."""
    assert _with(_GENUINE, tokens).code is OK


# The very last character has bits to spare, which mean nothing.
@examples(100)
@given(place=st.integers(0, len(_GENUINE) - 2), character=st.sampled_from("AQgwxz059-_."))
def test_one_character_of_it_changed_opens_nothing(place: int, character: str, tokens: Target) -> None:
    assume(_GENUINE[place] != character)
    answer = _with(_GENUINE[:place] + character + _GENUINE[place + 1 :], tokens)
    oracle.check(answer, [], refusals=True)
    assert answer.code is oracle.UNAUTHENTICATED


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": "soon"},
        {"exp": None},
        {"exp": [1]},
        {"aud": "another"},
        {"aud": {}},
        {"iss": "another"},
        {"nbf": 4_102_444_800},
        {"nbf": "later"},
        {"namespace": ""},
        {"namespace": 1},
        {"namespace": "a\0b"},
        {"namespace": "x" * 1000},
        {"namespace": "\ud800"},
        {"namespace": ["default"]},
    ],
    ids=str,
)
def test_a_token_that_says_something_odd_opens_nothing(claims: dict[str, Any], tokens: Target) -> None:
    token = jwt.encode({key: value for key, value in (_CLAIMS | claims).items() if value is not None}, _SECRET)
    answer = _with(token, tokens)
    oracle.check(answer, [], refusals=True)
    assert answer.code is oracle.UNAUTHENTICATED


@pytest.mark.parametrize("scope", ["everything", "READ", [[]], [None], {"read": True}, 1], ids=str)
def test_a_token_that_names_no_scope_of_ours_opens_nothing(scope: object, tokens: Target) -> None:
    answer = _with(jwt.encode(_CLAIMS | {"scope": scope}, _SECRET), tokens)
    oracle.check(answer, [], refusals=True)
    assert answer.code is grpc.StatusCode.PERMISSION_DENIED
