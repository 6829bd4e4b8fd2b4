"""Certificates for tests: an authority of the test's own, and what it issues, as PEM files.

Keys are P-256, which take no time to make. Everything is valid from an hour ago, so that no clock is too slow for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AGE = timedelta(hours=1)
_LIFETIME = timedelta(days=1)

_USAGES = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, in PEM files and in memory."""

    cert_file: Path
    key_file: Path
    private_key: EllipticCurvePrivateKey

    @property
    def cert(self) -> bytes:
        return self.cert_file.read_bytes()

    @property
    def key(self) -> bytes:
        return self.key_file.read_bytes()


class Authority:
    """Signs certificates, for servers and clients alike.

    Args:
        directory: where the PEM files go.
        name: common name of the authority; those of one directory need different ones.
    """

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = _named(name)
        self._key = generate_private_key(SECP256R1())
        builder = (
            _builder(self._name, self._name, self._key, _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_authority_usage(), critical=True)
        )
        self.cert_file = directory / f"{name}.pem"
        self.cert_file.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))

    @property
    def cert(self) -> bytes:
        return self.cert_file.read_bytes()

    def issue(
        self,
        name: str,
        *,
        sans: Sequence[str] = ("localhost", "127.0.0.1"),
        common_name: str | None = None,
        lifetime: timedelta = _LIFETIME,
        password: bytes | None = None,
    ) -> Issued:
        """A certificate with a key of its own, in `<name>.pem` and `<name>.key`; those there are overwritten.

        Args:
            name: of the files.
            sans: alternative names: IP addresses, URIs (whatever has `://`), and host names.
            common_name: `name` unless given; empty for a subject without one.
            lifetime: from now; negative for one that has expired, by less than an hour.
            password: encrypts the key.
        """
        private_key = generate_private_key(SECP256R1())
        builder = _builder(_named(name if common_name is None else common_name), self._name, private_key, lifetime)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(_USAGES), critical=False)
        if sans:
            # RFC 5280: critical when the subject is empty.
            alternatives = x509.SubjectAlternativeName([_general_name(san) for san in sans])
            builder = builder.add_extension(alternatives, critical=common_name == "")
        issued = Issued(self._directory / f"{name}.pem", self._directory / f"{name}.key", private_key)
        issued.cert_file.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))
        issued.key_file.write_bytes(private_pem(private_key, password))
        return issued


def private_pem(key: EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, lifetime: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _AGE)
        .not_valid_after(now + lifetime)
    )


def _authority_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])


def _general_name(san: str) -> x509.GeneralName:
    if "://" in san:
        return x509.UniformResourceIdentifier(san)
    try:
        return x509.IPAddress(ip_address(san))
    except ValueError:
        return x509.DNSName(san)
