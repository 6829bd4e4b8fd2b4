"""Several calls as one: how long it has, and when it is over."""

from __future__ import annotations

import pytest

from recalld.errors import Cancelled, DeadlineExceeded
from recalld.gathering import Wish
from recalld.together import as_one
from tests.unit.gathered import Asked


def test_several_calls_have_as_long_as_the_most_patient_of_them() -> None:
    calls = [Asked(), Asked()]
    _, together = as_one([Wish(call) for call in calls])
    calls[0].left, calls[1].left = 1.0, 2.0
    assert together.remaining() == 2.0
    calls[1].left = None
    assert together.remaining() is None


def test_several_calls_are_over_when_all_are() -> None:
    calls = [Asked(), Asked()]
    _, together = as_one([Wish(call) for call in calls])
    told: list[bool] = []
    assert together.when_over(lambda: told.append(True))
    calls[0].end()
    assert told == []
    calls[1].end()
    assert told == [True]
    assert not together.when_over(lambda: None)


@pytest.mark.parametrize(("left", "expected"), [(0.0, DeadlineExceeded), (None, Cancelled), (5.0, Cancelled)])
def test_a_call_that_was_over_before_is_left_out_and_told(left: float | None, expected: type[Exception]) -> None:
    calls = [Asked(), Asked(), Asked()]
    calls[1].left = left
    calls[1].end()
    wishes = [Wish(call) for call in calls]
    lasting, together = as_one(wishes)
    assert lasting == [wishes[0], wishes[2]]
    assert isinstance(wishes[1].error, expected)
    told: list[bool] = []
    together.when_over(lambda: told.append(True))
    calls[0].end()
    calls[2].end()
    assert told == [True]


def test_one_call_stays_itself() -> None:
    wish = Wish(Asked())
    assert as_one([wish]) == ([wish], wish.call)
