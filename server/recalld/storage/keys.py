"""Primary keys, derived: hash(namespace, the caller's id).

No look-up is needed to find a row, rows spread evenly over shards, and no id that a caller of one namespace can send
leads to another namespace's row. The functions recalld.session_key and recalld.user_key do the same in SQL, for psql.
"""

from __future__ import annotations

from hashlib import sha256
from uuid import UUID


def session_key(namespace: str, session_id: str) -> UUID:
    return _key("session", namespace, session_id)


def user_key(namespace: str, user_id: str) -> UUID:
    return _key("user", namespace, user_id)


def _key(kind: str, namespace: str, identifier: str) -> UUID:
    # NUL is in none of them, so it keeps ("ab", "c") and ("a", "bc") apart.
    return UUID(bytes=sha256(f"{kind}\0{namespace}\0{identifier}".encode()).digest()[:16])
