"""Certificates: the server's own for TLS, and which principal a client's certificate stands for (mutual TLS)."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from recalld.access import Principal, parse_namespace, parse_scopes
from recalld.access.files import FileError, Watched, read_bytes
from recalld.errors import InvalidField

log = logging.getLogger(__name__)

_FIELDS: Final = {"namespace", "scopes"}


class Certificates(NamedTuple):
    """The server's certificate chain and key in PEM, and the CA of its clients' certificates if they need one."""

    chain: bytes
    key: bytes
    client_ca: bytes | None


def watch_certificates(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> Watched[Certificates]:
    """The certificates in these files, read again when they change. Raises FileError."""
    paths = [cert_file, key_file, *([client_ca_file] if client_ca_file else [])]
    return Watched(paths, lambda: _read_certificates(cert_file, key_file, client_ca_file))


def expiry(cert_file: Path) -> datetime:
    """When the certificate in the file expires. Raises FileError."""
    return _parse_chain(read_bytes(cert_file), cert_file)[0].not_valid_after_utc


def name_of(cert_file: Path) -> str:
    """A host name or IP address that the certificate in the file is issued for, or "". Raises FileError."""
    certificate = _parse_chain(read_bytes(cert_file), cert_file)[0]
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    hosts = [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
        *(str(part.value) for part in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)),
    ]
    return hosts[0].replace("*", "recalld") if hosts else ""


def check_certificates(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> None:
    """Checks the files of a client. Raises FileError for one that is no certificate, or a key that does not match."""
    if cert_file is not None and key_file is not None:
        _read_certificates(cert_file, key_file, ca_file)
    elif ca_file is not None:
        _parse_chain(read_bytes(ca_file), ca_file)


def _read_certificates(cert_file: Path, key_file: Path, client_ca_file: Path | None) -> Certificates:
    chain, key = read_bytes(cert_file), read_bytes(key_file)
    certificate = _parse_chain(chain, cert_file)[0]
    try:
        private_key = load_pem_private_key(key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise FileError(f"{key_file} is not a private key in PEM without a password") from None
    if private_key.public_key() != _public_key(certificate, cert_file):
        raise FileError(f"{key_file} is not the key of the certificate in {cert_file}")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        log.warning("the certificate in %s expired at %s", cert_file, certificate.not_valid_after_utc)
    client_ca = None
    if client_ca_file is not None:
        client_ca = read_bytes(client_ca_file)
        _parse_chain(client_ca, client_ca_file)
    return Certificates(chain, key, client_ca)


def _parse_chain(chain: bytes, path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(chain)
    except ValueError:
        raise FileError(f"{path} holds no certificate in PEM") from None


def _public_key(certificate: x509.Certificate, path: Path) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise FileError(f"{path} holds a certificate for a key of an unknown kind") from None


class Identities:
    """The principals of clients that prove who they are by a certificate (mutual TLS).

    The file is TOML, a table for each name that a certificate can be made out to:

        ["spiffe://example.org/billing"]
        namespace = "billing"
        scopes = ["read", "write"]

    Args:
        path: of the file. It is read again when it changes.

    Raises FileError.
    """

    def __init__(self, path: Path) -> None:
        self._principals = Watched([path], lambda: _read_identities(path))

    def find(self, names: Iterable[str]) -> Principal | None:
        """The principal of the first of these names that the file has. They are compared as they stand."""
        principals = self._principals.get()
        return next((principals[name] for name in names if name in principals), None)


def _read_identities(path: Path) -> dict[str, Principal]:
    try:
        document = tomllib.loads(read_bytes(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is not TOML: {error}") from None
    return {name: _identity(name, entry, path) for name, entry in document.items()}


def _identity(name: str, entry: Any, path: Path) -> Principal:
    if not name:
        # gRPC reports a certificate without a common name as one whose common name is empty.
        raise FileError(f"{path}: an entry needs a name")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS or not isinstance(entry["scopes"], list):
        raise FileError(f'{path}: ["{name}"] must have a namespace and a list of scopes, and nothing else')
    try:
        return Principal(parse_namespace(entry["namespace"]), parse_scopes(entry["scopes"]), name)
    except InvalidField as error:
        raise FileError(f'{path}: ["{name}"] {error}') from None
