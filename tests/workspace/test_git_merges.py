"""What Git merges in a project: with the driver as it goes along, without it through `mlx resolve`, to one result."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_cli.errors import MissingObject, RecordError, UsageError
from mlops_cli.pipeline.doctor import Health, examine
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store.tree_merge import merge
from mlops_cli.store.trees import Kind, walk
from mlops_cli.workspace import merge_setup
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pulling import pull
from mlops_cli.workspace.pushing import Pushing, push
from mlops_cli.workspace.remove import remove
from mlops_cli.workspace.resolve import Resolution, resolve
from mlops_cli.workspace.sides import Clash, Side
from mlops_cli.workspace.versions import Versions
from tests.store.folders import Leaf, Memory, build
from tests.workspace.projects import Sandbox, clone

PIPELINE = """\
stages:
  one:
    cmd: cp params.yaml one.txt && echo '{"a":' 1$(date +%N) '}' > one.json
    params: [a]
    outs: [one.txt]
    metrics: [one.json]
  two:
    cmd: cp params.yaml two.txt
    params: [b]
    outs: [two.txt]
"""


def install(box: Sandbox) -> None:
    merge_setup.install(box.project(), None)


def diverge(box: Sandbox, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    """Commit what is here, then one thing on the branch `theirs` and another on `main`, which is checked out."""
    box.commit("base")
    box.git("checkout", "--quiet", "-b", "theirs")
    theirs()
    box.commit("theirs")
    box.git("checkout", "--quiet", "main")
    box.checkout()
    ours()
    box.commit("ours")


def in_git(box: Sandbox, *args: str) -> tuple[bool, str]:
    """Return whether Git succeeded, and what it said."""
    done = subprocess.run(["git", *args], cwd=box.root, capture_output=True, text=True, check=False)
    return done.returncode == 0, done.stdout + done.stderr


def mend(box: Sandbox, *targets: str, choice: Side | None = None, fetch: bool = False) -> Resolution:
    project = box.project()
    remote = open_project_remote(project, None)[1] if fetch else None
    with exclusive(project, "mlx resolve"):
        return resolve(project, targets, choice=choice, remote=remote)


def put(box: Sandbox, files: Mapping[str, str | None]) -> None:
    """Write files of the folder `raw`, or delete them, and record it."""
    for name, content in files.items():
        if content is None:
            (box.root / "raw" / name).unlink()
        else:
            box.write(f"raw/{name}", content)
    box.add("raw")


def here(box: Sandbox) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted((box.root / "raw").iterdir())}


def unmerged(box: Sandbox) -> set[str]:
    return set(filter(None, box.git("diff", "--name-only", "--diff-filter=U").split("\n")))


@pytest.mark.parametrize("driver", [True, False])
def test_branches_that_added_to_one_folder_and_beside_it(driver: bool, box: Sandbox) -> None:
    if driver:
        install(box)
    put(box, {"1": "one", "2": "two"})

    def change(own: str, files: Mapping[str, str | None]) -> None:
        put(box, files)
        box.write(own, own)
        box.add(own)

    diverge(box, lambda: change("a.csv", {"3": "three"}), lambda: change("b.csv", {"4": "four", "2": None}))
    merged, said = in_git(box, "merge", "--no-edit", "theirs")

    assert merged is driver, said
    if not driver:
        with pytest.raises(RecordError, match=r"^raw.mlx:3: the file has merge conflict markers of Git") as caught:
            box.states()
        assert caught.value.hint is not None
        assert caught.value.hint.startswith("`mlx resolve raw.mlx` merges both sides, or says what is to be decided; ")
        found = mend(box)
        assert {item.path for item in found.resolved} == {".gitignore", "raw.mlx"}
        assert (found.stuck, found.others, found.doing.go_on) == ((), (), "git commit")
        box.git("commit", "--quiet", "--no-edit")
    assert box.changed_in_git() == []
    box.checkout()
    assert here(box) == {"1": "one", "3": "three", "4": "four"}
    assert box.states() == {"raw": "ok", "a.csv": "ok", "b.csv": "ok"}
    pointer = box.snapshot().pointer("raw")
    assert pointer is not None
    assert (pointer.files, pointer.size) == (3, len("onethreefour"))


@pytest.mark.parametrize("driver", [True, False])
def test_one_file_changed_on_both_sides_is_a_conflict_that_one_decides(driver: bool, box: Sandbox) -> None:
    if driver:
        install(box)
    put(box, {"1": "one", "2": "two"})
    diverge(box, lambda: put(box, {"1": "ours", "3": "three"}), lambda: put(box, {"1": "theirs", "4": "four"}))
    merged, said = in_git(box, "merge", "theirs")

    assert not merged
    assert unmerged(box) == {"raw.mlx"}
    if driver:
        assert "mlx: `raw/1` was changed on both sides; `mlx resolve --ours` or `--theirs` decides\n" in said
    (stuck,) = mend(box).stuck
    assert stuck.clashes == (Clash("raw/1", "changed on both sides"),)
    assert unmerged(box) == {"raw.mlx"}
    mend(box, "raw", choice=Side.THEIRS)
    assert unmerged(box) == set()
    box.checkout()
    assert here(box) == {"1": "theirs", "2": "two", "3": "three", "4": "four"}
    with pytest.raises(UsageError, match="`raw` is not in conflict"):
        mend(box, "raw")


def test_what_was_mended_by_hand_stays(box: Sandbox) -> None:
    put(box, {"1": "one"})
    diverge(box, lambda: put(box, {"2": "ours"}), lambda: put(box, {"3": "theirs"}))
    in_git(box, "merge", "theirs")
    mine = box.git("show", "HEAD:raw.mlx").replace("size: 7", "size: 8") + "\n"
    box.write("raw.mlx", mine)

    (stuck,) = mend(box).stuck
    assert str(stuck.error) == "`raw.mlx` was edited after the merge"
    assert box.read("raw.mlx") == mine
    box.git("checkout", "--merge", "raw.mlx")
    assert mend(box).stuck == ()
    # A kill between writing the file and telling Git of it: the same again goes on.
    merged = box.read("raw.mlx")
    box.git("checkout", "--merge", "raw.mlx")
    box.write("raw.mlx", merged)
    assert [item.path for item in mend(box).resolved] == ["raw.mlx"]
    box.git("commit", "--quiet", "--no-edit")
    box.write("raw.mlx", "<<<<<<< ours\n=======\n>>>>>>> theirs\n")
    with pytest.raises(UsageError, match="has conflict markers, but Git's index has no versions of it"):
        mend(box, "raw")


def test_a_folder_that_both_sides_began_and_a_pointer_that_one_removed(box: Sandbox) -> None:
    install(box)
    box.write("gone.csv", "a")
    box.add("gone.csv")

    def ours() -> None:
        put(box, {"1": "one"})
        (box.root / "gone.csv.mlx").unlink()

    def theirs() -> None:
        put(box, {"2": "two"})
        box.write("gone.csv", "b")
        box.add("gone.csv")

    diverge(box, ours, theirs)
    merged, said = in_git(box, "merge", "theirs")

    assert not merged
    assert unmerged(box) == {"gone.csv.mlx"}, said
    (stuck,) = mend(box).stuck
    assert stuck.clashes == (Clash("gone.csv", "deleted in ours, changed in theirs"),)
    mend(box, choice=Side.OURS)
    assert unmerged(box) == set()
    assert not box.exists("gone.csv.mlx")
    box.checkout()
    assert here(box) == {"1": "one", "2": "two"}


def test_data_whose_pointer_stays_does_not_go_to_git(box: Sandbox) -> None:
    for name in ("data", "other"):
        box.write(name, "1")
        box.add(name)

    def theirs() -> None:
        remove(box.project(), ["data"])
        (box.root / "data").unlink()

    def ours() -> None:
        box.write("data", "2")
        box.add("data")

    diverge(box, ours, theirs)
    in_git(box, "merge", "theirs")
    assert box.read(".gitignore") == "/other\n"

    mend(box, choice=Side.OURS)

    assert box.read(".gitignore") == "/data\n/other\n"
    box.commit("merged")
    assert "data" not in box.git("ls-files").split("\n")
    assert box.states() == {"data": "ok", "other": "ok"}


@pytest.mark.parametrize("command", ["rebase", "cherry-pick"])
def test_a_rebase_says_whose_ours_is(command: str, box: Sandbox) -> None:
    install(box)
    put(box, {"1": "one"})
    diverge(box, lambda: put(box, {"1": "main", "2": "two"}), lambda: put(box, {"1": "theirs", "3": "three"}))
    if command == "rebase":
        box.git("checkout", "--quiet", "theirs")
        merged, _ = in_git(box, "rebase", "main")
        whose = ("what you rebase onto", "your own commit")
    else:
        merged, _ = in_git(box, "cherry-pick", "theirs")
        whose = ("`HEAD`", "the commit that you pick")

    assert not merged
    doing = mend(box, choice=Side.THEIRS).doing
    assert (doing.name, doing.ours, doing.theirs) == (command, *whose)
    assert doing.go_on == f"git {command} --continue"
    box.git("-c", "core.editor=true", command, "--continue")
    box.checkout()
    assert here(box) == {"1": "theirs", "2": "two", "3": "three"}


def test_where_nothing_is_cached_nothing_is_lost_and_listings_can_be_fetched(box: Sandbox, tmp_path: Path) -> None:
    box.remote()
    put(box, {"1": "one"})
    install(box)
    diverge(box, lambda: put(box, {"2": "two"}), lambda: put(box, {"3": "three"}))
    push(box.project(), (), Pushing(Versions(["main", "theirs", "main~1"])))
    other = clone(box, tmp_path / "other")
    install(other)
    merged, said = in_git(other, "merge", "origin/theirs")

    assert not merged
    assert "a listing of its files is not here; `mlx resolve --fetch` brings listings from a remote" in said
    (stuck,) = mend(other).stuck
    assert isinstance(stuck.error, MissingObject)
    with pytest.raises(RecordError, match="merge conflict markers"):
        other.states()
    assert mend(other, fetch=True).stuck == ()
    assert other.states() == {"raw": "not_cached"}
    pull(other.project())
    assert here(other) == {"1": "one", "2": "two", "3": "three"}


@pytest.mark.parametrize("driver", [True, False])
def test_branches_that_ran_stages(driver: bool, box: Sandbox) -> None:
    if driver:
        install(box)
    box.pipeline(PIPELINE)

    def ran(text: str) -> None:
        box.write("params.yaml", text)
        box.run(run_cache=False)

    ran("a: 1\nx: 0\nx1: 0\nx2: 0\nb: 1\n")
    # Both change `a` alike, so both run `one`, which never gives the same twice; theirs changes `b`, too.
    diverge(box, lambda: ran("a: 2\nx: 0\nx1: 0\nx2: 0\nb: 1\n"), lambda: ran("a: 2\nx: 0\nx1: 0\nx2: 0\nb: 2\n"))
    ours = box.read("one.json")
    merged, said = in_git(box, "merge", "--no-edit", "theirs")

    assert not merged
    assert unmerged(box) == ({"one.json"} if driver else {"one.json", "mlx.lock/one.yaml"}), said
    if driver:
        assert "mlx: mlx.lock/one.yaml: ours is kept, which ran with the inputs of the merge\n" in said
    found = mend(box)
    assert (found.stuck, found.others) == ((), ())
    assert box.read("one.json") == ours
    box.git("commit", "--quiet", "--no-edit")
    assert box.actions() == {"one": "skip", "two": "restore"}
    box.run()
    assert box.actions() == {"one": "skip", "two": "skip"}
    assert box.changed_in_git() == []


def test_a_stage_that_nobody_ran_with_both_changes_runs_again(box: Sandbox) -> None:
    install(box)
    box.pipeline("stages:\n  one:\n    cmd: echo > one.txt\n    params: [a, b]\n    outs: [one.txt]\n")

    def ran(text: str) -> None:
        box.write("params.yaml", text)
        box.run()

    ran("a: 1\nx: 0\nx1: 0\nx2: 0\nb: 1\n")
    diverge(box, lambda: ran("a: 2\nx: 0\nx1: 0\nx2: 0\nb: 1\n"), lambda: ran("a: 1\nx: 0\nx1: 0\nx2: 0\nb: 2\n"))
    merged, said = in_git(box, "merge", "--no-edit", "theirs")

    # The outputs are equal, so Git's own merge would have made a lock of a run that never was.
    assert merged, said
    assert "ours is kept; nobody ran it with the inputs of the merge yet: `mlx run` does" in said
    assert box.actions() == {"one": "run"}
    assert box.reasons("one") == ("`params.yaml: b` changed 1 → 2",)


# --- installing -----------------------------------------------------------------------------------------------------


def test_installing_keeps_what_is_there_and_can_be_taken_back(box: Sandbox) -> None:
    box.write(".gitattributes", "*.png binary\n.gitignore merge=union")
    found = merge_setup.install(box.project(), None)

    assert found.others == (".gitignore merge=union",)
    text = "*.png binary\n.gitignore merge=union\n*.mlx merge=mlx\n**/mlx.lock/*.yaml merge=mlx\n"
    assert box.read(".gitattributes") == text
    assert merge_setup.install(box.project(), None) == merge_setup.Setup(False, False, found.others)
    assert [found.health for found in examine(box.root, os.environ) if found.name == "merges"] == [Health.OK]
    box.git("config", "--local", "--remove-section", "merge.mlx")
    (merges,) = (found for found in examine(box.root, os.environ) if found.name == "merges")
    assert (merges.health, merges.hint) == (Health.WARNING, "`mlx install`")
    merge_setup.install(box.project(), None)
    done = merge_setup.uninstall(box.project())
    assert done == merge_setup.Setup(True, True)
    assert box.read(".gitattributes") == "*.png binary\n.gitignore merge=union\n"
    assert merge_setup.uninstall(box.project()) == merge_setup.Setup(False, False)
    assert "merge.mlx" not in box.git("config", "--local", "--list")
    (box.root / ".gitattributes").unlink()
    (box.root / ".gitattributes").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="is a link"):
        merge_setup.install(box.project(), None)


@pytest.mark.parametrize("program", ["gone", "broken", "odd"])
def test_a_program_that_is_gone_or_of_odd_a_place(program: str, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    place = box.root.parent / "a 50% 'place'" / "mlx"
    if program == "broken":  # its environment has lost what it needs
        place.parent.mkdir()
        place.write_text("#!/bin/sh\nexit 1\n")
        place.chmod(0o755)
    elif program == "odd":
        place.parent.mkdir()
        place.write_text(f"#!/bin/sh\nexec '{merge_program()}' \"$@\"\n")
        place.chmod(0o755)
    merge_setup.install(box.project(), place)
    put(box, {"1": "one"})
    diverge(box, lambda: put(box, {"2": "two"}), lambda: put(box, {"3": "three"}))
    monkeypatch.setenv("PATH", os.defpath)

    merged, said = in_git(box, "merge", "--no-edit", "theirs")
    assert merged is (program == "odd"), said
    assert ("<<<<<<< ours" in box.read("raw.mlx")) is (program != "odd")


def merge_program() -> str:
    found = subprocess.run(["/bin/sh", "-c", "command -v mlx"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


# --- as Git would ---------------------------------------------------------------------------------------------------

contents = st.sampled_from([b"1", b"2", b"3"])
files = st.dictionaries(st.sampled_from([b"a", b"b", b"c", b"d/a", b"d/b"]), contents)


def nested(flat: Mapping[bytes, bytes]) -> dict[bytes, object]:
    found: dict[bytes, dict[bytes, object]] = {b"": {}}
    for path, content in flat.items():
        above, _, name = path.rpartition(b"/")
        found.setdefault(above, {})[name] = Leaf(Kind.FILE, path + content)
    return found.pop(b"") | found


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files, files, files)
def test_trees_merge_as_git_merges_the_same_files(
    repo: Path, base: dict[bytes, bytes], ours: dict[bytes, bytes], theirs: dict[bytes, bytes]
) -> None:
    store = Memory()
    folder, conflicts = merge(store, store, *(build(store, nested(side)).digest for side in (base, ours, theirs)))

    def commit(side: dict[bytes, bytes], *parents: str) -> str:
        """Commit files that Git is to merge as wholes."""
        lines = "".join(f"100644 blob {blobs[path + content]}\t{path.decode()}\n" for path, content in side.items())
        git("read-tree", "--empty")
        git("update-index", "--index-info", given=lines)
        return git("commit-tree", "-m", "x", *(f"-p{parent}" for parent in parents), git("write-tree"))

    def git(*args: str, given: str = "", fine: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(["git", *args], cwd=repo, input=given, capture_output=True, text=True, check=False)
        assert done.returncode in fine, done.stderr
        return done.stdout.strip()

    # No two paths have the same bytes: Git would take one for the other, renamed.
    everything = {path + content for side in (base, ours, theirs) for path, content in side.items()}
    blobs = {data: git("hash-object", "-w", "--stdin", given=data.decode()) for data in everything}
    root = commit(base)
    merged = git("merge-tree", "--write-tree", "--name-only", commit(ours, root), commit(theirs, root), fine=(0, 1))
    tree, *rest = merged.split("\n")
    in_conflict = {line.encode() for line in rest[: rest.index("") if "" in rest else None]}

    assert {conflict.path for conflict in conflicts} == in_conflict
    if not conflicts:
        found = {path.decode() for path, entry in walk(store, folder.digest) if entry.kind == Kind.FILE}
        assert found == set(filter(None, git("ls-tree", "-r", "--name-only", tree).split("\n")))
