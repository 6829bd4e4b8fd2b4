"""JSON Web Tokens (RFC 7519): bearer credentials signed by an issuer, checked without asking it or the database."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from recalld.access import Principal, Scope, parse_namespace
from recalld.access.files import FileError, Watched, read_bytes
from recalld.domain import Call
from recalld.errors import CredentialExpired, CredentialInvalid, InvalidField

# RFC 7518 asks this much of the modulus of an RS256 key.
_LEAST_RSA_BITS: Final = 2048

# Seconds by which the issuer's clock may be ahead of ours, or behind.
_LEEWAY: Final = 30.0

# Tokens whose signatures were checked already, about 300 bytes each.
_MOST_KNOWN: Final = 10_000

_MOST_NAME_CHARACTERS: Final = 256


class _Key(NamedTuple):
    """A key with the one algorithm that it is used for.

    The `alg` in a token's header never chooses the algorithm: if it did, an attacker could use a public key as an HMAC
    secret, or `none` for no signature.
    """

    algorithm: str
    key: Any


_Keys = dict[str | None, _Key]


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims that a token must have, and the names of those that grant access.

    Attributes:
        issuer: the only `iss` that is accepted.
        audience: what must be in `aud`.
        namespace: name of the claim that holds the namespace.
        scopes: name of the claim that holds the scopes, as a list or as words in a string (RFC 8693).
    """

    issuer: str
    audience: str
    namespace: str = "namespace"
    scopes: str = "scope"


class _Known(NamedTuple):
    """A token that was found valid: until `expires` (seconds since the epoch), or until the keys change."""

    principal: Principal
    expires: float
    keys: _Keys


class TokenAuthenticator:
    """Authenticates tokens, and caches valid ones: to check a signature takes longer than the rest of the admission.

    Args:
        keys: the keys that sign, by key id. They may change.
        claims: what a token must say.
        clock: seconds since the epoch.
    """

    def __init__(self, keys: Callable[[], _Keys], claims: Claims, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._claims = claims
        self._clock = clock
        self._known: dict[bytes, _Known] = {}
        self._lock = threading.Lock()

    def recognises(self, credential: str) -> bool:
        return credential.count(".") == 2

    def authenticate(self, credential: str, call: Call) -> Principal:
        keys = self._keys()
        digest = sha256(credential.encode()).digest()
        known = self._known.get(digest)
        if known is None or known.keys is not keys:
            known = self._check(credential, keys)
            with self._lock:
                if len(self._known) >= _MOST_KNOWN:
                    self._known.clear()
                self._known[digest] = known
        if known.expires + _LEEWAY <= self._clock():
            raise CredentialExpired
        return known.principal

    def _check(self, token: str, keys: _Keys) -> _Known:
        try:
            key = _choose(keys, jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                issuer=self._claims.issuer,
                audience=self._claims.audience,
                leeway=_LEEWAY,
                options={"require": ["exp", "iss", "aud"]},
            )
            principal = Principal(
                namespace=parse_namespace(claims.get(self._claims.namespace)),
                scopes=_scopes(claims.get(self._claims.scopes)),
                name=str(claims.get("sub", ""))[:_MOST_NAME_CHARACTERS],
            )
            return _Known(principal, float(claims["exp"]), keys)
        except jwt.ExpiredSignatureError:
            raise CredentialExpired from None
        except (jwt.PyJWTError, InvalidField, ValueError, TypeError, OverflowError, RecursionError):
            # The last four are what parsers raise for malformed text.
            raise CredentialInvalid from None


def token_authenticator(
    claims: Claims, *, secret: str | None = None, key_file: Path | None = None, jwks_file: Path | None = None
) -> TokenAuthenticator:
    """An authenticator with the keys from one of these places; files are read again when they change.

    Args:
        claims: what a token must say.
        secret: shared with the issuer, for HS256.
        key_file: a public key in PEM: RSA for RS256, P-256 for ES256.
        jwks_file: several public keys, as a JSON Web Key Set (RFC 7517).

    Raises FileError.
    """
    if secret is not None:
        keys: _Keys = {None: _Key("HS256", secret.encode())}
        return TokenAuthenticator(lambda: keys, claims)
    if key_file is not None:
        return TokenAuthenticator(Watched([key_file], lambda: _read_pem(key_file)).get, claims)
    assert jwks_file is not None, "no source of keys"
    return TokenAuthenticator(Watched([jwks_file], lambda: _read_jwks(jwks_file)).get, claims)


def _choose(keys: _Keys, key_id: object) -> _Key:
    """The key with the token's `kid`; or the only key there is, if it or the token has no `kid`."""
    if (isinstance(key_id, str) or key_id is None) and key_id in keys:
        return keys[key_id]
    if len(keys) == 1 and (key_id is None or None in keys):
        return next(iter(keys.values()))
    raise CredentialInvalid


def _scopes(value: object) -> frozenset[Scope]:
    """The scopes in a claim. Other words, such as `openid`, are for other services."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else ()
    return frozenset(scope for scope in Scope if scope.value in words)


def _read_pem(path: Path) -> _Keys:
    try:
        key = load_pem_public_key(read_bytes(path))
    except (ValueError, UnsupportedAlgorithm):
        raise FileError(f"{path} is not a public key in PEM") from None
    return {None: _fit(key, path)}


def _read_jwks(path: Path) -> _Keys:
    try:
        # What an issuer publishes may hold keys for other purposes too.
        documents = [document for document in json.loads(read_bytes(path))["keys"] if _verifies(document)]
        keys = {document.get("kid"): _fit(jwt.PyJWK(document).key, path) for document in documents}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, jwt.PyJWTError, UnsupportedAlgorithm):
        raise FileError(f"{path} is not a JSON Web Key Set of public keys for RS256 and ES256") from None
    if not keys or len(keys) != len(documents):
        raise FileError(f"{path} holds no key, or two of the same kid")
    return keys


# The algorithm of a JSON Web Key without `alg`, by its `kty` and `crv`.
_KINDS: Final = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256"}


def _verifies(document: dict[str, Any]) -> bool:
    """Whether a JSON Web Key verifies signatures that are accepted here. Raises ValueError for a private key."""
    if "d" in document:
        raise ValueError("a private key")
    kind = _KINDS.get((document.get("kty", ""), document.get("crv", "")))
    return document.get("use", "sig") == "sig" and document.get("alg", kind) in ("RS256", "ES256")


def _fit(key: object, path: Path) -> _Key:
    match key:
        case RSAPublicKey() if key.key_size >= _LEAST_RSA_BITS:
            return _Key("RS256", key)
        case EllipticCurvePublicKey() if isinstance(key.curve, SECP256R1):
            return _Key("ES256", key)
        case _:
            raise FileError(f"{path} holds a key that is neither RSA of {_LEAST_RSA_BITS} bits or more nor P-256")
