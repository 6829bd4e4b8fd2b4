"""Handlers as the interceptors wrap them, called directly or over a real connection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recalld.access.quotas import Quotas
from recalld.services import add_services
from recalld.services.admission import Admission
from recalld.services.call import principal
from recalld.services.wrapping import Handler
from tests.access import Context
from tests.reference import ReferenceStore
from tests.served import served
from tests.unit.rpc import around, detail

# Seconds. A deadline, not a delay.
DEADLINE = 30.0


class Responses:
    """A streaming behaviour that answers with numbers, and tells whether it was closed."""

    def __init__(self, count: int = 1000) -> None:
        self._count = count
        self.sent = 0
        self.closed = False
        self.namespaces: list[str] = []

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Iterator[int]:
        try:
            for number in range(self._count):
                self.namespaces.append(principal.get().namespace)
                self.sent = number + 1
                yield number
        finally:
            self.closed = True


def streaming(behaviour: Any) -> Handler:
    return grpc.unary_stream_rpc_method_handler(behaviour)


def unary(behaviour: Any) -> Handler:
    return grpc.unary_unary_rpc_method_handler(behaviour)


def opened(handler: Handler, context: Context) -> Any:
    assert handler.unary_stream is not None
    return handler.unary_stream(b"", cast("grpc.ServicerContext", context))


def called(handler: Handler, context: Context) -> Any:
    assert handler.unary_unary is not None
    return handler.unary_unary(b"", cast("grpc.ServicerContext", context))


@contextmanager
def serving(
    store: ReferenceStore, admission: Admission, quotas: Quotas | None = None, most_streams: int = 10
) -> Iterator[grpc.Channel]:
    stack = around(admission=admission, quotas=quotas, most_streams=most_streams)
    server = grpc.server(ThreadPoolExecutor(8), interceptors=stack)
    add_services(server, store, timedelta(days=30))
    with served(server) as channel:
        yield channel


def failure(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def reason_of(error: Any) -> str:
    return str(detail(rpc_status.from_call(error), error_details_pb2.ErrorInfo).reason)
