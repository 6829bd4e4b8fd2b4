"""The domain's resources as messages of the API.

Submessages are filled in place: building them apart and passing them to a constructor copies each, for almost half as
much time again.
"""

from __future__ import annotations

from datetime import timedelta

from recall.v1 import memory_pb2, session_pb2, user_pb2
from recalld import domain
from recalld.services import structs
from recalld.services.times import fill_timestamp


def session(source: domain.Session, retention: timedelta) -> session_pb2.Session:
    target = session_pb2.Session(
        session_id=source.session_id,
        user_id=source.user_id,
        message_count=source.message_count,
        last_seq=source.last_seq,
        etag=source.etag,
    )
    structs.fill(target.metadata, source.metadata)
    _fill_times(target, source, retention)
    return target


def user(source: domain.User, retention: timedelta) -> user_pb2.User:
    target = user_pb2.User(
        user_id=source.user_id,
        email=source.email,
        first_name=source.first_name,
        last_name=source.last_name,
        etag=source.etag,
    )
    structs.fill(target.metadata, source.metadata)
    _fill_times(target, source, retention)
    return target


def message(session_id: str, source: domain.Message) -> memory_pb2.Message:
    target = memory_pb2.Message()
    fill_message(target, session_id, source)
    return target


def fill_message(target: memory_pb2.Message, session_id: str, source: domain.Message) -> None:
    """Puts a message into an empty one."""
    target.message_id = source.message_id
    target.session_id = session_id
    target.seq = source.seq
    target.role = source.role
    target.content = source.content
    if source.token_count:
        target.token_count = source.token_count
    if source.metadata:
        structs.fill(target.metadata, source.metadata)
    fill_timestamp(target.create_time, source.create_time)
    if source.update_time is source.create_time:
        target.update_time.MergeFrom(target.create_time)
    else:
        fill_timestamp(target.update_time, source.update_time)


def added_message(source: domain.AddedMessage) -> memory_pb2.AddedMessage:
    target = memory_pb2.AddedMessage(message_id=source.message_id, seq=source.seq)
    fill_timestamp(target.create_time, source.create_time)
    return target


def _fill_times(
    target: session_pb2.Session | user_pb2.User, source: domain.Session | domain.User, retention: timedelta
) -> None:
    fill_timestamp(target.create_time, source.create_time)
    fill_timestamp(target.update_time, source.update_time)
    if source.delete_time is not None:
        fill_timestamp(target.delete_time, source.delete_time)
        fill_timestamp(target.purge_time, source.delete_time + retention)
