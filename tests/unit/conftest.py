"""What the unit tests share: the services over a store in memory, which can tell what it was asked."""

from __future__ import annotations

import pytest

from tests.reference import ReferenceStore
from tests.unit.rpc import NOW, RecordingStore, Services


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore(ReferenceStore(lambda: NOW))


@pytest.fixture
def services(store: RecordingStore) -> Services:
    return Services(store)
