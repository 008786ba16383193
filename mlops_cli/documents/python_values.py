"""The values that a Python file assigns, read from its syntax tree: it is never run.

A value is a literal that a module or a class assigns to a plain name; a class is a mapping of its own. Statements are
taken in their order, so the last one counts. A name whose value only running the file would tell is opaque.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mlops_cli.documents.document import MAX_BYTES, find_fault, located
from mlops_cli.documents.python_source import parse_source

_MOST_STATEMENTS = 10_000
_BLOCKS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SCOPES = (*_BLOCKS, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def is_python(name: str) -> bool:
    """Say whether a file is Python, by its name."""
    return name.lower().endswith(".py")


class Opaque(NamedTuple):
    """A name without a value that can be read: on which line, and why; functions and modules are no values at all."""

    line: int
    why: str
    is_value: bool = True


class PythonValues(NamedTuple):
    """What a file assigns: `values` nested by class, and the names that are `opaque`, dotted."""

    values: dict[str, object]
    opaque: dict[str, Opaque]


class _NotLiteral(Exception):
    pass


def parse_python(data: bytes, name: str) -> PythonValues:
    """Read the values that the Python file called `name` assigns; RecordError when it is not valid Python."""
    if len(data) > MAX_BYTES:
        raise located(name, 1, f"the file is larger than {MAX_BYTES >> 20} MiB ({len(data):,} bytes)")
    found = PythonValues({}, {})
    body = parse_source(data, name).body
    if len(body) > _MOST_STATEMENTS:
        raise located(name, body[_MOST_STATEMENTS].lineno, f"more than {_MOST_STATEMENTS:,} statements")
    _Scope(found.values, found.opaque, "").read(body)
    return found


class _Scope:
    """A module or class: its values, and the `prefix` of its names among all that are opaque.

    `classes` are those of the values that are classes, `changeable` those that are lists and mappings.
    """

    def __init__(self, values: dict[str, object], opaque: dict[str, Opaque], prefix: str) -> None:
        self.values = values
        self.opaque = opaque
        self.prefix = prefix
        self.classes: set[str] = set()
        self.changeable: set[str] = set()

    def read(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            self._take(node)

    def _take(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            for target in node.targets:
                assert isinstance(target, ast.Name)
                self._assign(target.id, node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.value is not None:
                self._assign(node.target.id, node.value)
        elif isinstance(node, ast.ClassDef):
            self._enter(node)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                is_part = not isinstance(target, ast.Name)
                self._hide(_root(target), Opaque(node.lineno, "is deleted, or a part of it", is_value=is_part))
        elif isinstance(node, ast.Expr) and _called_on(node.value) in self.changeable:
            self._hide(_called_on(node.value), Opaque(node.lineno, "may be changed by a call"))
        else:
            for name, opaque in _bound(node):
                self._hide(name, opaque)

    def _assign(self, name: str, node: ast.expr) -> None:
        self._forget(name)
        try:
            value = _literal(node)
        except _NotLiteral:
            self.opaque[self.prefix + name] = Opaque(node.lineno, "is not a literal")
            return
        fault = find_fault(value)
        if fault is not None:
            self.opaque[self.prefix + name] = Opaque(node.lineno, f"cannot be read: {fault}")
        else:
            self.values[name] = value
            if isinstance(value, list | dict):
                self.changeable.add(name)

    def _enter(self, node: ast.ClassDef) -> None:
        self._forget(node.name)
        inner: dict[str, object] = {}
        _Scope(inner, self.opaque, f"{self.prefix}{node.name}.").read(node.body)
        self.classes.add(node.name)
        if inner:
            self.values[node.name] = inner

    def _hide(self, name: str, opaque: Opaque) -> None:
        """Note that a name, perhaps one in a class (`Model.depth`), has no value that can be read any more."""
        self._forget(name)
        if name:
            self.opaque[self.prefix + name] = opaque

    def _forget(self, name: str) -> None:
        *classes, last = name.split(".")
        values: object = self.values
        for part in classes:
            values = values.get(part) if isinstance(values, dict) else None
        if isinstance(values, dict):
            values.pop(last, None)
        self.opaque.pop(self.prefix + name, None)
        self.changeable.discard(name)
        if name in self.classes:
            self.classes.discard(name)
            inside = f"{self.prefix}{name}."
            for other in [other for other in self.opaque if other.startswith(inside)]:
                del self.opaque[other]


def _bound(node: ast.stmt) -> Iterator[tuple[str, Opaque]]:
    """Yield the names that a statement binds or changes otherwise than by a plain assignment."""
    pending: list[ast.AST] = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, _BLOCKS):
            kind = "class in a block" if isinstance(each, ast.ClassDef) else "function"
            yield each.name, Opaque(each.lineno, f"is a {kind}", is_value=False)
        elif isinstance(each, ast.Import | ast.ImportFrom):
            for alias in each.names:
                yield (alias.asname or alias.name.partition(".")[0]), Opaque(each.lineno, "is imported", is_value=False)
        elif isinstance(each, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(each.ctx, ast.Load):
            yield _root(each), Opaque(each.lineno, "is set otherwise than by `name = value`")
        if not isinstance(each, _SCOPES):
            pending.extend(ast.iter_child_nodes(each))


def _called_on(node: ast.expr) -> str:
    """Return the name whose method is called, as in `CONFIG.update(...)`; empty when there is none."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        return node.func.value.id
    return ""


def _root(node: ast.AST) -> str:
    """Return the dotted name that a target changes: `a.b` for `a.b` and `a.b[0]`; empty when it is none."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Subscript):
        return _root(node.value)
    if isinstance(node, ast.Attribute):
        above = _root(node.value)
        return f"{above}.{node.attr}" if above else ""
    return ""


def _literal(node: ast.expr) -> object:
    """Return the value of a literal as a document has it: a tuple is a list."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _NotLiteral
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True)}
    raise _NotLiteral


def _key(node: ast.expr | None) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise _NotLiteral
