"""Lines of `.gitignore`: ours name one path exactly, everyone else's stay as they are, byte for byte."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_cli.workspace.gitignore import hide_from_git, pattern, show_to_git
from tests.workspace.projects import make_repo

USERS = [
    b"",
    b"*.pyc\n",
    b"*.pyc",
    b"# a comment\r\n*.pyc\r\n",
    b"\xef\xbb\xbf*.pyc\n\n\n",
    "caf\u00e9\u2028\x85\x0b\x0c\n".encode() + b"\xff\n",
    b"/raw/\n!/raw\n/raw2\n /raw\n/raw \n",
]


@pytest.mark.parametrize("mine", USERS)
def test_lines_of_others_stay(tmp_path: Path, mine: bytes):
    file = tmp_path / ".gitignore"
    if mine:
        file.write_bytes(mine)
    assert hide_from_git(tmp_path, ["raw", "b"]) == (".gitignore",)
    hidden = file.read_bytes()
    whole = mine if mine.endswith(b"\n") or not mine else mine + b"\n"
    assert [line for line in hidden.split(b"\n") if line not in (b"/b", b"/raw")] == whole.split(b"\n")
    assert hidden.index(b"/b\n") < hidden.rindex(b"/raw\n")
    assert hide_from_git(tmp_path, ["b", "raw"]) == ()
    assert file.read_bytes() == hidden
    assert show_to_git(tmp_path, ["raw", "b"]) == (".gitignore",)
    if mine:
        assert file.read_bytes() in (mine, mine + b"\n")
    else:
        assert not file.exists()
    assert show_to_git(tmp_path, ["raw"]) == ()


def test_the_lines_are_the_same_whatever_was_hidden_first(tmp_path: Path):
    mine = b"# mine\n!/keep\n*.pyc\n"
    found = set()
    for names in (["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]):
        (tmp_path / ".gitignore").write_bytes(mine)
        for name in names:
            hide_from_git(tmp_path, [name])
        found.add((tmp_path / ".gitignore").read_bytes())
    assert found == {mine + b"/a\n/b\n/c\n"}


def test_line_that_is_there_with_another_line_ending(tmp_path: Path):
    (tmp_path / ".gitignore").write_bytes(b"/raw\r\n")
    assert hide_from_git(tmp_path, ["raw"]) == ()
    assert show_to_git(tmp_path, ["raw"]) == (".gitignore",)
    assert not (tmp_path / ".gitignore").exists()


def test_one_file_a_folder(tmp_path: Path):
    changed = hide_from_git(tmp_path, ["a/x", "a/y", "z", "b/c/w"])
    assert sorted(changed) == [".gitignore", "a/.gitignore", "b/c/.gitignore"]
    assert (tmp_path / "a/.gitignore").read_text() == "/x\n/y\n"


NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]) | st.sampled_from(list(" \\*?[]!#-\n\r\t^")),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", "..", ".git", ".gitignore") and len(name.encode()) < 200)


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("ignoring") / "repo")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), NAMES)
def test_git_agrees(playground: Path, names: list[str], other: str):
    """Git hides what we name, as file or folder, and of other names only those that differ in a newline's place."""
    (playground / ".gitignore").write_bytes(b"".join(pattern(name) + b"\n" for name in names))
    asked = [*names, other, *(f"{name}x" for name in names), *(f"sub/{name}" for name in names)]
    given_to_git = b"".join(b"./%s\0" % os.fsencode(name) for name in asked)
    done = subprocess.run(
        ["git", "check-ignore", "-z", "--stdin"], cwd=playground, input=given_to_git, capture_output=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    hidden = {os.fsdecode(name[2:]) for name in done.stdout.split(b"\0") if name}
    assert set(names) <= hidden
    assert all(any(alike(name, known) for known in names) for name in hidden)


def alike(name: str, known: str) -> bool:
    return len(name.encode()) == len(known.encode()) and all(
        a == b or b in b"\r\n" for a, b in zip(name.encode(), known.encode(), strict=True)
    )
