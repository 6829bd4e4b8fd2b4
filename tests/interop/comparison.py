"""Two JSON documents, compared exactly, and where they differ."""

from __future__ import annotations

from typing import Any


def differences(expected: Any, seen: Any, path: str = "$") -> list[str]:
    """One line for each place that differs, as `path: expected …, saw …`; none when they are equal.

    Numbers are equal by value, so that 42 and 42.0 are; a boolean is no number, and null is not an absent member.
    """
    match expected, seen:
        case dict(), dict():
            lines = [f"{path}.{key}: missing" for key in expected.keys() - seen.keys()]
            lines += [f"{path}.{key}: not expected" for key in seen.keys() - expected.keys()]
            for key in expected.keys() & seen.keys():
                lines += differences(expected[key], seen[key], f"{path}.{key}")
            return sorted(lines)
        case list(), list() if len(expected) == len(seen):
            pairs = enumerate(zip(expected, seen, strict=True))
            return [line for index, (one, other) in pairs for line in differences(one, other, f"{path}[{index}]")]
    if isinstance(expected, bool) == isinstance(seen, bool) and expected == seen:
        return []
    return [f"{path}: expected {expected!r}, saw {seen!r}"]
