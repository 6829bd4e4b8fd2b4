"""The Python client: the stubs on one channel, which retries calls safely and sends the credential.

    with connect("memory.example.org:443", api_key=key, tls=True) as client:
        client.memory.AddMemory(AddMemoryRequest(session_id="s", messages=messages), timeout=5)

It does not depend on the server's code. `recall.v1` has the messages; there is no other client API than the stubs.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
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

File = str | os.PathLike[str]
ApiKey = str | Callable[[], str]

_OPTIONS: Final[Mapping[str, int]] = {
    "grpc.enable_retries": 1,
    # Room for the largest request, 4 MiB, and its metadata: gRPC retries only what fits, by default 256 KiB. A request
    # that is much too large for the server does not fit, and so fails without retries.
    "grpc.per_rpc_retry_buffer_size": 4 * 1024 * 1024 + 16 * 1024,
    # Detects a server that vanished without closing its connections, also while there are no calls, or a stream is
    # silent. The server permits a ping in 10 seconds.
    "grpc.keepalive_time_ms": 60_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    # By default a client may wait two minutes before it notices that a server is back.
    "grpc.max_reconnect_backoff_ms": 5_000,
}

# ErrorInfo.domain of recalld's own errors.
_DOMAIN: Final = "recalld"

# The syntax of a bearer token (RFC 6750, section 2.1).
_KEY: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*")

_SCHEME: Final = re.compile(r"\A(dns:(///)?|ipv4:|ipv6:)")
_ADDRESS: Final = re.compile(r"(\[(?P<ipv6>[^]]+)\]|(?P<host>[^:]+))(:\d+)?")


@dataclass(frozen=True, slots=True)
class Tls:
    """The files of a TLS connection, in PEM. They are read when connecting.

    Attributes:
        ca: the authority that signs the server's certificate; None for the roots that gRPC comes with.
        cert: the client's own certificate chain, for mutual TLS.
        key: the private key of `cert`.
    """

    ca: File | None = None
    cert: File | None = None
    key: File | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together")

    def credentials(self) -> grpc.ChannelCredentials:
        """The files' contents, as gRPC takes them. Raises OSError."""
        ca, key, cert = (
            Path(file).read_bytes() if file is not None else None for file in (self.ca, self.key, self.cert)
        )
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
    api_key: ApiKey | None = None,
    tls: bool | File | Tls = False,
    timeout: float = 10,
    send_key_in_plaintext: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> Client:
    """A client of the server at `target`. It connects with its first call.

    Calls are repeated as `service_config` says: reads, and AddMemory, which gets a request_id if it has neither that
    nor a message_id. A deadline covers all attempts, and the server stops working on a call when it has passed.

    Args:
        target: HOST:PORT, or another name that gRPC can resolve.
        api_key: an API key or a token, sent with every call as `authorization: Bearer …`; or a function that is asked
            for it at each call, on the caller's thread, for tokens that are renewed. It must not block for long.
        tls: True trusts the roots that gRPC comes with, a path the certificates in that file, `Tls` says more.
        timeout: seconds for a call that names none; a stream that names none has no deadline. No call but a stream may
            take longer than the 30 seconds of the service config, whatever it names.
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
    return Client(grpc.intercept_channel(channel, _Interceptor(api_key, timeout)))


def connect_async(
    target: str,
    *,
    api_key: ApiKey | None = None,
    tls: bool | File | Tls = False,
    timeout: float = 10,
    send_key_in_plaintext: bool = False,
    options: Sequence[tuple[str, Any]] = (),
) -> AsyncClient:
    """`connect` for asyncio. Call it where the event loop runs that the calls are made in."""
    _check(target, api_key, tls, send_key_in_plaintext)
    chosen = channel_options(target, options)
    credentials = _credentials(tls)
    interceptors = [_AsyncUnaryInterceptor(api_key, timeout), _AsyncStreamInterceptor(api_key)]
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
    if is_local(target):
        chosen["grpc.enable_http_proxy"] = 0  # a proxy that is set for the web would see the calls
    return [*(chosen | dict(options)).items()]


# --- errors


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a call failed, beyond its status code.

    Attributes:
        reason: what to switch on, such as SESSION_NOT_FOUND; empty when the error does not come from recalld itself,
            but from gRPC or from what is between.
        metadata: facts that a program may act on, such as the `last_seq` of SEQ_MISMATCH.
        fields: what is wrong with the request, by the path of the field.
        retry_after: seconds after which the call is worth repeating; None when it is not, or nobody knows.
    """

    reason: str
    metadata: Mapping[str, str]
    fields: Mapping[str, str]
    retry_after: float | None


def reason_of(error: grpc.RpcError) -> Reason:
    """The details of an error, from the google.rpc.Status that it carries."""
    found, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    retry_after = None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # it contradicts the status of the call, as when something between has put in its own
        status = None
    for detail in status.details if status is not None else ():
        if detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        elif not detail.Unpack(found):
            detail.Unpack(request)
    # A proxy or a mesh in between answers too, with reasons of its own.
    info = found if found.domain == _DOMAIN else error_details_pb2.ErrorInfo()
    fields = {violation.field: violation.description for violation in request.field_violations}
    return Reason(info.reason, dict(info.metadata), fields, retry_after)


# --- credentials


def _check(target: str, api_key: ApiKey | None, tls: bool | File | Tls, send_key_in_plaintext: bool) -> None:
    if isinstance(api_key, str):
        _bearer(api_key)
    if api_key is not None and tls is False and not send_key_in_plaintext and not is_local(target):
        raise ValueError(f"the key would travel in plaintext to {target}: pass tls, or send_key_in_plaintext=True")


def _bearer(key: str) -> tuple[str, str]:
    """The key as metadata. Raises ValueError; gRPC itself would quote the key in its complaint."""
    if not _KEY.fullmatch(key):
        raise ValueError("the api_key is empty, or has characters that keys and tokens do not have, such as a newline")
    return ("authorization", f"Bearer {key}")


def _credentials(tls: bool | File | Tls) -> grpc.ChannelCredentials | None:
    if isinstance(tls, bool):
        return Tls().credentials() if tls else None
    return (tls if isinstance(tls, Tls) else Tls(ca=tls)).credentials()


def is_local(target: str) -> bool:
    """Whether the target is this host beyond doubt: a loopback address, `localhost`, or a Unix socket."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    addresses = _SCHEME.sub("", target).split(",")
    return all(_is_loopback(address) for address in addresses)


def _is_loopback(address: str) -> bool:
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        return False
    host = parts["ipv6"] or parts["host"]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- interceptors


@dataclass(frozen=True, slots=True)
class _CallDetails(grpc.ClientCallDetails):
    """gRPC has no public class for this."""

    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str | bytes], ...] | None
    credentials: grpc.CallCredentials | None
    wait_for_ready: bool | None
    compression: grpc.Compression | None


class _Interceptor(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, api_key: ApiKey | None, timeout: float) -> None:
        self._api_key = api_key
        self._timeout = timeout

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        timeout = self._timeout if client_call_details.timeout is None else client_call_details.timeout
        return continuation(self._prepared(client_call_details, timeout), _repeatable(request))

    def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        return continuation(self._prepared(client_call_details, client_call_details.timeout), request)

    def _prepared(self, call: grpc.ClientCallDetails, timeout: float | None) -> grpc.ClientCallDetails:
        metadata = (*(call.metadata or ()), *_authorization(self._api_key))
        return _CallDetails(call.method, timeout, metadata, call.credentials, call.wait_for_ready, call.compression)


class _AsyncUnaryInterceptor(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, api_key: ApiKey | None, timeout: float) -> None:
        self._api_key = api_key
        self._timeout = timeout

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        timeout = self._timeout if client_call_details.timeout is None else client_call_details.timeout
        prepared = _async_prepared(client_call_details, timeout, self._api_key)
        return await continuation(prepared, _repeatable(request))


# One class for both kinds would be taken for the first of them only.
class _AsyncStreamInterceptor(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, api_key: ApiKey | None) -> None:
        self._api_key = api_key

    async def intercept_unary_stream(
        self, continuation: Callable[[Any, Any], Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        prepared = _async_prepared(client_call_details, client_call_details.timeout, self._api_key)
        return await continuation(prepared, request)


def _async_prepared(
    call: grpc.aio.ClientCallDetails, timeout: float | None, api_key: ApiKey | None
) -> grpc.aio.ClientCallDetails:
    metadata = grpc.aio.Metadata(*(call.metadata or ()), *_authorization(api_key))
    return grpc.aio.ClientCallDetails(call.method, timeout, metadata, call.credentials, call.wait_for_ready)


def _authorization(api_key: ApiKey | None) -> list[tuple[str, str]]:
    if api_key is None:
        return []
    return [_bearer(api_key if isinstance(api_key, str) else api_key())]


def _repeatable(request: Any) -> Any:
    """The request; for an AddMemory that would be stored once per attempt, a copy with a request_id."""
    if not isinstance(request, AddMemoryRequest) or request.request_id:
        return request
    if any(message.message_id for message in request.messages):
        return request
    copy = AddMemoryRequest()
    copy.CopyFrom(request)
    copy.request_id = str(uuid4())
    return copy
