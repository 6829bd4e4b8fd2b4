"""The database is away: frozen, unreachable, shut down, full up. Calls are told so in time, health too, and when it is
back so is the service, without a restart.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import psycopg
import pytest
from psycopg_pool import ConnectionPool

from recalld.storage import database
from tests.faults.cluster import cluster
from tests.faults.proxy import Proxy
from tests.faults.site import (
    LATE,
    OK,
    POOL_SIZE,
    PROMISED,
    PROMPT,
    STORAGE_UNAVAILABLE,
    Caller,
    Site,
    site,
    told,
)
from tests.integration.conftest import serving
from tests.processes import NOT_SERVING, SERVING, await_health, running
from tests.waiting import becomes

# Seconds: of the servers here. Statements that wait are seen to, all of them, before the first is stopped.
STATEMENT_TIMEOUT = 4.0
POOL_TIMEOUT = 1.0

# Seconds in which a call without a deadline has ended: its statement's timeout, what the server allows beyond that, and
# the time it takes to find out that the database answers no cancel request either.
LONGEST = STATEMENT_TIMEOUT + 1.0 + 2.5 + PROMPT

TIMEOUTS = (f"--statement-timeout={STATEMENT_TIMEOUT}s", f"--pool-timeout={POOL_TIMEOUT}s")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all these tests: each finds it as whole as the one before should have left it."""
    with site(tmp_path_factory.mktemp("site"), *TIMEOUTS, by_proxy=True) as made:
        yield made


@pytest.fixture(autouse=True)
def full_pool(here: Site) -> None:
    assert told(here.caller.burst()) == {OK}


# --- frozen


def test_on_a_frozen_database_calls_end_at_their_deadlines_and_calls_without_one_end_too(here: Site) -> None:
    assert here.caller.add("s").told == OK
    with here.locked("s"):
        patient = [here.caller.later(here.caller.add_alone, "s", timeout=None) for _ in range(POOL_SIZE)]
        assert becomes(lambda: here.waiting() == POOL_SIZE)
        here.postgres.freeze()
        try:
            with here.outage():
                hurried = [here.caller.later(here.caller.get, "s", 0.7) for _ in range(8)]
                for call in hurried:
                    assert call.result().code == grpc.StatusCode.DEADLINE_EXCEEDED
                    assert call.result().seconds < 0.7 + PROMPT
                for call in patient:
                    assert call.result().told == STORAGE_UNAVAILABLE
                    assert call.result().seconds < LONGEST
                late = here.caller.get("s", None)  # finds all connections cut, and none to be had
                assert late.told == STORAGE_UNAVAILABLE
                assert late.seconds < POOL_TIMEOUT + PROMPT
        finally:
            here.postgres.thaw()
    here.assert_whole_since(time.monotonic())


# --- unreachable


def test_while_connections_are_refused_calls_are_told_so_and_afterwards_all_is_well(here: Site) -> None:
    with here.outage():
        here.proxy.refuse()
        answers = here.caller.burst()
        assert told(answers) == {STORAGE_UNAVAILABLE}
        assert all(answer.retry_after is not None for answer in answers)
        assert max(answer.seconds for answer in answers) < POOL_TIMEOUT + PROMPT
    here.proxy.forward()
    here.assert_whole_since(time.monotonic())


def test_a_network_that_swallows_everything_costs_no_call_more_than_its_time(here: Site) -> None:
    with here.outage():
        here.proxy.swallow()
        lent = [here.caller.later(here.caller.add_alone, "s", None) for _ in range(2 * POOL_SIZE)]
        for call in lent:
            assert call.result().told in (STORAGE_UNAVAILABLE, ("RESOURCE_EXHAUSTED", "OVERLOADED"))
            assert call.result().seconds < LONGEST
        late = here.caller.get("s", 10)
        assert late.told == STORAGE_UNAVAILABLE
        assert late.seconds < POOL_TIMEOUT + PROMPT
    here.proxy.forward()
    here.assert_whole_since(time.monotonic())


def test_connections_that_died_without_a_word_hold_up_nobody_once_the_database_is_back(here: Site) -> None:
    """As when the database's machine was replaced: what was connected to the old one never hears of it."""
    with here.outage():
        here.proxy.freeze()
        here.proxy.refuse_new()
    here.proxy.forward()
    here.assert_whole_since(time.monotonic())


def test_calls_that_were_under_way_on_such_connections_give_them_up(tmp_path: Path) -> None:
    """They could wait as long as a statement may take. Here they hold all connections there are."""
    with site(tmp_path, by_proxy=True) as here:
        assert here.caller.add("s").told == OK
        with here.locked("s"):
            calls = [here.caller.later(here.caller.add_alone, "s", timeout=None) for _ in range(POOL_SIZE)]
            assert becomes(lambda: here.waiting() == POOL_SIZE)
            with here.outage():
                here.proxy.freeze()
                here.proxy.refuse_new()
        here.proxy.forward()
        here.assert_whole_since(time.monotonic())
        assert told([call.result() for call in calls]) == {STORAGE_UNAVAILABLE}


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("silently", [False, True], ids=["refusing", "swallowing"])
def test_after_a_long_outage_too_the_service_is_whole_within_seconds(silently: bool, here: Site) -> None:
    """However long the pool has been trying to connect, at growing intervals."""
    with here.outage():
        (here.proxy.swallow if silently else here.proxy.refuse)()
    over = time.monotonic() + 65
    while time.monotonic() < over:  # meanwhile, callers go on calling
        assert here.caller.get("s", 5).code != grpc.StatusCode.OK
        assert here.caller.get("s", 0.3).code != grpc.StatusCode.OK
    here.proxy.forward()
    here.assert_whole_since(time.monotonic())


# --- shut down, or full up


def test_a_database_that_shuts_down_or_is_full_up_at_the_start_is_waited_for(tmp_path: Path) -> None:
    """SQLSTATEs 57P03 and 53300, and nobody at the door."""
    with cluster(max_connections="8") as postgres, ExitStack() as crowd:
        for _ in range(8):
            crowd.enter_context(postgres.connect("postgres"))
        with running(
            tmp_path, ["--database-url", postgres.url, "--pool-timeout", "1s", "--pool-size", "2"], serves=False
        ) as process:
            caller = Caller(process.address)
            try:
                assert becomes(lambda: "too many clients" in process.stderr)
                assert caller.get("s").told == STORAGE_UNAVAILABLE
                os.kill(postgres.pid, signal.SIGTERM)  # a smart shutdown: whoever is in may stay, nobody comes in
                assert becomes(lambda: "the database system is shutting down" in process.stderr)
                assert caller.get("s").told == STORAGE_UNAVAILABLE
                crowd.close()
                assert becomes(lambda: not postgres.runs)
                assert becomes(lambda: "Connection refused" in process.stderr)
                assert process.runs
                postgres.start()
                back = time.monotonic()
                await_health(process.address, SERVING)
                assert time.monotonic() - back < PROMISED + LATE  # and the schema is made by then
                assert told(caller.burst(4)) == {OK}
            finally:
                caller.close()


def test_when_others_take_all_connections_calls_are_told_so_until_there_is_room(tmp_path: Path) -> None:
    with site(tmp_path, *TIMEOUTS, max_connections="12") as here, ExitStack() as crowd:
        assert told(here.caller.burst()) == {OK}
        with here.postgres.connect() as warden, here.outage():
            others = 0
            while others < 11:
                warden.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'recalld'"
                )
                with suppress(psycopg.OperationalError):  # the server was quicker to connect
                    crowd.enter_context(here.postgres.connect("postgres"))
                    others += 1
            answer = here.caller.get("s")
            assert answer.told == STORAGE_UNAVAILABLE
            assert answer.seconds < POOL_TIMEOUT + PROMPT
        crowd.close()
        here.assert_whole_since(time.monotonic())


# --- the controls of some of the tests above, on a server in this process whose remedy can be taken away


@contextmanager
def in_this_process(**settings: str) -> Iterator[tuple[Proxy, Caller]]:
    """A server that serves, the network to its database, and a caller."""
    with cluster() as postgres:
        proxy = Proxy(postgres.port)
        try:
            url = postgres.url_by(proxy.port)
            with serving(url, pool_size=POOL_SIZE, purge_interval="0", **settings) as server:
                await_health(server.address, SERVING)
                caller = Caller(server.address)
                try:
                    assert told(caller.burst()) == {OK}
                    yield proxy, caller
                finally:
                    caller.close()
        finally:
            proxy.close()


def test_without_a_patrol_a_call_without_a_deadline_waits_for_a_dead_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "_PATROL_INTERVAL", 3600.0)
    with in_this_process(statement_timeout="1s") as (proxy, caller):
        proxy.freeze()
        call = caller.later(caller.get, "s", 6)
        assert call.result().code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert call.result().seconds > 5


@pytest.mark.parametrize("remedy", [True, False])
def test_only_because_the_return_is_noticed_calls_get_no_connection_that_died_in_the_outage(
    remedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not remedy:
        monkeypatch.setattr(ConnectionPool, "drain", lambda pool: None)
    with in_this_process() as (proxy, caller):
        address = caller.address
        proxy.freeze()
        proxy.refuse_new()
        await_health(address, NOT_SERVING)
        proxy.forward()
        await_health(address, SERVING)
        answers = caller.burst(timeout=2)
        assert (told(answers) == {OK}) is remedy


@pytest.mark.faults
def test_with_the_pools_own_patience_the_service_stays_away_long_after_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It connects again after 1, 2, 4, 8, 16 … seconds."""
    monkeypatch.setattr(database, "_RECONNECT_TIMEOUT", 300.0)
    with in_this_process(pool_timeout="1s") as (proxy, caller):
        proxy.refuse()
        over = time.monotonic() + 17
        while time.monotonic() < over:
            assert caller.get("s").code != grpc.StatusCode.OK
        proxy.forward()
        assert not becomes(lambda: told(caller.burst()) == {OK}, within=PROMISED + LATE)
