"""Settings: where they come from, and what a wrong one is answered with."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from recalld import limits
from recalld.settings import (
    Settings,
    SettingsError,
    effective,
    flag,
    format_duration,
    parse_duration,
    unknown_variables,
    variable,
)

GARBAGE = {
    "listen": [
        "nonsense",
        "localhost",
        "localhost:",
        "localhost:65536",
        "::1:50051",
        "[::1:50051",
        "a b:1",
        "h:-1",
        "a..b:1",
        "\udcff:1",
    ],
    "database_url": [
        "nonsense",
        "postgresql://[::1/name",
        "postgresql://host/name?nonsense=1",
        "mysql://host",
        "postgresql://a..b/name",
        "postgresql://\udcff",
    ],
    "data_dir": ["/dev/null", "~no such user/x", "/" + "x" * 300, "/\udcff"],
    "migrate": ["perhaps"],
    "search_language": ["English", "english; drop", "x" * 64],
    "retention": ["nonsense", "-1", "7x", "1 week", "36501d", "9" * 400],
    "pool_size": ["nonsense", "0", "-1", "1.5", "1001"],
    "pool_timeout": ["nonsense", "0", "2h"],
    "statement_timeout": ["nonsense", "0", "2d"],
    "max_concurrent_calls": ["nonsense", "0", "4097"],
    "max_calls_per_connection": ["nonsense", "0", "1000001"],
    "max_connections": ["nonsense", "0", "1000001"],
    "max_streams": ["nonsense", "0", "4097"],
    "rate_limit": ["nonsense", "-1", "inf", "nan", "1000001"],
    "concurrency_limit": ["nonsense", "-1", "1.5", "1000001"],
    "auth": ["perhaps"],
    "jwt_secret": ["short", "x" * 31, "ä" * 15],
    "jwt_key_file": ["/nowhere/at/all", "/dev"],
    "jwt_jwks_file": ["/nowhere/at/all", "/dev"],
    "jwt_issuer": ["\udcff"],  # any text
    "jwt_audience": [],
    "jwt_namespace_claim": [],
    "jwt_scopes_claim": [],
    "tls_cert_file": ["/nowhere/at/all", "/dev", "~no such user/x", "/" + "x" * 300],
    "tls_key_file": ["/nowhere/at/all", "/dev"],
    "tls_client_ca_file": ["/nowhere/at/all", "/dev"],
    "tls_identities_file": ["/nowhere/at/all", "/dev"],
    "insecure": ["perhaps"],
    "reflection": ["perhaps"],
    "shutdown_grace": ["nonsense", "-1", "2h"],
    "workers": ["nonsense", "0", "257"],
    "worker_cpu_affinity": ["perhaps", "0"],
    "purge_interval": ["nonsense", "-1", "366d"],
    "lock_timeout": ["nonsense", "0", "2d"],
    "pooler": ["perhaps"],
    "shutdown_delay": ["nonsense", "-1", "2h"],
    "log_level": ["nonsense"],
    "log_format": ["nonsense", "JSONL"],
    "log_calls": ["perhaps"],
    "metrics_listen": ["nonsense", "127.0.0.1:", "127.0.0.1:65536"],
}

WRONG = [(name, value) for name, values in GARBAGE.items() for value in values]


def test_every_setting_is_tried_with_garbage() -> None:
    assert GARBAGE.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_variable_is_one_line_that_names_it(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(name), value)
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    assert str(caught.value).startswith(f"{variable(name)}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_flag_is_one_line_that_names_it(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({name: value})
    assert str(caught.value).startswith(f"{flag(name)}: ")
    assert "\n" not in str(caught.value)


def test_a_wrong_value_is_quoted() -> None:
    with pytest.raises(SettingsError, match=r'^--pool-size: .* \(got "x"\)$'):
        Settings.load({"pool_size": "x"})


def test_each_wrong_setting_has_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALLD_MAX_CONCURRENT_CALLS", "many")
    with pytest.raises(SettingsError) as caught:
        Settings.load({"pool_size": "x"})
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "--pool-size",
        "RECALLD_MAX_CONCURRENT_CALLS",
    ]


def test_a_wrong_database_url_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"database_url": "postgresql://u:hunter2@h/?nonsense=hunter2"})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://h/?sslmod=hunter2", ", did you mean sslmode?"),
        ("postgresql://h/name?hunter2=x", ""),
        ("host=h hunter2=x", ""),
    ],
)
def test_a_parameter_that_libpq_does_not_know_is_told_and_not_repeated(url: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"database_url": url})
    assert str(caught.value) == f"--database-url: Input has a parameter that libpq does not know{told}"


def test_a_long_value_is_cut() -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"pool_size": "9" * 5000})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", [f"host=/{'x' * 90} dbname=n", "host=@recalld", "postgresql:///n?host=%2Ftmp,h"])
def test_a_socket_is_no_host_name(url: str) -> None:
    assert Settings.load({"database_url": url}).database_url is not None


@pytest.mark.parametrize("name", ["data_dir", "database_url", "listen", "jwt_issuer", "tls_cert_file", "pool_size"])
def test_an_empty_flag_is_refused_by_name(name: str) -> None:
    with pytest.raises(SettingsError, match=f"^{flag(name)}: Input should not be empty$"):
        Settings.load({name: ""})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hunter2@db.example:5433/memory", "user=me dbname=memory host=db.example port=5433"),
        ("postgresql://db/memory?user=me&password=hunter2&sslpassword=hunter2", "user=me dbname=memory host=db"),
        ("host=db user=me password=hunter2", "user=me host=db"),
        ("postgresql://", "libpq's defaults"),
    ],
)
def test_secrets_are_hidden(url: str, shown: str) -> None:
    settings = Settings.load({"database_url": url})
    assert "hunter2" not in repr(settings)
    [row] = [row for row in effective(settings) if row.name == "database_url"]
    assert set(row.value.split()) == set(shown.split())


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALLD_POOL_SIZE", "3")
    monkeypatch.setenv("RECALLD_MAX_CONCURRENT_CALLS", "4")
    settings = Settings.load({"pool_size": "5"})
    rows = {row.name: (row.value, row.source) for row in effective(settings)}
    assert rows["pool_size"] == ("5", "flag")
    assert rows["max_concurrent_calls"] == ("4", "environment")
    assert rows["retention"] == ("30d", "default")
    assert settings.retention == limits.DEFAULT_RETENTION


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECALLD_DATABASE_URL", "")
    assert Settings.load().database_url is None


def test_every_setting_has_a_meaning() -> None:
    for row in effective(Settings.load()):
        assert row.meaning.endswith("."), row.name


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("127.0.0.1:50051", "127.0.0.1:50051"),
        ("localhost:0", "localhost:0"),
        ("[::1]:50051", "[::1]:50051"),
        (":0", "127.0.0.1:0"),
        ("0.0.0.0:65535", "0.0.0.0:65535"),
    ],
)
def test_addresses(given: str, address: str) -> None:
    assert Settings.load({"listen": given}).listen == address


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("7d", timedelta(days=7)),
        ("12h", timedelta(hours=12)),
        ("30m", timedelta(minutes=30)),
        ("45s", timedelta(seconds=45)),
        ("500ms", timedelta(milliseconds=500)),
        ("90", timedelta(seconds=90)),
        ("1.5", timedelta(seconds=1.5)),
        ("0", timedelta(0)),
    ],
)
def test_durations(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize("text", ["", "d", "7 d", "-7d", "7d12h", "1e3", "٣s", "inf", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_the_data_directory_may_start_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.load({"data_dir": "~/memory"}).data_dir == tmp_path / "memory"


def test_an_unknown_variable_is_named_with_what_was_probably_meant() -> None:
    environ = {"RECALLD_LISTN": ":0", "RECALLD_POOL_SIZE": "1", "HOME": "/"}
    assert list(unknown_variables(environ)) == ["RECALLD_LISTN: no such setting, did you mean RECALLD_LISTEN?"]
