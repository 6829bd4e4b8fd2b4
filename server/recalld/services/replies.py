"""How much of what was answered may wait for its readers.

gRPC keeps a reply until the connection has taken it, long after the call has given back its thread and its place among
the calls in progress. Who asks for much and reads nothing would fill the server's memory.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from recalld.access import Scope
from recalld.errors import Overloaded
from recalld.limits import MAX_CONTENT_BYTES, MIB
from recalld.services.admission import SCOPES
from recalld.services.wrapping import Behaviour, Handler, Wrap, rewrapped

# Bytes of replies that wait, of all connections and of one. In memory each takes about twice its size.
_MOST_WAITING: Final = 128 * MIB
_MOST_WAITING_OF_ONE: Final = 64 * MIB

# Smaller replies are not counted: what one connection can have of them at a time is little.
_LEAST_COUNTED: Final = 16 * 1024

# Says little, however much it is sent.
_ALWAYS_SMALL: Final = "/recall.v1.MemoryService/AddMemory"


class Replies:
    """The replies that are not sent yet.

    Args:
        most: bytes that may wait.
        most_of_one: bytes that may wait for one connection.
    """

    def __init__(self, most: int = _MOST_WAITING, most_of_one: int = _MOST_WAITING_OF_ONE) -> None:
        self._most = most
        self._most_of_one = most_of_one
        self._lock = threading.Lock()
        self._waiting: Counter[str] = Counter()

    def check_room(self, size: int, context: grpc.ServicerContext) -> None:
        """Raises Overloaded when a reply of this size would be too much."""
        with self._lock:
            if not self._waiting:
                return
            of_this, of_all = self._waiting[context.peer()], self._waiting.total()
        if of_this + size > self._most_of_one or of_all + size > self._most:
            raise Overloaded

    def hold(self, size: int, context: grpc.ServicerContext) -> None:
        """Counts a reply until its call is over, which it is when the reply is sent, or will never be."""
        peer = context.peer()
        with self._lock:
            self._waiting[peer] += size
        if not context.add_callback(lambda: self._let_go(size, peer)):
            self._let_go(size, peer)

    def _let_go(self, size: int, peer: str) -> None:
        with self._lock:
            self._waiting[peer] -= size
            if not self._waiting[peer]:
                del self._waiting[peer]


def bounding(replies: Replies) -> Wrap:
    """Makes an interceptor's `wrap` that answers OVERLOADED where too much waits for readers.

    To a call that reads, in place of a large reply; to one that writes, before it does, when there is no room for the
    largest that it may answer. A stream sends nothing more before its reader has taken what there is.
    """

    def wrap(method: str, handler: Handler) -> Handler:
        if method == _ALWAYS_SMALL:
            return handler
        reads = SCOPES.get(method) is Scope.READ

        def unary(behaviour: Behaviour) -> Behaviour:
            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                if not reads:
                    replies.check_room(MAX_CONTENT_BYTES, context)
                reply = behaviour(request, context)
                # The servicer of channelz, which is gRPC's, gives none when it refuses.
                size = reply.ByteSize() if isinstance(reply, Message) else 0
                if size >= _LEAST_COUNTED:
                    if reads:
                        replies.check_room(size, context)
                    replies.hold(size, context)
                return reply

            return answer

        return rewrapped(handler, unary, lambda stream: stream)

    return wrap
