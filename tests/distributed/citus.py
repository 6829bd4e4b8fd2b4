"""A small Citus: a coordinator and two workers on loopback, where a Postgres with that extension is installed.

The Postgres in the wheel has no Citus. It is looked for in `TEST_POSTGRES`, or else where Debian has Postgres.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from recalld.storage import migrate
from tests.faults.cluster import Cluster, cluster
from tests.postgres import LANGUAGE, PROGRAMS_VARIABLE, Databases, url_of

WORKERS: Final = 2

# More than the nodes, so that not every key of a node is in one shard; few, since every fan-out goes to all of them.
SHARDS: Final = 8

_SETTINGS: Final = {
    "shared_preload_libraries": "citus",
    "citus.shard_count": str(SHARDS),
    "citus.node_conninfo": "sslmode=disable",
    "citus.enable_statistics_collection": "off",  # it would call the vendor
    "max_connections": "100",
}


class Citus(Databases):
    """Makes databases that are on every node, given by their URLs on the coordinator.

    Args:
        coordinator: the node that the others are added to.
        workers: the nodes with the data.
    """

    def __init__(self, coordinator: Cluster, workers: list[Cluster]) -> None:
        super().__init__(coordinator.url, template="template1")
        self.coordinator = coordinator
        self.workers = workers

    @contextmanager
    def copy(self) -> Iterator[str]:
        """A distributed one. There is nothing to copy it from: a template has no part on the workers."""
        with self.empty() as url:
            migrate(url, LANGUAGE, distribute=True)
            yield url

    @contextmanager
    def empty(self) -> Iterator[str]:
        """One without a schema."""
        with self.apart() as url:
            self.join(url)
            yield url

    @contextmanager
    def apart(self) -> Iterator[str]:
        """One without a schema that knows nothing of Citus yet: on every node a database of its own."""
        name = f"recalld_test_{uuid4().hex}"
        for node in self._nodes:
            _on(node, sql.SQL("create database {}").format(sql.Identifier(name)))
        try:
            yield url_of(self.coordinator.url, name)
        finally:
            for node in self._nodes:
                _on(node, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

    def join(self, url: str) -> None:
        """Makes the nodes' databases one, as an administrator does it by hand."""
        for node in self._nodes:
            _on(node, sql.SQL("create extension citus"), _name(url))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("select citus_set_coordinator_host('127.0.0.1', %s)", (self.coordinator.port,))
            for worker in self.workers:
                connection.execute("select citus_add_node('127.0.0.1', %s)", (worker.port,))

    def on_worker(self, url: str) -> str:
        """The same database by way of a worker."""
        parts = urlsplit(url)
        user = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{user}@127.0.0.1:{self.workers[0].port}").geturl()

    @property
    def _nodes(self) -> list[Cluster]:
        return [self.coordinator, *self.workers]


@contextmanager
def running_citus() -> Iterator[Citus]:
    """Skips the test where there is none."""
    programs = _programs()
    if programs is None:
        pytest.skip("no Postgres with the extension citus is installed here")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(PROGRAMS_VARIABLE, str(programs))
            nodes = [stack.enter_context(cluster(**_SETTINGS)) for _ in range(1 + WORKERS)]
        yield Citus(nodes[0], nodes[1:])


def _programs() -> Path | None:
    """The directory of the programs of a Postgres that has the extension."""
    given = os.environ.get(PROGRAMS_VARIABLE)
    places = [Path(given)] if given else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if _has_citus(place)), None)


def _has_citus(programs: Path) -> bool:
    config = programs / "pg_config"
    if not config.exists():
        return False
    shared = subprocess.run([config, "--sharedir"], capture_output=True, text=True, timeout=10, check=True)
    return (Path(shared.stdout.strip()) / "extension" / "citus.control").exists()


def _name(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _on(node: Cluster, statement: sql.SQL | sql.Composed, database: str = "postgres") -> None:
    with node.connect(database) as connection:
        connection.execute(statement)
