"""A channel as an application would open it: credential, TLS, retries, and a deadline for every call."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from recall.v1.admin_pb2_grpc import AdminServiceStub
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2_grpc import SessionServiceStub
from recall.v1.user_pb2_grpc import UserServiceStub

DEADLINE_SECONDS = 10.0


class Client:
    """The four services on one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.sessions = SessionServiceStub(channel)
        self.memory = MemoryServiceStub(channel)
        self.users = UserServiceStub(channel)
        self.admin = AdminServiceStub(channel)


def open_channel() -> grpc.Channel:
    """The channel that the environment describes; it connects with the first call."""
    target = os.environ["RECALLD_TARGET"]
    options = [("grpc.service_config", Path(os.environ["RECALLD_SERVICE_CONFIG"]).read_text())]
    if ca_file := os.environ.get("RECALLD_CA_FILE"):
        credentials = grpc.ssl_channel_credentials(Path(ca_file).read_bytes())
        channel = grpc.secure_channel(target, credentials, options)
    else:
        channel = grpc.insecure_channel(target, options)
    return grpc.intercept_channel(channel, _EveryCall(os.environ.get("RECALLD_API_KEY")))


class _Details(grpc.ClientCallDetails):
    """A call's details, with the credential and a deadline where it has none."""

    def __init__(self, given: grpc.ClientCallDetails, credential: list[tuple[str, str]]) -> None:
        self.method = given.method
        self.timeout = DEADLINE_SECONDS if given.timeout is None else given.timeout
        self.metadata = (*(given.metadata or ()), *credential)
        self.credentials = given.credentials
        self.wait_for_ready = given.wait_for_ready
        self.compression = given.compression


class _EveryCall(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Sends the credential with every call, and sees to it that every call has a deadline."""

    def __init__(self, api_key: str | None) -> None:
        self._credential = [("authorization", f"Bearer {api_key}")] if api_key else []

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_Details(details, self._credential), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(_Details(details, self._credential), request)
