"""Primary keys, derived: hash(namespace, the caller's id).

No look-up is needed to find a row, rows spread evenly over shards, and no id that a caller of one namespace can send
leads to another namespace's row. The functions recalld.session_key, user_key and message_id do the same in SQL.
"""

from __future__ import annotations

from hashlib import sha256
from uuid import UUID


def session_key(namespace: str, session_id: str) -> UUID:
    return _key("session", namespace, session_id)


def user_key(namespace: str, user_id: str) -> UUID:
    return _key("user", namespace, user_id)


def message_id(session_key: UUID, seq: int) -> UUID:
    """The id of a message whose caller gave none: a UUID of version 8 (RFC 9562), 48 bits of seq and 72 of the key."""
    key = session_key.hex
    return UUID(f"{seq:012x}8{key[:3]}8{key[3:18]}")


def seq_of(session_key: UUID, message_id_: UUID) -> int | None:
    """The seq of the message that `message_id` makes this id for; None when it makes it for none of the session."""
    hexadecimal, key = message_id_.hex, session_key.hex
    if hexadecimal[12:] != f"8{key[:3]}8{key[3:18]}":
        return None
    return int(hexadecimal[:12], 16) or None


def _key(kind: str, namespace: str, identifier: str) -> UUID:
    # NUL is in none of them, so it keeps ("ab", "c") and ("a", "bc") apart.
    return UUID(bytes=sha256(f"{kind}\0{namespace}\0{identifier}".encode()).digest()[:16])
