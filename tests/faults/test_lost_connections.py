"""Connections that end under the server: at a statement, after a commit, all at once when Postgres restarts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Literal
from uuid import uuid4

import pytest

from recalld.storage import database
from tests.faults.cluster import cluster
from tests.faults.site import LATE, OK, PROMISED, STORAGE_UNAVAILABLE, Caller, Site, site, told
from tests.integration.conftest import serving
from tests.processes import SERVING, await_health
from tests.waiting import becomes


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all these tests: each finds it as whole as the one before should have left it."""
    with site(tmp_path_factory.mktemp("site"), "--lock-timeout=1m", by_proxy=True) as made:
        yield made


def blocked_backend(here: Site) -> int:
    found: list[tuple[int]] = []

    def one_waits() -> bool:
        found[:] = here.postgres.execute(
            "select pid from pg_stat_activity where application_name = 'recalld' and wait_event_type = 'Lock'"
        )
        return len(found) == 1

    assert becomes(one_waits)
    return found[0][0]


def test_a_terminated_backend_fails_only_the_call_that_it_worked_for(here: Site) -> None:
    assert here.caller.add("one", "first").told == OK
    with here.locked("one"):
        call = here.caller.later(here.caller.add, "one", "second")
        here.postgres.execute("select pg_terminate_backend(%s)", blocked_backend(here))
        answer = call.result()
        assert answer.told == STORAGE_UNAVAILABLE
        assert answer.retry_after is not None
        assert told(here.caller.burst()) == {OK}
    assert here.caller.contents("one") == ["first"]
    assert here.caller.add("one", "second").told == OK
    assert here.caller.contents("one") == ["first", "second"]


def test_a_killed_backend_takes_all_of_postgres_down_and_the_service_comes_back(here: Site) -> None:
    """After kill -9 of one of its processes Postgres ends the others, and recovers as from a crash."""
    assert here.caller.add("killed", "first").told == OK
    with here.locked("killed"):
        call = here.caller.later(here.caller.add, "killed", "second")
        os.kill(blocked_backend(here), signal.SIGKILL)
        assert call.result().told == STORAGE_UNAVAILABLE
        here.assert_whole_since(here.await_postgres())
    assert here.caller.contents("killed") == ["first"]


@pytest.mark.parametrize("repeats_safely", [True, False])
def test_a_lost_answer_to_a_commit_is_repaired_by_repeating_the_call_under_its_id(
    repeats_safely: bool, here: Site
) -> None:
    """Without an id, as a control, the repeated call stores its message again: the first one had been committed."""
    session, content, request_id = f"lost-{repeats_safely}", uuid4().hex, str(uuid4()) if repeats_safely else ""
    with here.proxy.losing_the_answer(content.encode()) as lost:
        assert here.caller.add(session, content, request_id=request_id).told == STORAGE_UNAVAILABLE
        assert lost.is_set()
    assert here.caller.contents(session) == [content]
    assert here.caller.add(session, content, request_id=request_id).told == OK
    assert here.caller.contents(session) == [content] * (1 if repeats_safely else 2)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_after_a_restart_of_postgres_no_call_fails_on_a_stale_connection(
    mode: Literal["fast", "immediate"], here: Site
) -> None:
    assert told(here.caller.burst()) == {OK}  # so the pool is full
    here.postgres.restart(mode)
    back = time.monotonic()
    answers = here.caller.burst()
    assert told(answers) == {OK}
    here.assert_whole_since(back)


def test_without_a_look_at_connections_before_they_are_lent_calls_do_fail_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control of the test above."""
    with cluster() as postgres, serving(postgres.url, pool_size=4, purge_interval="0") as server:
        await_health(server.address, SERVING)
        caller = Caller(server.address)
        try:
            assert told(caller.burst()) == {OK}
            monkeypatch.setattr(database, "_has_ended", lambda connection: False)
            postgres.restart()
            assert STORAGE_UNAVAILABLE in told(caller.burst())
            assert becomes(lambda: told(caller.burst()) == {OK}, within=PROMISED + LATE)
        finally:
            caller.close()
