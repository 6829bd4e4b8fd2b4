"""Protobuf's times and the domain's: aware datetimes in UTC, to the microsecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.message import Message

from recalld.errors import InvalidField

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MICROSECOND = timedelta(microseconds=1)
_END = datetime.max.replace(tzinfo=UTC)

# What google.protobuf.Timestamp and Duration may hold: the years 1 to 9999, and as many either way.
_TIMESTAMP_SECONDS = range(-62_135_596_800, 253_402_300_800)
_DURATION_SECONDS = range(315_576_000_001)
_NANOS = range(1_000_000_000)


def moment(timestamp: timestamp_pb2.Timestamp, field: str) -> datetime:
    """A bound of a range of times, rounded up to the microsecond: the same bound for times that are kept to it.

    Raises InvalidField.
    """
    if timestamp.seconds not in _TIMESTAMP_SECONDS or timestamp.nanos not in _NANOS:
        raise InvalidField(field, "must be a time in the years 1 to 9999")
    below = EPOCH + timedelta(seconds=timestamp.seconds, microseconds=timestamp.nanos // 1000)
    return below + _MICROSECOND if timestamp.nanos % 1000 and below < _END else below


def optional_moment(parent: Message, name: str, path: str = "") -> datetime | None:
    """The bound in the field `name` of `parent`, whose own path is `path`; None when unset. Raises InvalidField."""
    return moment(getattr(parent, name), path + name) if parent.HasField(name) else None


def age(duration: duration_pb2.Duration, field: str) -> timedelta:
    """A duration that is not negative, rounded down to the microsecond. Raises InvalidField."""
    if duration.seconds not in _DURATION_SECONDS or duration.nanos not in _NANOS:
        raise InvalidField(field, "must be a duration that is not negative")
    return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)


def fill_timestamp(target: timestamp_pb2.Timestamp, time: datetime) -> None:
    """Puts a time into an unset Timestamp."""
    since = time - EPOCH
    target.seconds = since.days * 86_400 + since.seconds
    target.nanos = since.microseconds * 1000
