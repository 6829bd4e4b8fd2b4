"""Settings that each are right and together are not, who could reach the server, and secrets that stay hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recalld.app import Server
from recalld.cli import run
from recalld.conflicts import check_serving
from recalld.settings import Settings, SettingsError, effective, flag, variable

SECRET = "hunter2-hunter2-hunter2-hunter2!"


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file that is there; what is in it is not looked at here."""
    path = tmp_path / "file"
    path.write_text("")
    return str(path)


def problems(file: str, /, **flags: Any) -> list[str]:
    """What is wrong, a line each. The value `FILE` stands for a file that is there."""
    given = {name: file if value == "FILE" else value for name, value in flags.items()}
    try:
        check_serving(Settings.load(given))
    except SettingsError as error:
        return str(error).splitlines()
    return []


TOKENS: dict[str, str | bool] = {"auth": True, "jwt_secret": SECRET, "jwt_issuer": "i", "jwt_audience": "a"}
TLS = {"tls_cert_file": "FILE", "tls_key_file": "FILE"}
FINE: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "keys only": {"auth": True},
    "a secret": TOKENS,
    "a key file": {"auth": True, "jwt_key_file": "FILE", "jwt_issuer": "i", "jwt_audience": "a"},
    "a key set": {"auth": True, "jwt_jwks_file": "FILE", "jwt_issuer": "i", "jwt_audience": "a"},
    "TLS": TLS,
    "TLS and an authority": {**TLS, "tls_client_ca_file": "FILE"},
    "everything": {**TLS, **TOKENS, "tls_client_ca_file": "FILE", "tls_identities_file": "FILE"},
    "quotas without authentication": {"rate_limit": "1", "concurrency_limit": "1"},
    "as many streams as can be": {"max_concurrent_calls": "65", "max_streams": "64"},
}


@pytest.mark.parametrize("flags", FINE.values(), ids=FINE.keys())
def test_settings_that_go_together_are_fine(file: str, flags: dict[str, Any]) -> None:
    assert problems(file, **flags) == []


CONFLICTS: dict[str, tuple[dict[str, Any], str]] = {
    "a secret and a key file": (
        {**TOKENS, "jwt_key_file": "FILE"},
        "RECALLD_JWT_SECRET, RECALLD_JWT_KEY_FILE: only one of them can be set",
    ),
    "a key file and a key set": (
        {"auth": True, "jwt_issuer": "i", "jwt_audience": "a", "jwt_key_file": "FILE", "jwt_jwks_file": "FILE"},
        "RECALLD_JWT_KEY_FILE, RECALLD_JWT_JWKS_FILE: only one of them can be set",
    ),
    "a key without an issuer": (
        {name: value for name, value in TOKENS.items() if name != "jwt_issuer"},
        "RECALLD_JWT_SECRET: needs RECALLD_JWT_ISSUER and RECALLD_JWT_AUDIENCE",
    ),
    "a key without an audience": (
        {name: value for name, value in TOKENS.items() if name != "jwt_audience"},
        "RECALLD_JWT_SECRET: needs RECALLD_JWT_ISSUER and RECALLD_JWT_AUDIENCE",
    ),
    "an audience without a key": (
        {"auth": True, "jwt_audience": "a"},
        "RECALLD_JWT_AUDIENCE: needs a key: RECALLD_JWT_SECRET, RECALLD_JWT_KEY_FILE or RECALLD_JWT_JWKS_FILE",
    ),
    "a key without authentication": ({**TOKENS, "auth": False}, "RECALLD_JWT_SECRET: needs RECALLD_AUTH"),
    "a certificate without its key": ({"tls_cert_file": "FILE"}, "RECALLD_TLS_CERT_FILE: needs RECALLD_TLS_KEY_FILE"),
    "a key without its certificate": ({"tls_key_file": "FILE"}, "RECALLD_TLS_KEY_FILE: needs RECALLD_TLS_CERT_FILE"),
    "an authority without TLS": (
        {"tls_client_ca_file": "FILE"},
        "RECALLD_TLS_CLIENT_CA_FILE: needs RECALLD_TLS_CERT_FILE",
    ),
    "identities without an authority": (
        {**TLS, "auth": True, "tls_identities_file": "FILE"},
        "RECALLD_TLS_IDENTITIES_FILE: needs RECALLD_TLS_CLIENT_CA_FILE",
    ),
    "identities without authentication": (
        {**TLS, "tls_client_ca_file": "FILE", "tls_identities_file": "FILE"},
        "RECALLD_TLS_IDENTITIES_FILE: needs RECALLD_AUTH",
    ),
    "a place for every stream and none for other calls": (
        {"max_concurrent_calls": "8", "max_streams": "8"},
        "RECALLD_MAX_STREAMS: must be less than RECALLD_MAX_CONCURRENT_CALLS, 8",
    ),
}


@pytest.mark.parametrize(("flags", "line"), CONFLICTS.values(), ids=CONFLICTS.keys())
def test_each_conflict_is_one_line_that_names_the_setting(file: str, flags: dict[str, Any], line: str) -> None:
    assert problems(file, **flags) == [line]


def test_all_conflicts_are_told_at_once(file: str) -> None:
    few = {"max_concurrent_calls": "1", "max_streams": "1"}
    lines = problems(file, listen="0.0.0.0:0", jwt_secret=SECRET, tls_key_file="FILE", **few)
    assert [line.partition(":")[0] for line in lines] == [
        "RECALLD_JWT_SECRET",
        "RECALLD_JWT_SECRET",
        "RECALLD_MAX_STREAMS",
        "RECALLD_TLS_KEY_FILE",
        "RECALLD_LISTEN",
        "RECALLD_LISTEN",
    ]


def test_a_server_does_not_start_on_settings_that_do_not_go_together() -> None:
    server = Server(Settings.load({"listen": "0.0.0.0:0"}))
    with pytest.raises(SettingsError, match="RECALLD_LISTEN"):
        server.start()
    with pytest.raises(AssertionError, match="not started"):
        server.address  # noqa: B018


# --- who can reach it


LOOPBACK = ["127.0.0.1:0", "127.5.0.1:0", "127.255.255.254:0", "[::1]:0", "[0:0:0:0:0:0:0:1]:0", "localhost:0", ":0"]
BEYOND = [
    "0.0.0.0:0",
    "[::]:0",
    "[0:0:0:0:0:0:0:0]:0",
    "10.0.0.1:0",
    "128.0.0.1:0",
    "[fe80::1]:0",
    "[::ffff:10.0.0.1]:0",
    "example.org:0",
    "localhost.example.org:0",
    "127.0.0.1.example.org:0",
    "localhostx:0",
    # Not read as gRPC might read them.
    "0:0",
    "127.1:0",
    "2130706433:0",
    "0177.0.0.1:0",
]


@pytest.mark.parametrize("listen", LOOPBACK)
def test_only_this_machine_reaches_loopback(file: str, listen: str) -> None:
    assert Settings.load({"listen": listen}).on_loopback
    assert problems(file, listen=listen) == []


@pytest.mark.parametrize("listen", BEYOND)
def test_beyond_loopback_plaintext_and_no_authentication_are_refused_unless_meant(file: str, listen: str) -> None:
    assert not Settings.load({"listen": listen}).on_loopback
    without_tls = (
        f"RECALLD_LISTEN: {listen} would be open to others without TLS: "
        "set RECALLD_TLS_CERT_FILE and RECALLD_TLS_KEY_FILE, or say --insecure"
    )
    without_auth = (
        f"RECALLD_LISTEN: {listen} would be open to others without authentication: set RECALLD_AUTH, or say --insecure"
    )
    assert problems(file, listen=listen) == [without_tls, without_auth]
    assert problems(file, listen=listen, auth=True) == [without_tls]
    assert problems(file, listen=listen, **TLS) == [without_auth]
    assert problems(file, listen=listen, auth=True, **TLS) == []
    assert problems(file, listen=listen, insecure=True) == []


def test_insecure_excuses_nothing_else(file: str) -> None:
    assert problems(file, listen="0.0.0.0:0", insecure=True, tls_key_file="FILE") == [
        "RECALLD_TLS_KEY_FILE: needs RECALLD_TLS_CERT_FILE"
    ]


# --- secrets


@pytest.mark.parametrize("as_flag", [True, False])
def test_a_wrong_secret_is_not_repeated(as_flag: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not as_flag:
        monkeypatch.setenv("RECALLD_JWT_SECRET", "hunter2")
    with pytest.raises(SettingsError) as caught:
        Settings.load({"jwt_secret": "hunter2"} if as_flag else {})
    said = flag("jwt_secret") if as_flag else variable("jwt_secret")
    assert str(caught.value) == f"{said}: Input should have 32 bytes or more"


def test_a_secret_of_the_least_length_is_taken_as_it_is() -> None:
    for secret in (SECRET, "ä" * 16):
        kept = Settings.load({"jwt_secret": secret}).jwt_secret
        assert kept is not None
        assert kept.get_secret_value() == secret


def test_a_secret_is_hidden_wherever_settings_are_shown() -> None:
    settings = Settings.load(TOKENS)
    [row] = [row for row in effective(settings) if row.name == "jwt_secret"]
    assert (row.value, row.source) == ("(hidden)", "flag")
    shown = [repr(settings), str(settings), settings.model_dump_json(), *map(repr, effective(settings))]
    assert not [text for text in shown if "hunter2" in text]


def test_a_secret_is_hidden_in_a_conflict(file: str) -> None:
    assert not [line for line in problems(file, listen="0.0.0.0:0", jwt_secret=SECRET) if "hunter2" in line]


@pytest.mark.parametrize("arguments", [["config"], ["config", "--json"]])
def test_config_hides_secrets(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECALLD_JWT_SECRET", SECRET)
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert "hunter2" not in captured.out + captured.err
    assert "(hidden)" in captured.out
    if "--json" in arguments:
        assert json.loads(captured.out)["jwt_secret"]["source"] == "environment"


def test_an_unset_secret_is_shown_as_unset() -> None:
    [row] = [row for row in effective(Settings.load()) if row.name == "jwt_secret"]
    assert (row.value, row.source) == ("", "default")
