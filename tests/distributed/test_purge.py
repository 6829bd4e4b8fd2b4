"""The steps of a purge on Citus, by the test of tests/integration/test_purge_steps.py, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration import test_purge_steps as suite
from tests.postgres import open_database


@pytest.fixture
def servers(distributed_url: str) -> Iterator[suite.Servers]:
    with open_database(distributed_url) as database, closing(suite.Servers(distributed_url, database)) as servers:
        yield servers


test_no_step_removes_too_much = suite.test_no_step_removes_more_than_a_batch_and_together_they_remove_everything
