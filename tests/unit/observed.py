"""The services over a store in memory and a real channel, with what is told of their calls."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import grpc

from recalld.access.quotas import Quotas
from recalld.metrics import Metrics
from recalld.services import add_services
from recalld.services.admission import Admission
from recalld.services.interceptors import interceptors
from recalld.services.observing import Tracer, observing
from tests.reference import ReferenceStore
from tests.served import served

# Seconds. A deadline, not a delay.
DEADLINE = 30.0


@contextmanager
def observed(
    metrics: Metrics,
    *,
    tracer: Tracer | None = None,
    log_calls: bool = True,
    admission: Admission | None = None,
    store: ReferenceStore | None = None,
) -> Iterator[grpc.Channel]:
    """A channel to a server, whose calls are counted in `metrics`."""
    stack = interceptors(
        observe=observing(metrics, tracer, log_calls=log_calls),
        admission=admission,
        quotas=Quotas(0, 0),
        most_streams=4,
        draining=lambda: False,
    )
    server = grpc.server(ThreadPoolExecutor(8), interceptors=stack)
    add_services(server, store or ReferenceStore(), timedelta(days=30))
    with served(server) as channel:
        yield channel
