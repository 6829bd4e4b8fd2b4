"""Primary keys, derived: hash(namespace, the caller's id).

No look-up is needed to find a row, rows spread evenly over shards, and no id that a caller of one namespace can send
leads to another namespace's row.
"""

from __future__ import annotations

from hashlib import blake2b
from uuid import UUID


def session_key(namespace: str, session_id: str) -> UUID:
    return _key(b"recalld.session", namespace, session_id)


def user_key(namespace: str, user_id: str) -> UUID:
    return _key(b"recalld.user", namespace, user_id)


def _key(person: bytes, namespace: str, identifier: str) -> UUID:
    # The length keeps ("ab", "c") and ("a", "bc") apart.
    world = namespace.encode()
    digest = blake2b(len(world).to_bytes(4) + world + identifier.encode(), digest_size=16, person=person)
    return UUID(bytes=digest.digest())
