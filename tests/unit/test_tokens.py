"""JSON Web Tokens: what a good one says, when it ends, and what is remembered of it."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
import pytest

from recalld.access import Principal, Scope, tokens
from recalld.access.tokens import Claims, TokenAuthenticator, _Key
from recalld.errors import CredentialExpired, CredentialInvalid
from tests.access import (
    CALL,
    CLAIMS,
    HS256,
    HS256_SECRET,
    Clock,
    Signer,
    accepting,
    assembled,
    claims,
    es256,
    refuse,
    rs256,
)

LEEWAY = 30


# --- good ones


@pytest.mark.parametrize("signer", [HS256, rs256(), es256()], ids=lambda signer: signer.algorithm)
def test_a_token_is_its_namespace_scopes_and_subject(signer: Signer) -> None:
    expected = Principal("acme", frozenset({Scope.READ, Scope.WRITE}), "alice")
    authenticator = accepting(signer)
    assert authenticator.recognises(signer.token())
    assert authenticator.authenticate(signer.token(), CALL) == expected


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("read", "read"),
        ("read write admin", "admin read write"),
        (" admin  read ", "admin read"),
        (["write", "admin"], "admin write"),
        ("", ""),
        ([], ""),
        (None, ""),
        (7, ""),
        ({"read": True}, ""),
    ],
    ids=repr,
)
def test_scopes_are_words_or_a_list_and_nothing_else_gives_any(value: object, scopes: str) -> None:
    found = accepting(HS256).authenticate(HS256.token(scope=value), CALL).scopes
    assert sorted(scope.value for scope in found) == scopes.split()


@pytest.mark.parametrize(
    ("value", "scopes"),
    [
        ("superuser", ""),
        ("openid read", "read"),
        (["read", "superuser"], "read"),
        ([["read"]], ""),
        ([{}, None], ""),
        ("READ", ""),
        ("reader", ""),
    ],
    ids=repr,
)
def test_words_that_are_no_scopes_of_ours_give_nothing(value: object, scopes: str) -> None:
    found = accepting(HS256).authenticate(HS256.token(scope=value), CALL).scopes
    assert sorted(scope.value for scope in found) == scopes.split()


def test_the_claims_of_namespace_and_scopes_can_have_other_names() -> None:
    names = Claims(CLAIMS.issuer, CLAIMS.audience, "https://acme.example/tenant", "permissions")
    said: dict[str, Any] = {"https://acme.example/tenant": "beta", "permissions": ["admin"]}
    token = HS256.token(**said)
    principal = accepting(HS256, names=names).authenticate(token, CALL)
    assert (principal.namespace, principal.scopes) == ("beta", frozenset({Scope.ADMIN}))
    refuse(accepting(HS256, names=names), HS256.token())


def test_one_of_several_audiences_is_enough() -> None:
    token = HS256.token(aud=["elsewhere", CLAIMS.audience])
    assert accepting(HS256).authenticate(token, CALL).namespace == "acme"


@pytest.mark.parametrize(
    "headers", [{"jku": "http://127.0.0.1:9/keys"}, {"x5u": "http://127.0.0.1:9/chain"}, {"typ": "at+jwt"}], ids=repr
)
def test_what_else_a_header_says_changes_nothing(headers: dict[str, Any]) -> None:
    assert accepting(HS256).authenticate(HS256.token(headers=headers), CALL).namespace == "acme"


def test_a_long_subject_is_cut() -> None:
    assert accepting(HS256).authenticate(HS256.token(sub="a" * 5000), CALL).name == "a" * 256


@pytest.mark.parametrize("text", ["", "abc", "a.b", "a.b.c.d", "a.b.c.d.e", "recalld_0123"], ids=repr)
def test_other_credentials_are_left_to_others(text: str) -> None:
    assert not accepting(HS256).recognises(text)


# --- claims


def signed_with(claim: str, value: object) -> str:
    """A token with a claim that is not as it should be. PyJWT would not sign some of them."""
    return assembled({"alg": "HS256"}, {**claims(), claim: value}, HS256.sign)


@pytest.mark.parametrize("claim", ["exp", "iss", "aud", "namespace"], ids=repr)
def test_a_token_without_a_claim_is_refused(claim: str) -> None:
    refuse(accepting(HS256), HS256.token(**{claim: None}))


WRONG_CLAIMS: dict[str, list[Any]] = {
    "iss": ["", "https://issuer.example/", "HTTPS://ISSUER.EXAMPLE", "https://issuer.exampl", "https://evil.example"],
    "aud": ["", "Recalld", "recall", "recalld ", [], ["elsewhere"], ["recall", "d"]],
    "namespace": [
        "",
        " ",
        "a b",
        "a" * 65,
        "a\0",
        "a\n",
        "a\u00a0b",
        "\u200b",
        "\x1b[31m",
        7,
        0,
        True,
        ["acme"],
        {"a": 1},
    ],
}
ODD_CLAIMS: dict[str, list[Any]] = {
    "iss": [7, ["https://issuer.example"], {}, True],
    "aud": [7, [7], {"recalld": 1}, [["recalld"]], True],
    "exp": ["soon", [], {}, True, False, "", "1e3"],
    "nbf": ["soon", [], {}],
    "iat": ["soon", [], {}],
    "sub": [7, ["alice"], {}],
}


@pytest.mark.parametrize(
    ("claim", "value"), [(name, value) for name, values in WRONG_CLAIMS.items() for value in values], ids=repr
)
def test_a_claim_that_says_something_else_is_refused(claim: str, value: object) -> None:
    refuse(accepting(HS256), signed_with(claim, value))


@pytest.mark.parametrize(
    ("claim", "value"), [(name, value) for name, values in ODD_CLAIMS.items() for value in values], ids=repr
)
def test_a_claim_of_another_type_is_refused(claim: str, value: object) -> None:
    token = signed_with(claim, value)
    with pytest.raises((CredentialInvalid, CredentialExpired)):
        accepting(HS256).authenticate(token, CALL)


BEYOND = ["Infinity", "-Infinity", "NaN", "1e999", "9" * 400, "9" * 5000]


@pytest.mark.parametrize("number", BEYOND, ids=[number[:9] + str(len(number)) for number in BEYOND])
@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"], ids=repr)
def test_a_time_beyond_all_numbers_is_refused(claim: str, number: str) -> None:
    said = {name: value for name, value in claims().items() if name != claim}
    payload = json.dumps(said)[:-1] + f', "{claim}": {number}}}'
    with pytest.raises((CredentialInvalid, CredentialExpired)):
        accepting(HS256).authenticate(assembled({"alg": "HS256"}, payload.encode(), HS256.sign), CALL)


def test_the_longest_namespace_is_accepted() -> None:
    assert accepting(HS256).authenticate(HS256.token(namespace="ä" * 64), CALL).namespace == "ä" * 64


# --- time. PyJWT looks at the real clock, so that these keep a few seconds away from the edge.


def test_an_expired_token_is_told_so_beyond_the_leeway() -> None:
    now = int(time.time())
    authenticator = accepting(HS256)
    assert authenticator.authenticate(HS256.token(exp=now - LEEWAY + 10), CALL)
    with pytest.raises(CredentialExpired):
        authenticator.authenticate(HS256.token(exp=now - LEEWAY), CALL)


@pytest.mark.parametrize("claim", ["nbf", "iat"], ids=repr)
def test_a_token_from_the_future_is_refused_beyond_the_leeway(claim: str) -> None:
    now = int(time.time())
    authenticator = accepting(HS256)
    assert authenticator.authenticate(signed_with(claim, now + LEEWAY - 10), CALL)
    refuse(authenticator, signed_with(claim, now + LEEWAY + 60))


def test_a_forged_token_is_not_told_that_it_expired() -> None:
    refuse(accepting(rs256()), rs256(number=1).token(exp=1))


# --- what is remembered


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens whose signatures were checked."""
    checked: list[str] = []
    decode = jwt.decode

    def counting(token: str, *arguments: Any, **named: Any) -> Any:
        checked.append(token)
        return decode(token, *arguments, **named)

    monkeypatch.setattr(jwt, "decode", counting)
    return checked


def test_a_token_is_verified_once(verified: list[str]) -> None:
    authenticator, token = accepting(rs256()), rs256().token()
    for _ in range(10):
        authenticator.authenticate(token, CALL)
    assert verified == [token]


def test_a_forged_token_is_not_remembered(verified: list[str]) -> None:
    authenticator = accepting(rs256())
    refuse(authenticator, rs256(number=1).token())
    assert len(verified) == 2
    assert not authenticator._known


def test_a_remembered_token_expires_at_the_edge_of_the_leeway(verified: list[str]) -> None:
    now = int(time.time())
    clock = Clock(now)
    authenticator, token = accepting(HS256, clock=clock), HS256.token(exp=now + 300)
    authenticator.authenticate(token, CALL)
    clock.now = now + 300 + LEEWAY - 0.001
    authenticator.authenticate(token, CALL)
    clock.advance(0.001)
    with pytest.raises(CredentialExpired):
        authenticator.authenticate(token, CALL)
    assert verified == [token]


def test_a_remembered_token_ends_with_its_key() -> None:
    keys: dict[str | None, _Key] = {"a": _Key("RS256", rs256().key.public_key())}
    authenticator = TokenAuthenticator(lambda: keys, CLAIMS)
    token = rs256("a").token()
    authenticator.authenticate(token, CALL)
    keys = {"b": _Key("RS256", rs256(number=1).key.public_key())}
    refuse(authenticator, token)
    assert authenticator.authenticate(rs256("b", number=1).token(), CALL)


def test_a_remembered_token_is_not_mistaken_for_one_that_begins_alike() -> None:
    authenticator, token = accepting(HS256), HS256.token()
    authenticator.authenticate(token, CALL)
    for other in (token[:-1], f"{token}A", token.swapcase()):
        refuse(authenticator, other)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_MOST_KNOWN", 4)
    authenticator = accepting(HS256)
    for number in range(9):
        authenticator.authenticate(HS256.token(jti=str(number)), CALL)
        assert 0 < len(authenticator._known) <= 4


def test_the_secret_is_compared_whole() -> None:
    for secret in (HS256_SECRET[:-1] + "?", HS256_SECRET.upper()):
        refuse(accepting(HS256), Signer("HS256", secret).token())
