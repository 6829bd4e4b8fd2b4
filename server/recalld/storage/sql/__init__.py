"""The statements of the service: one .sql file a subject, each statement under a line `-- name: its_name`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import LiteralString

_HEADER = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def statements(subject: str) -> dict[str, LiteralString]:
    """The statements of `<subject>.sql` by name.

    They come from files of this package and nowhere else, which makes them the literal strings that psycopg asks for.
    """
    text = (Path(__file__).parent / f"{subject}.sql").read_text("utf-8")
    _preface, *parts = _HEADER.split(text)
    return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def compose(statement: LiteralString, **parts: str) -> LiteralString:
    """Fills the `{named}` places of a statement with other parts of this package's SQL, never with values."""
    return statement.format_map(_Parts(parts))


class _Parts(dict[str, str]):
    """Leaves the places that are not given for a later call."""

    def __missing__(self, name: str) -> str:
        return "{" + name + "}"
