"""The comparison itself: what it lets pass, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interop.comparison import differences


@pytest.mark.parametrize(
    ("expected", "seen"),
    [
        ({"a": [1, {"b": None}], "c": "x"}, {"c": "x", "a": [1, {"b": None}]}),
        (42, 42.0),
        (9007199254740991, 9007199254740991.0),
    ],
)
def test_documents_that_say_the_same_have_no_differences(expected: Any, seen: Any) -> None:
    assert differences(expected, seen) == []


@pytest.mark.parametrize(
    ("expected", "seen", "where"),
    [
        ({"a": 1}, {}, "$.a: missing"),
        ({}, {"a": None}, "$.a: not expected"),
        ({"a": None}, {"a": {}}, "$.a: expected None, saw {}"),
        (True, 1, "$: expected True, saw 1"),
        (0, False, "$: expected 0, saw False"),
        ("1", 1, "$: expected '1', saw 1"),
        ([1, 2], [1], "$: expected [1, 2], saw [1]"),
        ([1, 2], [2, 1], "$[0]: expected 1, saw 2"),
        ("e\u0301", "\u00e9", "$: expected 'e\u0301', saw '\u00e9'"),
        (9007199254740991, 9007199254740990.0, "$: expected 9007199254740991, saw 9007199254740990.0"),
    ],
)
def test_a_difference_is_told_with_its_place(expected: Any, seen: Any, where: str) -> None:
    assert where in differences(expected, seen)
