"""Globs on disk agree with the pattern that the graph uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_cli.pipeline.globs import can_descend, expand, file_pattern
from mlops_cli.records.stages import has_magic

FILES = (
    "a.csv", "b.csv", "c.txt", ".hidden.csv", "sub/a.csv", "sub/deep/er/d.csv", "sub/.secret/e.csv", "sub/[x].csv",
    "empty/.keep", "mlx.lock/s.yaml", "sub/mlx.lock/s.yaml", "__pycache__/m.csv", "sub/__pycache__/m.csv",
    "a/a/a.csv", "a/b/a.csv", ".mlx-tmp-1-x.csv", "two\nlines.csv", "data.csv.mlx",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("globs")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / "linked").symlink_to("sub")
    (root / "loop").symlink_to(".")
    (root / "sub/loop").symlink_to("..")
    (root / "dangling.csv").symlink_to("nowhere")
    (root / "link.csv").symlink_to("a.csv")
    os.mkfifo(root / "pipe.csv")
    return root


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.csv", ["a.csv", "b.csv", "dangling.csv", "link.csv", "two\nlines.csv"]),
        ("?.csv", ["a.csv", "b.csv"]),
        ("[ac].*", ["a.csv", "c.txt"]),
        ("[!a].csv", ["b.csv"]),
        (".*.csv", [".hidden.csv"]),
        ("sub/*.csv", ["sub/[x].csv", "sub/a.csv"]),
        ("sub/[[]x].csv", ["sub/[x].csv"]),
        ("linked/*.csv", ["linked/[x].csv", "linked/a.csv"]),
        ("*/deep/*/*.csv", ["linked/deep/er/d.csv", "loop/deep/er/d.csv", "sub/deep/er/d.csv"][::2]),
        ("**/d.csv", ["sub/deep/er/d.csv"]),
        ("**/a.csv", ["a.csv", "a/a/a.csv", "a/b/a.csv", "sub/a.csv"]),
        ("a/**", ["a/a/a.csv", "a/b/a.csv"]),
        ("a/**/a.csv", ["a/a/a.csv", "a/b/a.csv"]),
        ("**/a/**/a.csv", ["a/a/a.csv", "a/b/a.csv"]),
        ("**/*.yaml", []),
        ("mlx.lock/*.yaml", ["mlx.lock/s.yaml"]),
        ("nothing/*", []),
        ("a.csv/*", []),
        ("sub/*", ["sub/[x].csv", "sub/a.csv"]),
    ],
)
def test_expansion(folder: Path, glob: str, expected: list[str]):
    found = expand(folder, glob)
    if glob == "*/deep/*/*.csv":
        assert found == ["linked/deep/er/d.csv", "sub/deep/er/d.csv"]
    else:
        assert found == expected


parts = st.sampled_from(["**", "*", "a", "sub", "?", "[ab]", "*.csv", "a.csv", "d.csv", "deep", "*e*", ".*"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(parts, min_size=1, max_size=4).map("/".join).filter(has_magic))
def test_agrees_with_the_pattern(folder: Path, glob: str):
    plain = [name for name in FILES if "loop" not in name]
    never = ("mlx.lock", "__pycache__")
    expected = {
        name
        for name in plain
        if file_pattern(glob).fullmatch(name)
        and not any(part in never or part.startswith(".mlx-tmp") for part in name.split("/"))
    }
    found = {name for name in expand(folder, glob) if not name.startswith(("link", "loop", "dangling", "sub/loop"))}
    assert found == expected
    for name in found:
        for depth in range(1, name.count("/") + 1):
            assert can_descend(glob.split("/"), name.split("/")[:depth])


def test_only_folders_that_can_match_are_opened(folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened = []
    real = os.scandir

    def counting(path: Path) -> object:
        opened.append(os.path.relpath(path, folder))
        return real(path)

    monkeypatch.setattr(os, "scandir", counting)
    expand(folder, "sub/deep/*/*.csv")
    assert opened == [".", "sub", "sub/deep", "sub/deep/er"]


def test_deep_folders(tmp_path: Path):
    deep = tmp_path.joinpath(*["d"] * 400)
    deep.mkdir(parents=True)
    (deep / "x.csv").write_text("")
    assert len(expand(tmp_path, "**/*.csv")) == 1
