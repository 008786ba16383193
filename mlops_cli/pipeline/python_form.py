"""The normal form of Python source: equal for two files that differ in comments and formatting only.

It spells the syntax tree, not as `ast.dump` does, which differs between versions of Python, but field by field: an
empty field is left out, as one that an older version does not know, and so is what only says how something was written.
What a file says in comments to whoever runs it is part of the form: a `#!` line and `# /// script` blocks (PEP 723).
Docstrings are values that a program can print, and count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from mlops_cli.documents.python_source import parse_source

_HEAD = b"python-ast 1\n"
# Where a name stands says whether it is read or set; `u""` is `""`; comments with types are comments.
_PASSED_OVER = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def python_form(data: bytes, name: str) -> bytes:
    """Return the normal form of the Python source called `name`; RecordError when it cannot be parsed."""
    form = bytearray(_HEAD)
    for line in _directives(data):
        form += b"#" + _text(line)
    pending: list[object] = [parse_source(data, name)]
    while pending:  # a stack of its own, for a tree may be deeper than Python's
        item = pending.pop()
        if isinstance(item, bytes):
            form += item
        elif isinstance(item, list):
            pending += (b"]", *map(_item, reversed(item)), b"[")
        elif isinstance(item, ast.AST):
            pending += reversed(list(_parts(item)))
    return bytes(form)


def _parts(node: ast.AST) -> Iterator[object]:
    yield b"(" + type(node).__name__.encode()
    for field in node._fields:
        value = getattr(node, field, None)
        if isinstance(node, ast.JoinedStr):
            value = _joined(node.values)
        if field in _PASSED_OVER or (_is_empty(value) and not isinstance(node, ast.Constant)):
            continue
        yield b" " + field.encode() + b"="
        yield _item(value)
    yield b")"


def _item(value: object) -> object:
    """Return a node or a list as it is, anything else spelled."""
    return value if isinstance(value, ast.AST | list) else _spell(value)


def _is_empty(value: object) -> bool:
    if isinstance(value, ast.JoinedStr):  # `f"{x:}"` is `f"{x}"`
        return not _joined(value.values)
    return value is None or value == [] or (type(value) is int and value == 0)


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string with the texts that stand side by side as one: versions cut them differently."""
    found: list[ast.expr] = []
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            last = found[-1] if found else None
            if isinstance(last, ast.Constant) and isinstance(last.value, str):
                found[-1] = ast.Constant(last.value + value.value)
            elif value.value:
                found.append(value)
        else:
            found.append(value)
    return found


def _spell(value: object) -> bytes:
    """Spell a constant or a name so that no two of them are spelled alike."""
    if isinstance(value, str):
        return _text(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes):
        return b"b" + _text(value)
    if isinstance(value, bool) or value is None or value is ...:
        return b"<" + repr(value).encode() + b">"
    if isinstance(value, int):
        return f"<{value:x}>".encode()
    if isinstance(value, float):
        return f"<{value.hex()}>".encode()
    assert isinstance(value, complex)
    return f"<{value.imag.hex()}j>".encode()


def _text(data: bytes) -> bytes:
    return b"%d:%b" % (len(data), data)


def _directives(data: bytes) -> Iterator[bytes]:
    """Yield the comments that say how to run the file: the line `#!`, and the lines of `# /// TYPE` blocks."""
    if not data.startswith(b"#!") and b"# ///" not in data:
        return
    lines = [line.rstrip() for line in data.splitlines()]
    if data.startswith(b"#!"):
        yield lines[0]
    at = 0
    while at < len(lines):
        if not lines[at].startswith(b"# /// "):
            at += 1
            continue
        end = at + 1
        while end < len(lines) and lines[end].startswith(b"#"):
            end += 1
        closing = [number for number in range(at + 1, end) if lines[number] == b"# ///"]
        yield from lines[at : closing[-1]] if closing else ()
        at = end
