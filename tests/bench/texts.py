"""What the messages of the bench say: real conversations where there are some, else words as frequent as theirs."""

from __future__ import annotations

import json
import random
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

# Bytes of one message's content.
SIZE: Final = 240

_CONVERSATIONS: Final = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "locomo"

_SYLLABLES: Final = [first + vowel for first in "bcdfghklmnprstvw" for vowel in ("a", "e", "i", "o", "u", "ea", "er")]


def texts(count: int) -> tuple[list[str], str]:
    """So many texts of SIZE bytes each, and where they are from."""
    if _CONVERSATIONS.is_dir():
        return _cut(_spoken(), count), "LoCoMo conversations"
    return _cut(_generated(count), count), "generated: words of a Zipf distribution over 8,000"


def _cut(source: str, count: int) -> list[str]:
    """Pieces of ASCII, so that a character is a byte; the source begins again where it ends."""
    plain = source.encode("ascii", "ignore").decode()
    plain += plain[:SIZE]
    starts = (number * SIZE % (len(plain) - SIZE) for number in range(count))
    return [plain[start : start + SIZE] for start in starts]


def _spoken() -> str:
    return " ".join(
        turn["text"]
        for file in sorted(_CONVERSATIONS.glob("*.json"))
        for turns in json.loads(file.read_text("utf-8")).values()
        if _is_conversation(turns)
        for turn in turns
    )


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "text" in value[0]


def _generated(count: int) -> str:
    """Frequent words are short, rare ones are many: what the full-text index has to do depends on both."""
    chance = random.Random(1)
    words = ["".join(chance.choices(_SYLLABLES, k=1 + (rank > 100) + (rank > 1000))) for rank in range(8000)]
    weights = list(accumulate(1 / (rank + 3) for rank in range(len(words))))
    return " ".join(chance.choices(words, cum_weights=weights, k=count * SIZE // 4))
