"""Where a project is: in a sub-folder, inside another, in a worktree; and what a path means there."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from mlops_cli.errors import LockedError, OutsideError, RecordError, UsageError
from mlops_cli.workspace.project import find_project, init_project, resolve_targets
from tests.faults import FULL, refusing
from tests.objects import stored
from tests.workspace.projects import Sandbox, clone, listing, make_project, make_repo


def test_not_a_repository(tmp_path: Path):
    with pytest.raises(UsageError) as caught:
        find_project(tmp_path, os.environ)
    assert caught.value.message == f"`{tmp_path}` is not in a Git repository"
    assert caught.value.hint == "`git init && mlx init` makes a project here"
    with pytest.raises(UsageError) as caught:
        init_project(tmp_path, os.environ)
    assert caught.value.message == f"`{tmp_path}` is not in a Git repository"
    assert caught.value.hint == "run `git init` first"


def test_no_project(tmp_path: Path):
    repo = make_repo(tmp_path / "repo")
    (repo / "sub").mkdir()
    with pytest.raises(UsageError) as caught:
        find_project(repo / "sub", os.environ)
    assert caught.value.message == f"no mlx project in `{repo / 'sub'}` or above it"
    assert caught.value.hint == "`mlx init` makes one here"


def test_project_of_another_repository_is_not_ours(box: Sandbox):
    inner = make_repo(box.root / "vendor")
    with pytest.raises(UsageError, match="no mlx project"):
        find_project(inner, os.environ)


def test_init_is_idempotent(tmp_path: Path):
    repo = make_repo(tmp_path / "repo")
    assert init_project(repo, os.environ, dry_run=True)[1] is True
    assert not (repo / ".mlx").exists()
    project, created = init_project(repo, os.environ)
    assert created
    assert (repo / ".mlx/config.yaml").read_bytes() == b"mlx: 1\n"
    again, created = init_project(repo, os.environ)
    assert (again.root, again.config, created) == (project.root, project.config, False)


def test_init_keeps_settings_that_are_there(box: Sandbox):
    box.configure("cache.link", "copy")
    before = box.read(".mlx/config.yaml")
    _, created = init_project(box.root, os.environ)
    assert not created
    assert box.read(".mlx/config.yaml") == before


def test_found_from_below(box: Sandbox):
    (box.root / "a/b").mkdir(parents=True)
    project = find_project(box.root / "a/b", os.environ)
    assert (project.root, project.prefix) == (box.root, "")


# Sub-folders and projects in projects ---------------------------------------------------------------------------------


def test_projects_in_sub_folders(tmp_path: Path):
    """Two projects in one repository: neither sees the other's records, and they share the cache."""
    one = make_project(tmp_path / "repo", "teams/one")
    two_root = one.root.parent / "two"
    two_root.mkdir()
    init_project(two_root, os.environ)
    two = Sandbox(two_root)
    for box in (one, two):
        box.write("data/x", "shared content")
        box.add("data")
    assert one.project().prefix == "teams/one"
    assert one.states() == two.states() == {"data": "ok"}
    assert one.project().cache.root == two.project().cache.root
    assert one.project().checkout_key != two.project().checkout_key
    one.commit("both")
    two.write("data/x", "changed")
    assert (one.states(), two.states()) == ({"data": "ok"}, {"data": "modified"})
    shutil.rmtree(one.root / "data")
    one.checkout()
    assert one.clean()
    assert two.read("data/x") == "changed"
    assert sorted(one.changed_in_git()) == []


def test_project_in_a_project(box: Sandbox):
    box.write("inner/data/x", "x")
    box.write("outer-data/x", "x")
    init_project(box.root / "inner", os.environ)
    inner = Sandbox(box.root / "inner")
    inner.add("data")
    inner.pipeline("stages:\n  s:\n    cmd: echo 1 > out\n    outs: [out]\n")
    inner.run()
    box.add("outer-data")
    box.pipeline("stages:\n  s:\n    cmd: echo 2 > out\n    outs: [out]\n")
    box.run()
    assert box.states() == {"outer-data": "ok"}
    assert inner.states() == {"data": "ok"}
    assert list(box.actions()) == list(inner.actions()) == ["s"]
    box.commit()
    with pytest.raises(UsageError, match="nothing tracks `inner/data`"):
        box.checkout("inner/data")
    from mlops_cli.workspace.snapshot import open_snapshot

    with open_snapshot(box.project(), "HEAD") as snapshot:
        assert [entry.path for entry in snapshot.tracked()] == ["out", "outer-data"]
    with open_snapshot(inner.project(), "HEAD") as snapshot:
        assert [entry.path for entry in snapshot.tracked()] == ["data", "out"]


def test_worktrees_share_the_cache_and_nothing_else(box: Sandbox, tmp_path: Path):
    box.write("data/x", "1")
    box.add("data")
    box.commit()
    box.git("worktree", "add", "--quiet", "-b", "other", tmp_path / "second")
    second = Sandbox(tmp_path / "second")
    assert second.states() == {"data": "missing"}
    second.checkout()
    assert second.project().local == box.project().local
    assert second.project().checkout_key != box.project().checkout_key
    with box.project().lock("mlx run"):
        second.write("data/x", "2")
        second.add("data")  # another checkout: not held
        second.commit()
    assert (box.states(), second.states()) == ({"data": "ok"}, {"data": "ok"})
    box.git("merge", "--quiet", "other")
    assert box.states() == {"data": "modified"}
    box.checkout()
    assert box.read("data/x") == "2"
    box.git("worktree", "remove", "--force", tmp_path / "second")
    assert box.clean()


def test_one_checkout_one_writer(box: Sandbox):
    holder = box.project()
    with holder.lock("mlx run"):
        waiting = find_project(box.root, {**os.environ, "MLX_CORE_LOCK_TIMEOUT": "0"})
        with pytest.raises(LockedError) as caught, waiting.lock("mlx add"):
            pass
    assert caught.value.message.startswith(f"`mlx run` (process {os.getpid()}, since ")
    with holder.lock("mlx add"):
        pass


def test_key_of_a_deep_project_is_a_file_name(tmp_path: Path):
    deep = make_project(tmp_path / "repo", "/".join(["quite a long folder name %"] * 20))
    assert len(os.fsencode(deep.project().checkout_key)) < 200
    deep.write("data", "x")
    deep.add("data")
    assert deep.states() == {"data": "ok"}
    deep.pipeline("stages:\n  s:\n    cmd: echo 1 > out\n    outs: [out]\n")
    assert deep.run() == {"s": "run"}


def test_submodule(tmp_path: Path):
    inner = make_project(tmp_path / "inner")
    inner.write("data/x", "x")
    inner.add("data")
    inner.commit()
    outer = make_repo(tmp_path / "outer")
    subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.root, "sub"],
        cwd=outer,
        check=True,
        capture_output=True,
    )
    sub = Sandbox(outer / "sub")
    assert sub.states() == {"data": "not_cached"}
    assert sub.project().local == outer / ".git/modules/sub/mlx"
    assert not (outer / "sub/.git").is_dir()


def test_separate_git_dir(tmp_path: Path):
    subprocess.run(["git", "init", "--quiet", f"--separate-git-dir={tmp_path / 'meta'}", tmp_path / "repo"], check=True)
    init_project(tmp_path / "repo", os.environ)
    box = Sandbox(tmp_path / "repo")
    box.write("data", "x")
    box.add("data")
    assert box.states() == {"data": "ok"}
    assert box.project().local == tmp_path / "meta/mlx"


def test_git_file_that_makes_no_sense(tmp_path: Path):
    (tmp_path / ".git").write_text("nonsense")
    with pytest.raises(UsageError, match="does not say where its Git directory is"):
        find_project(tmp_path, os.environ)


# Paths ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cwd", "target", "expected"),
    [
        ("", "data", "data"),
        ("", "./data/", "data"),
        ("", ".", ""),
        ("sub", ".", "sub"),
        ("sub", "..", ""),
        ("sub", "../data/x", "data/x"),
        ("sub", "a//b/./c/../d", "sub/a/b/d"),
        ("", "-rf", "-rf"),
        ("", " spaced ", " spaced "),
    ],
)
def test_targets(box: Sandbox, cwd: str, target: str, expected: str):
    (box.root / "sub").mkdir()
    assert resolve_targets(box.project(), box.root / cwd, [target]) == (expected,)


def test_target_outside(box: Sandbox, tmp_path: Path):
    for target in ("..", "../other", "/", "/etc/passwd", "a/../../b"):
        with pytest.raises(UsageError) as caught:
            resolve_targets(box.project(), box.root, [target])
        assert "is outside the project" in caught.value.message
        assert caught.value.hint == "copy or move it into the project first"


def test_target_by_another_name_of_the_project(box: Sandbox, tmp_path: Path):
    (tmp_path / "link").symlink_to(box.root)
    box.write("data/x", "x")
    targets = [str(tmp_path / "link/data"), str(tmp_path / "link/data/absent"), str(tmp_path / "link")]
    assert resolve_targets(box.project(), box.root, targets) == ("data", "data/absent", "")


def test_target_that_is_a_link_is_not_followed(box: Sandbox):
    (box.root / "link").symlink_to("elsewhere")
    assert resolve_targets(box.project(), box.root, ["link"]) == ("link",)


# Settings -------------------------------------------------------------------------------------------------------------


def test_settings_by_level(box: Sandbox, home: Path):
    from mlops_cli.workspace.settings import change_settings, find_setting

    project = box.project()
    change_settings(project, os.environ, "user", {"cache.link": "copy", "core.jobs": "2"})
    change_settings(project, os.environ, "project", {"cache.link": "hardlink"})
    assert (home / ".config/mlx/config.yaml").is_file()
    project = find_project(box.root, os.environ)
    assert (project.config.cache_link, project.config.core_jobs) == ("hardlink", 2)
    change_settings(project, os.environ, "clone", {"cache.link": "symlink"})
    project = find_project(box.root, os.environ)
    assert find_setting(project, "cache.link").origin == f"clone ({project.local / 'config.yaml'})"
    assert find_project(box.root, {**os.environ, "MLX_CACHE_LINK": "reflink"}).config.cache_link == "reflink"
    change_settings(project, os.environ, "clone", {"cache.link": None})
    assert find_project(box.root, os.environ).config.cache_link == "hardlink"


def test_bad_settings_file_is_named(box: Sandbox):
    box.write(".mlx/config.yaml", "mlx: 1\ncache:\n  lnik: copy\n")
    with pytest.raises(RecordError) as caught:
        box.project()
    assert caught.value.message == ".mlx/config.yaml:3: unknown key `lnik` in `cache`"
    assert caught.value.hint == "did you mean `link`?"


def test_cache_elsewhere(box: Sandbox, tmp_path: Path):
    box.configure("cache.dir", "../shared cache")
    box.write("data/x", "x")
    box.add("data")
    assert len(stored(tmp_path / "shared cache")) == 2
    assert not (box.project().local / "cache").exists()
    box.commit()
    other = clone(box, tmp_path / "clone")
    other.checkout()
    assert listing(other.root / "data") == listing(box.root / "data")


def test_a_disk_that_is_full_at_the_first_use_of_a_cache_names_the_cache(box: Sandbox, tmp_path: Path) -> None:
    box.configure("cache.dir", str(tmp_path / "cache"))
    box.write("data", "x")
    told = set()
    for at in range(12):
        with refusing(FULL, at), suppress(OSError):
            try:
                box.add("data")
            except OutsideError as error:
                told.add(error.message)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    assert f"cannot register this project at the cache `{tmp_path / 'cache'}`: the disk is full" in told
    assert not any(".json" in message for message in told)
