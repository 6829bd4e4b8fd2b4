"""Who is let in: the credential in a call's metadata or its certificate, and what a namespace may have at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from recall.v1 import session_pb2
from recall.v1.session_pb2_grpc import SessionServiceStub
from recalld.access import Principal
from recalld.access.api_keys import ApiKeyAuthenticator
from recalld.access.certificates import Identities
from recalld.domain import Call, Session
from recalld.errors import (
    CredentialExpired,
    CredentialInvalid,
    CredentialMissing,
    ScopeMissing,
    StorageUnavailable,
)
from recalld.limits import REVOCATION_SECONDS
from recalld.services.admission import Admission, CredentialAdmission, admitting
from tests.access import HS256, Clock, Context, Keys, accepting, bearer, key_id_of, put, utc_now
from tests.reference import ReferenceStore
from tests.unit.handlers import DEADLINE, Responses, failure, opened, reason_of, serving, streaming

GET = "/recall.v1.SessionService/GetSession"
STREAM = "/recall.v1.SessionService/StreamSessions"


def admit(admission: Admission, context: Context) -> Principal:
    return admission(cast("grpc.ServicerContext", context))


# --- the credential


def test_a_key_and_a_token_are_both_told_apart_and_accepted(keys: Keys, admission: CredentialAdmission) -> None:
    text = keys.create(namespace="acme")
    assert admit(admission, Context(bearer(text))).name == key_id_of(text)
    assert admit(admission, Context(bearer(HS256.token()))).name == "alice"


def test_without_a_credential_it_is_missing_rather_than_invalid(keys: Keys, admission: CredentialAdmission) -> None:
    for context in (Context(), Context(("user-agent", "grpc"), ("x-authorization", f"Bearer {keys.create()}"))):
        with pytest.raises(CredentialMissing):
            admit(admission, context)


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "bEaReR ", "Bearer   "])
def test_the_scheme_is_written_as_one_likes(keys: Keys, admission: CredentialAdmission, scheme: str) -> None:
    """RFC 9110 has it without regard to case."""
    assert admit(admission, Context(("authorization", scheme + keys.create())))


@pytest.mark.parametrize(
    "header",
    [
        "{}",
        "Bearer{}",
        "Basic {}",
        "Token {}",
        " Bearer {}",
        "Bearer\t{}",
        "Bearer Bearer {}",
        "Bearer {} {}",
        "{} Bearer",
    ],
)
def test_a_credential_in_another_form_is_invalid(keys: Keys, admission: CredentialAdmission, header: str) -> None:
    text = keys.create()
    with pytest.raises(CredentialInvalid):
        admit(admission, Context(("authorization", header.replace("{}", text))))
    assert keys.asked == []


@pytest.mark.parametrize(
    "value", ["", " ", "Bearer", "Bearer ", "Bearer    ", "Basic dXNlcjpwYXNz", "Bearer \0", "ß" * 9]
)
def test_a_header_without_a_credential_is_invalid(admission: CredentialAdmission, value: str) -> None:
    with pytest.raises(CredentialInvalid):
        admit(admission, Context(("authorization", value)))


def test_two_credentials_are_invalid_even_if_both_are_good(keys: Keys, admission: CredentialAdmission) -> None:
    one, other = keys.create(), keys.create()
    for second in (other, one, "nonsense"):
        with pytest.raises(CredentialInvalid):
            admit(admission, Context(bearer(one), bearer(second)))


def test_a_binary_credential_is_invalid(keys: Keys, admission: CredentialAdmission) -> None:
    with pytest.raises(CredentialInvalid):
        admit(admission, Context(("authorization", f"Bearer {keys.create()}".encode())))


# --- certificates


@pytest.fixture
def identities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("recalld.access.files._INTERVAL", 0.0)
    path = tmp_path / "identities.toml"
    names = ("spiffe://example.org/billing", "billing.example.org", "common", "ä")
    path.write_text("".join(f'["{name}"]\nnamespace = "of-{name[:6]}"\nscopes = ["read"]\n' for name in names))
    return path


@pytest.mark.parametrize(
    ("sans", "common_names", "name"),
    [
        ([b"spiffe://example.org/billing"], [], "spiffe://example.org/billing"),
        ([b"unknown", b"billing.example.org"], [b"common"], "billing.example.org"),
        ([b"unknown"], [b"common"], "common"),
        ([], [b"common"], "common"),
        (["ä".encode()], [], "ä"),
    ],
)
def test_a_certificate_is_known_by_its_alternative_names_then_its_common_name(
    identities: Path, sans: list[bytes], common_names: list[bytes], name: str
) -> None:
    admission = CredentialAdmission([], Identities(identities))
    assert admit(admission, Context(sans=sans, common_names=common_names)).name == name


@pytest.mark.parametrize(
    ("sans", "common_names"),
    [([], []), ([b"unknown"], [b"Common"]), ([b"\xff\xfe"], []), ([b""], [b""]), ([b"common\0"], [])],
)
def test_a_certificate_that_nobody_mapped_is_no_credential(
    identities: Path, sans: list[bytes], common_names: list[bytes]
) -> None:
    admission = CredentialAdmission([], Identities(identities))
    with pytest.raises(CredentialMissing):
        admit(admission, Context(sans=sans, common_names=common_names))


def test_a_certificate_counts_only_where_identities_are_given(admission: CredentialAdmission) -> None:
    with pytest.raises(CredentialMissing):
        admit(admission, Context(common_names=[b"common"]))


def test_a_bearer_credential_wins_over_a_certificate_even_when_it_is_bad(keys: Keys, identities: Path) -> None:
    admission = CredentialAdmission([ApiKeyAuthenticator(keys)], Identities(identities))
    text = keys.create()
    assert admit(admission, Context(bearer(text), common_names=[b"common"])).name == key_id_of(text)
    with pytest.raises(CredentialInvalid):
        admit(admission, Context(bearer("nonsense"), common_names=[b"common"]))


# --- streams


def test_a_stream_ends_when_its_key_is_revoked(keys: Keys, clock: Clock, admission: CredentialAdmission) -> None:
    text = keys.create()
    responses = Responses()
    stream = opened(admitting(admission)(STREAM, streaming(responses)), Context(bearer(text)))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    keys.stored.pop(key_id_of(text))
    revoked = clock.now

    def read() -> None:
        for _ in stream:
            clock.advance(0.5)

    with pytest.raises(CredentialInvalid):
        read()
    assert clock.now - revoked <= REVOCATION_SECONDS
    assert responses.closed


def test_a_stream_ends_when_its_token_expires(clock: Clock) -> None:
    authenticator = accepting(HS256, clock=clock)
    clock.now = utc_now().timestamp()
    token = HS256.token(exp=int(clock.now) + 60)
    stream = opened(
        admitting(CredentialAdmission([authenticator]))(STREAM, streaming(Responses())), Context(bearer(token))
    )
    next(stream)
    clock.advance(89)
    next(stream)
    clock.advance(2)
    with pytest.raises(CredentialExpired):
        next(stream)


def test_a_stream_of_many_responses_asks_the_database_as_seldom_as_other_calls(
    keys: Keys, clock: Clock, admission: CredentialAdmission
) -> None:
    stream = opened(admitting(admission)(STREAM, streaming(Responses())), Context(bearer(keys.create())))
    for _ in stream:
        clock.advance(0.01)
    assert len(keys.asked) <= 3


def test_a_stream_goes_on_while_the_database_is_away_for_as_long_as_other_calls(
    keys: Keys, clock: Clock, admission: CredentialAdmission
) -> None:
    stream = opened(admitting(admission)(STREAM, streaming(Responses())), Context(bearer(keys.create())))
    next(stream)
    keys.failure = StorageUnavailable()
    clock.advance(REVOCATION_SECONDS - 0.1)
    next(stream)
    clock.advance(0.1)
    with pytest.raises(StorageUnavailable):
        next(stream)


def test_a_whole_stream_that_was_sent_in_time_ends_well(keys: Keys, admission: CredentialAdmission) -> None:
    text = keys.create()
    stream = opened(admitting(admission)(STREAM, streaming(Responses(1))), Context(bearer(text)))
    assert next(stream) == 0
    keys.stored.clear()
    assert list(stream) == []


def test_a_stream_ends_when_its_certificate_is_mapped_to_another_namespace(identities: Path) -> None:
    admission = CredentialAdmission([], Identities(identities))
    responses = Responses()
    stream = opened(admitting(admission)(STREAM, streaming(responses)), Context(common_names=[b"common"]))
    next(stream)
    put(identities, identities.read_text().replace("of-common", "of-others"))
    with pytest.raises(CredentialInvalid):
        next(stream)
    assert set(responses.namespaces) == {"of-common"}


def test_a_stream_ends_when_its_certificate_loses_the_scope(identities: Path) -> None:
    admission = CredentialAdmission([], Identities(identities))
    stream = opened(admitting(admission)(STREAM, streaming(Responses())), Context(common_names=[b"common"]))
    next(stream)
    put(identities, identities.read_text().replace('["read"]', '["write"]'))
    with pytest.raises(ScopeMissing):
        next(stream)


# --- over a real connection


class ListeningStore(ReferenceStore):
    """Knows which namespaces were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: list[str] = []

    def create_session(self, call: Call, session_id: str, user_id: str, document: dict[str, Any]) -> Session:
        self.namespaces.append(call.namespace)
        return super().create_session(call, session_id, user_id, document)


def test_the_store_is_asked_for_the_namespace_of_the_credential(keys: Keys, admission: CredentialAdmission) -> None:
    store = ListeningStore()
    one, other = (bearer(keys.create(namespace=name)) for name in ("one", "other"))
    with serving(store, admission) as channel:
        # Twice in each: threads that served one namespace serve the other.
        for number in range(2):
            for credential in (one, other):
                request = session_pb2.CreateSessionRequest(session_id=f"s{number}")
                SessionServiceStub(channel).CreateSession(request, metadata=(credential,), timeout=DEADLINE)
    assert store.namespaces == ["one", "other"] * 2


@pytest.mark.parametrize("data", [b"", b"\xff\xff"], ids=["a bad request", "no request at all"])
def test_a_caller_without_a_credential_learns_nothing_about_its_request(
    keys: Keys, admission: CredentialAdmission, data: bytes
) -> None:
    with serving(ReferenceStore(), admission) as channel:
        call: Any = channel.unary_unary("/recall.v1.SessionService/GetSession")
        error = failure(lambda: call(data, timeout=DEADLINE))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAUTHENTICATED, "CREDENTIAL_MISSING")
        error = failure(lambda: call(data, metadata=(bearer(keys.create()),), timeout=DEADLINE))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
