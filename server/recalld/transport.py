"""What gRPC is told about connections: limits, keepalive, and certificates."""

from __future__ import annotations

import logging
import resource
from typing import Any, Final

import grpc

from recalld.access.certificates import Certificates, watch_certificates
from recalld.access.files import Watched
from recalld.limits import MAX_CALL_METADATA_BYTES, MAX_REQUEST_BYTES
from recalld.settings import Settings

log = logging.getLogger(__name__)

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # The soft and the hard limit: between them gRPC refuses calls at random, so they are the same.
    ("grpc.max_metadata_size", MAX_CALL_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_CALL_METADATA_BYTES),
    # With this protection gRPC also counts calls that are answered but not yet cleaned up, and refuses calls that the
    # client may send: 156 of 2,000, of a client with more to do than max_calls_per_connection (256) lets it do at once.
    ("grpc.http.overload_protection", 0),
    # Clients may ping this often, also between calls, to keep a connection open through a NAT or balancer; by default
    # gRPC cuts off whoever pings more than once in 5 minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Finds clients that vanished without a word, and with them the streams that they left open.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
]

# File descriptors that a process needs besides connections of clients and of the pool.
_OTHER_FILES: Final = 100


def options(settings: Settings, *, share_port: bool) -> list[tuple[str, int]]:
    """The options of the gRPC server.

    Args:
        settings: of the server.
        share_port: whether others may listen on the same port. Two servers that do so by accident would share its
            connections silently.
    """
    return [
        *_OPTIONS,
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.max_concurrent_streams", settings.max_calls_per_connection),
        ("grpc.max_allowed_incoming_connections", _most_connections(settings)),
    ]


def _most_connections(settings: Settings) -> int:
    """How many clients may be connected, so that they leave file descriptors for connections to the database.

    gRPC counts them for each address that the host of `listen` has.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Each connection of the pool may need a second one, for a cancel request.
    left = files - 2 * settings.pool_size - _OTHER_FILES
    if files == resource.RLIM_INFINITY or left >= settings.max_connections:
        return settings.max_connections
    log.info("takes %d connections at most: no more than %d files may be open (ulimit -n)", max(1, left), files)
    return max(1, left)


def listen(server: grpc.Server, settings: Settings) -> int:
    """Has the server listen, with TLS if there are certificates, and returns its port.

    Raises FileError, and RuntimeError when the address cannot be had.
    """
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return server.add_insecure_port(settings.listen)
    certificates = watch_certificates(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    return server.add_secure_port(settings.listen, _credentials(certificates))


def _credentials(watched: Watched[Certificates]) -> grpc.ServerCredentials:
    """TLS with the certificates of the moment: gRPC asks for them at each handshake."""
    current = watched.get()

    def newer() -> Any:  # None for no change, which the types of grpc leave out
        nonlocal current
        latest = watched.get()
        if latest is current:
            return None
        current = latest
        return _configuration(latest)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(current), newer, require_client_authentication=current.client_ca is not None
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pair = (certificates.key, certificates.chain)
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=certificates.client_ca)
