"""Putting something around the handlers of gRPC methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import grpc

Behaviour = Callable[[Any, grpc.ServicerContext], Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Puts something around a handler, given the path of its method, such as `/recall.v1.UserService/GetUser`.
Wrap: TypeAlias = Callable[[str, Handler], Handler]

_HEALTH: Final = "/grpc.health.v1.Health/"
_HEALTH_AND_REFLECTION: Final = (_HEALTH, "/grpc.reflection.")


def is_health(method: str) -> bool:
    return method.startswith(_HEALTH)


def is_health_or_reflection(method: str) -> bool:
    """Whether the method is of a service that anyone may call, and whose errors are its own."""
    return method.startswith(_HEALTH_AND_REFLECTION)


class HandlerInterceptor(grpc.ServerInterceptor):
    """Puts `wrap` around the handler of every method but those of health and reflection.

    A handler is wrapped once, when its method is first called, and kept: a call costs a dict lookup. So `wrap` cannot
    decide by one call; what it needs of a call it takes from the context, in the behaviour.
    """

    def __init__(self, wrap: Wrap) -> None:
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
        # The handler of an unknown method is not kept: callers could make up any number of names.
        if handler is None or is_health_or_reflection(method):
            return handler
        return self._wrapped.setdefault(method, self._wrap(method, handler))


def rewrapped(
    handler: Handler,
    unary: Callable[[Behaviour], Behaviour],
    stream: Callable[[Behaviour], Behaviour],
    deserializer: Callable[[bytes], Any] | None = None,
) -> Handler:
    """The handler with another behaviour.

    Args:
        handler: of a method with one request; there are no others here.
        unary: makes the new behaviour of a method with one response out of the old.
        stream: likewise, of a method that answers with a stream.
        deserializer: in place of the handler's own, when given.
    """
    assert not handler.request_streaming, "no method streams requests"
    deserializer = deserializer or handler.request_deserializer
    if handler.unary_stream is not None:
        behaviour = stream(handler.unary_stream)
        return grpc.unary_stream_rpc_method_handler(behaviour, deserializer, handler.response_serializer)
    assert handler.unary_unary is not None
    return grpc.unary_unary_rpc_method_handler(unary(handler.unary_unary), deserializer, handler.response_serializer)
