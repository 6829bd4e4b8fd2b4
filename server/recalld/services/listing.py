"""Cutting what a listing returns to the size of one reply.

A row is something of the domain with the place behind it: a Position, or for messages a seq.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from time import monotonic
from typing import TypeVar

from google.protobuf.message import Message

from recalld import limits
from recalld.domain import Position

Source = TypeVar("Source")
Place = TypeVar("Place")
Target = TypeVar("Target", bound=Message)

# A field's tag, and its length of up to 4 MiB: what a message costs in a repeated field besides its own bytes.
_FRAME_BYTES = 5

# Rows that a stream fetches at a time, at most; fewer when they are large (see MAX_PAGE_BYTES).
_FETCHED = 1000

# Seconds for which rows may wait to be sent.
_MOST_AGE = 1.0

# What a reply has besides its rows: a token.
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
    fetch: Callable[[Position | None, int], tuple[Sequence[tuple[Source, Position]], Position | None]],
    after: Position | None,
    size: int,
    convert: Callable[[Source], Target],
) -> Iterator[tuple[list[Target], Position]]:
    """All rows behind `after` in chunks of one reply each, with the place behind each chunk.

    The first fetch is for one chunk, so that it is sent at once. Later fetches are for more and more chunks, since a
    statement costs as much as many rows. Rows that wait for a slow reader for longer than _MOST_AGE are fetched again,
    starting with one chunk: so a deleted row is not sent long after its deletion, and few rows are fetched twice.

    Args:
        fetch: called with a place and a number, returns at most so many rows behind the place, and where the next ones
            begin, None after the last. It is not called while a chunk is being read.
        size: the most rows in a chunk.
    """
    following, count = after, size
    while True:
        rows, following = fetch(following, count)
        stale = monotonic() + _MOST_AGE
        while rows:
            messages = _convert_fitting(rows[:size], convert, limits.MAX_CHUNK_BYTES)
            place = rows[len(messages) - 1][1]
            yield messages, place
            rows = rows[len(messages) :]
            if rows and monotonic() > stale:
                following, count = place, size
                break
        else:
            count = max(size, min(2 * count, _FETCHED))
        if following is None:
            return


def _convert_fitting(
    rows: Sequence[tuple[Source, Place]], convert: Callable[[Source], Target], limit: int
) -> list[Target]:
    return fitting((convert(source) for source, _ in rows), limit - _TOKEN_BYTES)
