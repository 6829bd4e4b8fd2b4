"""`recalld health`: an exit status for container health checks, whatever certificate the server shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from recalld.app import Server
from recalld.cli import run
from recalld.cli.options import reachable
from recalld.settings import Settings
from tests.certificates import Authority
from tests.faults.cluster import free_port
from tests.integration.conftest import serving
from tests.processes import SERVING, await_health
from tests.waiting import becomes

PROCESS = "grpc.health.v1.Health"


@pytest.fixture
def address(database_url: str) -> Iterator[str]:
    with serving(database_url) as server:
        await_health(server.address, SERVING)
        yield server.address


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def test_a_server_that_serves_is_status_0(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["health", "--target", address]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert run(["health", "--listen", address, "--service", "recall.v1.MemoryService"]) == 0


def test_a_server_without_its_database_is_status_1_and_its_process_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with serving("postgresql://127.0.0.1:1/none") as server:
        assert run(["health", "--target", server.address]) == 1
        assert capsys.readouterr().out == "NOT_SERVING\n"
        assert run(["health", "--target", server.address, "--service", PROCESS]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["--timeout", "30s"], "UNAVAILABLE"), (["--service", "none"], "NOT_FOUND: the server has no service none")],
    ids=["nobody there", "no such service"],
)
def test_what_cannot_be_asked_is_one_line_and_status_1(
    arguments: list[str], told: str, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = address if "--service" in arguments else f"127.0.0.1:{free_port()}"
    assert run(["health", "--target", target, *arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"recalld: {told}")


def test_a_key_in_the_environment_is_not_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALLD_API_KEY", "recalld_000000000000_secret")
    assert run(["health", "--target", address]) == 0


@pytest.mark.parametrize(
    ("listen", "target"),
    [("0.0.0.0:5", "127.0.0.1:5"), ("[::]:5", "[::1]:5"), ("127.0.0.1:5", "127.0.0.1:5"), ("db:5", "db:5")],
)
def test_a_server_that_listens_everywhere_is_asked_on_loopback(listen: str, target: str) -> None:
    assert reachable(listen) == target


@pytest.mark.parametrize("sans", [["memory.example.org"], ["*.example.org"], ["192.0.2.7"], []], ids=str)
def test_it_trusts_the_certificate_of_its_own_server_whatever_that_is_made_out_to(
    sans: list[str], authority: Authority, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = authority.issue("server", sans=sans, common_name="memory.example.org")
    monkeypatch.setenv("RECALLD_TLS_CERT_FILE", str(issued.cert_file))
    monkeypatch.setenv("RECALLD_TLS_KEY_FILE", str(issued.key_file))
    with _from_environment(database_url) as server:
        assert _becomes_healthy(server)


def test_it_shows_the_servers_own_certificate_where_clients_must_show_one(
    authority: Authority, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = authority.issue("server")
    monkeypatch.setenv("RECALLD_TLS_CERT_FILE", str(issued.cert_file))
    monkeypatch.setenv("RECALLD_TLS_KEY_FILE", str(issued.key_file))
    monkeypatch.setenv("RECALLD_TLS_CLIENT_CA_FILE", str(authority.cert_file))
    with _from_environment(database_url) as server:
        assert _becomes_healthy(server)


def test_another_certificate_than_its_own_is_not_trusted(
    authority: Authority, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued, other = authority.issue("server"), Authority(tmp_path, "another").issue("other")
    files = {"tls_cert_file": issued.cert_file, "tls_key_file": issued.key_file}
    with serving(database_url, **files) as server:
        ours = ["--target", server.address, "--ca-file", str(authority.cert_file)]
        assert becomes(lambda: run(["health", *ours]) == 0)
        monkeypatch.setenv("RECALLD_TLS_CERT_FILE", str(other.cert_file))
        monkeypatch.setenv("RECALLD_TLS_KEY_FILE", str(other.key_file))
        assert run(["health", "--listen", server.address]) == 1


def _from_environment(database_url: str) -> Server:
    return Server(Settings.load({"database_url": database_url, "listen": "127.0.0.1:0"}))


def _becomes_healthy(server: Server) -> bool:
    """Whether the command comes to say SERVING, which takes the server a moment."""
    return becomes(lambda: run(["health", "--listen", server.address]) == 0)
