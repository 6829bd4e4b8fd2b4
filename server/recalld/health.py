"""grpc.health.v1: serving while the database answers, and its schema is the one that this server needs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from itertools import chain, repeat
from typing import Final

from grpc_health.v1.health import OVERALL_HEALTH, SERVICE_NAME
from grpc_health.v1.health_pb2 import HealthCheckResponse

from recalld.errors import RecallError, StorageUnavailable
from recalld.services.health import HealthServicer

log = logging.getLogger(__name__)

# Seconds between pings, and how old the last answer may be. A ping of a frozen database hangs instead of failing, so
# health depends on the age of the last answer.
_PING_INTERVAL: Final = 0.5
_ANSWER_LIFETIME: Final = 2.0

# Seconds between attempts to reach the database at start; the last one repeats.
_BACKOFF: Final = (0.5, 1.0, 2.0)

# Seconds after which the log repeats why the database cannot be used, if the reason has not changed.
_REMINDER: Final = 60.0


class Health:
    """Tells health checks what a watch on the database sees.

    Args:
        services: full names of the services that stand and fall with the database.
        prepare: brings the database to the schema that is needed; tried again as long as it raises a RecallError.
        ping: returns when the database answers; raises StorageUnavailable.
        fail: called with any other error of `prepare`, after which there are no further attempts.
    """

    def __init__(
        self,
        services: Collection[str],
        *,
        prepare: Callable[[], None],
        ping: Callable[[], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self.servicer = HealthServicer()
        # For liveness probes: a process need not be restarted because the database is away.
        self.servicer.set([SERVICE_NAME], HealthCheckResponse.SERVING)
        self._services = (OVERALL_HEALTH, *services)
        self._prepare = prepare
        self._ping = ping
        self._fail = fail
        self._stopped = threading.Event()
        self._publishing = threading.Lock()
        self._last_answer = float("-inf")
        self._serving = False
        self._publish()

    @property
    def serving(self) -> bool:
        """Whether the database answers."""
        return self._serving

    def start(self) -> None:
        """Starts to watch the database. Its threads are daemons: a ping of a frozen database can outlive `stop`."""
        for target in (self._ping_database, self._watch_answers):
            threading.Thread(target=target, name="recalld-health", daemon=True).start()

    def stop(self) -> None:
        """Says NOT_SERVING, for good."""
        with self._publishing:
            self._stopped.set()
            self.servicer.set([SERVICE_NAME, *self._services], HealthCheckResponse.NOT_SERVING)

    def _ping_database(self) -> None:
        if not self._prepared():
            return
        while not self._stopped.is_set():
            try:
                self._ping()
                self._last_answer = time.monotonic()
            except StorageUnavailable:
                self._last_answer = float("-inf")
            self._stopped.wait(_PING_INTERVAL)

    def _prepared(self) -> bool:
        said, said_at = "", float("-inf")
        for delay in chain(_BACKOFF, repeat(_BACKOFF[-1])):
            try:
                self._prepare()
                return True
            except RecallError as error:
                why, now = str(error.__cause__ or error), time.monotonic()
                if why != said or now - said_at >= _REMINDER:
                    log.warning("no database yet, trying on (`recalld doctor` tells more): %s", why)
                    said, said_at = why, now
            except Exception as error:
                self._fail(error)
                return False
            if self._stopped.wait(delay):
                return False
        raise AssertionError("the delays never end")

    def _watch_answers(self) -> None:
        while not self._stopped.wait(_PING_INTERVAL / 4):
            self.servicer.cancel_stalled()
            serving = time.monotonic() - self._last_answer < _ANSWER_LIFETIME
            if serving != self._serving:
                self._serving = serving
                self._publish()
                log.log(*(logging.INFO, "serving") if serving else (logging.WARNING, "the database does not answer"))

    def _publish(self) -> None:
        with self._publishing:
            if not self._stopped.is_set():
                serving = HealthCheckResponse.SERVING if self._serving else HealthCheckResponse.NOT_SERVING
                self.servicer.set(self._services, serving)
