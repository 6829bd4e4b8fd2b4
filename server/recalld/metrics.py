"""What Prometheus can ask: how calls went, how the pool and the database are, and what purging did.

Namespaces, ids and callers are not labels: there may be any number of them, and a metrics endpoint asks for no
credential.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from recalld import __version__

# Seconds. A call takes a millisecond or a few; streams and purges can take any time.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# Calls: a group has at most 32.
_GROUP_BUCKETS: Final = (1, 2, 4, 8, 16, 32)


class CallMetrics:
    """The metrics of one method, looked up once and not with each call."""

    def __init__(self, metrics: Metrics, method: str) -> None:
        self._calls = metrics.calls
        self._method = _label(method)
        self._by_code: dict[str, Counter] = {}
        self.seconds = metrics.seconds.labels(self._method)

    def count(self, code: str) -> None:
        """Counts a call that ended with this status code."""
        counter = self._by_code.get(code)
        if counter is None:
            counter = self._by_code[code] = self._calls.labels(self._method, code)
        counter.inc()


class Metrics:
    """The metrics of this process.

    With PROMETHEUS_MULTIPROC_DIR in the environment they are shared by several processes through files there.
    """

    def __init__(self) -> None:
        # They would add a series `_created` to each counter and histogram.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self.registry = CollectorRegistry()
        self.calls = Counter(
            "recalld_calls", "Calls that ended, by method and status code.", ["method", "code"], registry=registry
        )
        self.seconds = Histogram(
            "recalld_call_seconds", "How long calls took.", ["method"], registry=registry, buckets=_BUCKETS
        )
        self._group_size = Histogram(
            "recalld_group_size",
            "How many calls were worked on at once, of those that share statements.",
            ["method"],
            registry=registry,
            buckets=_GROUP_BUCKETS,
        )
        # The context of each call. To increment and decrement a gauge would cost a call more.
        self.in_progress: set[object] = set()
        self._in_progress = Gauge(
            "recalld_calls_in_progress", "Calls in progress.", registry=registry, multiprocess_mode="livesum"
        )
        self._in_progress.set_function(lambda: len(self.in_progress))
        self.refused = Counter(
            "recalld_calls_refused", "Calls turned away because there were too many.", registry=registry
        )
        self.pool_connections = Gauge(
            "recalld_pool_connections",
            "Database connections, by whether a call has them.",
            ["state"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.pool_waiting = Gauge(
            "recalld_pool_waiting", "Calls that wait for a connection.", registry=registry, multiprocess_mode="livesum"
        )
        self.database_up = Gauge(
            "recalld_database_up",
            "1 while the database answers and can be written to.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.purged = Counter(
            "recalld_purged", "What the scheduled purge removed, by kind.", ["kind"], registry=registry
        )
        self.purge_success = Gauge(
            "recalld_purge_last_success_timestamp_seconds",
            "When this server last got through a scheduled purge; others may have since.",
            registry=registry,
            multiprocess_mode="mostrecent",
        )
        build = Gauge(
            "recalld_build_info",
            "Always 1; the version is a label.",
            ["version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(__version__).set(1)

    def group_sizes(self, method: str) -> Histogram:
        """The histogram of how many calls of this method were worked on at once."""
        return self._group_size.labels(_label(method))

    def share(self) -> None:
        """Writes the number of calls in progress to the shared files, which a scrape cannot do. Called regularly."""
        self._in_progress.set(len(self.in_progress))

    def share_end(self) -> None:
        """Reports no calls in progress from now on. Threads may still work on calls whose callers have gone."""
        self._in_progress.set(0)


def _label(method: str) -> str:
    """A method without its package."""
    return method.rpartition(".")[2]
