"""Only SQL from files reaches the database: read off the source of every module of the server."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import recalld
from tests.unit.sql_origin import untrusted

SERVER = Path(recalld.__file__).parent

# What the check cannot follow, and why it is right.
ALLOWED = {
    # The .sql file beside the step; Alembic calls it, with nothing of anybody's in its hands.
    ("storage/migrations/__init__.py", "upgrade"),
}


def test_all_sql_of_the_server_comes_from_files() -> None:
    found = [
        finding
        for path in sorted(SERVER.rglob("*.py"))
        for finding in untrusted(str(path.relative_to(SERVER)), path.read_text("utf-8"))
    ]
    assert [finding for finding in found if (finding.file, finding.function) not in ALLOWED] == []
    assert {(finding.file, finding.function) for finding in found} == ALLOWED, "an exception that is not needed"


def test_statements_are_found_where_they_are() -> None:
    """The control of the control: the modules that talk to the database do it by the methods that are looked for."""
    talking = {
        str(path.relative_to(SERVER))
        for path in SERVER.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "execute"
    }
    assert talking >= {
        f"storage/{name}.py" for name in ("users", "sessions", "memory", "purge", "database", "migrate", "api_keys")
    }


HEADER = """
from psycopg import sql
from sqlalchemy import text
from recalld.storage.sql import compose, statements
_SQL = statements("session")
_GET, _PUT = (compose(_SQL[name], columns=_SQL["columns"]) for name in ("get", "put"))
_LIST = {order: compose(_SQL["list"], order=order) for order in ("asc", "desc")}
"""

GOOD = {
    "a statement": "def f(c): c.execute(_SQL['get'])",
    "a composed one": "def f(c): c.execute(_GET, {})",
    "one of two": "def f(c, x): c.execute(_GET if x else _PUT)",
    "one of many": "def f(c, x):\n    statement = _LIST[x]\n    c.execute(statement)",
    "one of many, annotated": "def f(c, x):\n    statement: str = _LIST[x]\n    c.execute(statement)",
    "handed to a private function": "def _g(c, s): c.execute(s)\ndef f(c):\n    _g(c, _GET)\n    _g(c, s=_PUT)",
    "handed to a private method": "class A:\n  def _g(self, c, s): c.execute(s)\n  def f(self, c): self._g(c, _GET)",
    "made by a private function at import": (
        "def _make(x): return compose(_SQL['get'], x=x)\n_X = _make('y')\ndef f(c): c.execute(_X)"
    ),
    "quoted values": "def f(c, x): c.execute(sql.SQL(_SQL['get']).format(n=sql.Identifier(x), v=sql.Literal(x)))",
    "SQLAlchemy": "def f(c): c.execute(text(_SQL['get']))",
    "many rows": "def f(c, x): c.executemany(_GET, x)",
    "a dict's copy": "def f(d): return d.copy()",
    "a local import": "def f(c):\n    from recalld.storage.sql import statements as s\n    c.execute(_GET)",
}

BAD = {
    "a literal": "def f(c): c.execute('select 1')",
    "an f-string": "def f(c, x): c.execute(f'select {x}')",
    "a sum": "def f(c, x): c.execute(_GET + x)",
    "a format": "def f(c, x): c.execute(_GET.format(x))",
    "a per cent": "def f(c, x): c.execute(_GET % x)",
    "a join": "def f(c, x): c.execute(' '.join([_GET, x]))",
    "a parameter": "def f(c, x): c.execute(x)",
    "a parameter by name": "def f(c, x): c.execute(query=x)",
    "nothing that is known": "def f(c): c.execute(*stuff)",
    "an unknown name": "def f(c): c.execute(OTHER)",
    "an attribute": "def f(c, x): c.execute(x.statement)",
    "what another function made": "def f(c, x): c.execute(x())",
    "a name with two origins": "def f(c, x):\n    s = _GET\n    if x: s = 'select 1'\n    c.execute(s)",
    "a name with something added": "def f(c, x):\n    s = _GET\n    s += x\n    c.execute(s)",
    "a name in a loop": "def f(c, x):\n    for s in x: c.execute(s)",
    "a name that hides the constant": "def f(c, _GET): c.execute(_GET)",
    "a constant that is replaced": "_GET = 'select 1'\ndef f(c): c.execute(_GET)",
    "one of two": "def f(c, x): c.execute(_GET if x else 'select 1')",
    "a dict with a stranger": "_X = {1: _GET, 2: 'select 1'}\ndef f(c): c.execute(_X[1])",
    "a private function with one wrong caller": "def _g(c, s): c.execute(s)\ndef f(c, x): _g(c, _GET), _g(c, x)",
    "a private function that is handed around": "def _g(c, s): c.execute(s)\ndef f(c, x): map(_g, x)\n_g(1, _GET)",
    "a private function that nobody calls": "def _g(c, s): c.execute(s)",
    "composed in a call": "def f(c, x): c.execute(compose(_GET, x=x))",
    "composed for a call": "def _make(x): return compose(_SQL['get'], x=x)\ndef f(c, x): c.execute(_make(x))",
    "composed of a stranger": "_X = compose('select {x}', x='1')\ndef f(c): c.execute(_X)",
    "psycopg's SQL of a literal": "def f(c): c.execute(sql.SQL('select 1'))",
    "psycopg's SQL of a parameter": "def f(c, x): c.execute(sql.SQL(x))",
    "SQL among the values": "def f(c, x): c.execute(sql.SQL(_GET).format(sql.SQL(x)))",
    "a bare value": "def f(c, x): c.execute(sql.SQL(_GET).format(n=x))",
    "composed by psycopg": "def f(c, x): c.execute(sql.Composed([sql.SQL(_GET), x]))",
    "SQLAlchemy's text of a literal": "def f(c): c.execute(text('select 1'))",
    "SQLAlchemy's text by itself": "def f(x): return text(x)",
    "many rows": "def f(c, x): c.executemany('insert', x)",
    "a copy": "def f(c, x): c.copy(f'copy {x} from stdin')",
    "a stream": "def f(c, x): c.stream(x)",
    "a migration": "from alembic import op\ndef upgrade(): op.execute('drop table t')",
    "a lambda that hides the constant": "f = lambda c, _GET: c.execute(_GET)",
    "a method under another name": "def f(c, x):\n    run = c.execute\n    run(x)",
    "a lambda": "f = lambda c, x: c.execute(x)",
    "statements of another kind": "def statements(x): return {1: x}\n_X = statements('a')\ndef f(c): c.execute(_X[1])",
}


@pytest.mark.parametrize("source", GOOD.values(), ids=GOOD.keys())
def test_what_comes_from_files_passes(source: str) -> None:
    assert untrusted("made_up.py", HEADER + source) == []


@pytest.mark.parametrize("source", BAD.values(), ids=BAD.keys())
def test_what_comes_from_elsewhere_is_found(source: str) -> None:
    assert untrusted("made_up.py", HEADER + source)


def test_a_finding_says_where_it_is() -> None:
    [finding] = untrusted("made_up.py", HEADER + "def f(c):\n    c.execute('select 1')\n")
    assert (finding.file, finding.function, finding.source) == ("made_up.py", "f", "c.execute('select 1')")
    assert (HEADER + "def f(c):\n    c.execute('select 1')\n").splitlines()[finding.line - 1].strip() == finding.source
