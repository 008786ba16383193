"""Records in the workspace and at revisions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlops_cli.errors import RecordError, UsageError
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.tracking.values import collect_metrics
from mlops_cli.workspace.browse import find_object, list_tracked, write_copy
from mlops_cli.workspace.snapshot import open_snapshot
from tests.workspace.projects import Sandbox, clone, listing, make_project


@pytest.fixture
def history(box: Sandbox) -> Sandbox:
    """Return a project whose commit `first` tracks `data`, and whose `second` renamed it to `other data`."""
    box.write("data/x", "1")
    box.write("data/sub/y", "22")
    box.add("data")
    box.pipeline("stages:\n  s:\n    cmd: cp data/x out\n    deps: [data/x]\n    outs: [out]\n")
    box.run()
    box.commit("first words")
    box.git("tag", "-a", "v1", "-m", "annotated")
    (box.root / "data").rename(box.root / "other data")
    (box.root / "data.mlx").unlink()
    (box.root / "mlx.yaml").unlink()
    box.add("other data")
    box.commit("second words")
    return box


def paths(box: Sandbox, revision: str | None) -> list[str]:
    with open_snapshot(box.project(), revision) as snapshot:
        return [entry.path for entry in snapshot.tracked()]


@pytest.mark.parametrize(
    "revision", ["HEAD~1", "HEAD^", "v1", "v1^{}", "main~1", "main@{1}", "@~1", ":/first", "HEAD^{/first}", "HEAD~1^0"]
)
def test_whatever_git_resolves(history: Sandbox, revision: str):
    assert paths(history, revision) == ["data", "out"]


def test_short_and_full_names(history: Sandbox):
    full = history.git("rev-parse", "HEAD~1")
    assert paths(history, full) == paths(history, full[:7]) == ["data", "out"]
    assert paths(history, "HEAD") == paths(history, None) == ["other data"]


@pytest.mark.parametrize(
    "revision", ["nothing", "HEAD~99", "0" * 40, "-x", "--all", "", "HEAD:mlx.yaml", "a b", "main..HEAD"]
)
def test_what_git_does_not_resolve(history: Sandbox, revision: str):
    with pytest.raises(UsageError) as caught, open_snapshot(history.project(), revision):
        pass
    assert caught.value.message == f"Git knows no revision `{revision}`"
    assert caught.value.hint == "`git log --oneline` lists what is here"


def test_shallow_clone_says_so(history: Sandbox, tmp_path: Path):
    import subprocess

    subprocess.run(["git", "clone", "--quiet", "--depth=1", f"file://{history.root}", tmp_path / "clone"], check=True)
    with pytest.raises(UsageError) as caught, open_snapshot(Sandbox(tmp_path / "clone").project(), "HEAD~1"):
        pass
    assert caught.value.hint == "this clone is shallow: `git fetch --unshallow`"


def test_repository_without_a_commit(box: Sandbox):
    with pytest.raises(UsageError) as caught, open_snapshot(box.project(), "HEAD"):
        pass
    assert caught.value.message == "there is no commit yet"


def test_names_that_are_not_ascii(box: Sandbox):
    names = ["Ünïcödé 日本", "two\nlines", 'quote"s', "tab\t"]
    for name in names:
        box.write(f"{name}/x", name)
    box.add(*names)
    box.commit()
    assert paths(box, "HEAD") == paths(box, None) == sorted(names)


def test_bad_record_at_a_revision_names_it(box: Sandbox):
    box.write("x.mlx", "mlx: 1\npath: y\nblob: no\nsize: 1\n")
    box.commit()
    with pytest.raises(RecordError) as caught, open_snapshot(box.project(), "HEAD") as snapshot:
        snapshot.tracked()
    assert caught.value.message == "at revision `HEAD`: x.mlx:2: `path` is `y`, but this file is `x.mlx`"


def test_only_the_revision_at_fault_is_named(box: Sandbox):
    good, bad = "mlx: 1\npath: x\nblob: {}\nsize: {}\n".format(f"blake3:{'0' * 64}", 1), "mlx: 1\npath: y\n"
    box.write("x.mlx", good)
    box.commit()
    box.write("x.mlx", bad)
    with open_snapshot(box.project(), "HEAD") as before:
        assert [entry.path for entry in before.tracked()] == ["x"]
        with pytest.raises(RecordError, match=r"^x\.mlx:2: "):
            box.snapshot().tracked()
    box.commit()
    box.git("branch", "other")
    for first, second in (("HEAD", "other"), ("other", "HEAD")):
        with (
            open_snapshot(box.project(), first),
            open_snapshot(box.project(), second) as after,
            pytest.raises(RecordError, match=rf"^at revision `{second}`: x\.mlx:2: "),
        ):
            after.tracked()


def test_bad_values_at_a_revision_name_it(box: Sandbox):
    box.pipeline("metrics: [m.json]\n")
    box.write("m.json", "{")
    box.commit()
    with (
        open_snapshot(box.project(), "HEAD") as snapshot,
        pytest.raises(RecordError, match=r"^at revision `HEAD`: m\.json:1: "),
    ):
        collect_metrics(snapshot)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04", b"\xff\xfe<\0", b"caf\xe9\n", b"<!DOCTYPE FilterScript>\n<FilterScript>\n", bytes(2 << 20)],
    ids=["archive", "UTF-16", "Latin-1", "XML", "large"],
)
def test_files_of_other_programs_are_told_and_can_be_ignored(box: Sandbox, content: bytes):
    box.write("data", "x")
    box.add("data")
    box.write("sub/analysis.mlx", content)
    with pytest.raises(RecordError) as caught:
        box.states()
    assert caught.value.message == "`sub/analysis.mlx` is not a pointer of mlx"
    assert caught.value.hint == "rename it, or list it in `.mlxignore`"
    for place, pattern in ((".mlxignore", "*.mlx"), (".mlxignore", "sub/"), ("sub/.mlxignore", "/analysis.mlx")):
        box.write(place, f"{pattern}\n")
        assert box.states() == {"data": "ok"}
        box.add("data")
        box.commit()
        assert paths(box, "HEAD") == ["data"]
        box.write(place, "")


def test_ignore_rules_never_hide_what_is_tracked(box: Sandbox):
    box.write(".mlxignore", "*\n")
    box.write("data.csv", "x")
    box.add("data.csv")
    assert box.states() == {"data.csv": "ok"}
    box.write("data.csv.mlx", "<<<<<<< HEAD\nmlx: 1\n=======\nmlx: 1\n>>>>>>> other\n")
    with pytest.raises(RecordError, match="merge conflict markers"):
        box.states()


def test_a_deeper_file_may_count_again(box: Sandbox):
    box.write(".mlxignore", "*.mlx\n")
    box.write("sub/.mlxignore", "!*.mlx\n")
    box.write("a.mlx", "PK\x03")
    assert box.states() == {}
    box.write("sub/b.mlx", "PK\x03")
    with pytest.raises(RecordError, match=r"`sub/b\.mlx` is not a pointer of mlx"):
        box.states()


@pytest.mark.parametrize("folder", ["", "sub/"])
def test_a_pipeline_that_is_a_link_to_nowhere(box: Sandbox, folder: str):
    (box.root / "sub").mkdir()
    (box.root / f"{folder}mlx.yaml").symlink_to("gone.yaml")
    with pytest.raises(RecordError, match=rf"^`{folder}mlx\.yaml` is not a file$"):
        box.states()


def test_a_pipeline_that_is_a_folder(box: Sandbox):
    (box.root / "mlx.yaml").mkdir()
    with pytest.raises(RecordError) as caught:
        box.states()
    assert caught.value.message == "`mlx.yaml` is not a file"
    assert caught.value.hint == "stages are declared in a file of this name: move what is there away, or mend the link"


def test_records_that_were_deleted_without_git(history: Sandbox):
    (history.root / "other data.mlx").unlink()
    assert paths(history, None) == []
    assert paths(history, "HEAD") == ["other data"]


def test_ignored_records_do_not_count(box: Sandbox):
    box.write(".gitignore", "ignored/\n")
    box.write("ignored/x.mlx", "garbage")
    box.write("ignored/mlx.yaml", "garbage")
    assert paths(box, None) == []
    assert box.clean()


def test_huge_file_named_like_a_pointer_is_not_read_whole(box: Sandbox):
    with box.write("model.mlx").open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(RecordError, match=r"`model\.mlx` is not a pointer of mlx"):
        box.states()


def test_pointer_of_a_folder_that_is_elsewhere(box: Sandbox, tmp_path: Path):
    """Records come with the repository: a link among them must not make us hang or read devices."""
    (box.root / "x.mlx").symlink_to("/dev/zero")
    assert box.states() == {}
    (box.root / "mlx.yaml").symlink_to("/dev/zero")
    with pytest.raises(RecordError, match=r"`mlx\.yaml` is not a file"):
        box.states()
    (box.root / "mlx.yaml").unlink()
    os.mkfifo(box.root / "params.yaml")
    box.pipeline("stages:\n  s:\n    cmd: echo\n    params: [a]\n", "sub/mlx.yaml")
    with pytest.raises(RecordError, match=r"takes parameters from `sub/params\.yaml`, which does not exist"):
        box.plan()


def test_locks_of_stages(history: Sandbox):
    with open_snapshot(history.project(), "v1") as snapshot:
        (stage,) = snapshot.stages
        lock = snapshot.lock(stage)
        assert lock is not None
        assert [dep.path for dep in lock.deps] == ["data/x"]
        (data, out) = snapshot.tracked()
        assert (data.kind, data.files, data.size) == (ObjectKind.TREE, 2, 3)
        assert (out.stage, out.kind, out.size) == ("s", ObjectKind.BLOB, 1)


def test_history_of_a_sub_folder(tmp_path: Path):
    box = make_project(tmp_path / "repo", "sub/project")
    box.write("data", "x")
    box.add("data")
    box.commit()
    assert paths(box, "HEAD") == ["data"]


# Looking without a checkout -------------------------------------------------------------------------------------------


def names_at(box: Sandbox, target: str = "", revision: str | None = None, *, recursive: bool = False) -> list[str]:
    with open_snapshot(box.project(), revision) as snapshot:
        return [item.path for item in list_tracked(box.project().cache, snapshot, target, recursive=recursive)]


def test_listing(history: Sandbox):
    assert names_at(history, "", "v1") == ["data", "out"]
    assert names_at(history, "data", "v1") == ["data/sub", "data/x"]
    assert names_at(history, "data/sub", "v1") == ["data/sub/y"]
    assert names_at(history, "data/x", "v1") == ["data/x"]
    assert names_at(history, "", "v1", recursive=True) == ["data/sub/y", "data/x", "out"]
    assert names_at(history, "data", "v1", recursive=True) == ["data/sub/y", "data/x"]
    for target in ("nothing", "data/nothing"):
        with pytest.raises(UsageError):
            names_at(history, target, "v1")


def test_listing_a_folder_that_holds_tracked_paths(box: Sandbox):
    box.write("a/b", "x")
    box.write("a/c/d", "x")
    box.add("a/b", "a/c")
    assert names_at(box, "a") == ["a/b", "a/c"]
    assert names_at(box, "a", recursive=True) == ["a/b", "a/c/d"]


def test_listing_without_data(history: Sandbox, tmp_path: Path):
    from mlops_cli.errors import MissingObject

    other = clone(history, tmp_path / "clone")
    assert names_at(other) == ["other data"]
    with pytest.raises(MissingObject) as caught:
        names_at(other, "other data")
    assert caught.value.message == "the listing of `other data` is not in the cache"


def test_taking_out(history: Sandbox, tmp_path: Path):
    cache = history.project().cache
    with open_snapshot(history.project(), "v1") as snapshot:
        write_copy(cache, find_object(cache, snapshot, "data"), tmp_path / "folder")
        write_copy(cache, find_object(cache, snapshot, "data/sub/y"), tmp_path / "file")
        write_copy(cache, find_object(cache, snapshot, find_object(cache, snapshot, "out").digest[:20]), tmp_path / "o")
        with pytest.raises(UsageError, match="exists already"):
            write_copy(cache, find_object(cache, snapshot, "data"), tmp_path / "file")
        for target in ("data/nothing", "nothing", "blake3:12", "blake3:zzzzzzzz", f"blake3:{'z' * 64}"):
            with pytest.raises((UsageError, Exception)) as caught:
                find_object(cache, snapshot, target)
            assert getattr(caught.value, "hint", None), target
    assert listing(tmp_path / "folder") == {b"sub": ("folder", b""), b"sub/y": ("file", b"22"), b"x": ("file", b"1")}
    assert (tmp_path / "file").read_text() == "22"
    assert (tmp_path / "o").read_text() == "1"
