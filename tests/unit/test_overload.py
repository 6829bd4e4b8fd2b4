"""Which threads calls are given that may gather."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from recalld.gathering import gathers
from recalld.metrics import Metrics
from recalld.services.overload import CallThreads, GatheredCalls
from recalld.spare_threads import SpareThreads

DEADLINE = 10.0


@pytest.fixture
def gathered() -> Iterator[GatheredCalls]:
    calls = CallThreads(8)
    threads = GatheredCalls(calls, SpareThreads("test"), Metrics().group_sizes("/test/Test"))
    yield threads
    threads.shutdown()
    calls.shutdown()


def runs_where_calls_gather(_run: Any, _event: Any, _state: Any) -> bool:
    """What gRPC submits, as far as it matters here."""
    return gathers()


def test_a_call_whose_request_can_be_waited_for_aside_gathers(gathered: GatheredCalls) -> None:
    before = threading.Condition()
    state = SimpleNamespace(condition=before)
    assert gathered.submit(runs_where_calls_gather, None, None, state).result(DEADLINE)
    assert state.condition is not before


@pytest.mark.parametrize("state", [None, SimpleNamespace(), SimpleNamespace(condition="unknown")])
def test_one_that_would_hold_up_others_has_a_thread_of_its_own(state: Any, gathered: GatheredCalls) -> None:
    """So it would be if a gRPC to come kept its calls' state elsewhere."""
    assert not gathered.submit(runs_where_calls_gather, None, None, state).result(DEADLINE)
    assert not gathered.submit(gathers).result(DEADLINE)
