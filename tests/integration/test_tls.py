"""TLS and mutual TLS: who may connect, whose a certificate is, and how certificates are replaced under way."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from recall.v1.memory_pb2 import GetMemoryRequest
from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest
from recalld.access import Scope
from recalld.app import Server
from recalld.settings import Settings, SettingsError
from tests.certificates import Authority, Issued
from tests.integration.callers import Caller, bearer, create_key
from tests.integration.conftest import serving
from tests.waiting import becomes

BILLING = "spiffe://example.org/billing"
READ = GetMemoryRequest(session_id="s")
CREATE = CreateSessionRequest(session_id="s")

IDENTITIES = f"""
["{BILLING}"]
namespace = "billing"
scopes = ["read", "write"]

["reporter"]
namespace = "billing"
scopes = ["read"]
"""


class Files:
    """The files of a server, in a directory of their own: they are replaced in the course of a test."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.authority = Authority(directory, "authority")
        self.server = self.authority.issue("server")
        self.identities = directory / "identities.toml"
        self.identities.write_text(IDENTITIES)

    def client(self, name: str, *sans: str, **options: Any) -> Issued:
        """A client's certificate, by the authority that signs all."""
        return self.authority.issue(f"client-{name}", common_name=name, sans=sans, **options)

    @property
    def tls(self) -> dict[str, Any]:
        """The settings for TLS."""
        return {"tls_cert_file": self.server.cert_file, "tls_key_file": self.server.key_file}

    @property
    def mutual(self) -> dict[str, Any]:
        """The settings for mutual TLS, with identities."""
        return {
            **self.tls,
            "auth": True,
            "tls_client_ca_file": self.authority.cert_file,
            "tls_identities_file": self.identities,
        }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def calling(
    server: Server, authority: Authority, client: Issued | None = None, *, name: str | None = None, key: str = ""
) -> Iterator[Caller]:
    """A caller on a connection of its own.

    Args:
        server: whom to call.
        authority: whom the client trusts.
        client: the certificate that it shows, if any.
        name: what the server's certificate must be made out to, when not its address.
        key: the bearer credential that it sends, if any.
    """
    credentials = grpc.ssl_channel_credentials(
        authority.cert, client.key if client else None, client.cert if client else None
    )
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if name is not None:
        options.append(("grpc.ssl_target_name_override", name))
    with grpc.secure_channel(server.address, credentials, options=options) as channel:
        yield Caller(channel, bearer(key) if key else ())


def is_connected(caller: Caller) -> bool:
    """Whether there is a connection, or one can be made: health asks for no credential."""
    call = health_pb2_grpc.HealthStub(caller.channel).Check.future(health_pb2.HealthCheckRequest(), timeout=30)
    assert call.code() in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE), call
    return bool(call.code() == grpc.StatusCode.OK)


def serves(caller: Caller) -> bool:
    answer = health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(), timeout=30)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def ready(database_url: str, files: Files, **settings: Any) -> Iterator[Server]:
    """A server that serves."""
    with serving(database_url, **settings) as server:
        with calling(server, files.authority, files.client("probe")) as caller:
            assert becomes(lambda: serves(caller))
        yield server


# --- TLS


def test_with_tls_a_client_that_trusts_the_authority_is_served_and_no_other(
    database_url: str, files: Files, tmp_path: Path
) -> None:
    with ready(database_url, files, **files.tls) as server:
        with calling(server, files.authority) as caller:
            caller.call(CREATE)
        with calling(server, Authority(tmp_path, "stranger")) as caller:
            assert not is_connected(caller)
        with calling(server, files.authority, name="elsewhere.example") as caller:
            assert not is_connected(caller)
        with grpc.insecure_channel(server.address) as channel:
            assert not is_connected(Caller(channel))


@pytest.mark.parametrize(
    ("version", "spoken"),
    [
        (ssl.TLSVersion.TLSv1, False),
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the versions that are refused
def test_it_speaks_no_tls_older_than_1_2(
    version: ssl.TLSVersion, spoken: bool, database_url: str, files: Files
) -> None:
    context = ssl.create_default_context(cafile=files.authority.cert_file)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")  # otherwise this end would not speak them either
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with ready(database_url, files, **files.tls) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as plain:
            if spoken:
                with context.wrap_socket(plain, server_hostname=host) as connection:
                    assert connection.version() == version.name.replace("_", ".")
            else:
                # It is the server that ends it: this end would say that it has no such protocol or cipher.
                with pytest.raises(OSError, match=r"(?i)eof|reset|protocol.version"):
                    context.wrap_socket(plain, server_hostname=host)


def test_a_server_whose_certificate_expired_is_not_trusted(
    database_url: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    expired = files.authority.issue("server", lifetime=timedelta(minutes=-5))
    with (
        serving(database_url, tls_cert_file=expired.cert_file, tls_key_file=expired.key_file) as server,
        calling(server, files.authority) as caller,
    ):
        assert not is_connected(caller)
    assert any("expired at" in message for message in caplog.messages)


def test_a_bearer_credential_goes_over_tls(database_url: str, files: Files) -> None:
    key = create_key(database_url, "n")
    with ready(database_url, files, auth=True, **files.tls) as server:
        with calling(server, files.authority, key=key) as caller:
            caller.call(CREATE)
        with calling(server, files.authority) as caller:
            assert caller.refused(CREATE).reason == "CREDENTIAL_MISSING"


# --- mutual TLS


def test_a_client_without_a_good_certificate_does_not_get_a_connection(
    database_url: str, files: Files, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger").issue("stranger-client", sans=[BILLING])
    expired = files.client("expired", BILLING, lifetime=timedelta(minutes=-5))
    with ready(database_url, files, **files.mutual) as server:
        for client in (None, stranger, expired):
            with calling(server, files.authority, client) as caller:
                assert not is_connected(caller)
        with calling(server, files.authority, files.client("billing", BILLING)) as caller:
            assert is_connected(caller)
        with calling(server, files.authority, files.client("billing", BILLING), name="elsewhere.example") as caller:
            assert not is_connected(caller)


def test_a_certificate_is_good_for_the_namespace_and_scopes_that_its_name_has(database_url: str, files: Files) -> None:
    with ready(database_url, files, **files.mutual) as server:
        with calling(server, files.authority, files.client("any", "a.example", BILLING)) as caller:
            caller.call(CREATE)
        with calling(server, files.authority, files.client("reporter")) as caller:
            caller.call(GetSessionRequest(session_id="s"))
            refusal = caller.refused(CREATE)
            assert (refusal.code, refusal.reason) == (grpc.StatusCode.PERMISSION_DENIED, "SCOPE_MISSING")
        other = create_key(database_url, "other")
        with calling(server, files.authority, files.client("unmapped"), key=other) as caller:
            assert caller.refused(GetSessionRequest(session_id="s")).reason == "SESSION_NOT_FOUND"


@pytest.mark.parametrize("sans", [(), ("billing",), (f"{BILLING}/x",), ("spiffe://example.org/Billing",)])
def test_a_certificate_without_an_identity_is_no_credential(
    database_url: str, files: Files, sans: tuple[str, ...]
) -> None:
    with (
        ready(database_url, files, **files.mutual) as server,
        calling(server, files.authority, files.client("unmapped", *sans)) as caller,
    ):
        refusal = caller.refused(READ)
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")


def test_a_bearer_credential_wins_over_the_certificate(database_url: str, files: Files) -> None:
    other = create_key(database_url, "other", Scope.READ)
    client = files.client("billing", BILLING)
    with ready(database_url, files, **files.mutual) as server:
        with calling(server, files.authority, client) as caller:
            caller.call(CREATE)
        with calling(server, files.authority, client, key=other) as caller:
            assert caller.refused(GetSessionRequest(session_id="s")).reason == "SESSION_NOT_FOUND"
            assert caller.refused(CREATE).reason == "SCOPE_MISSING"
        with calling(server, files.authority, client, key="nonsense") as caller:
            assert caller.refused(READ).reason == "CREDENTIAL_INVALID"


# --- replaced while the server runs


def replace_with(kept: Issued, new: Issued, *, key: bool = True, cert: bool = True) -> None:
    """Puts new files in the place of others, as certificate managers do: by renaming."""
    for wanted, source, target in ((cert, new.cert_file, kept.cert_file), (key, new.key_file, kept.key_file)):
        if wanted:
            Path(shutil.copy(source, source.with_suffix(".tmp"))).rename(target)


def connects(server: Server, authority: Authority, client: Issued | None = None) -> bool:
    """Whether a new connection can be made."""
    with calling(server, authority, client) as caller:
        return is_connected(caller)


def test_a_new_server_certificate_is_shown_to_new_connections_and_old_ones_live_on(
    database_url: str, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "next").mkdir()
    successor = Authority(tmp_path / "next", "successor")
    with ready(database_url, files, **files.tls) as server, calling(server, files.authority) as before:
        before.call(CREATE)
        assert not connects(server, successor)

        replace_with(files.server, successor.issue("server"))

        assert becomes(lambda: connects(server, successor))
        assert not connects(server, files.authority)
        before.call(GetSessionRequest(session_id="s"))


def test_a_certificate_is_not_replaced_before_its_key_is(
    database_url: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "next").mkdir()
    successor = Authority(tmp_path / "next", "successor")
    new = successor.issue("server")
    with ready(database_url, files, **files.tls) as server:
        replace_with(files.server, new, key=False)
        # Each handshake may be the one at which the server looks again.
        assert becomes(
            lambda: connects(server, files.authority) and any("not replaced" in message for message in caplog.messages)
        )
        assert connects(server, files.authority)
        assert not connects(server, successor)

        replace_with(files.server, new, cert=False)

        assert becomes(lambda: connects(server, successor))


def test_a_new_authority_for_clients_holds_for_new_connections(database_url: str, files: Files, tmp_path: Path) -> None:
    successor = Authority(tmp_path, "successor")
    old, new = files.client("billing", BILLING), successor.issue("new-billing", sans=[BILLING])
    trusted = shutil.copy(files.authority.cert_file, tmp_path / "trusted.pem")
    settings = {**files.mutual, "tls_client_ca_file": trusted}
    with ready(database_url, files, **settings) as server, calling(server, files.authority, old) as before:
        before.call(CREATE)
        assert not connects(server, files.authority, new)

        Path(shutil.copy(successor.cert_file, tmp_path / "tmp")).rename(trusted)

        assert becomes(lambda: connects(server, files.authority, new))
        assert not connects(server, files.authority, old)
        before.call(GetSessionRequest(session_id="s"))


def test_new_identities_hold_for_connections_that_are_there(
    database_url: str, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    client = files.client("billing", BILLING)
    with ready(database_url, files, **files.mutual) as server, calling(server, files.authority, client) as caller:
        caller.call(CREATE)

        files.identities.write_text("namespace = what?")
        assert becomes(lambda: _answers(caller) and any("not replaced" in message for message in caplog.messages))
        files.identities.write_text(f'["{BILLING}"]\nnamespace = "billing"\nscopes = ["write"]\n')

        assert becomes(lambda: not _answers(caller))
        assert caller.refused(READ).reason == "SCOPE_MISSING"


def _answers(caller: Caller) -> bool:
    code = caller.code(READ)
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED)
    return code == grpc.StatusCode.OK


# --- refused at start


def refused_start(*arguments: str) -> tuple[int, list[str]]:
    """The exit status and the lines on stderr of a `recalld serve` that must not come to serve."""
    command = [sys.executable, "-m", "recalld", "serve", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == ""
    return ended.returncode, ended.stderr.splitlines()


def test_beyond_loopback_nothing_is_served_in_plaintext_or_to_everyone(files: Files) -> None:
    tls = ["--tls-cert-file", str(files.server.cert_file), "--tls-key-file", str(files.server.key_file)]
    open_to_others = "recalld: RECALLD_LISTEN: 0.0.0.0:0 would be open to others"
    no_tls = f"{open_to_others} without TLS: set RECALLD_TLS_CERT_FILE and RECALLD_TLS_KEY_FILE, or say --insecure"
    no_auth = f"{open_to_others} without authentication: set RECALLD_AUTH, or say --insecure"
    for arguments, lines in (([], [no_tls, no_auth]), (["--auth"], [no_tls]), (tls, [no_auth])):
        assert refused_start("--listen", "0.0.0.0:0", *arguments) == (2, lines)


@pytest.mark.parametrize("secured", [False, True])
def test_beyond_loopback_it_serves_if_secured_or_told_to(database_url: str, files: Files, secured: bool) -> None:
    """The control of the test above."""
    chosen = {"auth": True, **files.tls} if secured else {"insecure": True}
    with Server(Settings(database_url=SecretStr(database_url), listen="0.0.0.0:0", **chosen)) as server:
        assert server.address.startswith("0.0.0.0:")


def test_files_that_do_not_belong_together_or_are_not_there_are_one_clear_line(files: Files, tmp_path: Path) -> None:
    cert, key, other = files.server.cert_file, files.server.key_file, files.client("other").key_file
    listen = ("--listen", "127.0.0.1:0")
    secured = (*listen, "--tls-cert-file", str(cert), "--tls-key-file")
    missing = tmp_path / "missing"
    for arguments, status, line in (
        ((*secured, str(other)), 2, f"{other} is not the key of the certificate in {cert}"),
        ((*secured, str(cert)), 2, f"{cert} is not a private key in PEM without a password"),
        ((*secured, str(missing)), 2, f'--tls-key-file: Input should be a file that is there (got "{missing}")'),
        ((*listen, "--tls-cert-file", str(cert)), 2, "RECALLD_TLS_CERT_FILE: needs RECALLD_TLS_KEY_FILE"),
        (
            (*secured, str(key), "--tls-client-ca-file", str(key)),
            2,
            f"{key} holds no certificate in PEM",
        ),
        (
            (*secured, str(key), "--auth", "--tls-identities-file", str(files.identities)),
            2,
            "RECALLD_TLS_IDENTITIES_FILE: needs RECALLD_TLS_CLIENT_CA_FILE",
        ),
    ):
        assert refused_start(*arguments) == (status, [f"recalld: {line}"])


def test_identities_that_cannot_be_read_are_one_clear_line(database_url: str, files: Files) -> None:
    files.identities.write_text('["x"]\nnamespace = "n"\nscopes = ["everything"]\n')
    with pytest.raises(SettingsError) as raised, serving(database_url, **files.mutual):
        pass
    assert str(raised.value) == f'{files.identities}: ["x"] scopes: must be among read, write, admin'
