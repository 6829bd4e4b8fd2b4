"""Bounds the memory of replies that wait to be sent.

gRPC keeps a reply until the connection has taken it, long after the call has given back its thread and its place among
the calls in progress. A client that asks for much and reads nothing would fill the server's memory.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from recalld.access import Scope
from recalld.errors import Overloaded
from recalld.limits import MIB
from recalld.services.admission import SCOPES
from recalld.services.wrapping import Behaviour, Handler, Wrap, rewrapped

# Bytes of replies that wait, of all connections and of one. In memory each takes about twice its size.
_MOST_WAITING: Final = 128 * MIB
_MOST_WAITING_OF_ONE: Final = 64 * MIB

# Smaller replies are not counted: those of one connection take little memory, and counting would cost a usual GetMemory
# a twentieth of its time.
_LEAST_COUNTED: Final = 16 * 1024

# Its reply is small, whatever the size of the request.
_ALWAYS_SMALL: Final = "/recall.v1.MemoryService/AddMemory"


class Replies:
    """The replies that are not sent yet.

    Args:
        most: bytes that may wait. Beyond that, the calls whose replies have waited longest are cancelled.
        most_of_one: bytes that may wait for one connection.
    """

    def __init__(self, most: int = _MOST_WAITING, most_of_one: int = _MOST_WAITING_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._lock = threading.Lock()
        # The oldest first.
        self._waiting: dict[grpc.ServicerContext, tuple[int, str]] = {}
        self._of_one: Counter[str] = Counter()

    def hold(self, size: int, context: grpc.ServicerContext, *, can_refuse: bool) -> None:
        """Counts a reply until its call is over: until it is sent, or cannot be sent any more.

        Raises Overloaded when too much would wait for the connection and `can_refuse` is set.
        """
        with self._lock:
            peer = context.peer()
            if can_refuse and self._of_one[peer] + size > self._most_of_one:
                raise Overloaded
            self._waiting[context] = size, peer
            self._of_one[peer] += size
            given_up = []
            while self._of_one.total() > self._most:
                oldest = next(iter(self._waiting))
                self._forget(oldest)
                given_up.append(oldest)
        for each in given_up:
            each.cancel()
        if not context.add_callback(lambda: self._let_go(context)):
            self._let_go(context)

    def _let_go(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._forget(context)

    def _forget(self, context: grpc.ServicerContext) -> None:
        """Called under the lock."""
        if (found := self._waiting.pop(context, None)) is None:
            return
        size, peer = found
        self._of_one[peer] -= size
        if not self._of_one[peer]:
            del self._of_one[peer]


def bounding(replies: Replies) -> Wrap:
    """Makes an interceptor's `wrap` that bounds what waits for readers.

    A read is answered OVERLOADED when too much waits for its connection. A write has taken effect, so it is answered in
    any case. A stream needs no bound: it sends nothing more before its reader has taken the last response.
    """

    def wrap(method: str, handler: Handler) -> Handler:
        if method == _ALWAYS_SMALL:
            return handler
        reads = SCOPES.get(method) is Scope.READ

        def unary(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                reply = behaviour(request, context)
                # The servicer of channelz, which is gRPC's, gives none when it refuses.
                size = reply.ByteSize() if isinstance(reply, Message) else 0
                if size >= _LEAST_COUNTED:
                    replies.hold(size, context, can_refuse=reads)
                return reply

            return answer

        return rewrapped(handler, unary, lambda stream: stream)

    return wrap
