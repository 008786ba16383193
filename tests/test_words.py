"""Paths in commands: marked where a command is worded, spelled where it is told."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest

from mlops_cli.errors import UsageError
from mlops_cli.words import NAMED, has_paths, naming, quoted, so_for, spelled, word, words

PACKAGE = Path(__file__).parents[1] / "mlops_cli"


def test_a_marked_path_is_spelled_as_it_is_asked_for() -> None:
    text = f"`mlx move {word('data/a b')} …` for `data/a b`"

    assert has_paths(text)
    assert spelled(text) == "`mlx move 'data/a b' …` for `data/a b`"
    assert spelled(text, lambda path: f"<{path}>") == "`mlx move <data/a b> …` for `data/a b`"


def test_text_without_paths_stays() -> None:
    assert not has_paths("`mlx ls`")
    assert spelled("`mlx ls`") == "`mlx ls`"


def test_many_paths_are_many_words() -> None:
    assert spelled(f"mlx add {words(['a', 'b c'])}") == "mlx add a 'b c'"


@pytest.mark.parametrize("path", ["`", "a`b", "{path}", "%s", "\\1", "'", "ü"])
def test_a_path_may_hold_anything(path: str) -> None:
    assert spelled(f"`mlx add {word(path)}`", str) == f"`mlx add {path}`"


def test_a_name_with_control_characters_is_a_word_of_bash() -> None:
    assert quoted("a\n'b") == "$'a\\n\\'b'"


def test_a_hint_is_told_as_it_is_typed_at_the_root() -> None:
    error = UsageError("no", hint=f"`mlx add {word('data/a b')}`")

    assert error.hint == "`mlx add 'data/a b'`"
    assert UsageError("no").hint is None


def test_a_hint_keeps_its_marks_on_the_way() -> None:
    error = UsageError("no", hint=f"`mlx add {word('a')}`")

    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert same.marked_hint == error.marked_hint


def test_long_lists_are_cut() -> None:
    paths = [f"p{number}" for number in range(NAMED + 2)]

    assert naming(paths[:2]) == "`p0`, `p1`"
    assert naming(paths) == "`p0`, `p1`, `p2` and 2 more"
    assert so_for(paths[NAMED:]) == "; so for 2 more"
    assert so_for([]) == ""


def plain_hints(source: str) -> list[int]:
    """Return the lines that give an error the hint of another without its marks."""
    return [
        node.lineno
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.keyword) and call.arg == "hint"
        for node in ast.walk(call.value)
        if isinstance(node, ast.Attribute) and node.attr == "hint"
    ]


def test_errors_take_over_hints_with_their_marks() -> None:
    found = {str(path): plain_hints(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}

    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_hint_that_loses_its_marks_is_found() -> None:
    assert plain_hints("raise UsageError(text, hint=f'{error.hint}; so')") == [1]
    assert plain_hints("raise UsageError(text, hint=error.marked_hint)") == []
