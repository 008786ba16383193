"""Words and tables: safe for a terminal, aligned, and readable by what reads them."""

from __future__ import annotations

import csv
import os
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlops_cli.cli.text import (
    Style,
    Styled,
    comma_separated,
    count,
    draw,
    markdown,
    printable,
    size_text,
    table,
    wrapped,
)
from mlops_cli.words import quoted

NAMES = st.one_of(st.text(), st.binary().map(os.fsdecode)).filter(lambda name: "\0" not in name)


def is_file_name(name: str) -> bool:
    """Say whether the system could have given this name."""
    try:
        return bool(name) and os.fsdecode(os.fsencode(name)) == name
    except UnicodeEncodeError:
        return False


def plain(lines: list[str | Styled]) -> list[str]:
    return [draw(line, color=False) for line in lines]


@given(NAMES)
def test_what_is_printable_is_one_line_that_can_be_written(name: str) -> None:
    text = printable(name)

    assert text.isprintable()
    assert text.encode().decode() == text
    assert printable(text) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain name", "plain name"),
        ("naïve 日本語 🙂", "naïve 日本語 🙂"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        (os.fsdecode(b"\xff\xfe"), "\\xff\\xfe"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(name: str, text: str) -> None:
    assert printable(name) == text


@settings(max_examples=50, deadline=None)
@given(NAMES.filter(is_file_name))
@example("it's")
@example("a\nb'c\\d")
@example(os.fsdecode(b"\xff0"))
def test_a_shell_reads_back_what_is_quoted(name: str) -> None:
    word = quoted(name)

    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(name)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    assert size_text(size) == text


def test_count() -> None:
    assert [count(1, "file"), count(0, "file"), count(1797, "file")] == ["1 file", "0 files", "1,797 files"]


def test_a_table_lines_up_whatever_the_names() -> None:
    rows = [("日本", "1", "x"), ("e\u0301a", "-20", ""), ("a\nb", "+3.5", "z")]

    assert plain(table(("name", "n", "note"), rows)) == [
        "name      n   note",
        "──────────────────",
        "日本      1   x",
        "e\u0301a      -20",
        "a\\nb   +3.5   z",
    ]


def test_a_table_without_rows_is_nothing() -> None:
    assert table(("a",), []) == markdown(("a",), []) == comma_separated(("a",), []) == []


def test_markdown_keeps_its_columns() -> None:
    assert plain(markdown(("a", "b"), [("x|y", "1\n2")])) == ["| a | b |", "| --- | --- |", "| x\\|y | 1\\n2 |"]


@given(st.lists(st.tuples(NAMES, NAMES), min_size=1))
def test_csv_can_be_read_back(rows: list[tuple[str, str]]) -> None:
    lines = plain(comma_separated(("a", "b"), rows))

    assert list(csv.reader(lines)) == [["a", "b"], *[[printable(cell) for cell in row] for row in rows]]


def test_colour_is_around_what_is_safe() -> None:
    line = Styled("a\x1b[0mb", Style.RED)

    assert draw(line, color=True) == "\x1b[31ma\\x1b[0mb\x1b[0m"
    assert draw(line, color=False) == "a\\x1b[0mb"
    assert draw(Styled("a", Style.PLAIN), color=True) == "a"


LONG = (
    "`mlx push data/raw` from a clone that has it, with this commit checked out, then `mlx fsck --repair data/raw` here"
)


def test_a_sentence_is_wrapped_between_words_and_never_in_a_command() -> None:
    assert wrapped(LONG, 40, 6).split("\n") == [
        "`mlx push data/raw` from a clone",
        "      that has it, with this commit",
        "      checked out, then",
        "      `mlx fsck --repair data/raw` here",
    ]


@given(st.text(st.characters(exclude_categories=["C", "Z"])), st.integers(1, 60), st.integers(0, 12))
@example("a `" + "b " * 40 + "` c", 20, 6)
@example("one ` alone among words that do not fit", 20, 6)
def test_wrapping_loses_nothing_and_keeps_what_is_between_backticks(text: str, width: int, indent: int) -> None:
    text = " ".join(text.split())
    lines = wrapped(text, width, indent).split("\n")

    assert " ".join([lines[0], *(line.removeprefix(" " * indent) for line in lines[1:])]) == text
    if text.count("`") % 2 == 0:
        assert all(line.count("`") % 2 == 0 for line in lines)


def test_without_a_terminal_nothing_is_wrapped() -> None:
    assert wrapped(LONG, None, 6) == LONG
