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
    return f"{digits[:8]}-{digits[8:]}-{_suffix(session_key)}"


def seq_of(session_key: UUID, message_id_: str) -> int | None:
    """The inverse of `message_id`: the seq in an id that was derived for this session; None for any other id."""
    if message_id_[14:] != _suffix(session_key):
        return None
    return int(message_id_[:8] + message_id_[9:13], 16) or None


def _suffix(session_key: UUID) -> str:
    """What all derived ids of a session's messages end with."""
    key = session_key.hex
    return f"8{key[:3]}-8{key[3:6]}-{key[6:18]}"


def _key(kind: str, namespace: str, identifier: str) -> UUID:
    # None of them contains NUL, so ("ab", "c") and ("a", "bc") have different keys.
    return UUID(bytes=sha256(f"{kind}\0{namespace}\0{identifier}".encode()).digest()[:16])
