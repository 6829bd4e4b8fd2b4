"""Fixtures that every suite may use: databases, and stores on them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from recalld.storage import PostgresStore
from tests.postgres import POOLER_VARIABLE, Databases, open_database, running_databases, version

# A developer's own configuration must not reach the tests.
for variable in [name for name in os.environ if name.startswith("RECALLD_")]:
    del os.environ[variable]

if POOLER_VARIABLE in os.environ:
    os.environ["RECALLD_POOLER"] = "true"

# By itself Hypothesis fails a test of which an example takes 200 ms, or the making of them long: on a busy machine any.
settings.register_profile("recalld", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("recalld")

# Read when gRPC is first used. Its handlers of fork() crash children of a busy process, which are only to exec().
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def pytest_report_header() -> str:
    return f"database: {version()}"


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Makes databases; for suites that need more than one, or one without a schema."""
    with running_databases() as made:
        yield made


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    with databases.copy() as url:
        yield url


@pytest.fixture(scope="module")
def shared_database_url(databases: Databases) -> Iterator[str]:
    """A migrated database for a module whose tests keep apart by namespace."""
    with databases.copy() as url:
        yield url


@pytest.fixture
def postgres_store(database_url: str) -> Iterator[PostgresStore]:
    """A store on a database of the test's own."""
    with open_database(database_url) as database:
        yield PostgresStore(database)
