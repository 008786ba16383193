"""The page of failures is true: every test that it names exists, and every failure has one or says why not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "failures.md").read_text(encoding="utf-8")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def names_of_tests(source: str) -> set[str]:
    """Return the names of the tests that a file holds."""
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def absent(page: str) -> list[str]:
    """Return the tests that a page names and that do not exist."""
    files = {path for path, _ in NAMED.findall(page)}
    there = {
        path: names_of_tests((ROOT / path).read_text(encoding="utf-8")) if (ROOT / path).is_file() else set()
        for path in files
    }
    return [f"{path}::{name}" for path, name in NAMED.findall(page) if name not in there[path]]


def sections(page: str) -> dict[int, str]:
    """Return what is said of each failure, by its number."""
    parts = re.split(r"^## (\d+)\. .+$", page, flags=re.MULTILINE)
    return dict(zip(map(int, parts[1::2]), parts[2::2], strict=True))


def test_every_test_that_is_named_exists() -> None:
    assert absent(PAGE) == []
    assert len(NAMED.findall(PAGE)) > 100


def test_a_test_that_does_not_exist_would_be_found() -> None:
    page = "- `tests/test_failure_table.py::test_nothing_like_it`\n- `tests/no_such_file.py::test_at_all`\n"

    assert len(absent(page)) == 2


def test_all_failures_are_there_in_order() -> None:
    assert list(sections(PAGE)) == list(range(1, 26))


@pytest.mark.parametrize("number", range(1, 26))
def test_each_failure_has_a_test_or_says_why_not(number: int) -> None:
    said = sections(PAGE)[number]

    assert NAMED.search(said) or re.search(r"^\*No test\*", said, re.MULTILINE)
    for line in said.splitlines():
        assert not line.startswith("- ") or NAMED.fullmatch(line[2:]), line
