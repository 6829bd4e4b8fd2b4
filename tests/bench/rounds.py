"""Rounds of measurements in which all contenders take turns, and what is made of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

# One round's figures of one contender. The names end in their unit; `rate` is a second.
Figures = dict[str, float]

# Every round's figures by contender.
Rounds = dict[str, list[Figures]]

# A target's value in each round.
Value = Callable[[Rounds], list[float]]


@dataclass(frozen=True)
class Effort:
    """How much a run does.

    Args:
        rounds: how often all contenders take their turn.
        seconds: how long one turn takes.
        many: how large "a million" is.
        step: by which factor sizes grow up to that.
        messages: how many messages are stored to see how much disk one takes, and
        batch: how many of them in a call.
        singly: how many calls a round has that are made one at a time.
        in_flight: how many calls are in flight at the points of a curve.
        writers: in each process of a peer; the best of these is found before anything counts.
    """

    name: str
    rounds: int
    seconds: float
    many: int
    step: int
    messages: int
    batch: int
    singly: int
    in_flight: tuple[int, ...]
    writers: tuple[int, ...]

    @property
    def few(self) -> int:
        """How often what takes long is done."""
        return max(1, self.rounds // 2)


FULL: Final = Effort(
    "full",
    rounds=5,
    seconds=4.0,
    many=1_000_000,
    step=10,
    messages=200_000,
    batch=1,
    singly=200,
    in_flight=(1, 2, 4, 8, 16, 32, 64, 128),
    writers=(4, 16, 32),
)
QUICK: Final = Effort(
    "quick",
    rounds=3,
    seconds=1.0,
    many=100_000,
    step=1000,
    messages=50_000,
    batch=100,
    singly=80,
    in_flight=(1, 8, 64),
    writers=(16,),
)


@dataclass
class Outcome:
    """What an experiment measured, and what there is to say about it."""

    rounds: Rounds
    notes: list[str] = field(default_factory=list)


def interleaved(contenders: Mapping[str, Callable[[], Figures]], rounds: int) -> Rounds:
    """Lets contenders take turns, so that a slow moment of the machine meets all alike."""
    measured: Rounds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, measure in contenders.items():
            measured[name].append(measure())
    return measured


def ratio(above: str, below: str, figure: str, factor: float = 1.0) -> Value:
    """One contender's figure over the other's, each round with itself."""

    def value(rounds: Rounds) -> list[float]:
        pairs = zip(rounds[above], rounds[below], strict=True)
        return [factor * one[figure] / other[figure] for one, other in pairs]

    return value


def figure(contender: str, name: str) -> Value:
    """A contender's figure as it is."""
    return lambda rounds: [one[name] for one in rounds[contender]]


def ratio_to_best(contender: str, others: str, name: str) -> Value:
    """A contender's figure over that of the best, by its median, of those whose names begin with `others`."""

    def value(rounds: Rounds) -> list[float]:
        rivals = [rival for rival in rounds if rival.startswith(others)]
        best = max(rivals, key=lambda rival: median(rounds[rival], name))
        return ratio(contender, best, name)(rounds)

    return value


def ratio_of_sizes(contender: str, name: str) -> Value:
    """A contender's figure at the largest of its sizes over that at the smallest."""

    def value(rounds: Rounds) -> list[float]:
        sizes = _sizes(rounds, contender)
        return ratio(f"{contender} @ {max(sizes)}", f"{contender} @ {min(sizes)}", name)(rounds)

    return value


def at_largest(above: str, below: str, name: str) -> Value:
    """One contender's figure over the other's, at the largest size of the first."""

    def value(rounds: Rounds) -> list[float]:
        largest = max(_sizes(rounds, above))
        return ratio(f"{above} @ {largest}", f"{below} @ {largest}", name)(rounds)

    return value


def _sizes(rounds: Rounds, contender: str) -> list[int]:
    return [size for series, size in map(split, rounds) if series == contender and size is not None]


def split(contender: str) -> tuple[str, int | None]:
    """The series of a contender that is called `SERIES @ SIZE`, and the size."""
    series, _, size = contender.partition(" @ ")
    return series, int(size) if size else None


def median(figures: Iterable[Figures], name: str) -> float:
    """The median of one figure over the rounds."""
    return statistics.median(one[name] for one in figures)


def medians(rounds: Rounds) -> dict[str, Figures]:
    """The median of each figure of each contender."""
    return {contender: {name: median(one, name) for name in one[0]} for contender, one in rounds.items() if one}
