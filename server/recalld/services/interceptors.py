"""What stands around every call that is worked on, outermost first. Before it: services/overload.py."""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError

from recalld.access.quotas import Quotas
from recalld.errors import Internal, InvalidField, RecallError, ShuttingDown
from recalld.services.admission import Admission, admitting, sharing
from recalld.services.observing import reason
from recalld.services.replies import Replies, bounding
from recalld.services.status import abort
from recalld.services.wrapping import Behaviour, Handler, HandlerInterceptor, Wrap, rewrapped

log = logging.getLogger(__name__)


def interceptors(
    *,
    observe: Wrap,
    admission: Admission | None,
    quotas: Quotas,
    most_streams: int,
    draining: Callable[[], bool],
) -> list[grpc.ServerInterceptor]:
    """The interceptors that stand around a handler, in their order.

    Args:
        observe: tells of every call.
        admission: tells who a caller is; None where authentication is off.
        quotas: of the namespaces.
        most_streams: streams open at once, of all callers.
        draining: whether the server is shutting down.
    """
    wraps: list[Wrap] = [
        observe,
        answer_errors,
        admitting(admission),
        sharing(quotas, most_streams),
        refuse_undecodable,
        bounding(Replies()),
        functools.partial(end_streams, draining),
    ]
    return [HandlerInterceptor(wrap) for wrap in wraps]


# --- errors


class _Undecodable:
    """Stands for a request whose bytes are no message of its type.

    gRPC answers such a request itself, with INTERNAL, when the deserializer raises.
    """


def answer_errors(_method: str, handler: Handler) -> Handler:
    """The handler, with every error turned into a google.rpc.Status."""
    decode = handler.request_deserializer

    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data) if decode else data
        except DecodeError:
            return _Undecodable()

    return rewrapped(handler, unary_answering_errors, stream_answering_errors, decode_or_mark)


def unary_answering_errors(behaviour: Behaviour) -> Behaviour:
    """The behaviour of a unary method, with its errors turned into statuses."""

    @functools.wraps(behaviour)
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(request, context)
        except Exception as error:
            _abort(context, error)

    return answer


def stream_answering_errors(behaviour: Behaviour) -> Behaviour:
    """The behaviour of a streaming method, with its errors turned into statuses: most arise during the iteration."""

    @functools.wraps(behaviour)
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from behaviour(request, context)
        except Exception as error:
            _abort(context, error)

    return answer


def refuse_undecodable(_method: str, handler: Handler) -> Handler:
    """The handler, which never sees a request that `answer_errors` could not decode.

    It stands behind authentication, so that a caller without access learns nothing else.
    """

    def wrap(behaviour: Behaviour) -> Behaviour:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if isinstance(request, _Undecodable):
                raise InvalidField("request", "is not a message of the method's request type")
            return behaviour(request, context)

        return answer

    return rewrapped(handler, wrap, wrap)


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    known = error if isinstance(error, RecallError) else _internal(error)
    reason.set(known.reason)
    abort(context, known)


def _internal(error: Exception) -> Internal:
    error_id = uuid4().hex
    log.error("internal error %s\n%s", error_id, _where(error))
    return Internal(error_id)


def _where(error: BaseException) -> str:
    """The types and stacks of the error and its causes, without their texts: those may quote what users wrote."""
    story: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        stack = "".join(traceback.format_tb(cause.__traceback__))
        story.insert(0, f"{stack}{type(cause).__module__}.{type(cause).__qualname__}\n")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "which led to:\n".join(story)


# --- draining


def end_streams(draining: Callable[[], bool], _method: str, handler: Handler) -> Handler:
    """The handler; if it answers with a stream, that ends with an error between two responses once the server drains.

    A stream can take any time, and would be cancelled when the grace is over. Ended here, its client gets the reason,
    and has received whole responses, after which it can resume.
    """

    def stream(behaviour: Behaviour) -> Behaviour:
        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            for response in behaviour(request, context):
                yield response
                if draining():
                    raise ShuttingDown

        return answer

    return rewrapped(handler, lambda unary: unary, stream)
