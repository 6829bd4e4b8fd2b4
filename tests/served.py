"""A gRPC server that a test has made, over a real connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc


@contextmanager
def served(server: grpc.Server) -> Iterator[grpc.Channel]:
    """A channel to the server, which is started on a free port of the loopback interface, and stopped in the end."""
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            yield channel
    finally:
        server.stop(None).wait()
