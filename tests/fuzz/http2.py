"""HTTP/2 by hand, for what no client library lets one send. Frames as in RFC 9113, headers as in RFC 7541.

Headers go out as literals without Huffman coding; what comes back is read no further than its frames, since gRPC's own
encoder sends status and message as plain literals too.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import NamedTuple, Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING = 0x0, 0x1, 0x3, 0x4, 0x6
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
_INITIAL_WINDOW_SIZE = 0x4

_HEAD = struct.Struct(">BHBBL")  # length in two parts: 24 bits
_LITERAL_NEVER_INDEXED = b"\x10"
_PREFIX = 0x7F

Headers = Sequence[tuple[bytes, bytes]]


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def header_block(headers: Headers) -> bytes:
    return b"".join(_LITERAL_NEVER_INDEXED + _text(name) + _text(value) for name, value in headers)


def _text(text: bytes) -> bytes:
    if len(text) < _PREFIX:
        return bytes([len(text)]) + text
    rest, encoded = len(text) - _PREFIX, bytearray([_PREFIX])
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*encoded, rest]) + text


def call_headers(path: bytes, *more: tuple[bytes, bytes], **changed: bytes) -> list[tuple[bytes, bytes]]:
    """What begins a gRPC call; `changed` by name, with _ for - : `content_type=b"text/html"`."""
    usual = {b"content-type": b"application/grpc", b"te": b"trailers"}
    usual |= {name.replace("_", "-").encode(): value for name, value in changed.items()}
    return [
        (b":method", usual.pop(b"method", b"POST")),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", b"localhost"),
        *usual.items(),
        *more,
    ]


def grpc_message(data: bytes) -> bytes:
    """With gRPC's prefix: not compressed, and the length."""
    return b"\0" + struct.pack(">L", len(data)) + data


class Connection:
    """A raw connection. Reading ends, as an empty answer, when the server has closed it.

    Args:
        address: HOST:PORT.
        deadline: of each read, in seconds.
    """

    def __init__(self, address: str, deadline: float) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=deadline)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> bool:
        """Whether it could be sent."""
        try:
            self._socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def open(self, window: int = 65_535) -> None:
        """Sends the preface and settings.

        Args:
            window: how many bytes of data the server may send on a stream; 0 holds back all of them.
        """
        self.send(PREFACE + frame(SETTINGS, payload=struct.pack(">HL", _INITIAL_WINDOW_SIZE, window)))

    def close_sending(self) -> None:
        """Tells the server that nothing more comes. A dead connection needs no telling."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def read_all(self) -> bytes:
        """Everything up to the end that the server puts to the connection. Raises TimeoutError when it puts none."""
        received = bytearray()
        while chunk := self._receive(65536):
            received += chunk
        return bytes(received)

    def frames(self) -> Iterator[Frame]:
        """The frames up to the end of the connection. Raises TimeoutError when none comes in time."""
        while head := self._exactly(_HEAD.size):
            high, low, kind, flags, stream = _HEAD.unpack(head)
            yield Frame(kind, flags, stream & 0x7FFFFFFF, self._exactly(high << 16 | low))

    def answer(self, stream: int) -> bytes | None:
        """All headers and data of a stream, to its end; None when the stream was reset or the connection closed."""
        received = b""
        for one in self.frames():
            if one.kind == SETTINGS and not one.flags & ACK:
                self.send(frame(SETTINGS, ACK))
            if one.stream != stream:
                continue
            if one.kind == RST_STREAM:
                return None
            received += one.payload
            if one.flags & END_STREAM:
                return received
        return None

    def _exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count and (chunk := self._receive(count - len(received))):
            received += chunk
        return received if len(received) == count else b""

    def _receive(self, count: int) -> bytes:
        try:
            return self._socket.recv(count)
        except ConnectionResetError:
            return b""
