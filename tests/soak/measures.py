"""What is measured in a soak, and what is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, linear_regression
from typing import Final, NamedTuple

import psutil

MIB: Final = 1024 * 1024


class Sample(NamedTuple):
    """The server at one moment of the run."""

    seconds: float
    rss_mib: float
    descriptors: float
    threads: float
    backends: float
    calls: int
    errors: int


# How much each may seem to grow over the second half of the run, from where it starts: a straight line through samples
# that go up and down has some slope by chance.
_MOST_GROWTH: Final = {"rss_mib": 6.0, "descriptors": 3.0, "threads": 3.0, "backends": 3.0}

HEAD: Final = "  time   RSS MiB   files   threads   backends     calls    errors"


def line(sample: Sample) -> str:
    """A row of the table below HEAD."""
    return (
        f"{sample.seconds:5.0f}s {sample.rss_mib:9.1f} {sample.descriptors:7.0f} {sample.threads:9.0f}"
        f" {sample.backends:10.0f} {sample.calls:9} {sample.errors:9}"
    )


def take(seconds: float, process: psutil.Process, database_port: int, calls: int, errors: int) -> Sample:
    """A sample of a server process; its backends are its connections to the database's port."""
    memory = process.memory_info().rss / MIB
    backends = sum(1 for one in process.net_connections("tcp") if one.raddr and one.raddr.port == database_port)
    return Sample(seconds, memory, process.num_fds(), process.num_threads(), backends, calls, errors)


def growth(samples: Sequence[Sample], name: str) -> float:
    """By how much the straight line through the second half of the samples rises."""
    half = samples[len(samples) // 2 :]
    slope, _ = linear_regression([sample.seconds for sample in half], [getattr(sample, name) for sample in half])
    return slope * (half[-1].seconds - half[0].seconds)


def judge(samples: Sequence[Sample]) -> list[str]:
    """What grows and should not; a line for each."""
    found = []
    for name, most in _MOST_GROWTH.items():
        grown = growth(samples, name)
        if grown > most:
            mean = fmean(getattr(sample, name) for sample in samples)
            found.append(f"{name} grew by {grown:.1f} over the second half, more than {most:g} (mean {mean:.1f})")
    if samples[-1].calls == samples[len(samples) // 2].calls:
        found.append("no call ended in the second half")
    return found
