"""The plain part of YAML, read and written without a library.

Plain is a file of nested mappings whose keys and values are words, digests, numbers and `true` or `false`, in the one
spelling that `mlx` writes: pointers, and the configuration of most projects. Read here, and not written, are lists of
words and of mappings in braces, and text of several words: most locks. PyYAML takes 15 ms to import, which is a tenth
of a `status`, and five times as long for a lock. Whatever is not plain, or only may not be, is `None` here and left to
PyYAML; where a value is returned, it is the one that PyYAML gives.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from mlops_cli.documents.document import Place

_MOST_BYTES = 1 << 16  # far below the limits of a document, which therefore need not be counted here
_DEEPEST = 8
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,121}")  # a longer one is written with a `?` before it
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./@+-]*(?::[A-Za-z0-9_./@+-]+)*")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,14})\.[0-9]{1,17}")
_SCALAR = rf"(?:{_DECIMAL.pattern}|{_NUMBER.pattern}|{_WORD.pattern})"
_WORDS = rf"{_WORD.pattern}(?: [A-Za-z0-9_./@+=-]+(?::[A-Za-z0-9_./@+-]+)*)+"
_PAIR = rf"{_KEY.pattern}: {_SCALAR}"
_LINE = re.compile(
    rf"((?:  )*)(?:({_KEY.pattern}):(?: ({_WORDS}|{_SCALAR}|\[{_SCALAR}(?:, {_SCALAR})*\]))?"
    rf"|- (?:({_SCALAR})|\{{({_PAIR}(?:, {_PAIR})*)\}}))"
    r"| *(?:#[ -~]*)?"
)
_BOOLEANS = {"true": True, "false": False}
# Words that are not text to some reader of YAML, whatever their case.
_NO_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


class Plain(NamedTuple):
    """What a plain file says, and the 1-based line of each key."""

    value: dict[str, object]
    lines: dict[Place, int]


class _NotPlainError(ValueError):
    """Something that is left to the library."""


def read_plain(data: bytes) -> Plain | None:
    """Return what is in `data` when it is plain, else None."""
    if len(data) > _MOST_BYTES or not data.isascii() or not data.endswith(b"\n"):
        return None
    reading = _Reading()
    try:
        for number, line in enumerate(data.decode("ascii").removesuffix("\n").split("\n"), 1):
            match = _LINE.fullmatch(line)
            if match is None:
                return None
            indent, key, scalar, item, pairs = match.groups()
            if key is not None:
                reading.add(len(indent) >> 1, key, scalar, number)
            elif indent is not None:
                reading.append(len(indent) >> 1, item, pairs, number)
    except _NotPlainError:
        return None
    return Plain(reading.value, reading.lines) if reading.ended else None


class _Reading:
    """What has been read so far: the mappings that are open, outermost first, and the list that is, if one is."""

    def __init__(self) -> None:
        self.value: dict[str, object] = {}
        self.lines: dict[Place, int] = {}
        self._open: list[tuple[dict[str, object], Place]] = [(self.value, ())]
        self._items: list[object] | None = None
        self._at: Place = ()  # of the list

    @property
    def ended(self) -> bool:
        """Whether no mapping is left that has nothing in it."""
        return bool(self._open[-1][0])

    def add(self, depth: int, key: str, scalar: str | None, number: int) -> None:
        """Add a key, with a scalar, with a list in brackets, or with what follows."""
        begun = not self._open[-1][0] and depth != len(self._open) - 1  # a mapping that has nothing in it
        if begun or depth >= len(self._open) or key.lower() in _NO_TEXT:
            raise _NotPlainError
        del self._open[depth + 1 :]
        self._items = None
        mapping, above = self._open[-1]
        at = (*above, key)
        if key in mapping or len(self._open) > _DEEPEST:
            raise _NotPlainError
        self.lines.setdefault((), number)
        self.lines[at] = number
        if scalar is not None:
            if scalar[0] == "[":
                items = scalar[1:-1].split(", ")
                mapping[key] = list(map(_value, items))
                self.lines.update(((*at, index), number) for index in range(len(items)))
            else:
                mapping[key] = _value(scalar)
            return
        inner: dict[str, object] = {}
        mapping[key] = inner
        self._open.append((inner, at))

    def append(self, depth: int, item: str | None, pairs: str | None, number: int) -> None:
        """Add an item to the list of the key above."""
        if self._items is None:
            inner, at = self._open[-1]
            if inner or not at or depth != len(self._open) - 1:
                raise _NotPlainError
            self._open.pop()
            items: list[object] = []
            self._open[-1][0][str(at[-1])] = items
            self._items, self._at = items, at
        elif depth != len(self._open):
            raise _NotPlainError
        at = (*self._at, len(self._items))
        self.lines[at] = number
        if item is not None:
            self._items.append(_value(item))
            return
        mapping: dict[str, object] = {}
        for pair in (pairs or "").split(", "):
            key, _, scalar = pair.partition(": ")
            if key in mapping or key.lower() in _NO_TEXT:
                raise _NotPlainError
            mapping[key] = _value(scalar)
            self.lines[(*at, key)] = number
        self._items.append(mapping)


def _value(text: str) -> object:
    if text[0] in "-0123456789":
        return float(text) if "." in text else int(text)
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text.lower() in _NO_TEXT:
        raise _NotPlainError
    return text


def write_plain(value: object) -> str | None:
    """Return `value` as `read_plain` reads it when it is plain, else None."""
    if type(value) is not dict:
        return None
    lines: list[str] = []
    return "".join(lines) if _write(value, "", lines) else None


def _write(mapping: dict[str, object], indent: str, lines: list[str]) -> bool:
    """Add the lines of `mapping`; False when something in it is not plain."""
    if not mapping or len(indent) > 2 * _DEEPEST:
        return False
    for key, value in mapping.items():
        if not _KEY.fullmatch(key) or key.lower() in _NO_TEXT:
            return False
        if type(value) is dict:
            lines.append(f"{indent}{key}:\n")
            if not _write(value, f"{indent}  ", lines):
                return False
            continue
        word = _spell(value)
        if word is None:
            return False
        lines.append(f"{indent}{key}: {word}\n")
    return True


def _spell(value: object) -> str | None:
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        digits = str(value) if 0 <= value < 10**18 else ""
        return digits or None
    if type(value) is str and _WORD.fullmatch(value) and value.lower() not in _NO_TEXT:
        return value
    return None
