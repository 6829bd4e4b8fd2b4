"""A call tells the store how long it has, and when it is over."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from recalld.services.call import RpcCall
from tests.served import served


class Context:
    """The part of grpc.ServicerContext that a call uses."""

    def __init__(self, remaining: float | None = None, *, over: bool = False) -> None:
        self.remaining = remaining
        self.over = over
        self.callbacks: list[Callable[[], None]] = []

    def time_remaining(self) -> float | None:
        return self.remaining

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if not self.over:
            self.callbacks.append(callback)
        return not self.over

    def end(self) -> None:
        self.over = True
        for callback in self.callbacks:
            callback()


def call_over(context: Context) -> RpcCall:
    return RpcCall(cast("grpc.ServicerContext", context))


@pytest.mark.parametrize(("reported", "remaining"), [(None, None), (9.2e18, None), (2.5, 2.5), (0.0, 0.0), (-1.0, 0.0)])
def test_remaining_is_the_time_to_the_deadline_if_there_is_one(reported: float | None, remaining: float | None) -> None:
    assert call_over(Context(reported)).remaining() == remaining


def test_the_callback_runs_when_the_call_ends() -> None:
    context, ran = Context(), list[str]()
    assert call_over(context).when_over(lambda: ran.append("callback"))
    assert ran == []
    context.end()
    assert ran == ["callback"]


def test_a_call_of_many_statements_keeps_the_latest_callback_only() -> None:
    context, ran = Context(), list[int]()
    call = call_over(context)

    def note(statement: int) -> Callable[[], None]:
        return lambda: ran.append(statement)

    for statement in range(100):
        assert call.when_over(note(statement))
    assert len(context.callbacks) == 1
    context.end()
    assert ran == [99]


def test_a_call_that_has_ended_takes_no_callback() -> None:
    context = Context()
    call = call_over(context)
    context.end()
    assert not call.when_over(pytest.fail)


def test_a_call_that_was_over_from_the_start_takes_no_callback() -> None:
    assert not call_over(Context(over=True)).when_over(pytest.fail)


def test_the_namespace_is_the_default_one() -> None:
    assert call_over(Context()).namespace == "default"


def test_a_deadline_is_told_from_none_over_a_real_connection() -> None:
    seen: list[float | None] = []

    def behaviour(request: Empty, context: grpc.ServicerContext) -> Empty:
        seen.append(RpcCall(context).remaining())
        return request

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(behaviour, Empty.FromString, Empty.SerializeToString)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", {"Echo": handler}),))
    with served(server) as channel:
        echo = channel.unary_unary("/test.Echo/Echo", Empty.SerializeToString, Empty.FromString)
        echo(Empty())
        echo(Empty(), timeout=60)
    without, within = seen
    assert without is None
    assert within is not None
    assert within == pytest.approx(60, abs=5)
