"""Domain errors as google.rpc.Status, the form in which clients see them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import NoReturn

import grpc
from google.protobuf import message as protobuf
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recalld import errors, limits

# Details travel as metadata, of which clients accept about 8 KiB in all. No text of ours is this long, but some quote
# what a caller sent. An id is never cut: in UTF-8 its characters take up to 4 bytes each.
_MAX_TEXT_BYTES = 512
_MAX_NAME_BYTES = 4 * limits.MAX_ID_CHARACTERS


def abort(context: grpc.ServicerContext, error: errors.RecallError) -> NoReturn:
    """Ends a call with the error."""
    status = rpc_status.to_status(status_of(error))
    if isinstance(error, errors.ResourceExhausted) and error.retry_after is not None:
        # Holds back the retries of gRPC's own retry policies (gRFC A6).
        pushback = ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000)))
        status = status._replace(trailing_metadata=(*status.trailing_metadata, pushback))
    context.abort_with_status(status)


def status_of(error: errors.RecallError) -> status_pb2.Status:
    """The error's code and message, with ErrorInfo and what else helps a client to act on it."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.value), message=_clip(error.message))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: errors.RecallError) -> list[protobuf.Message]:
    metadata = {key: _clip(value) for key, value in error.metadata.items()}
    details: list[protobuf.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=errors.DOMAIN, metadata=metadata)
    ]
    if isinstance(error, errors.InvalidField):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_clip(error.field), description=_clip(error.description)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, errors.ResourceError):
        details.append(
            error_details_pb2.ResourceInfo(
                resource_type=error.resource_type,
                resource_name=_clip(error.resource_name, _MAX_NAME_BYTES),
                description=_clip(error.message),
            )
        )
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(timedelta(seconds=error.retry_after))
        details.append(retry)
    return details


def _clip(text: str, limit: int = _MAX_TEXT_BYTES) -> str:
    return text.encode()[:limit].decode(errors="ignore")
