"""What tests of access control share: a clock, keys that nobody stored, tokens good and forged, and calls to try."""

from __future__ import annotations

import base64
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from recalld.access import Scope
from recalld.access.api_keys import ApiKey, make_key
from recalld.access.tokens import Claims, TokenAuthenticator, _Key
from recalld.domain import Call, LocalCall
from recalld.errors import CredentialInvalid

CALL = LocalCall("")

CLAIMS = Claims(issuer="https://issuer.example", audience="recalld")

# 32 bytes, the least that is accepted.
HS256_SECRET = "a secret of thirty-two bytes, ok"


class Clock:
    """Seconds, which pass when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


# --- API keys


class Keys:
    """What the database knows of API keys; counts how often it is asked.

    Attributes:
        failure: raised instead of an answer.
        before_answer: runs while somebody waits for an answer.
    """

    def __init__(self) -> None:
        self.stored: dict[str, ApiKey] = {}
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.before_answer: Callable[[], None] = lambda: None

    def __call__(self, key_id: str, call: Call) -> ApiKey | None:
        self.asked.append(key_id)
        found = self.stored.get(key_id)
        self.before_answer()
        if self.failure:
            raise self.failure
        return found

    def create(self, *scopes: Scope, namespace: str = "default", **fields: Any) -> str:
        """Stores a key, with all scopes unless some are given, and returns its text."""
        new = make_key()
        values: dict[str, Any] = {"name": "", "create_time": utc_now(), "expire_time": None, "revoke_time": None}
        self.stored[new.key_id] = ApiKey(
            new.key_id, new.digest, namespace, frozenset(scopes or Scope), **(values | fields)
        )
        return new.text


def key_id_of(text: str) -> str:
    return text.split("_")[1]


def utc_now() -> datetime:
    return datetime.now(UTC)


# --- JSON Web Tokens


@functools.cache
def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    """A key that is made once a run: it takes a while. Another `number` is another key."""
    return rsa.generate_private_key(65537, bits)


@functools.cache
def ec_key(number: int = 0) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def claims(**changed: Any) -> dict[str, Any]:
    """What a good token says, but for what is changed; None leaves a claim out."""
    good = {
        "iss": CLAIMS.issuer,
        "aud": CLAIMS.audience,
        "exp": int(time.time()) + 300,
        "sub": "alice",
        "namespace": "acme",
        "scope": "read write",
    }
    return {name: value for name, value in (good | changed).items() if value is not None}


@dataclass(frozen=True)
class Signer:
    """Somebody who signs tokens."""

    algorithm: str
    key: Any = field(repr=False)
    key_id: str | None = None

    def token(self, *, headers: dict[str, Any] | None = None, **changed: Any) -> str:
        named = {} if self.key_id is None else {"kid": self.key_id}
        return jwt.encode(claims(**changed), self.key, self.algorithm, {**named, **(headers or {})})

    def public_key(self, encoding: Encoding = Encoding.PEM) -> bytes:
        encoded: bytes = self.key.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        return encoded

    def jwk(self, **more: Any) -> dict[str, Any]:
        """The public key as a JSON Web Key."""
        kind: Any = RSAAlgorithm if self.algorithm == "RS256" else ECAlgorithm
        named = {} if self.key_id is None else {"kid": self.key_id}
        return {**kind.to_jwk(self.key.public_key(), as_dict=True), **named, **more}

    def sign(self, text: bytes) -> bytes:
        """The signature of any bytes, for `assembled`."""
        algorithm: Any = jwt.get_algorithm_by_name(self.algorithm)
        signature: bytes = algorithm.sign(text, algorithm.prepare_key(self.key))
        return signature


HS256 = Signer("HS256", HS256_SECRET)


def rs256(key_id: str | None = None, number: int = 0) -> Signer:
    return Signer("RS256", rsa_key(number=number), key_id)


def es256(key_id: str | None = None, number: int = 0) -> Signer:
    return Signer("ES256", ec_key(number), key_id)


def jwks(*documents: Any) -> str:
    return json.dumps({"keys": documents})


def assembled(header: object, payload: object, sign: Callable[[bytes], bytes]) -> str:
    """A token by hand, which no library would make. Bytes stand for themselves, anything else becomes JSON."""
    signed = b".".join(
        segment(part if isinstance(part, bytes) else json.dumps(part).encode()) for part in (header, payload)
    )
    return b".".join([signed, segment(sign(signed))]).decode()


def segment(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def accepting(*signers: Signer, names: Claims = CLAIMS, clock: Callable[[], float] = time.time) -> TokenAuthenticator:
    """An authenticator that knows these signers, each by its key id."""
    keys: dict[str | None, _Key] = {
        signer.key_id: _Key(
            signer.algorithm, signer.key.encode() if signer.algorithm == "HS256" else signer.key.public_key()
        )
        for signer in signers
    }
    return TokenAuthenticator(lambda: keys, names, clock)


def refuse(authenticator: TokenAuthenticator, token: str) -> None:
    """Fails unless the token is invalid there."""
    for _ in range(2):  # the second time too, when it could be remembered
        with pytest.raises(CredentialInvalid):
            authenticator.authenticate(token, CALL)


# --- files


def put(path: Path, content: str | bytes) -> None:
    """Replaces a file in one step.

    Overwritten instead, it could look unchanged: with the same size, and the same time as long as the clock of the file
    system has not ticked.
    """
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.replace(path)


# --- calls


class Context:
    """The part of grpc.ServicerContext that admission uses."""

    def __init__(
        self, *metadata: tuple[str, str | bytes], sans: Sequence[bytes] = (), common_names: Sequence[bytes] = ()
    ) -> None:
        self._metadata = metadata
        self._proven = {"x509_subject_alternative_name": sans, "x509_common_name": common_names}

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        return self._metadata

    def auth_context(self) -> dict[str, Sequence[bytes]]:
        return {name: values for name, values in self._proven.items() if values}

    def time_remaining(self) -> None:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return True


def bearer(credential: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {credential}")
