"""The server's certificates, and who the names in its clients' certificates belong to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from recalld.access import Principal, Scope
from recalld.access.certificates import Certificates, Identities, watch_certificates
from recalld.access.files import FileError
from tests.access import put
from tests.certificates import Authority, Issued, private_pem

BILLING = """
["spiffe://example.org/billing"]
namespace = "billing"
scopes = ["read", "write"]
"""


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at whenever they are asked for, not once a second."""
    monkeypatch.setattr("recalld.access.files._INTERVAL", 0.0)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority) -> Issued:
    return authority.issue("server")


def refused(cert_file: Path, key_file: Path, client_ca_file: Path | None = None) -> str:
    with pytest.raises(FileError) as caught:
        watch_certificates(cert_file, key_file, client_ca_file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- certificates


def test_certificates_are_what_the_files_say(server: Issued, authority: Authority) -> None:
    plain = watch_certificates(server.cert_file, server.key_file, None)
    assert plain.get() == Certificates(server.cert, server.key, None)
    mutual = watch_certificates(server.cert_file, server.key_file, authority.cert_file)
    assert mutual.get() == Certificates(server.cert, server.key, authority.cert)


def test_a_chain_begins_with_the_server_s_own_certificate(server: Issued, authority: Authority) -> None:
    alone = server.cert
    server.cert_file.write_bytes(alone + authority.cert)
    assert watch_certificates(server.cert_file, server.key_file, None).get().chain == alone + authority.cert
    server.cert_file.write_bytes(authority.cert + alone)
    said = refused(server.cert_file, server.key_file)
    assert said == f"{server.key_file} is not the key of the certificate in {server.cert_file}"


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage\n\xff", None, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"],
    ids=["empty", "garbage", "key", "half"],
)
def test_what_is_no_certificate_is_refused(server: Issued, content: bytes | None) -> None:
    server.cert_file.write_bytes(server.key if content is None else content)
    assert refused(server.cert_file, server.key_file) == f"{server.cert_file} holds no certificate in PEM"


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage\n\xff", None, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"],
    ids=["empty", "garbage", "certificate", "half"],
)
def test_what_is_no_private_key_is_refused(server: Issued, content: bytes | None) -> None:
    server.key_file.write_bytes(server.cert if content is None else content)
    said = refused(server.cert_file, server.key_file)
    assert said == f"{server.key_file} is not a private key in PEM without a password"


def test_a_private_key_with_a_password_is_refused(authority: Authority) -> None:
    server = authority.issue("server", password=b"hunter2")
    said = refused(server.cert_file, server.key_file)
    assert said == f"{server.key_file} is not a private key in PEM without a password"


def test_a_key_of_another_certificate_is_refused(server: Issued, authority: Authority) -> None:
    other = authority.issue("other")
    said = refused(server.cert_file, other.key_file)
    assert said == f"{other.key_file} is not the key of the certificate in {server.cert_file}"


def test_a_missing_file_is_named(server: Issued, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refused(missing, server.key_file) == f"cannot read {missing}: No such file or directory"
    assert refused(server.cert_file, missing) == f"cannot read {missing}: No such file or directory"
    assert refused(server.cert_file, server.key_file, missing) == f"cannot read {missing}: No such file or directory"


def test_what_is_no_client_authority_is_refused(server: Issued) -> None:
    said = refused(server.cert_file, server.key_file, server.key_file)
    assert said == f"{server.key_file} holds no certificate in PEM"


def test_an_expired_certificate_is_served_with_a_warning(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    good, expired = authority.issue("good"), authority.issue("expired", lifetime=timedelta(minutes=-1))
    watch_certificates(good.cert_file, good.key_file, None)
    assert caplog.records == []
    assert watch_certificates(expired.cert_file, expired.key_file, None).get().chain == expired.cert
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith(f"the certificate in {expired.cert_file} expired at ")


def test_in_the_middle_of_a_rotation_the_old_pair_stays_in_use(server: Issued, authority: Authority) -> None:
    watched = watch_certificates(server.cert_file, server.key_file, authority.cert_file)
    old = watched.get()
    renewed = authority.issue("renewed")

    put(server.cert_file, renewed.cert)
    assert watched.get() is old
    put(server.key_file, b"half a ke")
    assert watched.get() is old
    put(server.key_file, renewed.key)
    assert watched.get() == Certificates(renewed.cert, renewed.key, authority.cert)


def test_a_key_in_another_form_is_still_the_key(server: Issued) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    traditional = server.private_key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert traditional != private_pem(server.private_key)
    server.key_file.write_bytes(traditional)
    assert watch_certificates(server.cert_file, server.key_file, None).get().key == traditional


# --- identities


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "identities.toml"


def identities(path: Path, content: str) -> Identities:
    path.write_text(content)
    return Identities(path)


def test_a_name_in_the_file_is_its_principal(path: Path) -> None:
    found = identities(path, BILLING).find(["spiffe://example.org/billing"])
    expected = Principal("billing", frozenset({Scope.READ, Scope.WRITE}), "spiffe://example.org/billing")
    assert found == expected


def test_the_first_name_that_the_file_has_counts(path: Path) -> None:
    both = identities(path, '[a]\nnamespace = "na"\nscopes = []\n[b]\nnamespace = "nb"\nscopes = ["admin"]\n')
    for names, namespace in ((["a", "b"], "na"), (["b", "a"], "nb"), (["x", "", "b"], "nb")):
        found = both.find(names)
        assert found is not None
        assert found.namespace == namespace


@pytest.mark.parametrize(
    "name",
    ["", "SPIFFE://example.org/billing", "spiffe://example.org/billing/", "spiffe://example.org/billin", "*", "spiffe"],
)
def test_names_are_compared_as_they_stand(path: Path, name: str) -> None:
    assert identities(path, BILLING).find([name]) is None


def test_nobody_has_no_name(path: Path) -> None:
    assert identities(path, BILLING).find([]) is None
    assert identities(path, "").find(["anything"]) is None


WRONG_ENTRIES = {
    "no scopes": '[bad]\nnamespace = "n"',
    "no namespace": '[bad]\nscopes = ["read"]',
    "something else": '[bad]\nnamespace = "n"\nscopes = ["read"]\nadmin = true',
    "misspelt": '[bad]\nnamspace = "n"\nscopes = ["read"]',
    "scopes in a text": '[bad]\nnamespace = "n"\nscopes = "read write"',
    "no table": 'bad = "n"',
    "a list of tables": '[[bad]]\nnamespace = "n"\nscopes = ["read"]',
    "dots without quotes": '[bad.example.org]\nnamespace = "n"\nscopes = ["read"]',
    "unknown scope": '[bad]\nnamespace = "n"\nscopes = ["read", "root"]',
    "scope that is no text": '[bad]\nnamespace = "n"\nscopes = [1]',
    "scope in a list": '[bad]\nnamespace = "n"\nscopes = [["read"]]',
    "empty namespace": '[bad]\nnamespace = ""\nscopes = ["read"]',
    "namespace with a space": '[bad]\nnamespace = "a b"\nscopes = ["read"]',
    "namespace that is no text": "[bad]\nnamespace = 7\nscopes = []",
    "namespace too long": f'[bad]\nnamespace = "{"n" * 65}"\nscopes = []',
}


@pytest.mark.parametrize("entry", WRONG_ENTRIES.values(), ids=WRONG_ENTRIES.keys())
def test_a_wrong_entry_is_one_line_that_names_file_and_entry(path: Path, entry: str) -> None:
    with pytest.raises(FileError) as caught:
        identities(path, f"{entry}\n{BILLING}")
    assert str(caught.value).startswith(f'{path}: ["bad"] ')
    assert "\n" not in str(caught.value)


def test_an_entry_for_certificates_without_a_name_is_refused(path: Path) -> None:
    """gRPC reports those as named by an empty text."""
    with pytest.raises(FileError) as caught:
        identities(path, '[""]\nnamespace = "n"\nscopes = ["read"]\n')
    assert str(caught.value) == f"{path}: an entry needs a name"


@pytest.mark.parametrize(
    "content", [b"[", b"\xff", b"[a]\nx = 1\n[a]\nx = 2", b'{"a": 1}'], ids=["half", "no UTF-8", "twice", "JSON"]
)
def test_what_is_no_toml_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        Identities(path)
    assert str(caught.value).startswith(f"{path} is not TOML: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_identities_is_named(path: Path) -> None:
    with pytest.raises(FileError) as caught:
        Identities(path)
    assert str(caught.value) == f"cannot read {path}: No such file or directory"


def test_identities_are_read_again_when_the_file_changes(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = identities(path, BILLING)
    put(path, BILLING.replace("billing", "invoices"))
    assert known.find(["spiffe://example.org/billing"]) is None
    found = known.find(["spiffe://example.org/invoices"])
    assert found is not None
    assert found.namespace == "invoices"

    put(path, "[")
    assert known.find(["spiffe://example.org/invoices"]) == found
    assert [record.levelname for record in caplog.records] == ["ERROR"]
