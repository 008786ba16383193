from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.records.paths import path_below, project_folder, project_path, written_path

NAMES = st.sampled_from(["a", "b", "c", "data", "x.py", "é", "a b", "..."])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
FOLDERS = st.one_of(st.just(""), PATHS)


@pytest.mark.parametrize(
    ("text", "folder", "path"),
    [
        ("a", "", "a"),
        ("a/b", "sub", "sub/a/b"),
        ("./a//b/", "sub", "sub/a/b"),
        ("../a", "sub", "a"),
        ("../../a", "x/y", "a"),
        ("b/../a", "sub", "sub/a"),
        (".", "sub", "sub"),
        ("..", "x/y", "x"),
        ("src/**/*.py", "sub", "sub/src/**/*.py"),
    ],
)
def test_written_paths_become_project_paths(text: str, folder: str, path: str) -> None:
    assert project_path(text, folder) == path


@pytest.mark.parametrize(
    ("text", "folder", "reason"),
    [
        ("", "", "must not be empty"),
        ("/etc/passwd", "", "must be relative"),
        ("../a", "", "leaves the project"),
        ("../../a", "sub", "leaves the project"),
        ("a/../../b", "", "leaves the project"),
        (".", "", "is the whole project"),
        ("..", "sub", "is the whole project"),
        (".git/config", "", "reaches into"),
        ("../.GIT/x", "sub", "reaches into"),
        ("C:/x", "", "must be relative"),
        ("a\0b", "", "NUL"),
    ],
)
def test_paths_that_lead_astray_are_refused(text: str, folder: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        project_path(text, folder)


def test_a_path_below_does_not_go_up() -> None:
    assert path_below("./a", "sub") == "sub/a"
    with pytest.raises(ValueError, match=r"must not hold `\.\.`"):
        path_below("b/../a", "sub")


def test_a_folder_may_be_the_project_itself() -> None:
    assert project_folder("..", "sub") == ""
    assert project_folder(".", "") == ""
    assert project_folder("x", "sub") == "sub/x"


@given(PATHS, FOLDERS)
def test_writing_and_reading_a_path_are_opposites(path: str, folder: str) -> None:
    assert project_path(written_path(path, folder), folder) == path


@given(FOLDERS, FOLDERS)
def test_writing_and_reading_a_folder_are_opposites(path: str, folder: str) -> None:
    assert project_folder(written_path(path, folder), folder) == path
