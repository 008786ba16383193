"""The plain part of YAML, read and written without a library.

Plain is a file of nested mappings whose keys and values are words, digests, whole numbers and `true` or `false`, in the
one spelling that `mlx` writes: pointers, and the configuration of most projects. PyYAML takes 15 ms to import, which is
a tenth of a `status`. Whatever is not plain, or only may not be, is `None` here and left to PyYAML; where a value is
returned, it is the one that PyYAML gives.
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
_LINE = re.compile(rf"((?:  )*)({_KEY.pattern}):(?: (?:({_NUMBER.pattern})|({_WORD.pattern})))?| *(?:#[ -~]*)?")
_BOOLEANS = {"true": True, "false": False}
# Words that are not text to some reader of YAML, whatever their case.
_NO_TEXT = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


class Plain(NamedTuple):
    """What a plain file says, and the 1-based line of each key."""

    value: dict[str, object]
    lines: dict[Place, int]


def read_plain(data: bytes) -> Plain | None:
    """Return what is in `data` when it is plain, else None."""
    if len(data) > _MOST_BYTES or not data.isascii() or not data.endswith(b"\n"):
        return None
    value: dict[str, object] = {}
    lines: dict[Place, int] = {}
    open_: list[tuple[dict[str, object], Place]] = [(value, ())]
    for number, line in enumerate(data.decode("ascii").removesuffix("\n").split("\n"), 1):
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        indent, key, digits, word = match.groups()
        if key is None:
            continue
        depth = len(indent) >> 1
        begun = not open_[-1][0] and depth != len(open_) - 1  # a mapping that has nothing in it
        if begun or depth >= len(open_) or key.lower() in _NO_TEXT:
            return None
        del open_[depth + 1 :]
        mapping, above = open_[-1]
        at = (*above, key)
        if key in mapping or len(open_) > _DEEPEST:
            return None
        lines.setdefault((), number)
        lines[at] = number
        if digits is not None:
            mapping[key] = int(digits)
        elif word is None:
            inner: dict[str, object] = {}
            mapping[key] = inner
            open_.append((inner, at))
        elif word in _BOOLEANS:
            mapping[key] = _BOOLEANS[word]
        elif word.lower() in _NO_TEXT:
            return None
        else:
            mapping[key] = word
    return Plain(value, lines) if open_[-1][0] else None


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
