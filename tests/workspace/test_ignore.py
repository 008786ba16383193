"""`.mlxignore`: what stays out of tracked folders, and stays where it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from mlops_cli.errors import UsageError
from mlops_cli.store.trees import walk
from mlops_cli.workspace.ignore import IgnoreRules
from tests.workspace.projects import Sandbox


def stored(box: Sandbox, path: str = "data") -> set[str]:
    pointer = box.snapshot().pointer(path)
    assert pointer is not None
    return {os.fsdecode(name) for name, _ in walk(box.project().cache, pointer.digest)}


def test_root_file(box: Sandbox):
    box.write(".mlxignore", "*.tmp\n!keep.tmp\n/data/skip/\n# comment\n\nnotes\n")
    for path in ("a", "b.tmp", "keep.tmp", "skip/x", "sub/c.tmp", "sub/skip/y", "sub/notes", "notes/z"):
        box.write(f"data/{path}", path)
    box.add("data")
    assert stored(box) == {"a", "keep.tmp", "sub", "sub/skip", "sub/skip/y"}
    assert box.states() == {"data": "ok"}


def test_nested_files_the_deepest_decides(box: Sandbox):
    box.write(".mlxignore", "*.log\n")
    box.write("data/.mlxignore", "!important.log\n*.bak\n")
    box.write("data/sub/.mlxignore", "!*.bak\n/only-here\n")
    for path in ("a.log", "important.log", "b.bak", "sub/b.bak", "sub/c.log", "sub/only-here", "sub/d/only-here"):
        box.write(f"data/{path}", path)
    box.add("data")
    assert stored(box) == {
        ".mlxignore", "important.log", "sub", "sub/.mlxignore", "sub/b.bak", "sub/d", "sub/d/only-here",
    }  # fmt: skip


def test_folder_above_the_tracked_one(box: Sandbox):
    box.write("data/.mlxignore", "raw/*.tmp\n")
    box.write("data/raw/a.tmp", "x")
    box.write("data/raw/b", "x")
    box.add("data/raw")
    assert stored(box, "data/raw") == {"b"}


def test_windows_line_endings_and_odd_characters(box: Sandbox):
    box.write(".mlxignore", "*.tmp\r\nodd\u2028name\r\n")
    box.write("data/a.tmp", "x")
    box.write("data/odd\u2028name", "x")
    box.write("data/b", "x")
    box.add("data")
    assert stored(box) == {"b"}


@pytest.mark.parametrize("pattern", ["[[a]1", "[+--]1", "[a&&b]1"])
def test_class_of_characters_that_python_warns_of(box: Sandbox, pattern: str):
    box.write(".mlxignore", f"{pattern}\n")
    for path in ("a1", "+1", "x1"):
        box.write(f"data/{path}", path)
    box.add("data")
    assert "x1" in stored(box)
    assert stored(box) < {"a1", "+1", "x1"}


def test_class_of_characters_that_runs_backwards(box: Sandbox):
    box.write(".mlxignore", "[z-a]\n")
    box.write("data/a", "a")
    with pytest.raises(UsageError, match=r"`\.mlxignore` holds a pattern that is not valid: bad character range z-a"):
        box.add("data")


def test_file_that_is_not_text(box: Sandbox):
    box.write("data/.mlxignore", b"\xff\n")
    with pytest.raises(UsageError, match=r"`data/\.mlxignore` is not UTF-8 text"):
        box.add("data")


def test_fifo_of_that_name_does_not_hang(box: Sandbox):
    box.write("data/a", "x")
    os.mkfifo(box.root / ".mlxignore")
    box.add("data")
    assert box.states() == {"data": "ok"}


def test_ignored_files_survive_a_checkout_and_do_not_count(box: Sandbox):
    box.write(".mlxignore", "*.tmp\n")
    box.write("data/a", "1")
    box.write("data/sub/b", "1")
    box.add("data")
    box.commit()
    box.write("data/sub/x.tmp", "mine")
    assert box.states() == {"data": "ok"}
    shutil.rmtree(box.root / "data/sub")
    box.write("data/a", "2")
    box.write("data/other/y.tmp", "mine")
    box.add("data")
    box.commit()
    box.write("data/a.tmp", "mine")
    box.git("checkout", "--quiet", "HEAD~1")
    box.checkout()
    assert (box.read("data/a"), box.read("data/sub/b")) == ("1", "1")
    assert (box.read("data/a.tmp"), box.read("data/other/y.tmp")) == ("mine", "mine")
    assert box.data()["data"].deleted == 0


def test_ignored_file_is_in_the_way_of_a_stored_one(box: Sandbox):
    """The revision is from before the pattern: the user's file is never overwritten."""
    from mlops_cli.errors import MlxError

    box.write("data/a.tmp", "stored")
    box.add("data")
    box.write(".mlxignore", "*.tmp\n")
    box.write("data/a.tmp", "mine")
    with pytest.raises(MlxError, match=r"a\.tmp"):
        box.checkout()
    assert box.read("data/a.tmp") == "mine"


def test_folder_with_ignored_files_only_stays(box: Sandbox):
    box.write(".mlxignore", "*.tmp\n")
    box.write("data/sub/x.tmp", "mine")
    box.write("data/sub/b", "b")
    box.write("data/c", "c")
    box.add("data")
    box.commit("with b")
    (box.root / "data/sub/b").unlink()
    box.add("data/sub/b")
    assert box.states() == {"data": "ok"}
    box.git("checkout", "--quiet", "HEAD~0", "--", ".")
    box.checkout()
    assert box.read("data/sub/b") == "b"
    assert box.read("data/sub/x.tmp") == "mine"


def test_pattern_that_could_be_tried_in_endless_ways(box: Sandbox):
    box.write(".mlxignore", f"{'*a' * 60}*b\n{'*(' * 60}*b\n{'*?' * 60}*b\n{'*[!b]' * 60}*b\n{'**/*[!b]/' * 60}**/b\n")
    box.write("data/" + "a" * 250)
    box.write("data/" + "/".join("a" * 100))
    box.write("data/" + "(" * 250)
    box.write("data/" + "a" * 200 + "b")

    box.add("data")

    pointer = box.snapshot().pointer("data")
    assert pointer is not None
    assert pointer.files == 3


class Plain(GitIgnoreSpecPattern):
    """A pattern as the library has it, but for `[!a]`, which is no `/` to Git."""

    @classmethod
    def pattern_to_regex(cls, pattern: Any) -> Any:
        regex, include = super().pattern_to_regex(pattern)
        return regex and regex.replace("[^a]", "[^a/]"), include


_PIECES = ["a", "b", "*", "?", "**", "/", "[ab]", "[!a]", "(", r"\*", "!", "/**/"]


@given(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=9), st.text("ab(*/", min_size=1, max_size=12))
def test_patterns_match_as_they_are_written(pieces: list[str], path: str):
    pattern, path = "".join(pieces), "/".join(part for part in path.split("/") if part) or "a"
    try:
        expected = GitIgnoreSpec.from_lines([pattern], Plain, backend="simple").check_file(path).include
    except ValueError:
        return

    assert IgnoreRules().add("", pattern.encode()).specs[0][1].check_file(path).include == expected


@pytest.mark.parametrize("pattern", ["/x[!a]y", "/x[+-9]y", "/x[!]a]y", "/x[!!a]y/", "/**/x[!a]*y", "/x[a!]y"])
def test_no_class_of_characters_is_a_slash_as_in_git(box: Sandbox, pattern: str):
    box.write(".gitignore", pattern + "\n")
    rules = IgnoreRules().add("", pattern.encode())
    for path in ("x/y", "x.y", "x]y", "xay", "x!y", "x/z/y", "xz/y"):
        box.write(f"{path}/inner" if pattern.endswith("/") else path, "")
        ignored = subprocess.run(["git", "check-ignore", "--quiet", path], cwd=box.root, check=False).returncode == 0
        parts = path.split("/")
        hidden = [
            rules.hides("/".join(parts[:n]), is_folder=n < len(parts) or pattern.endswith("/"))
            for n in range(1, len(parts) + 1)
        ]
        assert any(hidden) == ignored, path
