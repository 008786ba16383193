"""A parsed file: plain values, the line of each key, and the limits that keep hostile input small.

Values are `None`, `bool`, `int`, `float`, `str`, `list` and `dict` with text keys; aliased parts are one shared object,
so nobody may change a value in place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlops_cli import words
from mlops_cli.errors import RecordError

Place = tuple[str | int, ...]
"""Where a value is: the keys and list positions that lead to it from the top."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 200_000
# Python refuses to print integers of more than 4,300 digits, and other readers stop far below that.
MAX_BITS = 1024
LONG_NUMBER = "a number has more than 300 digits"
# Text counts as one node per so many characters, so that aliases cannot multiply a long string either.
TEXT_PER_NODE = 64

# Either is enough: of a conflict mended by hand, one line may be forgotten.
_CONFLICT = re.compile(r"^(?:<{7}|>{7}) ", re.MULTILINE)


class Document(NamedTuple):
    """One parsed file; `lines` has the 1-based line of each key and item, and may be empty."""

    name: str
    value: object
    lines: Mapping[Place, int]

    def line(self, at: Place) -> int:
        """Return the line of `at`, or of the nearest thing around it that has one."""
        for length in range(len(at), -1, -1):
            line = self.lines.get(at[:length])
            if line is not None:
                return line
        return 1

    def error(self, message: str, at: Place = (), hint: str | None = None) -> RecordError:
        """Return the error, to be raised, that `message` is about `at`."""
        return located(self.name, self.line(at), message, hint)


def located(name: str, line: int, message: str, hint: str | None = None) -> RecordError:
    """Return a RecordError whose message begins with `name:line`."""
    return RecordError(f"{name}:{line}: {message}", hint=hint)


def decode(data: bytes, name: str, *, after_merge: str | None = None) -> str:
    """Return the text of a file of at most `MAX_BYTES`; RecordError names a line not UTF-8, or of a conflict.

    With `after_merge`, the hint is to let `mlx resolve` mend it, and then to do that.
    """
    if len(data) > MAX_BYTES:
        raise located(name, 1, f"the file is larger than {MAX_BYTES >> 20} MiB ({len(data):,} bytes)")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise located(name, line, message, "save the file as UTF-8") from error
    _refuse_conflict(text, name, after_merge)
    return text


def has_conflict(data: bytes) -> bool:
    """Say whether a file has the markers that Git leaves where it cannot merge."""
    return _CONFLICT.search(data.decode("utf-8", "replace")) is not None


def _refuse_conflict(text: str, name: str, after_merge: str | None) -> None:
    if "<<<<<<< " not in text and ">>>>>>> " not in text:
        return
    found = _CONFLICT.search(text)
    if found is None:
        return
    hint = "keep the lines that are right, and remove those that Git added (`<<<<<<<`, `=======`, `>>>>>>>`)"
    if after_merge is not None:
        hint = f"`mlx resolve {words.word(name)}` merges both sides, or says what is to be decided; then {after_merge}"
    line = text.count("\n", 0, found.start()) + 1
    raise located(name, line, "the file has merge conflict markers of Git", hint)


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most like `word`, or None when none is like it."""
    import difflib

    lowered = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[found[0]] if found else None


def suggest(word: str, candidates: Iterable[str], what: str) -> str | None:
    """Return a hint with the candidate nearest to `word`, else one that lists them; None when there are none."""
    names = list(candidates)
    if not names:
        return None
    near = nearest(word, names)
    if near is not None:
        return f"did you mean `{near}`?"
    listed = ", ".join(f"`{name}`" for name in names[:12])
    return f"{what}: {listed}" + (", …" if len(names) > 12 else "")


def weigh_text(text: str) -> int:
    """Return how many nodes a text counts as."""
    return 1 + len(text) // TEXT_PER_NODE


def find_fault(value: object) -> str | None:
    """Say what keeps `value` from being a document (depth, size, NaN, key types), or None when nothing does."""
    stack = [(value, 1)]
    nodes = 0
    while stack:
        item, depth = stack.pop()
        nodes += weigh_text(item) if isinstance(item, str) else 1
        if isinstance(item, dict | list | tuple):
            if depth > MAX_DEPTH:
                return f"nested more than {MAX_DEPTH} levels deep"
            children = item.values() if isinstance(item, dict) else item
            stack.extend((child, depth + 1) for child in children)
        if nodes + len(stack) > MAX_NODES:
            return f"more than {MAX_NODES:,} values"
        fault = _find_own_fault(item)
        if fault is not None:
            return fault
    return None


def _find_own_fault(item: object) -> str | None:
    if isinstance(item, dict):
        for key in item:
            if not isinstance(key, str):
                return f"key `{key}` is not text"
            if not is_encodable(key):
                return "a key holds half of a surrogate pair, which is not a character"
    elif isinstance(item, str):
        if not is_encodable(item):
            return "text holds half of a surrogate pair, which is not a character"
    elif isinstance(item, float):
        if not math.isfinite(item):
            return f"`{item}` is not a finite number"
    elif isinstance(item, int) and item.bit_length() > MAX_BITS:
        return LONG_NUMBER
    elif item is not None and not isinstance(item, bool | int | list | tuple):
        return f"a value of type `{type(item).__name__}` has no place in a document"
    return None


def is_encodable(text: str) -> bool:
    """Whether `text` has a UTF-8 form."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
