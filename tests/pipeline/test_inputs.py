"""What counts as a stage's input: files, folders, links, globs, parameters; in a clone without data too."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, RecordError
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.state import Clock
from tests.workspace.projects import Sandbox, clone, wait_for


def stage(box: Sandbox, *deps: str, cmd: str = "echo 1 > out", more: str = "") -> None:
    box.pipeline(f"stages:\n  s:\n    cmd: {cmd}\n    deps: [{', '.join(map(repr, deps))}]\n    outs: [out]\n{more}")


def why(box: Sandbox) -> tuple[str, ...]:
    decision = box.plan()["s"]
    return decision.reasons if decision.action.value != "skip" else ()


# Files, folders, links ------------------------------------------------------------------------------------------------


def test_file(box: Sandbox):
    box.write("code.py", "1")
    stage(box, "code.py")
    box.run()
    assert why(box) == ()
    box.write("code.py", "22")
    assert why(box) == ("`code.py` changed: 1 → 2 bytes",)
    box.write("code.py", "2")
    assert why(box)[0].startswith("`code.py` changed: same size, blake3:")
    (box.root / "code.py").unlink()
    assert why(box) == ("`code.py` does not exist",)


def test_times_are_no_change_and_the_executable_bit_is(box: Sandbox):
    box.write("code.sh", "1")
    stage(box, "code.sh")
    box.run()
    os.utime(box.root / "code.sh", (1, 1))
    box.settle()
    assert why(box) == ()
    (box.root / "code.sh").chmod(0o755)
    box.settle()
    assert why(box) == ("`code.sh` changed: it is now executable",)
    box.run()
    assert why(box) == ()


def test_link_to_a_file_in_a_folder_of_code_counts_as_that_file(box: Sandbox):
    box.write("lib.py", "1")
    (box.root / "src").mkdir()
    (box.root / "src/lib.py").symlink_to("../lib.py")
    stage(box, "src")
    box.run()
    assert why(box) == ()
    box.write("lib.py", "22")
    assert why(box) == ("`src` changed: 1 → 2 bytes",)


def test_folder(box: Sandbox):
    box.write("src/a.py", "a")
    box.write("src/sub/b.py", "b")
    stage(box, "src")
    box.run()
    for name in ("src/__pycache__/a.pyc", "src/sub/__pycache__/b.pyc", "src/.git/config"):
        box.write(name, "bytecode")
    assert why(box) == ()
    box.write("src/new.py", "n")
    assert why(box) == ("`src` changed: 2 → 3 bytes",)


def test_folder_that_is_known_as_a_whole(box: Sandbox):
    """What is left out must not hide the files beside it, which are as they were and so not looked at one by one."""
    box.write("src/a.py", "a")
    box.write("src/sub/b.py", "b")
    stage(box, "src")
    box.run()
    wait_for(lambda: Clock.read(box.project().local).is_settled(os.stat(box.root / "src/sub/b.py")))
    assert why(box) == ()
    assert why(box) == ()
    for name in ("src/__pycache__/a.pyc", "src/sub/__pycache__/b.pyc", "src/.git/config"):
        box.write(name, "bytecode")
    assert why(box) == ()


def test_tracked_folder_is_compared_file_by_file(box: Sandbox):
    box.write("data/a", "a")
    box.write("data/b", "b")
    box.write("data/__pycache__/c", "data all the same")
    box.add("data")
    stage(box, "data")
    box.run()
    box.write("data/a", "A")
    box.write("data/new", "n")
    (box.root / "data/b").unlink()
    (box.root / "data/__pycache__/c").unlink()
    (box.root / "data/__pycache__").rmdir()
    assert why(box) == ("`data` changed: 1 file modified, 1 added, 2 deleted",)


def test_link_to_code_is_what_it_leads_to(box: Sandbox, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/lib.py").write_text("1")
    (box.root / "lib.py").symlink_to(tmp_path / "shared/lib.py")
    (box.root / "libs").symlink_to(tmp_path / "shared")
    stage(box, "lib.py", "libs")
    box.run()
    assert why(box) == ()
    (tmp_path / "shared/lib.py").write_text("22")
    assert why(box) == ("`lib.py` changed: 1 → 2 bytes", "`libs` changed: 1 → 2 bytes")
    (box.root / "lib.py").unlink()
    (box.root / "lib.py").symlink_to("lib.py")
    assert why(box)[-1] == "`lib.py` does not exist"


def test_missing_dependency_stops_the_run(box: Sandbox):
    stage(box, "nothing.py")
    with pytest.raises(RecordError) as caught:
        box.run()
    assert caught.value.message == "mlx.yaml:3: dependency `nothing.py` of stage `s` does not exist"
    assert caught.value.hint == "create it, mend `deps`, or `mlx pull nothing.py` if a remote has it"


def test_path_inside_a_tracked_folder(box: Sandbox):
    box.write("data/a", "a")
    box.write("data/b", "b")
    box.add("data")
    stage(box, "data/a")
    box.run()
    box.write("data/b", "changed")
    assert why(box) == ()
    box.write("data/a", "A2")
    assert why(box) == ("`data/a` changed: 1 → 2 bytes",)


# Globs ----------------------------------------------------------------------------------------------------------------


def test_glob(box: Sandbox):
    for name in ("a.py", "b.py", "sub/c.py", ".hidden.py"):
        box.write(name, name)
    stage(box, "*.py")
    box.run()
    lock = box.read("mlx.lock/s.yaml")
    assert "path: a.py" in lock
    assert "sub/c.py" not in lock
    assert "hidden" not in lock
    assert "globs:\n  - " in lock
    box.write("new.py", "n")
    box.write("b.py", "changed")
    (box.root / "a.py").unlink()
    assert why(box) == (
        "`a.py` is no longer a dependency",
        "`b.py` changed: 4 → 7 bytes",
        "`new.py` is a new dependency",
    )


def test_glob_without_a_match(box: Sandbox):
    stage(box, "*.py")
    assert why(box) == ("it has not run yet (no lock)", "`*.py` does not exist")
    with pytest.raises(RecordError, match=r"dependency `\*\.py` of stage `s` does not exist"):
        box.run()


def test_glob_does_not_see_what_the_stage_makes(box: Sandbox):
    box.write("data/a.csv", "a")
    box.pipeline(
        """
stages:
  s:
    cmd: mkdir -p data/out && cp data/a.csv data/b.csv && cp data/a.csv data/out/c.csv
    deps: ["data/**/*.csv"]
    outs: [data/b.csv, data/out]
"""
    )
    assert box.run() == {"s": "run"}
    assert box.run() == {"s": "skip"}
    assert "path: data/a.csv" in box.read("mlx.lock/s.yaml")
    assert box.read("mlx.lock/s.yaml").count("path:") == 3


def test_glob_does_not_see_locks(box: Sandbox):
    box.write("a.yaml", "a: 1")
    stage(box, "**/*.yaml")
    box.run()
    assert why(box) == ()


def test_glob_over_what_another_stage_makes(box: Sandbox):
    box.write("n", "2")
    box.pipeline(
        """
stages:
  use:
    cmd: cat data/parts/*.txt > sum
    deps: ["data/parts/*.txt"]
    outs: [sum]
  make:
    cmd: mkdir -p data/parts && for i in $(seq $(cat n)); do echo $i > data/parts/$i.txt; done
    deps: [n]
    outs: [data/parts]
"""
    )
    assert box.run() == {"make": "run", "use": "run"}
    assert box.read("sum") == "1\n2\n"
    assert box.run() == {"make": "skip", "use": "skip"}
    box.write("n", "3")
    assert box.reasons("use") == ("`data/parts/*.txt` may change: stage `make` runs first",)
    assert box.run() == {"make": "run", "use": "run"}
    assert box.read("sum") == "1\n2\n3\n"
    box.write("n", "2")
    plan = box.actions()
    assert plan == {"make": "restore", "use": "restore"}
    assert "`data/parts/3.txt` is no longer a dependency" in box.reasons("use")
    assert box.run() == plan


# A clone without data -------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(box: Sandbox) -> Sandbox:
    """Return a project whose stages read tracked data in every way, run, committed and pushed."""
    box.remote()
    for name in ("raw/1.csv", "raw/2.csv", "raw/deep/3.csv", "lone.csv"):
        box.write(f"data/{name}", name)
    box.add("data/raw", "data/lone.csv")
    box.pipeline(
        """
stages:
  whole: {cmd: echo 1 > out1, deps: [data/raw, data/lone.csv], outs: [out1]}
  above: {cmd: echo 2 > out2, deps: [data], outs: [out2]}
  inside: {cmd: echo 3 > out3, deps: [data/raw/deep/3.csv, data/raw/deep], outs: [out3]}
  glob: {cmd: echo 4 > out4, deps: ["data/*.csv", "data/**/*.csv"], outs: [out4]}
  after: {cmd: cat out1 out2 > out5, deps: [out1, "*2"], outs: [out5]}
"""
    )
    box.run()
    box.commit()
    push(box.project())
    return box


def test_plan_of_a_clone_without_data(shared: Sandbox, tmp_path: Path):
    other = clone(shared, tmp_path / "clone")
    plan = other.plan()
    assert {address: decision.action.value for address, decision in plan.items()} == dict.fromkeys(plan, "run")
    missing = "output `out1` is missing", "output `out1` is not in the cache either"
    assert plan["whole"].reasons == missing
    # What lies in a folder whose listing is not here cannot be known; nothing is said to have changed, though.
    for address in ("inside", "glob"):
        assert plan[address].reasons == ("`data/raw` is not here, nor is the listing of what it holds",)
    for address in ("whole", "inside", "glob", "above"):
        with pytest.raises(MissingObject) as caught:
            other.run(address)
        assert "data/raw" in caught.value.message
        assert caught.value.hint is not None
        assert caught.value.hint.startswith("`mlx pull data/")


def test_plan_of_a_clone_with_everything_fetched(shared: Sandbox, tmp_path: Path):
    other = clone(shared, tmp_path / "clone")
    fetch(other.project())
    assert {a: d.reasons for a, d in other.plan().items() if d.action.value != "restore"} == {}
    assert set(other.run().values()) == {"restore"}  # the inputs stay away: nothing has to run
    assert not other.exists("data/raw")
    assert set(other.run().values()) == {"skip"}
    other.checkout()
    assert set(other.run().values()) == {"skip"}
    assert other.changed_in_git() == []


def test_run_needs_the_bytes_of_its_inputs(shared: Sandbox, tmp_path: Path):
    other = clone(shared, tmp_path / "clone")
    fetch(other.project(), ["data"])
    for address, message in (
        ("whole", "stage `whole` needs `data/raw`, `data/lone.csv`, which are recorded but not in the workspace"),
        ("above", "stage `above` needs `data/lone.csv`, `data/raw`, which are recorded but not in the workspace"),
        (
            "inside",
            "stage `inside` needs `data/raw/deep/3.csv`, `data/raw/deep`, which are recorded but not in the workspace",
        ),
    ):
        with pytest.raises(MissingObject) as caught:
            other.run(address)
        assert caught.value.message == message
    with pytest.raises(MissingObject):
        other.run("glob")
    other.checkout("data")
    assert set(other.run().values()) == {"run"}


def test_changed_pointer_counts_without_the_data(shared: Sandbox, tmp_path: Path):
    """A colleague's new pointer: the plan says what changed, from the listings alone."""
    shared.write("data/raw/1.csv", "new content")
    shared.add("data/raw")
    shared.commit()
    push(shared.project())
    other = clone(shared, tmp_path / "clone")
    fetch(other.project())
    assert other.reasons("whole")[0] == "`data/raw` changed: 32 → 34 bytes"  # the old listing is not here
    assert "`data/raw/1.csv` changed: 9 → 11 bytes" in other.reasons("glob")
    assert other.actions()["inside"] == "restore"


# Parameters -----------------------------------------------------------------------------------------------------------


def test_parameter_files_of_every_kind(box: Sandbox):
    box.write("params.yaml", "a: 1\nnested: {deep: {er: x, other: y}}\nunused: 0\n")
    box.write("p.json", '{"list": [1, 2], "unused": null}')
    box.write("p.toml", 'day = "x"\n[section]\nflag = true\nunused = 1\n')
    box.write("whole.yaml", "x: 1\n")
    stage(
        box,
        more="    params: [a, nested.deep.er, p.json: [list], p.toml: [section.flag], {whole.yaml: }]\n",
    )
    box.run()
    assert why(box) == ()
    box.write("params.yaml", "a: 1\nnested: {deep: {er: x, other: CHANGED}}\nunused: 1\n")
    box.write("p.json", '{"unused": 1, "list": [1, 2]}')
    box.write("p.toml", 'day = "y"\n[section]\nflag = true\nunused = 2\n')
    assert why(box) == ()
    box.write("params.yaml", "a: 2\nnested: {deep: {er: z}}\n")
    box.write("p.json", '{"list": [1, 3]}')
    box.write("p.toml", "[section]\nflag = false\n")
    box.write("whole.yaml", "x: 1\ny: 2\n")
    assert why(box) == (
        "`p.json: list` changed [1, 2] → [1, 3]",
        "`p.toml: section.flag` changed true → false",
        "`params.yaml: a` changed 1 → 2",
        '`params.yaml: nested.deep.er` changed "x" → "z"',
        "`whole.yaml: y` is new: 2",
    )


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (None, "mlx.yaml:3: stage `s` takes parameters from `params.yaml`, which does not exist",
         "create `params.yaml`, or take it out of `params`"),
        ("model: {lr: 1}\n", "mlx.yaml:3: stage `s` needs the parameter `train.lr` of `params.yaml`, which is not there",
         "add `train.lr` to `params.yaml`"),
        ("trian: {lr: 1}\n", "mlx.yaml:3: stage `s` needs the parameter `train.lr` of `params.yaml`, which is not there",
         "did you mean `trian`?"),
        ("train: {lrr: 1}\n", "mlx.yaml:3: stage `s` needs the parameter `train.lr` of `params.yaml`, which is not there",
         "did you mean `train.lrr`?"),
        ("train: 1\n", "mlx.yaml:3: stage `s` needs the parameter `train.lr` of `params.yaml`, which is not there",
         "add `train.lr` to `params.yaml`"),
        ("- list\n", "params.yaml:1: a parameter file holds a mapping", "write `key: value` lines"),
        ("", "mlx.yaml:3: stage `s` needs the parameter `train.lr` of `params.yaml`, which is not there",
         "add `train.lr` to `params.yaml`"),
    ],
)  # fmt: skip
def test_parameters_that_are_not_there(box: Sandbox, content: str | None, message: str, hint: str):
    stage(box, more="    params: [train.lr]\n")
    if content is not None:
        box.write("params.yaml", content)
    with pytest.raises(RecordError) as caught:
        box.plan()
    assert (caught.value.message, caught.value.hint) == (message, hint)


TUNED = """
stages:
  tune: {cmd: "cp choice best.json", deps: [choice], outs: [best.json]}
  train: {cmd: echo model && tee model < best.json && echo >> model, params: [best.json: [lr]], outs: [model]}
"""


def test_parameters_that_another_stage_makes(box: Sandbox):
    box.pipeline(TUNED)
    box.write("choice", '{"lr": 1}')
    assert box.run() == {"tune": "run", "train": "run"}
    assert box.run() == {"tune": "skip", "train": "skip"}
    box.write("choice", '{"lr": 2}')
    assert box.reasons("train") == ("`best.json` may change: stage `tune` runs first",)
    assert box.run() == {"tune": "run", "train": "run"}
    box.write("choice", '{"lr": 1}')
    (box.root / "best.json").unlink()
    assert box.actions() == {"tune": "restore", "train": "restore"}
    assert box.reasons("train")[0] == "`best.json: lr` changed 2 → 1"
    assert box.run() == {"tune": "restore", "train": "restore"}
    assert box.read("model") == '{"lr": 1}\n'


def test_parameters_that_another_stage_made_and_nobody_has(box: Sandbox, tmp_path: Path):
    box.pipeline(TUNED)
    box.write("choice", '{"lr": 1}')
    box.run()
    box.commit()
    other = clone(box, tmp_path / "clone")
    assert other.actions() == {"tune": "run", "train": "run"}
    shutil.rmtree(box.project().cache.root)
    (box.root / "best.json").unlink()
    (box.root / "model").unlink()
    assert box.run() == {"tune": "run", "train": "run"}


def test_environment_and_folder(box: Sandbox):
    box.write("work/here", "x")
    box.pipeline(
        """
stages:
  s:
    cmd: ls > ../out && echo $GREETING >> ../out
    wdir: work
    env: {GREETING: "hello  world"}
    outs: [out]
"""
    )
    box.run()
    assert box.read("out") == "here\nhello world\n"
    box.pipeline(box.read("mlx.yaml").replace("mlx: 1\n", "").replace("hello  world", "bye"))
    assert why(box) == ('`env: GREETING` changed "hello  world" → "bye"',)


def test_folder_that_does_not_exist(box: Sandbox):
    from mlops_cli.errors import StageFailed

    stage(box, more="    wdir: nowhere\n")
    with pytest.raises(StageFailed) as caught:
        box.run()
    assert caught.value.message == "stage `s` runs in `nowhere`, which is not a folder"
    assert caught.value.hint == "see `wdir` in mlx.yaml:3"


def test_names_that_need_quoting(box: Sandbox):
    name = 'Ünïcödé "quoted" \n line'
    box.write(name, "x")
    box.write("params.yaml", "x: 1")
    from mlops_cli.documents import dump_yaml

    box.write(
        "mlx.yaml", dump_yaml({"mlx": 1, "stages": {"s": {"cmd": "echo 1 > out", "deps": [name], "outs": ["out"]}}})
    )
    assert box.run() == {"s": "run"}
    assert box.run() == {"s": "skip"}
    os.utime(box.root / name)
    assert box.run() == {"s": "skip"}
