"""A real server over a real channel on a real Postgres, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from recalld.app import Server
from recalld.client import Client
from recalld.settings import Settings
from tests.processes import DEADLINE


@contextmanager
def serving(database_url: str, **settings: Any) -> Iterator[Server]:
    """A server on a free port of the loopback interface.

    Unless told otherwise it waits longer for a lock than a test holds one, however slow the machine is.
    """
    chosen = {"lock_timeout": timedelta(minutes=1), **settings}
    with Server(Settings(database_url=SecretStr(database_url), listen="127.0.0.1:0", **chosen)) as server:
        yield server


@contextmanager
def connected(server: Server) -> Iterator[Client]:
    """A client of the server, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        client = Client(channel)
        wait_until_serving(channel)
        yield client


def wait_until_serving(channel: grpc.Channel) -> None:
    """Returns when health says SERVING; raises grpc.RpcError when it does not in time."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    request = health_pb2.HealthCheckRequest()
    watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=DEADLINE, wait_for_ready=True)
    for answer in watch:
        if answer.status == health_pb2.HealthCheckResponse.SERVING:
            watch.cancel()
            return


@pytest.fixture
def server(database_url: str) -> Iterator[Server]:
    with serving(database_url) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with connected(server) as client:
        yield client
