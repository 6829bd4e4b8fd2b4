"""What the unit tests share: the services over a store in memory, a clock, who may call, and a thread that gathers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from recalld.access import ANYONE
from recalld.access.api_keys import ApiKeyAuthenticator
from recalld.gathering import Gathering
from recalld.services.admission import CredentialAdmission
from recalld.services.call import principal
from recalld.spare_threads import SpareThreads
from tests.access import HS256, Clock, Keys, accepting
from tests.reference import ReferenceStore
from tests.unit.rpc import NOW, RecordingStore, Services


@pytest.fixture
def store() -> RecordingStore:
    return RecordingStore(ReferenceStore(lambda: NOW))


@pytest.fixture
def services(store: RecordingStore) -> Services:
    return Services(store)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def admission(keys: Keys, clock: Clock) -> CredentialAdmission:
    """Admits by the keys, and by tokens."""
    return CredentialAdmission([ApiKeyAuthenticator(keys, clock), accepting(HS256)])


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gathering]:
    """It stays alone: what takes long here is what the tests have it wait for."""
    monkeypatch.setattr("recalld.gathering._PATIENCE", 60.0)
    threads = Gathering(1, most=3, aside=SpareThreads("test").run)
    yield threads
    threads.shutdown()


@pytest.fixture(autouse=True)
def _nobody_is_left_behind() -> Iterator[None]:
    """gRPC runs each call in a context of its own, a test that calls an interceptor itself does not."""
    before = principal.set(ANYONE)
    yield
    principal.reset(before)
