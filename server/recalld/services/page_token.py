"""Page and resume tokens: opaque to clients, a place in a listing to us.

A token is base64url of the place and of a check over everything that the place means something in: the namespace, the
method and its arguments. A token that is damaged, or that comes from another listing, does not pass.

The check is no signature, so replicas need no shared key. A caller who forges a token can only skip rows of a listing
that the caller may read anyway, because namespace and arguments come from the call, never from the token.
"""

from __future__ import annotations

import struct
from base64 import b64decode, urlsafe_b64encode
from datetime import timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

from google.protobuf.message import Message

from recalld.domain import Position
from recalld.errors import InvalidPageToken
from recalld.services.times import EPOCH

_CHECK_BYTES = 8
_POSITION = struct.Struct(">q16s")  # microseconds since the epoch, key
_SEQ = struct.Struct(">q")
_MAX_SEQ = 2**62
_MICROSECOND = timedelta(microseconds=1)

# Arguments that may differ from page to page: how much to send, and where to begin.
_NOT_BOUND = ("page_size", "chunk_size", "page_token", "resume_token")


class PageTokens:
    """The tokens of the listing that a request asks for.

    Args:
        namespace: the caller's.
        request: of a listing method; one of its fields is `page_token` or `resume_token`.
    """

    def __init__(self, namespace: str, request: Message) -> None:
        fields = request.DESCRIPTOR.fields_by_name
        self._field = "page_token" if "page_token" in fields else "resume_token"
        self._token: str = getattr(request, self._field)
        arguments = type(request)()
        arguments.CopyFrom(request)
        for field in _NOT_BOUND:
            if field in fields:
                arguments.ClearField(field)
        self._check = blake2b(digest_size=_CHECK_BYTES)
        for part in (namespace, request.DESCRIPTOR.full_name):
            self._check.update(part.encode() + b"\0")  # which neither contains
        self._check.update(arguments.SerializeToString(deterministic=True))

    def position(self) -> Position | None:
        """Where the request's token points; None for the start. Raises InvalidPageToken."""
        place = self._redeem(_POSITION)
        if place is None:
            return None
        microseconds, key = place
        try:
            return Position(EPOCH + microseconds * _MICROSECOND, UUID(bytes=key))
        except OverflowError:
            raise self._invalid() from None

    def seq(self) -> int | None:
        """As `position`, in a listing of messages."""
        place = self._redeem(_SEQ)
        if place is None:
            return None
        if not 0 < place[0] <= _MAX_SEQ:
            raise self._invalid()
        return int(place[0])

    def at_position(self, position: Position | None) -> str:
        """The token for what is behind the position; "" for None, the end."""
        if position is None:
            return ""
        return self._issue(_POSITION.pack((position.time - EPOCH) // _MICROSECOND, position.key.bytes))

    def at_seq(self, seq: int | None) -> str:
        """As `at_position`, in a listing of messages."""
        return "" if seq is None else self._issue(_SEQ.pack(seq))

    def _redeem(self, form: struct.Struct) -> tuple[Any, ...] | None:
        if not self._token:
            return None
        try:
            raw = b64decode(self._token + "=" * (-len(self._token) % 4), altchars=b"-_", validate=True)
            place = raw[:-_CHECK_BYTES]
            unpacked = form.unpack(place)
        except (ValueError, struct.error):
            raise self._invalid() from None
        # Issuing it anew compares the check and the spelling: base64 has several for the same bytes.
        if self._issue(place) != self._token:
            raise self._invalid()
        return unpacked

    def _issue(self, place: bytes) -> str:
        check = self._check.copy()
        check.update(place)
        return urlsafe_b64encode(place + check.digest()).rstrip(b"=").decode()

    def _invalid(self) -> InvalidPageToken:
        return InvalidPageToken(self._field, "is damaged or does not belong to this call's arguments")
