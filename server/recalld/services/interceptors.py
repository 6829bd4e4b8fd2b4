"""What stands around every call, outermost first.

An interceptor here wraps a handler once, when its method is first called, and keeps the result: a call costs a dict
lookup. So none may decide by the metadata of one call in `intercept_service`; what it needs of a call it takes from the
context, in the behaviour. Methods of other services (health, reflection, channelz) pass untouched.
"""

from __future__ import annotations

import functools
import logging
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeAlias
from uuid import uuid4

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from recalld.errors import Internal, InvalidField, RecallError, ShuttingDown
from recalld.services.status import status_of

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_OUR_METHODS = "/recall.v1."

log = logging.getLogger(__name__)


def interceptors(draining: Callable[[], bool]) -> list[grpc.ServerInterceptor]:
    """The interceptors of the server, in their order.

    Args:
        draining: whether the server is shutting down.
    """
    return [HandlerInterceptor(answer_errors), HandlerInterceptor(functools.partial(end_streams, draining))]


class HandlerInterceptor(grpc.ServerInterceptor):
    """Puts `wrap` around the handler of every method of the API."""

    def __init__(self, wrap: Callable[[Handler], Handler]) -> None:
        self._wrap = wrap
        self._wrapped: dict[str, Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is not None:
            return wrapped
        handler = continuation(handler_call_details)
        # A method that does not exist is not kept either: its name is the caller's invention.
        if handler is None or not method.startswith(_OUR_METHODS):
            return handler
        return self._wrapped.setdefault(method, self._wrap(handler))


# --- errors


class _Undecodable:
    """Stands for a request whose bytes are no message of its type.

    gRPC answers such a request itself, with INTERNAL, when the deserializer raises.
    """


def answer_errors(handler: Handler) -> Handler:
    """The handler, with every error turned into a google.rpc.Status. Handlers of request streams stay as they are."""
    decode = handler.request_deserializer
    if handler.request_streaming or decode is None:
        return handler

    def decode_or_mark(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Undecodable()

    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(
            stream_answering_errors(handler.unary_stream), decode_or_mark, handler.response_serializer
        )
    assert handler.unary_unary is not None
    return grpc.unary_unary_rpc_method_handler(
        unary_answering_errors(handler.unary_unary), decode_or_mark, handler.response_serializer
    )


def unary_answering_errors(behaviour: Behaviour) -> Behaviour:
    """The behaviour of a unary method, with its errors turned into statuses."""

    @functools.wraps(behaviour)
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return behaviour(_decoded(request), context)
        except Exception as error:
            _abort(context, error)

    return answer


def stream_answering_errors(behaviour: Behaviour) -> Behaviour:
    """The behaviour of a streaming method, with its errors turned into statuses: most arise during the iteration."""

    @functools.wraps(behaviour)
    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            yield from behaviour(_decoded(request), context)
        except Exception as error:
            _abort(context, error)

    return answer


def _decoded(request: Any) -> Any:
    if isinstance(request, _Undecodable):
        raise InvalidField("request", "is not a message of the method's request type")
    return request


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    known = error if isinstance(error, RecallError) else _internal(error)
    context.abort_with_status(rpc_status.to_status(status_of(known)))


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


def end_streams(draining: Callable[[], bool], handler: Handler) -> Handler:
    """The handler; if it answers with a stream, that ends with an error between two responses once the server drains.

    A stream can take any time, and would be cut off when the grace is over; ended here, its client knows why, and has
    received a whole response to go on behind.
    """
    behaviour = handler.unary_stream
    if behaviour is None:
        return handler

    def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for response in behaviour(request, context):
            yield response
            if draining():
                raise ShuttingDown

    return grpc.unary_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)
