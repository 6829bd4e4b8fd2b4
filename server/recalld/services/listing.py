"""Cutting what a listing returns to the size of one reply.

A row is something of the domain with the place behind it: a Position, or for messages a seq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from recalld import limits
from recalld.domain import Position

Source = TypeVar("Source")
Place = TypeVar("Place")
Target = TypeVar("Target", bound=Message)

# A field's tag, and its length of up to 4 MiB: what a message costs in a repeated field besides its own bytes.
_FRAME_BYTES = 5

# What a reply carries besides its rows: a token.
_TOKEN_BYTES = 64


def fitting(messages: Iterable[Target], limit: int) -> list[Target]:
    """The first messages, as many as take at most `limit` bytes in a repeated field: at least one if there is any."""
    taken: list[Target] = []
    for message in messages:
        limit -= message.ByteSize() + _FRAME_BYTES
        if limit < 0 and taken:
            break
        taken.append(message)
    return taken


def page(
    rows: Sequence[tuple[Source, Place]], following: Place | None, convert: Callable[[Source], Target]
) -> tuple[list[Target], Place | None]:
    """The rows of one reply, and where the next page begins: at `following`, or sooner if the rows do not all fit."""
    messages = _convert_fitting(rows, convert, limits.MAX_PAGE_BYTES)
    return messages, following if len(messages) == len(rows) else rows[len(messages) - 1][1]


def chunks(
    fetch: Callable[[Position | None], tuple[Sequence[tuple[Source, Position]], Position | None]],
    after: Position | None,
    convert: Callable[[Source], Target],
) -> Iterator[tuple[list[Target], Position]]:
    """All rows behind `after` in chunks of one reply each, with the place behind each chunk.

    Args:
        fetch: returns the rows behind a place and where the next begin, None after the last ones; it is not called
            while a chunk is being read.
    """
    following = after
    while True:
        rows, following = fetch(following)
        while rows:
            messages = _convert_fitting(rows, convert, limits.MAX_CHUNK_BYTES)
            yield messages, rows[len(messages) - 1][1]
            rows = rows[len(messages) :]
        if following is None:
            return


def _convert_fitting(
    rows: Sequence[tuple[Source, Place]], convert: Callable[[Source], Target], limit: int
) -> list[Target]:
    return fitting((convert(source) for source, _ in rows), limit - _TOKEN_BYTES)
