"""Where the SQL of a module comes from: reads the source, and finds every statement of any other origin than the files.

Trusted are `statements(…)` and `compose(…)` of recalld.storage.sql, and what is only chosen from, kept in or handed on
from them: names, items of a dict, either side of a condition, the results and arguments of the module's own private
functions, and `sql.SQL(…).format(…)` of identifiers and literals. `compose` puts texts into statements, so that it may
run only while the module is imported, when no request is there yet. Everything else is refused: a string, an f-string,
a sum, a name of unknown origin.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

# Methods that send SQL to a database, and the function of SQLAlchemy that makes a statement of a text.
_SENDING: Final = {"execute", "executemany", "copy", "stream"}
_MAKING: Final = {"text"}

_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Finding:
    """SQL of unknown origin. `function` is empty for the module's own level."""

    file: str
    function: str
    line: int
    source: str


def untrusted(file: str, source: str) -> list[Finding]:
    """The places where SQL of unknown origin reaches a database."""
    module = _Module(ast.parse(source))
    return [Finding(file, module.function_name(node), node.lineno, ast.unparse(node)) for node in module.suspicious()]


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self._functions: dict[str, list[_Function]] = {}
        for node in ast.walk(tree):
            if isinstance(node, _Function):
                self._functions.setdefault(node.name, []).append(node)
        self._asked: set[ast.AST] = set()

    def suspicious(self) -> Iterator[ast.expr]:
        for node in ast.walk(self._tree):
            match node:
                case ast.Call(func=ast.Attribute(attr=name)) if name in _SENDING:
                    if not _copies_an_object(node) and not self._first_is_trusted(node):
                        yield node
                case ast.Call(func=ast.Name(id=name)) if name in _MAKING:
                    if not self._first_is_trusted(node):
                        yield node
                case ast.Call(func=ast.Name(id="compose")) if not self._at_import(node):
                    yield node
                case ast.Attribute(attr="execute" | "executemany") if not self._is_called(node):
                    yield node  # under another name it would not be recognised

    def function_name(self, node: ast.AST) -> str:
        function = self._function_of(node)
        return function.name if function else ""

    def _is_called(self, node: ast.expr) -> bool:
        parent = self._parents[node]
        return isinstance(parent, ast.Call) and parent.func is node

    def _first_is_trusted(self, call: ast.Call) -> bool:
        named = [keyword.value for keyword in call.keywords if keyword.arg in ("query", "statement", "sqltext", "text")]
        first = [*call.args[:1], *named]
        return len(first) == 1 and self._trusted(first[0])

    # --- expressions

    def _trusted(self, node: ast.expr) -> bool:
        if node in self._asked:  # it depends on itself: the rest of it decides
            return True
        self._asked.add(node)
        try:
            return self._judge(node)
        finally:
            self._asked.discard(node)

    def _judge(self, node: ast.expr) -> bool:
        match node:
            case ast.Name():
                return self._name_is_trusted(node)
            case ast.Subscript(value=value):
                return self._trusted(value)
            case ast.IfExp(body=body, orelse=orelse):
                return self._trusted(body) and self._trusted(orelse)
            case ast.Dict(values=values) | ast.Tuple(elts=values) | ast.List(elts=values):
                return bool(values) and all(self._trusted(value) for value in values)
            case ast.DictComp(value=value) | ast.GeneratorExp(elt=value) | ast.ListComp(elt=value):
                return self._trusted(value)
            case ast.Call():
                return self._call_is_trusted(node)
        return False

    def _call_is_trusted(self, call: ast.Call) -> bool:
        match call.func:
            case ast.Name(id="statements"):
                return self._comes_from("statements", "recalld.storage.sql")
            case ast.Name(id="compose"):
                return (
                    self._comes_from("compose", "recalld.storage.sql")
                    and bool(call.args)
                    and self._trusted(call.args[0])
                )
            case ast.Name(id="text"):
                return self._first_is_trusted(call)
            case ast.Attribute(value=ast.Name(id="sql"), attr="SQL"):
                return self._first_is_trusted(call)
            case ast.Attribute(value=ast.Call() as template, attr="format"):
                values = [*call.args, *(keyword.value for keyword in call.keywords)]
                return self._trusted(template) and all(map(_is_quoted, values))
            case ast.Name(id=name) if name.startswith("_") and name in self._functions:
                returned = [each for function in self._functions[name] for each in self._returned(function)]
                return bool(returned) and all(self._trusted(value) for value in returned)
        return False

    def _returned(self, function: _Function) -> Iterator[ast.expr]:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and self._function_of(node) is function:
                yield node.value or ast.Constant(None)

    def _comes_from(self, name: str, module: str) -> bool:
        imports = (node for node in ast.walk(self._tree) if isinstance(node, ast.ImportFrom))
        found = [node.module for node in imports if any((alias.asname or alias.name) == name for alias in node.names)]
        return found == [module] and name not in self._functions

    # --- names

    def _name_is_trusted(self, name: ast.Name) -> bool:
        if self._is_of_a_lambda(name):
            return False
        function = self._function_of(name)
        while function is not None:
            if (position := _parameter(function, name.id)) is not None:
                return self._argument_is_trusted(function, name.id, position)
            if values := self._assigned(name.id, function):
                return all(self._trusted(value) for value in values)
            function = self._function_of(self._parents[function])
        values = self._assigned(name.id, None)
        return bool(values) and all(self._trusted(value) for value in values)

    def _is_of_a_lambda(self, name: ast.Name) -> bool:
        node: ast.AST = name
        while node in self._parents:
            node = self._parents[node]
            if isinstance(node, ast.Lambda) and _parameter(node, name.id) is not None:
                return True
        return False

    def _argument_is_trusted(self, function: _Function, name: str, position: int) -> bool:
        """Whether all that call a private function, which are in its module, hand it something trusted."""
        if not function.name.startswith("_") or function.name.startswith("__"):
            return False
        uses = [node for node in ast.walk(self._tree) if _mentions(node, function.name)]
        calls = [self._parents[use] for use in uses]
        given: list[ast.expr] = []
        for use, call in zip(uses, calls, strict=True):
            if not isinstance(call, ast.Call) or call.func is not use:
                return False  # handed around
            method = isinstance(use, ast.Attribute)
            by_name = [keyword.value for keyword in call.keywords if keyword.arg == name]
            by_place = call.args[position - method : position - method + 1]
            given += by_name or by_place or [ast.Constant(None)]
        return bool(given) and all(self._trusted(value) for value in given)

    def _assigned(self, name: str, function: _Function | None) -> list[ast.expr]:
        """All that a name can hold, in one function or at the module's own level."""
        values: list[ast.expr] = []
        for node in ast.walk(function or self._tree):
            if self._function_of(node) is not function or not isinstance(node, ast.Name) or node.id != name:
                continue
            if isinstance(node.ctx, ast.Store):
                values.append(self._value_of(node))
        return values

    def _value_of(self, target: ast.Name) -> ast.expr:
        parent = self._parents[target]
        if isinstance(parent, ast.Tuple | ast.List):
            parent = self._parents[parent]
        if isinstance(parent, ast.Assign | ast.AnnAssign | ast.NamedExpr) and parent.value is not None:
            return parent.value
        # A loop, a `with`, a sum: of unknown origin.
        return ast.Constant(None)

    # --- places

    def _function_of(self, node: ast.AST) -> _Function | None:
        """The function that a node is in; what stands in its signature belongs to it too."""
        while node in self._parents:
            node = self._parents[node]
            if isinstance(node, _Function):
                return node
        return None

    def _at_import(self, node: ast.AST) -> bool:
        """Whether it runs only while the module is imported: at its own level, or in a private function used there."""
        function = self._function_of(node)
        if function is None:
            return True
        if not function.name.startswith("_"):
            return False
        uses = [other for other in ast.walk(self._tree) if _mentions(other, function.name)]
        return bool(uses) and all(self._at_import(use) for use in uses)


def _copies_an_object(call: ast.Call) -> bool:
    """Whether it is `x.copy()` as a dict has it: what copies rows takes a statement."""
    return isinstance(call.func, ast.Attribute) and call.func.attr == "copy" and not call.args and not call.keywords


def _mentions(node: ast.AST, function: str) -> bool:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name == function
    return False


def _parameter(function: _Function | ast.Lambda, name: str) -> int | None:
    arguments = function.args
    places = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    others: Iterable[ast.arg] = (each for each in (arguments.vararg, arguments.kwarg) if each)
    for position, argument in enumerate([*places, *others]):
        if argument.arg == name:
            return position
    return None


def _is_quoted(node: ast.expr) -> bool:
    """Whether it is `sql.Identifier(…)` or `sql.Literal(…)`, which psycopg quotes."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="sql"), attr="Identifier" | "Literal")):
            return True
    return False
