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


def message_id(session_key: UUID, seq: int) -> str:
    """The id of a message whose caller gave none: a UUID of version 8 (RFC 9562), 48 bits of seq and 72 of the key."""
    digits = f"{seq:012x}"
    return f"{digits[:8]}-{digits[8:]}-{_end(session_key)}"


def seq_of(session_key: UUID, message_id_: str) -> int | None:
    """The seq of the message that `message_id` makes this id for; None when it makes it for none of the session."""
    if message_id_[14:] != _end(session_key):
        return None
    return int(message_id_[:8] + message_id_[9:13], 16) or None


def _end(session_key: UUID) -> str:
    """What the ids that we make for a session's messages have in common."""
    key = session_key.hex
    return f"8{key[:3]}-8{key[3:6]}-{key[6:18]}"


def _key(kind: str, namespace: str, identifier: str) -> UUID:
    # NUL is in none of them, so it keeps ("ab", "c") and ("a", "bc") apart.
    return UUID(bytes=sha256(f"{kind}\0{namespace}\0{identifier}".encode()).digest()[:16])
