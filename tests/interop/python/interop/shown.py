"""What the tour saw, as JSON: the shapes that README.md defines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1.memory_pb2 import Message
from recall.v1.session_pb2 import Session
from recall.v1.user_pb2 import User

Json = dict[str, Any]


def metadata(holder: Session | Message | User) -> Json | None:
    return MessageToDict(holder.metadata) if holder.HasField("metadata") else None


def session(seen: Session) -> Json:
    return {
        "session_id": seen.session_id,
        "user_id": seen.user_id,
        "metadata": metadata(seen),
        "message_count": str(seen.message_count),
        "last_seq": str(seen.last_seq),
        "has_delete_time": seen.HasField("delete_time"),
        "has_purge_time": seen.HasField("purge_time"),
    }


def message(seen: Message) -> Json:
    return {
        "session_id": seen.session_id,
        "seq": str(seen.seq),
        "role": seen.role,
        "content": seen.content,
        "metadata": metadata(seen),
        "token_count": seen.token_count,
    }


def user(seen: User) -> Json:
    return {
        "user_id": seen.user_id,
        "email": seen.email,
        "first_name": seen.first_name,
        "last_name": seen.last_name,
        "metadata": metadata(seen),
        "has_delete_time": seen.HasField("delete_time"),
    }


def failure(call: Callable[[], object]) -> Json:
    """What the call is refused with: its status code, and the details that come with it."""
    try:
        call()
    except grpc.RpcError as error:
        return _status(error)
    raise AssertionError("the call should have failed")


def _status(error: grpc.RpcError) -> Json:
    info, bad_request, resource = ErrorInfo(), BadRequest(), None
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        if detail.Is(ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(BadRequest.DESCRIPTOR):
            detail.Unpack(bad_request)
        elif detail.Is(ResourceInfo.DESCRIPTOR):
            detail.Unpack(resource := ResourceInfo())
    return {
        "code": error.code().name,
        "reason": info.reason,
        "domain": info.domain,
        "metadata": dict(info.metadata),
        "fields": [violation.field for violation in bad_request.field_violations],
        "resource": resource and {"type": resource.resource_type, "name": resource.resource_name},
    }


def struct(value: Json) -> Struct:
    made = Struct()
    made.update(value)
    return made


def instant(time: Timestamp) -> tuple[int, int]:
    """A time that compares."""
    return time.seconds, time.nanos
