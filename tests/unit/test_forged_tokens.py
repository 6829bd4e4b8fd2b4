"""Forged JSON Web Tokens: every way that anybody has thought of, and none gets anywhere."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.access import (
    CALL,
    HS256,
    Signer,
    accepting,
    assembled,
    claims,
    es256,
    refuse,
    rs256,
    segment,
)

SIGNERS = {"HS256": HS256, "RS256": rs256(), "ES256": es256()}


@pytest.fixture(params=list(SIGNERS.values()), ids=list(SIGNERS))
def signer(request: pytest.FixtureRequest) -> Signer:
    found: Signer = request.param
    return found


def hmac_by(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda text: hmac.new(secret, text, hashlib.sha256).digest()


def unsigned(text: bytes) -> bytes:
    return b""


# --- algorithms


def test_a_token_made_by_hand_is_as_good(signer: Signer) -> None:
    """The control of all forgeries below: they are made the same way."""
    token = assembled({"alg": signer.algorithm}, claims(), signer.sign)
    assert accepting(signer).authenticate(token, CALL).namespace == "acme"


@pytest.mark.parametrize(
    "algorithm",
    ["none", "None", "nOnE", "NONE", "", None, "HS384", "RS384", "PS256", "ES384", ["HS256"], 0, {}],
    ids=repr,
)
@pytest.mark.parametrize("sign", ["nothing", "well"], ids=repr)
def test_another_algorithm_is_refused_whatever_the_signature(signer: Signer, algorithm: object, sign: str) -> None:
    token = assembled({"alg": algorithm, "typ": "JWT"}, claims(), unsigned if sign == "nothing" else signer.sign)
    refuse(accepting(signer), token)


def test_a_header_without_an_algorithm_is_refused(signer: Signer) -> None:
    refuse(accepting(signer), assembled({"typ": "JWT"}, claims(), signer.sign))


@pytest.mark.parametrize("public", [rs256(), es256()], ids=["RSA", "EC"])
@pytest.mark.parametrize("form", ["PEM", "PEM without its last line break", "DER", "text of the PEM"], ids=repr)
def test_a_public_key_is_no_secret(public: Signer, form: str) -> None:
    pem = public.public_key()
    secret = {
        "PEM": pem,
        "PEM without its last line break": pem.rstrip(b"\n"),
        "DER": public.public_key(Encoding.DER),
        "text of the PEM": b"".join(pem.splitlines()[1:-1]),
    }[form]
    for algorithm in ("HS256", public.algorithm):
        refuse(accepting(public), assembled({"alg": algorithm}, claims(), hmac_by(secret)))


def test_a_signature_by_another_kind_of_key_is_refused() -> None:
    for known in SIGNERS.values():
        for other in SIGNERS.values():
            if known is not other:
                refuse(accepting(known), assembled({"alg": other.algorithm}, claims(), other.sign))
                refuse(accepting(known), assembled({"alg": known.algorithm}, claims(), other.sign))


@pytest.mark.parametrize("known", [rs256(), es256()], ids=["RSA", "EC"])
def test_a_key_that_the_token_brings_along_is_not_used(known: Signer) -> None:
    stranger = rs256(number=1) if known.algorithm == "RS256" else es256(number=1)
    for headers in (
        {"jwk": stranger.jwk()},
        {"jwk": stranger.jwk(), "kid": None},
        {"x5c": [segment(stranger.public_key(Encoding.DER)).decode()]},
        {"jku": "file:///dev/null"},
    ):
        refuse(accepting(known), assembled({"alg": known.algorithm, **headers}, claims(), stranger.sign))


@pytest.mark.parametrize("length", [0, 1, 32, 63, 64, 65, 128], ids=repr)
@pytest.mark.parametrize("byte", [b"\x00", b"\xff", b"\x01"], ids=repr)
def test_an_es256_signature_of_nothing_is_refused(length: int, byte: bytes) -> None:
    """All zeros passed in Java once (CVE-2022-21449)."""
    refuse(accepting(es256()), assembled({"alg": "ES256"}, claims(), lambda _: byte * length))


def test_an_es256_signature_in_der_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    refuse(
        accepting(es256()), assembled({"alg": "ES256"}, claims(), lambda text: es256().key.sign(text, ECDSA(SHA256())))
    )


# --- which key


@pytest.mark.parametrize("key_id", [None, "c", "A", "", "a ", "../a", "/dev/null", "a' or '1'='1", "a\0"], ids=repr)
def test_with_several_keys_the_token_must_name_its_own(key_id: str | None) -> None:
    first, second = rs256("a"), rs256("b", number=1)
    authenticator = accepting(first, second)
    assert authenticator.authenticate(first.token(), CALL)
    assert authenticator.authenticate(second.token(), CALL)
    header = {"alg": "RS256"} if key_id is None else {"alg": "RS256", "kid": key_id}
    for each in (first, second):
        refuse(authenticator, assembled(header, claims(), each.sign))
    refuse(authenticator, assembled({"alg": "RS256", "kid": "b"}, claims(), first.sign))


@pytest.mark.parametrize("key_id", [0, 1.5, True, ["a"], {"a": 1}, [["a"]]], ids=repr)
def test_a_key_id_that_is_no_text_is_refused(key_id: object) -> None:
    for known in (rs256("a"), rs256()):
        refuse(accepting(known), assembled({"alg": "RS256", "kid": key_id}, claims(), known.sign))


def test_the_only_key_serves_tokens_that_name_none_and_if_nameless_all() -> None:
    named, nameless = accepting(rs256("a")), accepting(rs256())
    assert named.authenticate(rs256().token(), CALL)
    assert nameless.authenticate(rs256("whatever").token(), CALL)
    refuse(named, rs256("b").token())


# --- form


GOOD = HS256.token()
HEADER, PAYLOAD, SIGNATURE = GOOD.split(".")
BROKEN = {
    "only dots": "..",
    "no header": f".{PAYLOAD}.{SIGNATURE}",
    "no payload": f"{HEADER}..{SIGNATURE}",
    "no signature": f"{HEADER}.{PAYLOAD}.",
    "header cut": f"{HEADER[:-1]}.{PAYLOAD}.{SIGNATURE}",
    "payload cut": f"{HEADER}.{PAYLOAD[:-1]}.{SIGNATURE}",
    "signature cut": f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}",
    "signature longer": f"{HEADER}.{PAYLOAD}.{SIGNATURE}AAAA",
    "segments swapped": f"{PAYLOAD}.{HEADER}.{SIGNATURE}",
    "space in it": f"{HEADER}. {PAYLOAD}.{SIGNATURE}",
    "line break behind it": f"{GOOD}\n",
    "another payload": f"{HEADER}.{segment(json.dumps(claims(namespace='other')).encode()).decode()}.{SIGNATURE}",
    "not ASCII": f"{HEADER}.{PAYLOAD}.ä",
    "NUL": f"{HEADER}.{PAYLOAD}.{SIGNATURE}\0",
    "no base64": "!!!.???.###",
}


@pytest.mark.parametrize("token", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_token_is_refused(token: str) -> None:
    refuse(accepting(HS256), token)


def test_a_signature_spelt_in_another_way_is_refused() -> None:
    """The last character of a segment has bits that mean nothing; a token must have one spelling."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = alphabet[alphabet.index(SIGNATURE[-1]) ^ 1]
    refuse(accepting(HS256), f"{HEADER}.{PAYLOAD}.{SIGNATURE[:-1]}{twin}")


NO_OBJECTS = {
    "nothing": b"",
    "null": b"null",
    "number": b"7",
    "text": b'"text"',
    "list": b"[]",
    "half an object": b"{",
    "two objects": b"{}{}",
    "no UTF-8": b"\xff\xfe",
    "deep list": b"[" * 9000,
    "deep object": b'{"a":' * 2000,
}


@pytest.mark.parametrize("text", NO_OBJECTS.values(), ids=NO_OBJECTS.keys())
@pytest.mark.parametrize("part", ["header", "payload"], ids=repr)
def test_a_part_that_is_no_json_object_is_refused(part: str, text: bytes) -> None:
    header, payload = (text, claims()) if part == "header" else ({"alg": "HS256"}, text)
    refuse(accepting(HS256), assembled(header, payload, HS256.sign))


@pytest.mark.parametrize("depth", [10_000, 100_000], ids=repr)
def test_a_deep_claim_is_refused(depth: int) -> None:
    refuse(accepting(HS256), deep(depth))


def test_a_claim_that_is_not_too_deep_gives_no_scope() -> None:
    assert accepting(HS256).authenticate(deep(100), CALL).scopes == frozenset()


def deep(depth: int) -> str:
    payload = json.dumps(claims())[:-1] + ', "scope": ' + "[" * depth + "]" * depth + "}"
    return assembled({"alg": "HS256"}, payload.encode(), HS256.sign)


def test_of_a_claim_that_is_there_twice_the_last_counts_as_for_whoever_signed_it() -> None:
    payload = b'{"namespace": "first", ' + json.dumps(claims(namespace="last")).encode()[1:]
    token = assembled({"alg": "HS256"}, payload, HS256.sign)
    assert accepting(HS256).authenticate(token, CALL).namespace == "last"


def test_an_algorithm_that_is_there_twice_gains_nothing() -> None:
    for header in (b'{"alg": "HS256", "alg": "none"}', b'{"alg": "none", "alg": "HS256"}'):
        refuse(accepting(HS256), assembled(header, claims(), unsigned))


@pytest.mark.parametrize("crit", [["exp"], ["b64"], [], "b64", None, [7]], ids=repr)
def test_an_extension_that_must_be_understood_is_refused(crit: object) -> None:
    header = {"alg": "HS256", "crit": crit, "b64": False}
    refuse(accepting(HS256), assembled(header, claims(), HS256.sign))
    refuse(accepting(HS256), assembled(header, b"", HS256.sign))
    if crit != ["b64"]:
        refuse(accepting(HS256), assembled({"alg": "HS256", "crit": crit}, claims(), HS256.sign))


def test_a_huge_token_is_refused_or_accepted_on_its_merits() -> None:
    assert accepting(HS256).authenticate(HS256.token(note="a" * 1_000_000), CALL).namespace == "acme"
    refuse(accepting(HS256), f"{'A' * 1_000_000}.{'A' * 1_000_000}.{'A' * 1_000_000}")
