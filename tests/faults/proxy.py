"""A TCP proxy that can be stopped, frozen, emptied out and made to lose an answer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.faults.cluster import free_port

# What Postgres sends when it has done everything it was asked: ReadyForQuery, outside a transaction.
_READY = b"Z\x00\x00\x00\x05I"


class Proxy:
    """Forwards TCP connections to a port of this machine, until it is told to misbehave.

    Args:
        target: the port on 127.0.0.1.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._listener: socket.socket | None = None
        self._lose_answer_to: bytes | None = None
        self._lost = threading.Event()
        self._holes: list[socket.socket] = []
        self.forward()

    def forward(self) -> None:
        """Takes connections, again if need be. Those that were frozen stay so."""
        self.refuse_new()
        listener = self._listen()
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def refuse(self) -> None:
        """Cuts all connections and refuses new ones."""
        self.refuse_new()
        for pair in self._taken():
            pair.cut()

    def refuse_new(self) -> None:
        """Refuses new connections; the others go on."""
        for one in [*self._holes, *([self._listener] if self._listener else [])]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            one.close()
        self._holes, self._listener = [], None

    def swallow(self) -> None:
        """A network that is gone: connections hear nothing more, and attempts at new ones no refusal either."""
        self.freeze()
        self.refuse_new()
        # With its queue full and nobody to take from it, the kernel answers no further attempt.
        self._listener = self._listen(backlog=0)
        for _ in range(2):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", self.port))
            self._holes.append(filler)

    def freeze(self) -> None:
        """The connections there are never hear another byte, nor learn that they are dead. New ones are served."""
        for pair in self._taken():
            pair.freeze()

    @contextmanager
    def losing_the_answer(self, request: bytes) -> Iterator[threading.Event]:
        """The next request that contains these bytes is passed on, and worked on; then its connection is cut.

        Yields an event that says whether that has happened.
        """
        self._lost.clear()
        self._lose_answer_to = request
        try:
            yield self._lost
        finally:
            self._lose_answer_to = None

    def close(self) -> None:
        """Cuts all connections, and waits until their threads are done."""
        self.refuse()
        for pair in self._taken():
            pair.join()

    def _listen(self, backlog: int = 128) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(backlog)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            pair = _Pair(self, client, server)
            with self._lock:
                self._pairs.append(pair)
            pair.start()
            if listener is not self._listener:
                pair.cut()  # it was taken just before new ones were refused, and is none of those that were there

    def _taken(self) -> list[_Pair]:
        with self._lock:
            return list(self._pairs)

    def loses(self, request: bytes) -> bool:
        """Whether the answer to this request is to be lost; once."""
        with self._lock:
            wanted = self._lose_answer_to
            if wanted is None or wanted not in request:
                return False
            self._lose_answer_to = None
            return True

    def forget(self, pair: _Pair) -> None:
        """It has ended."""
        with self._lock:
            self._pairs.remove(pair)

    def lost(self) -> None:
        """An answer has been lost."""
        self._lost.set()


class _Pair:
    """One connection of a client, and the one to the server that goes with it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._flowing = threading.Event()
        self._flowing.set()
        self._loses_answer = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=pump, daemon=True) for pump in (self._to_server, self._to_client)]
        self._pumping = len(self._threads)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def freeze(self) -> None:
        self._flowing.clear()

    def cut(self) -> None:
        self._flowing.set()
        for end in (self._client, self._server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _to_server(self) -> None:
        with self._pumping_until_it_ends():
            while data := self._client.recv(65536):
                self._flowing.wait()
                if self._proxy.loses(data):
                    self._loses_answer = True
                self._server.sendall(data)

    def _to_client(self) -> None:
        with self._pumping_until_it_ends():
            while data := self._server.recv(65536):
                self._flowing.wait()
                if not self._loses_answer:
                    self._client.sendall(data)
                elif data.endswith(_READY):
                    self._proxy.lost()
                    return

    @contextmanager
    def _pumping_until_it_ends(self) -> Iterator[None]:
        """When one direction ends, so does the other; the last one to leave closes."""
        with suppress(OSError):
            yield
        self.cut()
        with self._lock:
            self._pumping -= 1
            if self._pumping:
                return
        self._client.close()
        self._server.close()
        self._proxy.forget(self)
