"""Server reflection, with which grpcurl finds out what there is to call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_reflection.v1alpha import reflection

SERVICE_NAME: str = reflection.SERVICE_NAME


def enable_reflection(services: Iterable[str], server: grpc.Server) -> None:
    """Serves the descriptors of these services, given by their full names, and of all that they use."""
    reflection.enable_server_reflection(services, server, _Descriptors())


class _Descriptors:
    """The descriptors of this process, and the file of a method, which the pool does not find by itself.

    Without it, `grpcurl describe` knows no method: https://github.com/grpc/grpc/issues/34743.
    """

    def __init__(self) -> None:
        self._pool: Any = descriptor_pool.Default()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file
