"""Words and tables for a terminal: pure functions from values to lines.

Names may hold anything but a NUL, so whatever is shown is one printable line: `printable` escapes the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple


class Style(StrEnum):
    """How a line is drawn where colour is wanted (SGR parameters); no meaning rests on it."""

    PLAIN = ""
    BOLD = "1"
    RED = "31"
    GREEN = "32"
    YELLOW = "33"


class Styled(NamedTuple):
    """A line with a style."""

    text: str
    style: Style


Line = str | Styled

_WORD = re.compile(r"(?:`[^`]*`|\S)+")  # what is between backticks is in one piece


def draw(line: Line, *, color: bool) -> str:
    """Return a line as it is written: made safe, and in its style if `color`."""
    if isinstance(line, str):
        return printable(line)
    text = printable(line.text)
    return f"\x1b[{line.style.value}m{text}\x1b[0m" if color and line.style else text


def printable(text: str) -> str:
    """Return `text` as one line that a terminal can only show: control characters and bytes not in UTF-8 escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how a byte of a file name that is not UTF-8 is kept in text
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def wrapped(text: str, width: int | None, indent: int) -> str:
    """Return `text`, one line, over as many as `width` columns ask for (None: one), the later ones indented.

    The first line begins in column `indent`. A break is between words only, and never between backticks: a command, or
    a path, that is too long for a line stays whole, so that it can be copied.
    """
    if width is None or indent + columns_of(text) <= width:
        return text
    lines = [""]
    for word in _WORD.findall(text):
        if lines[-1] and indent + columns_of(lines[-1]) + 1 + columns_of(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return f"\n{' ' * indent}".join(lines)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, as in `1 file`, `1,797 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size_text(size: int) -> str:
    """Return a number of bytes for reading, as in `14.4 MB` (powers of 1000)."""
    if size < 1000:
        return f"{size} B"
    amount = float(size)
    for unit in ("kB", "MB", "GB", "TB"):
        amount /= 1000
        if amount < 999.95 or unit == "TB":
            return f"{amount:.1f} {unit}"
    raise AssertionError


def duration_text(seconds: float) -> str:
    """Return a length of time for reading, as in `0.4 s`, `12 s`, `4 min 5 s`, `2 h 30 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    units = ((whole // 3600, "h"), (whole // 60 % 60, "min"), (whole % 60 if whole < 3600 else 0, "s"))
    return " ".join(f"{number:,} {unit}" for number, unit in units if number)


def about_text(seconds: float) -> str:
    """Return a length of time that is known roughly, as in `12 s`, `4 min`, `2 h 30 min`."""
    return duration_text(max(round(seconds), 10) if seconds < 100 else 60 * round(seconds / 60))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Line]:
    """Return rows as columns under their headers, numbers (cells that begin with a digit or sign) to the right.

    No rows give no lines.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        return []
    columns = list(zip(*cells, strict=True))
    widths = [max(map(columns_of, column)) for column in zip(headers, *cells, strict=True)]
    right = [any(column) and all(cell[0] in "+-0123456789" for cell in column if cell) for column in columns]
    drawn = ["   ".join(map(_pad, row, widths, right)).rstrip() for row in (headers, *cells)]
    rule = "─" * (sum(widths) + 3 * (len(widths) - 1))
    return [Styled(drawn[0], Style.BOLD), rule, *drawn[1:]]


def _pad(cell: str, width: int, to_right: bool) -> str:
    space = " " * (width - columns_of(cell))
    return space + cell if to_right else cell + space


def columns_of(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def clipped(text: str, width: int) -> str:
    """Return `text`, or as much of its beginning as fits into `width` columns with an ellipsis after it."""
    if columns_of(text) <= width:
        return text
    end = min(len(text), max(0, width - 1))
    while end and columns_of(text[:end]) > width - 1:
        end -= 1
    return f"{text[:end]}…" if width > 0 else ""


def markdown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Line]:
    """Return rows as a Markdown table; no rows give no lines."""
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [headers, ["---"] * len(headers), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines] if cells else []


def comma_separated(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[Line]:
    """Return rows as CSV (RFC 4180 quoting), a line a row; no rows give no lines."""
    import csv
    import io

    stream = io.StringIO()
    cells = [[printable(cell) for cell in row] for row in rows]
    csv.writer(stream, lineterminator="\n").writerows([headers, *cells])
    return list(stream.getvalue().splitlines()) if cells else []
