"""A server process for the programs. What they need to reach it is in one place: Endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from recalld.limits import DEFAULT_NAMESPACE
from tests.certificates import Authority
from tests.integration.callers import create_key
from tests.integration.conftest import wait_until_serving

SERVICE_CONFIG = Path(__file__).resolve().parents[2] / "protos" / "recall" / "v1" / "service_config.json"

# Seconds. A deadline, not a delay: the server ends much sooner.
STOP_DEADLINE = 30.0


@dataclass(frozen=True)
class Endpoint:
    """Where a server is, and what it asks of its callers."""

    address: str
    api_key: str | None = None
    ca_file: Path | None = None

    def environment(self) -> dict[str, str]:
        """The variables that tell a program all of this; README.md defines them."""
        variables = {"RECALLD_TARGET": self.address, "RECALLD_SERVICE_CONFIG": str(SERVICE_CONFIG)}
        if self.api_key:
            variables["RECALLD_API_KEY"] = self.api_key
        if self.ca_file:
            variables["RECALLD_CA_FILE"] = str(self.ca_file)
        return variables

    def channel(self) -> grpc.Channel:
        """A connection of the caller's own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        if self.ca_file is None:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.ca_file.read_bytes()), options)

    def through(self, proxy_address: str) -> Endpoint:
        """The same server by way of a proxy, which speaks plaintext and passes the credential on."""
        return replace(self, address=proxy_address, ca_file=None)


@contextmanager
def serving(database_url: str, log: Path) -> Iterator[Endpoint]:
    """`recalld serve` as a process of its own, with TLS and a credential; its stderr goes to `log`."""
    authority = Authority(log.parent)
    certificate = authority.issue("localhost", sans=["localhost"])
    environment = {
        **os.environ,
        "RECALLD_DATABASE_URL": database_url,
        "RECALLD_LISTEN": "localhost:0",
        "RECALLD_AUTH": "true",
        "RECALLD_TLS_CERT_FILE": str(certificate.cert_file),
        "RECALLD_TLS_KEY_FILE": str(certificate.key_file),
    }
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "recalld", "serve"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            announced = process.stdout.readline().rstrip()
            assert announced.startswith("recalld "), log.read_text()
            endpoint = Endpoint(
                announced.rpartition(" ")[2], create_key(database_url, DEFAULT_NAMESPACE), authority.cert_file
            )
            with endpoint.channel() as channel:
                wait_until_serving(channel)
            yield endpoint
        finally:
            process.terminate()
            try:
                process.wait(STOP_DEADLINE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
