"""Arrays as parameters, written by hand: psycopg looks at each element's type, and takes four times as long."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID


def array(values: Iterable[object]) -> str:
    """An array in Postgres's own notation, for a parameter with a cast such as `%(ids)s::uuid[]`.

    None is null; text must be free of NUL.
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, UUID):
        return value.hex
    return str(value)
