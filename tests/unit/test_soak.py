"""The judge of a soak finds what grows, and nothing where nothing does."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.soak.measures import Sample, judge

STEADY = Sample(seconds=0, rss_mib=110, descriptors=20, threads=45, backends=9, calls=0, errors=0)


def samples(**growth: float) -> list[Sample]:
    """A run of 40 samples, 30 seconds apart, in which some things grow by so much each time, and all swing."""
    chance = random.Random(1)
    made = []
    for number in range(40):
        moved: dict[str, Any] = {name: getattr(STEADY, name) + by * number for name, by in growth.items()}
        moved.setdefault("descriptors", STEADY.descriptors + chance.choice((-2, 0, 2)))
        moved.setdefault("rss_mib", STEADY.rss_mib + chance.uniform(-2, 2))
        made.append(STEADY._replace(seconds=30.0 * number, calls=1000 * number, **moved))
    return made


def test_a_steady_run_passes() -> None:
    assert judge(samples()) == []


@pytest.mark.parametrize(
    ("what", "by"), [("rss_mib", 0.5), ("descriptors", 0.25), ("threads", 0.25), ("backends", 0.25)]
)
def test_a_leak_fails_and_is_named(what: str, by: float) -> None:
    [found] = judge(samples(**{what: by}))
    assert found.startswith(f"{what} grew by ")


def test_what_grows_only_at_first_passes() -> None:
    grown = [
        sample._replace(threads=sample.threads + min(number, 15), rss_mib=sample.rss_mib + min(number, 15))
        for number, sample in enumerate(samples())
    ]
    assert judge(grown) == []


def test_a_run_that_comes_to_a_halt_fails() -> None:
    halted = [sample._replace(calls=min(sample.calls, 20_000)) for sample in samples()]
    assert judge(halted) == ["no call ended in the second half"]
