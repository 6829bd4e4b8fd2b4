"""API keys: what is one, what is remembered of it, and for how long."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256

import pytest

from recalld.access import Principal, Scope, api_keys
from recalld.access.api_keys import ApiKeyAuthenticator, make_key
from recalld.errors import CredentialExpired, CredentialInvalid, Overloaded, RecallError, StorageUnavailable
from recalld.limits import REVOCATION_SECONDS
from tests.access import CALL, Clock, Keys, key_id_of, utc_now

FRESH = REVOCATION_SECONDS / 2
THREADS = 16

# Seconds. A deadline, not a delay.
DEADLINE = 30.0


@pytest.fixture
def authenticator(keys: Keys, clock: Clock) -> ApiKeyAuthenticator:
    return ApiKeyAuthenticator(keys, clock)


def revoke(keys: Keys, text: str) -> None:
    keys.stored[key_id_of(text)] = replace(keys.stored[key_id_of(text)], revoke_time=utc_now())


# --- what a key is


def test_a_new_key_has_256_random_bits_of_which_only_a_hash_is_kept() -> None:
    new, other = make_key(), make_key()
    match = re.fullmatch(r"recalld_([0-9a-f]{12})_([0-9A-Za-z_-]{43})", new.text)
    assert match
    assert match[1] == new.key_id
    assert new.digest == sha256(match[2].encode()).digest()
    assert {new.key_id, new.text, new.digest}.isdisjoint({other.key_id, other.text, other.digest})


def test_a_key_is_its_namespace_and_scopes(keys: Keys, authenticator: ApiKeyAuthenticator) -> None:
    text = keys.create(Scope.READ, namespace="acme")
    assert authenticator.recognises(text)
    assert authenticator.authenticate(text, CALL) == Principal("acme", frozenset({Scope.READ}), key_id_of(text))


def test_another_secret_of_a_key_is_refused_cold_and_warm(keys: Keys, authenticator: ApiKeyAuthenticator) -> None:
    text, other = keys.create(), keys.create()
    forged = text[: -len(other.split("_", 2)[2])] + other.split("_", 2)[2]
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(forged, CALL)
    authenticator.authenticate(text, CALL)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(forged, CALL)


def test_an_unknown_key_is_refused_and_not_remembered(keys: Keys, authenticator: ApiKeyAuthenticator) -> None:
    unknown = make_key()
    for _ in range(3):
        with pytest.raises(CredentialInvalid):
            authenticator.authenticate(unknown.text, CALL)
    assert keys.asked == [unknown.key_id] * 3
    assert not authenticator._known


GOOD = make_key().text
MALFORMED = {
    "nothing": "",
    "prefix only": "recalld_",
    "no secret": GOOD[:21],
    "short secret": GOOD[:-1],
    "long secret": f"{GOOD}A",
    "line break": f"{GOOD}\n",
    "space": f" {GOOD}",
    "capital id": GOOD[:8] + "ABCDEFABCDEF" + GOOD[20:],
    "SQL in the id": "recalld_1' or '1'='1_" + GOOD[21:],
    "digits that are not ASCII": GOOD[:8] + "٣" * 12 + GOOD[20:],
    "letters that are not ASCII": GOOD[:-1] + "ä",
    "NUL": GOOD[:-1] + "\0",
    "lone surrogate": GOOD[:-1] + "\ud800",
    "huge": "recalld_" + "a" * 1_000_000,
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_key_never_reaches_the_database(keys: Keys, authenticator: ApiKeyAuthenticator, text: str) -> None:
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text, CALL)
    assert keys.asked == []


@pytest.mark.parametrize("text", ["", "Recalld_", "a.b.c", "sk_live_1"])
def test_other_credentials_are_left_to_others(authenticator: ApiKeyAuthenticator, text: str) -> None:
    assert not authenticator.recognises(text)


# --- when a key ends


def test_an_expired_key_is_told_so(keys: Keys, authenticator: ApiKeyAuthenticator) -> None:
    text = keys.create(expire_time=utc_now() - timedelta(microseconds=1))
    with pytest.raises(CredentialExpired):
        authenticator.authenticate(text, CALL)


def test_a_key_expires_while_it_is_remembered(
    keys: Keys, authenticator: ApiKeyAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = utc_now() + timedelta(hours=1)
    text = keys.create(expire_time=end)
    authenticator.authenticate(text, CALL)

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Later:
            return end  # type: ignore[return-value]

    monkeypatch.setattr("recalld.access.api_keys.datetime", Later)
    with pytest.raises(CredentialExpired):
        authenticator.authenticate(text, CALL)
    assert len(keys.asked) == 1


def test_who_guesses_at_an_expired_key_does_not_learn_that_it_expired(
    keys: Keys, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create(expire_time=utc_now() - timedelta(days=1))
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text[:-1] + ("A" if text[-1] != "A" else "B"), CALL)


def test_a_revoked_key_is_refused_whatever_the_clock_of_who_revoked_it(
    keys: Keys, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create(revoke_time=utc_now() + timedelta(hours=1))
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text, CALL)


def test_a_revoked_key_that_has_expired_too_is_just_invalid(keys: Keys, authenticator: ApiKeyAuthenticator) -> None:
    past = utc_now() - timedelta(days=1)
    text = keys.create(revoke_time=past, expire_time=past)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text, CALL)


# --- what is remembered


def test_warm_calls_look_nothing_up(keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator) -> None:
    text = keys.create()
    for _ in range(100):
        authenticator.authenticate(text, CALL)
    clock.advance(FRESH - 0.001)
    authenticator.authenticate(text, CALL)
    assert len(keys.asked) == 1


def test_a_busy_key_is_looked_up_again_as_seldom_as_its_answer_is_fresh(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create()
    for _ in range(600):
        authenticator.authenticate(text, CALL)
        clock.advance(0.1)
    assert len(keys.asked) == 60 / FRESH


@pytest.mark.parametrize("step", [0.1, FRESH - 0.1, FRESH, FRESH + 0.1, REVOCATION_SECONDS])
def test_a_revoked_key_is_refused_in_time_however_often_it_is_used(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator, step: float
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    revoke(keys, text)
    revoked = clock.now
    while clock.now < revoked + REVOCATION_SECONDS:
        clock.advance(step)
        try:
            authenticator.authenticate(text, CALL)
        except CredentialInvalid:
            return
    raise AssertionError("still accepted")


def test_a_revoked_key_stays_refused_while_the_database_is_away(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    revoke(keys, text)
    clock.advance(FRESH)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text, CALL)
    keys.failure = StorageUnavailable()
    clock.advance(FRESH)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text, CALL)


def test_a_key_that_is_gone_from_the_database_is_forgotten(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    keys.stored.clear()
    clock.advance(FRESH)
    with pytest.raises(CredentialInvalid):
        authenticator.authenticate(text, CALL)
    keys.failure = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        authenticator.authenticate(text, CALL)


@pytest.mark.parametrize("failure", [StorageUnavailable(), Overloaded()], ids=["away", "busy"])
def test_what_is_known_outlasts_the_database_only_as_long_as_a_revocation_may_take(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator, failure: RecallError
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    keys.failure = failure
    clock.advance(REVOCATION_SECONDS - 0.001)
    authenticator.authenticate(text, CALL)
    clock.advance(0.001)
    with pytest.raises(type(failure)):
        authenticator.authenticate(text, CALL)
    keys.failure = None
    authenticator.authenticate(text, CALL)


def test_the_time_that_a_database_takes_to_fail_counts_too(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    keys.failure = StorageUnavailable()
    keys.before_answer = lambda: clock.advance(5)
    clock.advance(REVOCATION_SECONDS - 1)
    with pytest.raises(StorageUnavailable):
        authenticator.authenticate(text, CALL)


def test_an_answer_is_as_old_as_its_question(keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator) -> None:
    text = keys.create()
    keys.before_answer = lambda: clock.advance(FRESH)
    authenticator.authenticate(text, CALL)
    authenticator.authenticate(text, CALL)
    assert len(keys.asked) == 2


def test_an_unknown_key_while_the_database_is_away_is_not_called_invalid(
    keys: Keys, authenticator: ApiKeyAuthenticator
) -> None:
    keys.failure = StorageUnavailable()
    with pytest.raises(StorageUnavailable):
        authenticator.authenticate(make_key().text, CALL)


def test_what_is_remembered_is_bounded(
    keys: Keys, authenticator: ApiKeyAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_keys, "_MOST_KNOWN", 4)
    texts = [keys.create() for _ in range(9)]
    for text in texts:
        authenticator.authenticate(text, CALL)
        assert 0 < len(authenticator._known) <= 4
    # Forgotten is not refused.
    authenticator.authenticate(texts[0], CALL)


# --- threads


def test_one_caller_looks_a_stale_key_up_and_the_others_do_not_wait(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    clock.advance(FRESH)
    looking_up, answered = threading.Event(), threading.Event()

    def wait() -> None:
        looking_up.set()
        assert answered.wait(DEADLINE)

    keys.before_answer = wait
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            first = pool.submit(authenticator.authenticate, text, CALL)
            assert looking_up.wait(DEADLINE)
            others = [pool.submit(authenticator.authenticate, text, CALL) for _ in range(THREADS - 1)]
            for other in others:
                assert other.result(DEADLINE).name == key_id_of(text)
            assert len(keys.asked) == 2
            assert not first.done()
        finally:
            answered.set()
        assert first.result(DEADLINE).name == key_id_of(text)
    authenticator.authenticate(text, CALL)
    assert len(keys.asked) == 2


def test_while_a_look_up_hangs_the_others_do_not_go_on_for_longer_than_a_revocation_may_take(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator
) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    clock.advance(FRESH)
    looking_up, answered = threading.Event(), threading.Event()

    def hang() -> None:
        looking_up.set()
        assert answered.wait(DEADLINE)

    keys.before_answer = hang
    with ThreadPoolExecutor(1) as pool:
        try:
            first = pool.submit(authenticator.authenticate, text, CALL)
            assert looking_up.wait(DEADLINE)
            keys.before_answer = lambda: None
            revoke(keys, text)
            clock.advance(REVOCATION_SECONDS - FRESH - 0.001)
            authenticator.authenticate(text, CALL)
            clock.advance(0.001)
            with pytest.raises(CredentialInvalid):
                authenticator.authenticate(text, CALL)
        finally:
            answered.set()
        first.result(DEADLINE)


def test_the_turn_passes_on_after_a_failed_look(keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator) -> None:
    text = keys.create()
    authenticator.authenticate(text, CALL)
    clock.advance(FRESH)
    keys.failure = RuntimeError("a defect")
    with pytest.raises(RuntimeError):
        authenticator.authenticate(text, CALL)
    keys.failure = None
    authenticator.authenticate(text, CALL)
    assert len(keys.asked) == 3


def test_threads_get_what_they_would_get_alone(
    keys: Keys, clock: Clock, authenticator: ApiKeyAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen threads on four keys, of which one is revoked and one has another secret, in a cache too small."""
    monkeypatch.setattr(api_keys, "_MOST_KNOWN", 2)
    good, also_good, revoked, guessed = (keys.create(namespace=f"n{number}") for number in range(4))
    revoke(keys, revoked)
    guessed = guessed[:-1] + ("A" if guessed[-1] != "A" else "B")
    start = threading.Barrier(THREADS)

    def work(number: int) -> list[str]:
        start.wait(DEADLINE)
        wrong = []
        for turn in range(300):
            clock.advance(0.01)
            text = (good, also_good, revoked, guessed)[(number + turn) % 4]
            try:
                accepted = authenticator.authenticate(text, CALL).namespace
            except CredentialInvalid:
                accepted = "refused"
            if accepted != {good: "n0", also_good: "n1"}.get(text, "refused"):
                wrong.append(accepted)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert [wrong for wrongs in pool.map(work, range(THREADS)) for wrong in wrongs] == []
