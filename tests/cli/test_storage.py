"""`mlx fsck` and `mlx du` as people meet them: exit codes, what is said, and what to do next."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Project
from tests.conftest import Result

CACHE = Path(".git", "mlx", "cache")
LARGE = bytes(range(250)) * 1200


def damage(project: Project) -> None:
    """Change a large tracked file's object."""
    (path,) = (path for path in (project.root / CACHE / "objects").glob("*/*") if path.stat().st_size == 300_000)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.write(b"damage")


def add_large(project: Project) -> None:
    (project.root / "large.bin").write_bytes(LARGE)
    project.must("add", "large.bin")


def test_what_is_well_is_one_line(project: Project) -> None:
    result = project("fsck")

    assert result.code == 0
    assert result.stdout.endswith(": all as stored\n")
    assert result.stderr == ""


def test_damage_is_named_and_the_next_command_mends_it(project: Project) -> None:
    add_large(project)
    project.must("push", "large.bin")
    damage(project)

    found = project("fsck")
    absent = project("fsck")
    mended = project("fsck", "--repair")

    assert found.code == 5
    assert "damaged: blake3:" in found.stdout
    assert " of large.bin: its bytes hash to " in found.stdout
    assert found.stderr == "next: `mlx fsck --repair` brings good copies from a remote\n"
    assert absent.code == 4
    assert "absent: blake3:" in absent.stdout
    assert mended.code == 0
    assert "repaired 1 object from `storage`" in mended.stdout
    assert project("fsck").code == 0


def test_without_a_remote_the_workspace_may_have_good_bytes(project: Project) -> None:
    add_large(project)
    damage(project)
    for name in ("storage", "backup"):
        project.must("remote", "remove", name)

    found = project("fsck")

    assert found.stderr.splitlines() == [
        "next: `mlx add large.bin` stores what is in the workspace, as a new version if it was edited",
        (
            "next: `mlx remote add storage URL` here and in a clone that has good bytes, there `mlx push large.bin`, "
            "with the same commit checked out; then `mlx fsck --repair` here"
        ),
    ]
    project.must("add", "large.bin")
    assert project("fsck").code == 0


def advice(result: Result) -> list[str]:
    """Return the lines that say what to do next."""
    return [line for line in result.stderr.splitlines() if line.startswith("next: ")]


def edit_through_link(project: Project, name: str) -> None:
    target = (project.root / name).resolve()
    target.chmod(0o644)
    with target.open("ab") as stream:
        stream.write(b"edited")


@pytest.fixture
def linked(request: pytest.FixtureRequest, project: Project) -> Project:
    """Return the project with a large file that is linked into the cache, committed and on no remote."""
    for name in ("storage", "backup"):
        project.must("remote", "remove", name)
    project.must("config", "set", "cache.link", request.param)
    add_large(project)
    project.must("checkout", "--relink", "large.bin")
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "large")
    return project


@pytest.mark.parametrize("linked", ["hardlink", "symlink"], indirect=True)
@pytest.mark.parametrize("folder", ["", "data"])
@pytest.mark.parametrize("before", [0, 1])
def test_an_edit_through_a_link_is_kept_by_what_the_advice_says(linked: Project, folder: str, before: int) -> None:
    edit_through_link(linked, "large.bin")
    for _ in range(before):
        linked("fsck")

    found = linked("fsck", cwd=linked.root / folder)

    kept = [line for line in advice(found) if "mlx add" in line]
    assert len(kept) == 1
    subprocess.run(["sh", "-ec", kept[0].split("`")[1]], cwd=linked.root / folder, check=True, capture_output=True)
    assert (linked.root / "large.bin").read_bytes().endswith(b"edited")
    assert linked("fsck").code == 0


@pytest.mark.parametrize("linked", ["hardlink", "symlink"], indirect=True)
def test_what_an_edit_through_a_link_damaged_comes_from_another_clone(
    linked: Project, tmp_path: Path, git: Callable[..., str]
) -> None:
    clone, url = Project(tmp_path / "clone", linked.home), str(tmp_path / "shared")
    git("clone", "--quiet", linked.root, clone.root)
    add_large(clone)
    edit_through_link(linked, "large.bin")

    first = advice(linked("fsck"))
    assert any(
        "there `mlx push large.bin`" in line and line.endswith("then `mlx fsck --repair` here") for line in first
    )
    for place in (linked, clone):
        place.must("remote", "add", "storage", url)
    clone.must("push", "large.bin")
    mended = linked("fsck", "--repair")

    assert mended.code == 0
    linked.must("checkout", "--force", "large.bin")
    assert (linked.root / "large.bin").read_bytes() == LARGE
    kept = [line for line in advice(mended) if "keeps, as a new version" in line]
    assert len(kept) == ((linked.root / "large.bin").is_symlink())


def test_what_only_an_older_version_needs_is_fetched_by_its_commit(project: Project, git: Callable[..., str]) -> None:
    add_large(project)
    project.git("add", "--all")
    project.git("commit", "--quiet", "--message", "large")
    project.must("push", "large.bin")
    commit = git("rev-parse", "HEAD", cwd=project.root)[:12]
    (project.root / "large.bin").write_bytes(b"small now")
    project.must("add", "large.bin")
    damage(project)

    found = project("fsck")

    (line,) = advice(found)
    command = line.split("`")[1]
    assert command == f"mlx fetch --rev {commit} large.bin"
    assert project.must(*command.split()[1:]).stdout.startswith("fetched 1 object")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_check_that_would_read_nothing_is_refused(seconds: str, project: Project) -> None:
    result = project("fsck", "--max-duration", seconds)

    assert result.code == 2
    assert result.stdout == ""
    assert f"`--max-duration {seconds}`" in result.stderr


def test_a_check_that_came_to_nothing_does_not_say_that_all_is_well(project: Project) -> None:
    result = project("fsck", "--max-duration", "1e-300")

    assert result.code == 0
    assert re.fullmatch(r"read 0 objects \(0 B, 0 of \d+ parts of the cache\)\n", result.stdout)


def test_a_dry_run_of_a_repair_tells_what_would_come_from_where(project: Project) -> None:
    add_large(project)
    project.must("push", "large.bin")
    damage(project)
    project.write("small.txt", "on no remote")
    project.must("add", "small.txt")
    (project.root / CACHE / "packs").rename(project.root / CACHE / "elsewhere")

    told = project("fsck", "--repair", "--dry-run")
    document = project("fsck", "--repair", "--dry-run", "--json").json()

    lines = told.stdout.splitlines()
    assert told.code == 5
    assert any(" of large.bin: " in line and line.endswith("; good bytes would come from `storage`") for line in lines)
    assert any(line.endswith(" of small.txt; good bytes were found nowhere") for line in lines)
    number = sum(fault["source"] == "remote" for fault in document["damaged"] + document["absent"])
    assert f"would repair {number} objects from `storage`" in lines
    assert [fault["source"] for fault in document["damaged"]] == ["remote"]
    assert [fault["source"] for fault in document["absent"] if fault["paths"] == ["small.txt"]] == [None]
    assert document["repaired"] == 0
    assert not (project.root / CACHE / "quarantine").exists()


def test_what_is_in_the_trash_would_come_from_there(project: Project) -> None:
    add_large(project)
    project.must("push", "large.bin")
    pointer = (project.root / "large.bin.mlx").read_bytes()
    (project.root / "large.bin.mlx").unlink()
    project.must("gc", "--yes", "--grace", "0s")
    (project.root / "large.bin.mlx").write_bytes(pointer)

    told = project("fsck", "--repair", "--dry-run")
    mended = project.must("fsck", "--repair", "--json").json()

    assert "would repair 1 object from the trash\n" in told.stdout
    assert [fault["source"] for fault in mended["absent"]] == ["trash"]


def test_an_output_is_made_again(project: Project) -> None:
    for name in ("storage", "backup"):
        project.must("remote", "remove", name)
    for path in (project.root / CACHE / "packs").iterdir():
        path.unlink()

    result = project("fsck")

    assert result.code == 4
    assert result.stderr.startswith("next: ")


def test_du_tells_paths_and_the_cache(project: Project) -> None:
    result = project("du")

    assert result.code == 0
    for word in ("unique", "shared", "data/raw", "data/prepared", "all together: ", "the cache takes "):
        assert word in result.stdout
    assert "cache" not in project("du", "data/raw").stdout


def test_du_tells_what_is_not_here(project: Project) -> None:
    add_large(project)
    for path in (project.root / CACHE / "objects").glob("*/*"):
        if path.stat().st_size == 300_000:
            path.unlink()

    result = project.must("du", "large.bin")

    assert result.stdout.splitlines()[2:] == [
        "300.0 kB      0 B      0 B      0 B   large.bin",
        "all together: 0 B stored, each object counted once",
        "not here: 1 object of large.bin",
    ]
    assert result.stderr == "next: `mlx fetch` brings what is not here\n"


def test_du_marks_what_it_cannot_know(project: Project) -> None:
    for path in (project.root / CACHE / "packs").iterdir():
        path.unlink()

    result = project("du", "data/raw")

    assert "   ?   " in result.stdout
    assert "`mlx fetch`" in result.stderr


def test_what_git_never_knew_is_not_to_be_added_to_it(project: Project) -> None:
    """`git add` of a path that is neither there nor known refuses everything."""
    project.must("move", "data/raw", "first")
    project.git("add", "--all")
    project.must("move", "first", "second")
    result = project.must("move", "second", "third")  # `second.mlx` was never in Git

    files = result.stderr.splitlines()[-1].removeprefix("next: git add ").split()
    assert "third.mlx" in files
    assert "second.mlx" not in files
    project.git("add", *files)


def test_mv_is_move(project: Project) -> None:
    result = project.must("mv", "data/raw", "data/images")

    assert result.stdout == "moved data/raw to data/images\n"
    assert "note: stage `prepare` reads `data/raw`" in result.stderr
    assert "next: git add data/images.mlx data/raw.mlx data/.gitignore" in result.stderr


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        ("broken.mlx", "mlx: 1\npath: broken\nsize: -1\n", "broken.mlx:"),
        ("broken/mlx.yaml", "mlx: 1\nstages: [\n", "broken/mlx.yaml:"),
        ("large.bin.mlx", "<<<<<<< ours\nmlx: 1\n", "large.bin.mlx:1"),
    ],
)
def test_a_record_that_cannot_be_read_keeps_nothing_else_from_being_looked_at(
    project: Project, path: str, data: str, said: str
) -> None:
    add_large(project)
    (project.root / path).parent.mkdir(exist_ok=True)
    (project.root / path).write_text(data)

    found = project("fsck")
    document = project("fsck", "--json").json()
    damage(project)
    damaged = project("fsck")

    assert found.code == 2
    assert f"unread: {said}" in found.stdout
    assert "all as stored" in found.stdout
    assert document["unread"][0]["message"].startswith(said)
    assert damaged.code == 5
    assert "damaged: blake3:" in damaged.stdout


def test_a_record_that_says_another_size_than_its_data_has_is_told(project: Project) -> None:
    add_large(project)
    (project.root / "extra").mkdir()
    (project.root / "extra/a").write_text("hi\n")
    assert project("add", "extra").code == 0
    (project.root / "mlx.yaml").write_text("mlx: 1\nstages:\n  s:\n    cmd: echo 1 > o\n    outs: [o]\n")
    assert project("run").code == 0
    places = {name: project.root / name for name in ("extra.mlx", "large.bin.mlx", "mlx.lock/s.yaml")}
    true = {name: place.read_text() for name, place in places.items()}
    size = len((project.root / "large.bin").read_bytes())
    for place in places.values():
        lies = re.sub(r"files: \d+", "files: 7", re.sub(r"size: \d+", "size: 99", place.read_text()))
        place.write_text(lies)

    found = project("fsck")
    document = project("fsck", "--json").json()

    assert found.code == 2
    told = [line for line in found.stdout.splitlines() if line.startswith("false: ")]
    assert sorted(told) == [
        "false: `extra.mlx` says files: 7, size: 99, and what it names has files: 1, size: 3",
        f"false: `large.bin.mlx` says size: 99, and what it names has size: {size:,}",
        "false: the lock of stage `s` says size: 99 of `o`, and what it names has size: 2",
    ]
    assert "next: write that there, or `mlx add extra` does where the workspace has the data\n" in found.stderr
    assert sorted(f"false: {item['message']}" for item in document["false"]) == sorted(told)
    assert project("status").code == 0, "it reads no tree for that"
    assert project("add", "extra", "large.bin").code == 0
    assert project("run", "--force").code == 0
    assert project("fsck").code == 0
    assert {name: place.read_text() for name, place in places.items()} == true


# A remote ------------------------------------------------------------------------------------------------------------


def test_a_remote_that_is_well_is_one_line(project: Project) -> None:
    result = project("fsck", "--remote", "storage")

    assert result.code == 0
    assert re.fullmatch(r"read \d+ objects of remote `storage` \(.*\): all as stored\n", result.stdout)
    assert result.stderr == ""


def test_a_remote_that_is_damaged_is_told_with_what_mends_it(project: Project) -> None:
    packs = project.root.parent / "storage" / "packs"
    before = set(packs.iterdir())
    add_large(project)
    project.must("push", "large.bin")
    (pack,) = set(packs.iterdir()) - before
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes()[:100])

    found = project("fsck", "--remote", "storage")
    document = project("fsck", "--remote", "storage", "--json").json()

    assert found.code == 5
    assert " of large.bin: " in found.stdout
    assert found.stderr == (
        "next: `mlx push --repair --remote storage large.bin`, in a clone that has the data, sends it again\n"
    )
    assert document["examined"] == "storage"
    assert [fault["paths"] for fault in document["damaged"]] == [["large.bin"]]
    project.must("push", "--repair", "--remote", "storage", "large.bin")
    assert project("fsck", "--remote", "storage").code == 0


def test_a_remote_that_lacks_everything_is_told(project: Project) -> None:
    found = project("fsck", "--remote", "backup")

    assert found.code == 4
    assert "absent: blake3:" in found.stdout
    assert ": remote `backup` does not have it" in found.stdout
    assert found.stderr.startswith("next: `mlx push --remote backup`, in a clone")
