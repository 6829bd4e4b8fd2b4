"""A gRPC server that answers every method with an empty response, and remembers what it was sent."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc


@dataclass(frozen=True)
class Received:
    """One attempt of a call, as it arrived.

    Attributes:
        seconds: what was left of its deadline.
    """

    method: str
    request: bytes
    metadata: dict[str, str | bytes]
    seconds: float | None


@dataclass
class Recorder(grpc.GenericRpcHandler):
    """Answers the next attempts with `failures`, a status and its trailing metadata each, and then with success."""

    address: str = ""
    received: list[Received] = field(default_factory=list)
    failures: list[tuple[grpc.StatusCode, tuple[tuple[str, str | bytes], ...]]] = field(default_factory=list)

    def fail(self, code: grpc.StatusCode, *trailing: tuple[str, str | bytes], times: int = 1) -> None:
        self.failures += [(code, trailing)] * times

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method.rpartition("/")[2]
        metadata = dict(handler_call_details.invocation_metadata)

        def answer(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            self.received.append(Received(method, request, metadata, context.time_remaining()))
            if self.failures:
                code, trailing = self.failures.pop(0)
                context.set_trailing_metadata(trailing)
                context.abort(code, "as told")
            yield b""

        # A stream of one response is, on the wire, what a unary method answers.
        return grpc.unary_stream_rpc_method_handler(answer)


@contextmanager
def recording() -> Iterator[Recorder]:
    """A recorder on a free port of the loopback interface, which takes requests of any size."""
    recorder = Recorder()
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads, [recorder], options=[("grpc.max_receive_message_length", -1)])
        recorder.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield recorder
        server.stop(None).wait()
