"""The Python client: the stubs on one channel, which repeats calls safely and carries the credential.

    with connect("memory.example.org:443", api_key=key, tls=True) as client:
        client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=messages), timeout=5)

It needs nothing of the server. `recall.v1` has the messages; there is no other client API than the stubs.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from uuid import uuid4

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from recall.v1.admin_pb2_grpc import AdminServiceStub
from recall.v1.memory_pb2 import AddMemoryRequest
from recall.v1.memory_pb2_grpc import MemoryServiceStub
from recall.v1.session_pb2_grpc import SessionServiceStub
from recall.v1.user_pb2_grpc import UserServiceStub

if TYPE_CHECKING:
    from recall.v1.admin_pb2_grpc import AdminServiceAsyncStub
    from recall.v1.memory_pb2_grpc import MemoryServiceAsyncStub
    from recall.v1.session_pb2_grpc import SessionServiceAsyncStub
    from recall.v1.user_pb2_grpc import UserServiceAsyncStub

_Request = TypeVar("_Request")
_Metadata = tuple[tuple[str, str | bytes], ...]

_OPTIONS: Final[Mapping[str, int]] = {
    "grpc.enable_retries": 1,
    # The largest request, and room for its framing. What does not fit the buffer is not repeated, by default above
    # 256 KiB.
    "grpc.per_rpc_retry_buffer_size": 5 * 1024 * 1024,
    # A request that the server would refuse for its size fails here, rather than there and up to five times.
    "grpc.max_send_message_length": 4 * 1024 * 1024,
    # Finds a server that vanished without a word, also while a stream is silent or nothing is asked. The server permits
    # a ping in 10 seconds.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # By default a client may wait two minutes before it notices that a server is back.
    "grpc.max_reconnect_backoff_ms": 5_000,
}


@dataclass(frozen=True, slots=True)
class Tls:
    """What TLS is checked with: files in PEM, read when connecting.

    Attributes:
        ca: who signs the server's certificate; None for the roots that gRPC comes with.
        cert: the client's own certificate chain, for mutual TLS.
        key: the private key of `cert`.
    """

    ca: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' contents, as gRPC takes them. Raises OSError."""
        ca, key, cert = (Path(file).read_bytes() if file is not None else None for file in (self.ca, self.key, self.cert))
        return grpc.ssl_channel_credentials(ca, key, cert)


class Client:
    """The stubs on a channel; as a context manager it closes the channel at the end."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        self.sessions = SessionServiceStub(channel)
        self.memory = MemoryServiceStub(channel)
        self.users = UserServiceStub(channel)
        self.admin = AdminServiceStub(channel)

    def close(self) -> None:
        """Closes the channel, and cancels the calls on it."""
        self.channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient:
    """The stubs on an asyncio channel; as an asynchronous context manager it closes the channel at the end."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.sessions: SessionServiceAsyncStub = SessionServiceStub(channel)
        self.memory: MemoryServiceAsyncStub = MemoryServiceStub(channel)
        self.users: UserServiceAsyncStub = UserServiceStub(channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(channel)

    async def close(self) -> None:
        """Closes the channel, and cancels the calls on it."""
        await self.channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def connect(
    target: str,
    *,
    api_key: str | None = None,
    tls: bool | str | os.PathLike[str] | Tls = False,
    send_key_in_plaintext: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> Client:
    """A client of the server at `target`. It connects with its first call.

    Calls are repeated as `service_config` says: reads, and AddMemory, which gets a request_id if it has neither that nor
    a message_id. A call without a timeout of its own has the 30 seconds of the service config, a stream none.

    Args:
        target: HOST:PORT, or another name that gRPC can resolve.
        api_key: an API key or a token, sent with every call as `authorization: Bearer …`.
        tls: True trusts the roots that gRPC comes with, a path the certificates in that file, `Tls` says more.
        send_key_in_plaintext: permits an api_key without TLS to a host that is not this one: whoever sees the traffic
            has the key.
        options: further channel options, which go before those set here.

    Raises ValueError for a key that would travel in plaintext, and OSError for a file that cannot be read.
    """
    _check(target, api_key, tls, send_key_in_plaintext)
    chosen = channel_options(target, options)
    credentials = _credentials(tls)
    channel = (
        grpc.insecure_channel(target, chosen)
        if credentials is None
        else grpc.secure_channel(target, credentials, chosen)
    )
    return Client(grpc.intercept_channel(channel, _Interceptor(api_key)))


def connect_async(
    target: str,
    *,
    api_key: str | None = None,
    tls: bool | str | os.PathLike[str] | Tls = False,
    send_key_in_plaintext: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> AsyncClient:
    """`connect` for asyncio. Call it where the event loop runs that the calls are made in."""
    _check(target, api_key, tls, send_key_in_plaintext)
    chosen = channel_options(target, options)
    credentials = _credentials(tls)
    interceptors = [_AsyncUnaryInterceptor(api_key), _AsyncStreamInterceptor(api_key)]
    channel = (
        grpc.aio.insecure_channel(target, chosen, interceptors=interceptors)
        if credentials is None
        else grpc.aio.secure_channel(target, credentials, chosen, interceptors=interceptors)
    )
    return AsyncClient(channel)


def service_config() -> str:
    """The published gRPC service config, as JSON: which methods are repeated, when, and how long a call may take."""
    return resources.files("recall.v1").joinpath("service_config.json").read_text(encoding="utf-8")


def channel_options(target: str, options: Sequence[tuple[str, Any]] = ()) -> list[tuple[str, Any]]:
    """The channel options that `connect` sets, for a channel of one's own; `options` go before them."""
    chosen: dict[str, Any] = {**_OPTIONS, "grpc.service_config": service_config()}
    if _is_local(target):
        chosen["grpc.enable_http_proxy"] = 0  # a proxy that is set for the web would see the calls
    return [*(chosen | dict(options)).items()]


# --- credentials


def _check(target: str, api_key: str | None, tls: object, send_key_in_plaintext: bool) -> None:
    if api_key is not None and not tls and not send_key_in_plaintext and not _is_local(target):
        raise ValueError(f"the key would travel in plaintext to {target}: pass tls, or send_key_in_plaintext=True")


def _credentials(tls: bool | str | os.PathLike[str] | Tls) -> grpc.ChannelCredentials | None:
    if isinstance(tls, bool):
        return Tls().credentials() if tls else None
    return (tls if isinstance(tls, Tls) else Tls(ca=tls)).credentials()


def _is_local(target: str) -> bool:
    """Whether the target is this host beyond doubt: a loopback address, `localhost`, or a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        if target.startswith(scheme):
            target = target.removeprefix(scheme)
            break
    return all(_is_loopback(address) for address in target.split(","))


def _is_loopback(address: str) -> bool:
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") > 1:  # IPv6 without a port
        host = address
    else:
        host = address.partition(":")[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- what is done to every call


class _CallDetails(NamedTuple):
    method: str
    timeout: float | None
    metadata: _Metadata | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


# gRPC looks for its class only to check types.
grpc.ClientCallDetails.register(_CallDetails)
