"""What one namespace may have of a server: more is refused in a way that clients can act on, and others go on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest, ClearMemoryRequest, GetMemoryRequest, Message
from recall.v1.session_pb2 import CreateSessionRequest, GetSessionRequest, StreamSessionsRequest
from tests.integration.callers import (
    Caller,
    Refusal,
    bearer,
    calling,
    create_key,
    row_locked,
    with_credential,
)
from tests.integration.conftest import serving
from tests.waiting import becomes

POOL = 4  # database connections

# Seconds to a deadline that passes, before which others are refused.
SHORT = 4.0

READ = GetMemoryRequest(session_id="s")
WRITE = AddMemoryRequest(session_id="s", messages=[Message(role="user", content="hi")])
CLEAR = ClearMemoryRequest(session_id="s")  # needs the session's row, and a connection of its own while it waits for it


@contextmanager
def two_callers(database_url: str, **settings: Any) -> Iterator[tuple[Caller, Caller]]:
    """Callers of the namespaces `noisy` and `quiet`, each on a connection of its own, whose keys the server knows."""
    with (
        serving(database_url, auth=True, **settings) as server,
        calling(server, create_key(database_url, "noisy")) as noisy,
        calling(server, create_key(database_url, "quiet")) as quiet,
    ):
        yield noisy, quiet


def assert_over_quota(refusal: Refusal, quota: str, allowed: str) -> None:
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert dict(refusal.info.metadata) == {"quota": quota, "allowed": allowed}
    assert refusal.retry_after is not None
    assert refusal.retry_after > 0
    # In whole milliseconds, for the retry policies of gRPC clients.
    assert int(refusal.trailing["grpc-retry-pushback-ms"]) == pytest.approx(refusal.retry_after * 1000, abs=1)


# --- calls a second


def test_calls_beyond_the_rate_are_refused_with_the_time_to_wait_and_another_namespaces_are_not(
    database_url: str,
) -> None:
    with two_callers(database_url, rate_limit=0.01) as (noisy, quiet):
        noisy.call(READ)

        refusal = noisy.refused(READ)

        assert_over_quota(refusal, "calls_per_second", "0.01")
        assert 80 < (refusal.retry_after or 0) <= 200
        quiet.call(READ)
        assert_over_quota(noisy.refused(StreamSessionsRequest()), "calls_per_second", "0.01")


def test_all_credentials_of_a_namespace_share_its_rate(database_url: str) -> None:
    with two_callers(database_url, rate_limit=0.01) as (noisy, _):
        noisy.call(READ)
        sibling = with_credential(noisy, create_key(database_url, "noisy"))
        assert_over_quota(sibling.refused(READ), "calls_per_second", "0.01")


def test_a_call_that_is_not_admitted_costs_no_namespace_anything(database_url: str) -> None:
    with two_callers(database_url, rate_limit=0.01) as (noisy, _):
        for stranger in (Caller(noisy.channel), with_credential(noisy, "recalld_nonsense")):
            for _ in range(3):
                assert stranger.refused(READ).code == grpc.StatusCode.UNAUTHENTICATED
        noisy.call(READ)


def test_without_authentication_everyone_shares_one_rate(database_url: str) -> None:
    with serving(database_url, rate_limit=0.01) as server, calling(server) as one, calling(server) as another:
        one.call(READ)
        assert_over_quota(another.refused(READ), "calls_per_second", "0.01")


def test_a_client_with_a_retry_policy_waits_as_long_as_it_is_told(database_url: str) -> None:
    """The policy's own backoff would give up within 40 ms; a call is allowed every 250 ms."""
    rate = 4
    with serving(database_url, auth=True, rate_limit=rate) as server:
        key = create_key(database_url, "noisy")
        emptied = 0.0

        def has_emptied_it() -> bool:
            nonlocal emptied
            emptied = time.monotonic()
            return _is_refused(plain)

        with calling(server, key) as plain:
            assert becomes(has_emptied_it)
        options = [("grpc.service_config", _RETRYING), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(server.address, options=options) as channel:
            retrying = Caller(channel, bearer(key))
            for _ in range(4):
                retrying.call(READ)
            # The bucket has been empty since: four calls take three intervals at least.
            assert time.monotonic() - emptied > 3 / rate


_RETRYING = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.01s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }
)


def _is_refused(caller: Caller) -> bool:
    return caller.code(READ) == grpc.StatusCode.RESOURCE_EXHAUSTED


# --- calls at once


def test_a_namespace_at_its_limit_of_calls_at_once_does_not_delay_another(database_url: str) -> None:
    with two_callers(database_url, concurrency_limit=POOL - 1, pool_size=POOL) as (noisy, quiet):
        noisy.call(WRITE)
        with row_locked(database_url, "noisy", "s") as waiting:
            stuck = [noisy.begin(CLEAR) for _ in range(POOL - 1)]
            assert becomes(lambda: waiting() == POOL - 1)

            assert_over_quota(noisy.refused(READ), "concurrent_calls", str(POOL - 1))
            for _ in range(20):
                quiet.call(WRITE)
            assert waiting() == POOL - 1
        for call in stuck:
            call.result()
        noisy.call(READ)


def test_without_that_limit_it_takes_every_connection(database_url: str) -> None:
    """The control of the test above."""
    with two_callers(database_url, pool_size=POOL, pool_timeout="200ms") as (noisy, quiet):
        noisy.call(WRITE)
        quiet.call(WRITE)
        with row_locked(database_url, "noisy", "s") as waiting:
            stuck = [noisy.begin(CLEAR) for _ in range(POOL)]
            assert becomes(lambda: waiting() == POOL)

            refusal = quiet.refused(READ)

            assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        for call in stuck:
            call.result()
        quiet.call(READ)


@pytest.mark.parametrize("way", ["cancelled", "deadline"])
def test_a_call_that_its_caller_gives_up_is_no_longer_counted(database_url: str, way: str) -> None:
    with two_callers(database_url, concurrency_limit=1) as (noisy, _):
        noisy.call(WRITE)
        with row_locked(database_url, "noisy", "s") as waiting:
            stuck = noisy.begin(WRITE, timeout=30 if way == "cancelled" else SHORT)
            assert becomes(lambda: waiting() == 1)
            assert _is_refused(noisy)
            if way == "cancelled":
                stuck.cancel()
            assert becomes(lambda: not _is_refused(noisy))


# --- streams

STREAMS = 2
CHUNKS = StreamSessionsRequest(chunk_size=1)


@pytest.fixture
def stored_url(database_url: str) -> str:
    """A database with more sessions than gRPC buffers for a client that does not read."""
    with serving(database_url) as server, calling(server) as caller:
        for number in range(150):
            create = CreateSessionRequest(session_id=f"s{number}")
            create.metadata.update({"large": "x" * 60_000})
            caller.call(create)
    return database_url


def opened(caller: Caller) -> Any:
    stream = caller.open(CHUNKS)
    next(stream)
    return stream


def is_one_too_many(caller: Caller) -> bool:
    try:
        opened(caller).cancel()
    except grpc.RpcError as error:
        return Refusal(error).reason == "OVERLOADED"
    return False


def test_a_stream_too_many_is_refused_and_unary_calls_go_on(stored_url: str) -> None:
    with (
        serving(stored_url, max_streams=STREAMS, max_concurrent_calls=STREAMS + 1) as server,
        calling(server) as caller,
    ):
        unread = [opened(caller) for _ in range(STREAMS)]

        refusal = caller.refused(CHUNKS)

        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert refusal.retry_after == 1
        for number in range(10):
            caller.call(GetSessionRequest(session_id=f"s{number}"))
        assert is_one_too_many(caller)
        assert [sum(1 for _ in stream) for stream in unread] == [149] * STREAMS


def test_if_no_limit_is_set_half_of_all_calls_may_be_streams(stored_url: str) -> None:
    with serving(stored_url, max_concurrent_calls=2 * STREAMS + 1) as server, calling(server) as caller:
        unread = [opened(caller) for _ in range(STREAMS)]
        assert is_one_too_many(caller)
        caller.call(GetSessionRequest(session_id="s0"))
        assert [sum(1 for _ in stream) for stream in unread] == [149] * STREAMS


@pytest.mark.parametrize("ending", ["read to the end", "cancelled", "connection closed", "deadline"])
def test_a_stream_that_ended_makes_room_for_another(stored_url: str, ending: str) -> None:
    with serving(stored_url, max_streams=1) as server, calling(server) as caller, calling(server) as holding:
        stream = holding.open(CHUNKS, timeout=SHORT if ending == "deadline" else 30)
        next(stream)
        assert is_one_too_many(caller)
        if ending == "read to the end":
            list(stream)
        elif ending == "cancelled":
            stream.cancel()
        elif ending == "connection closed":
            holding.channel.close()
        assert becomes(lambda: not is_one_too_many(caller))


def test_without_a_lower_limit_that_many_streams_are_open_at_once(stored_url: str) -> None:
    """The control of the two tests above."""
    with (
        serving(stored_url, max_streams=STREAMS + 2, max_concurrent_calls=STREAMS + 3) as server,
        calling(server) as caller,
    ):
        streams = [opened(caller) for _ in range(STREAMS + 1)]
        assert not is_one_too_many(caller)
        for stream in streams:
            stream.cancel()
