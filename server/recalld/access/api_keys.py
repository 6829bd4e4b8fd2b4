"""API keys: `recalld_<key id>_<secret>`, of which the database keeps the id and a hash of the secret."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from typing import Final, NamedTuple, Protocol

from recalld.access import Principal, Scope
from recalld.domain import Call
from recalld.errors import CredentialExpired, CredentialInvalid, Overloaded, StorageUnavailable
from recalld.limits import REVOCATION_SECONDS

_PREFIX: Final = "recalld_"
_KEY: Final = re.compile(_PREFIX + r"([0-9a-f]{12})_([0-9A-Za-z_-]{43})", re.ASCII)

# Seconds after which a cached key is looked up again, by one call at a time, while other calls use the cached one. So
# only that call waits for a busy key, and a short outage of the database fails no call.
_FRESH: Final = REVOCATION_SECONDS / 2

# Entries of the cache, about 500 bytes each. Only keys that exist are cached.
_MOST_KNOWN: Final = 10_000


class NewKey(NamedTuple):
    """A key in full. It cannot be recovered from what is stored of it."""

    key_id: str
    text: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is stored of a key. Without `expire_time` it is good for ever."""

    key_id: str
    digest: bytes
    namespace: str
    scopes: frozenset[Scope]
    name: str
    create_time: datetime
    expire_time: datetime | None
    revoke_time: datetime | None


class FindKey(Protocol):
    def __call__(self, key_id: str, call: Call) -> ApiKey | None:
        """The key of this id, as it is stored now. Raises StorageUnavailable, Overloaded and what ends a call."""


def make_key() -> NewKey:
    """A new key. Its secret has 256 random bits: too many to guess, so a plain hash keeps it."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    return NewKey(key_id, f"{_PREFIX}{key_id}_{secret}", _digest(secret))


@dataclass(slots=True)
class _Known:
    """A cached key, as it was at `time` (monotonic seconds). The call that holds `turn` looks it up again."""

    key: ApiKey
    time: float
    turn: threading.Lock = field(default_factory=threading.Lock)


class ApiKeyAuthenticator:
    """Authenticates API keys, with a cache of those in use, so that few calls need the database.

    A key that was revoked stops working within REVOCATION_SECONDS.

    Args:
        find: looks up a key.
        clock: seconds that never go backwards.
    """

    def __init__(self, find: FindKey, clock: Callable[[], float] = time.monotonic) -> None:
        self._find = find
        self._clock = clock
        self._known: dict[str, _Known] = {}

    def recognises(self, credential: str) -> bool:
        return credential.startswith(_PREFIX)

    def authenticate(self, credential: str, call: Call) -> Principal:
        match = _KEY.fullmatch(credential)
        if match is None:
            raise CredentialInvalid
        key_id, secret = match.groups()
        key = self._look_up(key_id, call)
        if key is None or not compare_digest(key.digest, _digest(secret)):
            raise CredentialInvalid
        # Whatever the time is: it was set by the clock of the command that revoked the key, which may be ahead of ours.
        if key.revoke_time is not None:
            raise CredentialInvalid
        if key.expire_time is not None and key.expire_time <= datetime.now(UTC):
            raise CredentialExpired
        return Principal(key.namespace, key.scopes, key.key_id)

    def _look_up(self, key_id: str, call: Call) -> ApiKey | None:
        known = self._known.get(key_id)
        age = float("inf") if known is None else self._clock() - known.time
        if known is None or age >= REVOCATION_SECONDS:
            return self._fetch(key_id, call)
        if age < _FRESH or not known.turn.acquire(blocking=False):
            return known.key
        try:
            return self._fetch(key_id, call)
        except (StorageUnavailable, Overloaded):
            # The look-up took time too: the cached key may be too old by now.
            if self._clock() - known.time >= REVOCATION_SECONDS:
                raise
            return known.key
        finally:
            known.turn.release()

    def _fetch(self, key_id: str, call: Call) -> ApiKey | None:
        asked = self._clock()
        key = self._find(key_id, call)
        if key is None:
            self._known.pop(key_id, None)
        else:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key_id] = _Known(key, asked)
        return key


def _digest(secret: str) -> bytes:
    return sha256(secret.encode()).digest()
