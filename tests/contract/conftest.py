from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from recalld.domain import Call, LocalCall, Store
from recalld.storage import PostgresStore
from tests.contract.clock import Clock
from tests.postgres import open_database
from tests.reference import ReferenceStore


@pytest.fixture(scope="module")
def clock() -> Clock:
    """What the stores of a module take the time from. It never goes back; tests keep apart by namespace."""
    return Clock()


@pytest.fixture(scope="module")
def reference(clock: Clock) -> ReferenceStore:
    return ReferenceStore(clock)


@pytest.fixture(scope="module")
def postgres(shared_database_url: str, clock: Clock) -> Iterator[PostgresStore]:
    with open_database(shared_database_url) as database:
        yield PostgresStore(database, clock=clock)


@pytest.fixture(scope="module", params=["reference", "postgres"])
def store(request: pytest.FixtureRequest) -> Store:
    found: Store = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def call() -> Call:
    """A call in a namespace that no other test uses."""
    return LocalCall(f"test-{uuid4()}")


@pytest.fixture
def other_call() -> Call:
    """A call in yet another namespace."""
    return LocalCall(f"test-{uuid4()}")
