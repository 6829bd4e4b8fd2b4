"""Where the keys of tokens come from: a secret, a PEM file or a JSON Web Key Set, which may change meanwhile."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import RSAAlgorithm

from recalld.access.files import FileError
from recalld.access.tokens import token_authenticator
from tests.access import CALL, CLAIMS, HS256, HS256_SECRET, Signer, es256, jwks, put, refuse, rs256, rsa_key

BOTH = pytest.mark.parametrize("signer", [rs256("a"), es256("a")], ids=lambda signer: signer.algorithm)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at whenever they are asked for, not once a second."""
    monkeypatch.setattr("recalld.access.files._INTERVAL", 0.0)


def pem_of(public_key: Any) -> bytes:
    pem: bytes = public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


# --- a good one of each


def test_a_secret_is_for_hs256() -> None:
    authenticator = token_authenticator(CLAIMS, secret=HS256_SECRET)
    assert authenticator.authenticate(HS256.token(), CALL).name == "alice"
    refuse(authenticator, rs256().token())


@BOTH
def test_the_kind_of_key_in_a_pem_file_is_the_algorithm(path: Path, signer: Signer) -> None:
    path.write_bytes(signer.public_key())
    authenticator = token_authenticator(CLAIMS, key_file=path)
    assert authenticator.authenticate(signer.token(), CALL).name == "alice"
    for other in (HS256, rs256("a", 1), es256("a", 1)):
        refuse(authenticator, other.token())


def test_a_key_set_has_several_keys(path: Path) -> None:
    signers = [rs256("a"), es256("b"), rs256("c", 1)]
    path.write_text(jwks(*(signer.jwk() for signer in signers)))
    authenticator = token_authenticator(CLAIMS, jwks_file=path)
    for signer in signers:
        assert authenticator.authenticate(signer.token(), CALL).name == "alice"
    refuse(authenticator, rs256("b").token())
    refuse(authenticator, rs256().token())


@BOTH
def test_a_key_that_says_what_it_is_for_is_taken_at_its_word(path: Path, signer: Signer) -> None:
    path.write_text(jwks(signer.jwk(use="sig", alg=signer.algorithm, key_ops=["verify"])))
    assert token_authenticator(CLAIMS, jwks_file=path).authenticate(signer.token(), CALL)


@pytest.mark.parametrize(
    "other",
    [
        *({"use": "enc"}, {"use": "enc", "alg": "RSA-OAEP"}, {"alg": "PS256"}, {"alg": "RS512"}),
        {"kty": "EC", "crv": "P-384", "x": "AAAA", "y": "AAAA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
    ],
    ids=repr,
)
def test_keys_for_something_else_are_passed_over(path: Path, other: dict[str, str]) -> None:
    """As issuers publish them beside those that sign."""
    path.write_text(jwks(rs256("a").jwk(), rs256("b", 1).jwk(**other)))
    authenticator = token_authenticator(CLAIMS, jwks_file=path)
    assert authenticator.authenticate(rs256("a").token(), CALL)
    refuse(authenticator, rs256("b", 1).token())


# --- what is refused at start


def refused(path: Path, **place: Any) -> str:
    """What is said about the file: one line, which names it and quotes nothing of it."""
    with pytest.raises(FileError) as caught:
        token_authenticator(CLAIMS, **place)
    said = str(caught.value)
    assert str(path) in said
    assert "\n" not in said
    if path.is_file() and path.read_bytes().strip():
        for line in path.read_bytes().splitlines():
            assert len(line) < 12 or line.decode(errors="replace") not in said
    return said


NO_KEYS = {
    "nothing": b"",
    "garbage": b"\xff\x00 garbage",
    "DER": rs256().public_key(Encoding.DER),
    "half": rs256().public_key()[:200],
    "private key": rsa_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    "key set": jwks(rs256().jwk()).encode(),
    "key of an unknown kind": (b"-----BEGIN PUBLIC KEY-----\nMBEwDAYDKgMEBgUrgQQAIQMBAA==\n-----END PUBLIC KEY-----\n"),
}
UNFIT_KEYS = {
    "RSA of 1024 bits": pem_of(rsa_key(1024).public_key()),
    "P-384": pem_of(ec.generate_private_key(ec.SECP384R1()).public_key()),
    "secp256k1": pem_of(ec.generate_private_key(ec.SECP256K1()).public_key()),
    "Ed25519": pem_of(ed25519.Ed25519PrivateKey.generate().public_key()),
}


@pytest.mark.parametrize("content", NO_KEYS.values(), ids=NO_KEYS.keys())
def test_a_file_that_is_no_public_key_in_pem_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(path, key_file=path) == f"{path} is not a public key in PEM"


@pytest.mark.parametrize("content", UNFIT_KEYS.values(), ids=UNFIT_KEYS.keys())
def test_a_key_too_weak_or_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refused(path, key_file=path) == f"{path} holds a key that is neither RSA of 2048 bits or more nor P-256"


def test_a_missing_file_is_refused(path: Path) -> None:
    assert refused(path, key_file=path) == f"cannot read {path}: No such file or directory"
    assert refused(path, jwks_file=path) == f"cannot read {path}: No such file or directory"


PRIVATE: dict[str, Any] = RSAAlgorithm.to_jwk(rsa_key(), as_dict=True)
NO_KEY_SETS = {
    "nothing": "",
    "garbage": "garbage",
    "PEM": rs256().public_key().decode(),
    "a list": "[]",
    "null": "null",
    "no keys in it": "{}",
    "keys that are no list": '{"keys": 7}',
    "keys by name": json.dumps({"keys": {"a": rs256("a").jwk()}}),
    "no key at all": jwks(),
    "brackets without end": "[" * 100_000,
    "one key by itself": json.dumps(rs256("a").jwk()),
    "null for a key": jwks(None),
    "a key of no kind": jwks({"kid": "a"}),
    "a key of an unknown kind": jwks({"kid": "a", "kty": "XYZ"}),
    "half a key": jwks({"kty": "RSA", "n": "AQAB"}),
    "numbers for numbers": jwks({"kty": "RSA", "n": 7, "e": 3}),
    "a point off the curve": jwks({**es256("a").jwk(), "x": "AAAA"}),
    "a secret": jwks({"kty": "oct", "k": "c2VjcmV0IG9mIHRoaXJ0eS10d28gYnl0ZXMsIG9rISE", "kid": "a"}),
    "a private key": jwks(PRIVATE),
    "a private key beside a good one": jwks(rs256("a", 1).jwk(), {**PRIVATE, "kid": "b"}),
    "a private key for something else": jwks(rs256("a", 1).jwk(), {**PRIVATE, "use": "enc"}),
    "two keys of one id": jwks(rs256("a").jwk(), rs256("a", 1).jwk()),
    "two keys without an id": jwks(rs256().jwk(), rs256(number=1).jwk()),
    "an id that is a list": jwks(rs256().jwk(kid=["a"])),
    "RSA of 1024 bits": jwks(Signer("RS256", rsa_key(1024), "a").jwk()),
    "only a key for something else": jwks(rs256("a").jwk(use="enc")),
}


@pytest.mark.parametrize("content", NO_KEY_SETS.values(), ids=NO_KEY_SETS.keys())
def test_a_file_that_is_no_usable_key_set_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    refused(path, jwks_file=path)


# --- rotation


@pytest.mark.usefixtures("_looks_at_once")
def test_a_key_set_is_replaced_while_the_server_runs(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    old, new = rs256("old"), rs256("new", 1)
    put(path, jwks(old.jwk()))
    authenticator = token_authenticator(CLAIMS, jwks_file=path)
    token = old.token()
    authenticator.authenticate(token, CALL)
    refuse(authenticator, new.token())

    put(path, jwks(old.jwk(), new.jwk()))
    assert authenticator.authenticate(token, CALL)
    assert authenticator.authenticate(new.token(), CALL)

    put(path, jwks(new.jwk()))
    refuse(authenticator, token)
    refuse(authenticator, old.token())
    assert authenticator.authenticate(new.token(), CALL)
    assert [record.getMessage() for record in caplog.records] == [f"read again: {path}"] * 2


@pytest.mark.usefixtures("_looks_at_once")
def test_another_key_under_the_same_id_ends_the_tokens_of_the_first(path: Path) -> None:
    old, new = rs256("a"), rs256("a", 1)
    put(path, jwks(old.jwk()))
    authenticator = token_authenticator(CLAIMS, jwks_file=path)
    token = old.token()
    authenticator.authenticate(token, CALL)
    put(path, jwks(new.jwk()))
    refuse(authenticator, token)
    assert authenticator.authenticate(new.token(), CALL)


@pytest.mark.usefixtures("_looks_at_once")
def test_a_pem_file_is_replaced_while_the_server_runs(path: Path) -> None:
    put(path, rs256().public_key())
    authenticator = token_authenticator(CLAIMS, key_file=path)
    token = rs256().token()
    authenticator.authenticate(token, CALL)
    put(path, es256().public_key())
    refuse(authenticator, token)
    assert authenticator.authenticate(es256().token(), CALL)


@pytest.mark.usefixtures("_looks_at_once")
@pytest.mark.parametrize(
    "broken", ["", '{"keys": []}', jwks(rs256("b").jwk(), PRIVATE)], ids=["empty", "no key", "private"]
)
def test_a_broken_file_leaves_the_old_keys_in_use_and_is_logged_once(
    path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = rs256("old"), rs256("new", 1)
    put(path, jwks(old.jwk()))
    authenticator = token_authenticator(CLAIMS, jwks_file=path)
    put(path, broken)
    for _ in range(3):
        assert authenticator.authenticate(old.token(), CALL)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"not replaced, the old one stays in use: {path} ")

    put(path, jwks(new.jwk()))
    assert authenticator.authenticate(new.token(), CALL)
    refuse(authenticator, old.token())
