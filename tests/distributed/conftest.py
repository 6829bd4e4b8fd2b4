from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.distributed.citus import Citus, running_citus


@pytest.fixture(scope="package")
def citus() -> Iterator[Citus]:
    with running_citus() as running:
        yield running


@pytest.fixture(scope="module")
def distributed_url(citus: Citus) -> Iterator[str]:
    """A distributed, empty database, by way of the coordinator."""
    with citus.copy() as url:
        yield url
