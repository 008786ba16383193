"""A cache behind a URL, or a remote, that lost packs: what commands say, and that what they say leads out of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Project


@pytest.fixture
def lost(project: Project) -> Project:
    """Return the project, with a cache behind a URL of which all packs are gone, and no other remote."""
    far = project.root.parent / "far"
    project.must("config", "set", "--clone", "cache.dir", far.as_uri())
    for name in ("storage", "backup"):
        project.must("remote", "remove", name)
    project.must("add", "data/raw", "data/labels.csv")
    for pack in (far / "packs").iterdir():
        pack.unlink()
    return project


def test_a_checkout_from_a_cache_that_lost_packs_leads_to_what_mends_it(lost: Project) -> None:
    before = (lost.root / "data" / "labels.csv").read_bytes()
    (lost.root / "data" / "labels.csv").unlink()

    failed = lost("checkout", "data/labels.csv")

    assert failed.code == 4
    assert failed.stderr == (
        "error: remote `cache` lacks 1 object of `data/labels.csv`, though its index names it\n"
        "hint: `mlx push --repair --remote cache` lets its index forget that, and says what stores it again\n"
    )
    (lost.root / "data" / "labels.csv").write_bytes(before)
    planned = lost.must("push", "--repair", "--remote", "cache", "--dry-run")
    assert planned.stdout.startswith("the index of the cache would forget ")
    done = lost.must("push", "--repair", "--remote", "cache")
    assert done.stdout == planned.stdout.replace("would forget", "forgot")
    assert "`mlx add data/labels.csv data/raw` stores the files again" in done.stderr
    lost.must("add", "data/labels.csv", "data/raw")
    shutil.rmtree(lost.root / "data" / "raw")
    (lost.root / "data" / "labels.csv").unlink()
    lost.must("checkout", "data/raw", "data/labels.csv")
    assert (lost.root / "data" / "labels.csv").read_bytes() == before


def test_what_a_cache_lost_comes_from_another_remote(lost: Project) -> None:
    lost.must("remote", "add", "storage", "../storage")
    shutil.rmtree(lost.root / "data" / "raw")

    done = lost.must("push", "--repair", "--remote", "cache")

    assert "`mlx pull --remote storage data/raw` brings it from there" in done.stderr
    lost.must("pull", "--remote", "storage", "data/raw")
    assert (lost.root / "data" / "raw").is_dir()


def test_a_clone_without_listings_is_told_the_same(lost: Project) -> None:
    for known in ("cache", "remotes"):
        shutil.rmtree(lost.root / ".git" / "mlx" / known, ignore_errors=True)
    shutil.rmtree(lost.root / "data" / "raw")

    for verb in ("checkout", "pull"):
        failed = lost(verb, "data/raw")
        assert failed.code == 4
        assert "`data/raw`" in failed.stderr
        assert "`mlx push --repair --remote cache`" in failed.stderr
    done = lost.must("push", "--repair", "--remote", "cache")
    assert "`mlx add data/raw` in a clone that has the files" in done.stderr
    assert "`mlx add data/raw` in a clone that has the files" in lost("pull", "data/raw").stderr


def test_a_file_that_a_remote_lost_is_told_with_its_tracked_path(project: Project, tmp_path: Path) -> None:
    storage = project.root.parent / "storage"
    far = tmp_path / "far"
    before = set((storage / "packs").iterdir())
    project.write("d/big", "x" * 300_000)
    project.must("add", "d")
    project.must("push", "d")
    project.must("config", "set", "--clone", "cache.dir", far.as_uri())
    big = max(set((storage / "packs").iterdir()) - before, key=lambda path: path.stat().st_size)
    big.unlink()

    failed = project("pull", "--remote", "storage", "d")

    assert failed.code == 4
    assert " of `d`, as does the cache" in failed.stderr


@pytest.fixture
def parts(project: Project) -> Project:
    """Return the project with four tracked paths that are only on its remote, which lost two of them."""
    packs = project.root.parent / "storage" / "packs"
    for name in ("a", "b", "c", "d"):
        before = set(packs.iterdir())
        project.write(f"{name}/file", f"{name}\n")
        project.must("add", name)
        project.must("push", name)
        if name in ("b", "d"):
            for pack in set(packs.iterdir()) - before:
                pack.unlink()
        shutil.rmtree(project.root / name)
    shutil.rmtree(project.cache)
    return project


def test_a_pull_brings_what_can_be_had_and_names_the_rest(parts: Project) -> None:
    done = parts("pull")

    assert done.code == 4
    assert [name for name in "abcd" if (parts.root / name / "file").exists()] == ["a", "c"]
    assert "brought back a (1 added)\nbrought back c (1 added)\n" in done.stdout
    assert "nothing to fetch" not in done.stdout
    assert "note: `b` was not brought: remote `storage` lacks 1 object of `b`, as does the cache\n" in done.stderr
    assert "error: 2 tracked paths could not be brought, `b`, `d`; all else was: " in done.stderr
    assert parts("pull", "--json").json()["restored"] == []
    assert parts("pull", "b", "a").code == 4


def test_a_checkout_of_all_brings_what_is_stored_and_overwrites_nothing_that_is_not(parts: Project) -> None:
    parts("pull")
    shutil.rmtree(parts.root / "a")
    parts.write("b/mine", "stored nowhere\n")

    done = parts("checkout")

    assert done.code == 4
    assert (parts.root / "a" / "file").exists()
    assert (parts.root / "b" / "mine").read_text(encoding="utf-8") == "stored nowhere\n"
    assert "error: 2 tracked paths could not be brought, `b`, `d`; all else was: the cache lacks 1 object of `b`" in (
        done.stderr
    )
    shutil.rmtree(parts.root / "a")
    assert parts("checkout", "a", "b").code == 4
    assert not (parts.root / "a").exists()


def test_an_import_of_this_machine_that_is_not_here_is_told_with_its_command(project: Project) -> None:
    shared = project.root.parent / "shared"
    shared.mkdir()
    (shared / "prices.csv").write_text("1,2\n", encoding="utf-8")
    project.must("import", f"file://{shared}/prices.csv", "prices.csv")
    (project.root / "prices.csv").unlink()
    shutil.rmtree(project.cache)

    told = project("pull").stderr

    assert f"where no pull looks: `mlx import file://{shared}/prices.csv prices.csv` brings it" in told


@pytest.mark.parametrize(("level", "option"), [("clone", "--clone "), ("user", "--user "), ("project", "")])
def test_links_into_a_cache_behind_a_url_are_refused_with_the_layer_that_wants_them(
    level: str, option: str, project: Project
) -> None:
    project.must("config", "set", *([f"--{level}"] if option else []), "cache.link", "symlink")
    project.must("config", "set", "--clone", "cache.dir", (project.root.parent / "far").as_uri())

    assert f"hint: `mlx config set {option}cache.link copy`, or a folder" in project("status").stderr
    told = project("status", env={"MLX_CACHE_LINK": "hardlink"}).stderr
    assert "hint: `unset MLX_CACHE_LINK`, or a folder" in told
    project.must("config", "set", *option.split(), "cache.link", "copy")
    project.must("status")


def test_many_files_that_a_remote_lost_are_one_line_a_path(project: Project) -> None:
    storage = project.root.parent / "storage" / "packs"
    before = set(storage.iterdir())
    names = ("a", "b", "c", "d")
    for name in names:
        for number in range(9):
            project.write(f"{name}/{number}", f"{name} {number}\n")
    project.must("add", *names)
    project.must("push", *names)
    for pack in set(storage.iterdir()) - before:
        pack.unlink()

    done = project("fsck", "--remote", "storage")

    assert done.code == 4
    assert [line.partition("; ")[0] for line in done.stdout.splitlines() if line.startswith("absent: ")] == [
        f"absent: 10 objects of {name}" for name in names
    ]
    assert "next: `mlx push --repair --remote storage`, in a clone that has the data" in done.stderr
    assert len(project("fsck", "--remote", "storage", "--json").json()["absent"]) == 40
