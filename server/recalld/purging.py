"""Purging on a schedule: in one server at a time, and never in anybody's way."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from recalld.domain import Call, LocalCall, PurgeProgress, PurgeQuery
from recalld.errors import RecallError, ShuttingDown, reason_of
from recalld.metrics import Metrics

log = logging.getLogger(__name__)

# How long the lease outlives a server that died while it purged.
LEASE_TTL: Final = timedelta(seconds=30)

# The most seconds between two attempts to take the lease, which fail until the next run is due.
_MOST_BETWEEN_ATTEMPTS: Final = 15.0

# Seconds to pause after a failure, and between two looks whether calls still wait for the database.
_AFTER_FAILURE: Final = 5.0
_WHILE_BUSY: Final = 0.2

# Failures in a row, without any progress, after which a run gives up what is left of it; but not before it has tried
# each namespace that is left.
_MOST_FAILURES: Final = 10

# Namespaces that were given up and that the log names, at most.
_MOST_NAMED: Final = 10


class Purgeable(Protocol):
    """The part of the store that purging needs."""

    def due_namespaces(self, cutoff: datetime) -> list[str]: ...

    def purge(self, call: Call, query: PurgeQuery) -> Iterator[PurgeProgress]: ...


class Lease(Protocol):
    """The part of `recalld.storage.Lease` that purging needs."""

    def take(self) -> bool: ...

    def renew(self) -> bool: ...

    def give_back(self, pause: timedelta) -> None: ...


class Purger:
    """Purges every namespace once an interval, on behalf of all servers on one database.

    It takes at most half the time of one connection: after each step, a batch of messages, it rests for as long as
    the step took, and longer while calls wait.

    Args:
        store: what is purged.
        lease: held while it purges, so that no other server does.
        busy: whether calls wait for the database.
        retention: how long ago something must have been deleted.
        interval: from the end of one run to the start of the next.
        metrics: counts what was removed.
    """

    def __init__(
        self,
        store: Purgeable,
        lease: Lease,
        busy: Callable[[], bool],
        retention: timedelta,
        interval: timedelta,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._lease = lease
        self._busy = busy
        self._retention = retention
        self._interval = interval
        self._metrics = metrics
        self._renewed = 0.0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recalld-purge", daemon=True)

    def start(self) -> None:
        """Starts the thread that purges whenever a run is due."""
        self._thread.start()

    def stop(self) -> None:
        """Stops after the current step, and waits for that at most 5 seconds."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        pause = min(self._interval.total_seconds(), _MOST_BETWEEN_ATTEMPTS)
        while not self._stopped.wait(pause):
            try:
                self._renewed = time.monotonic()
                if self._lease.take():
                    self._purge_all()
            except ShuttingDown:
                return
            except RecallError as error:
                log.debug("no purge yet: %s", error.reason)
            except Exception:
                log.exception("the purge failed; the next is tried as usual")

    def _purge_all(self) -> None:
        """One run; the next is due an interval after it, even if this one has given up some namespaces."""
        try:
            complete = self._purge_due(datetime.now(UTC) - self._retention)
        except _LeaseLost:
            log.warning("the purge ends: this server was too slow and lost its lease, which another may take")
            return
        if self._stopped.is_set():
            self._lease.give_back(timedelta(0))
            return
        self._lease.give_back(self._interval)
        if complete:
            self._metrics.purge_success.set_to_current_time()

    def _purge_due(self, cutoff: datetime) -> bool:
        """Purges one namespace after the other; one that fails comes after the others. False when some are given up.

        Each run has another order: a namespace whose purge fails so late that the lease is lost ends the run, and must
        not keep the same others waiting every time.
        """
        started = time.monotonic()
        removed = PurgeProgress(0, 0, 0)
        due: list[str] | None = None
        failed: dict[str, Exception] = {}
        failures = 0
        try:
            while (due is None or due) and not self._stopped.is_set():
                try:
                    self._keep_lease()
                    if due is None:
                        due = self._store.due_namespaces(cutoff)
                        random.shuffle(due)
                        continue
                    for more in self._steps(due[0], cutoff):
                        removed = PurgeProgress(*(a + b for a, b in zip(removed, more, strict=True)))
                        if any(more):
                            failures = 0
                    if not self._stopped.is_set():
                        failed.pop(due.pop(0), None)
                        failures = 0
                except (_LeaseLost, ShuttingDown):
                    raise
                except Exception as error:
                    failures += 1
                    if due:
                        failed[due[0]] = error
                        due.append(due.pop(0))
                    if failures >= max(_MOST_FAILURES, len(due or ())):
                        _warn(failed, error)
                        return False
                    self._stopped.wait(_AFTER_FAILURE)
            return True
        finally:
            if any(removed):
                log.info("purged %d sessions, %d messages, %d users in %.1f s", *removed, time.monotonic() - started)

    def _steps(self, namespace: str, cutoff: datetime) -> Iterator[PurgeProgress]:
        """Purges a namespace; yields what each step removed."""
        before = PurgeProgress(0, 0, 0)
        step_began = time.monotonic()
        for total in self._store.purge(LocalCall(namespace), PurgeQuery(cutoff=cutoff)):
            more = PurgeProgress(*(now - then for now, then in zip(total, before, strict=True)))
            before = total
            for kind, number in more._asdict().items():
                self._metrics.purged.labels(kind).inc(number)
            yield more
            self._rest(time.monotonic() - step_began)
            self._keep_lease()
            if self._stopped.is_set():
                return
            step_began = time.monotonic()

    def _keep_lease(self) -> None:
        """Renews the lease when that is due. Raises _LeaseLost."""
        now = time.monotonic()
        if now - self._renewed > LEASE_TTL.total_seconds() / 3:
            if not self._lease.renew():
                raise _LeaseLost
            self._renewed = now

    def _rest(self, seconds: float) -> None:
        self._stopped.wait(min(seconds, _AFTER_FAILURE))
        waited = 0.0
        while self._busy() and waited < _AFTER_FAILURE and not self._stopped.wait(_WHILE_BUSY):
            waited += _WHILE_BUSY


def _warn(failed: dict[str, Exception], last: Exception) -> None:
    """Logs what is given up, and why; with the traceback of the first error that is not a RecallError."""
    unexpected = next((error for error in [*failed.values(), last] if not isinstance(error, RecallError)), None)
    if failed:
        named = [f"{namespace!r} ({reason_of(error)})" for namespace, error in failed.items()]
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        text = f"in {', '.join(named[:_MOST_NAMED])}{more}"
    else:
        text = f"everywhere ({reason_of(last)})"
    log.warning("the purge is given up until its next run %s", text, exc_info=unexpected)


class _LeaseLost(Exception):
    """Another server may purge now."""
