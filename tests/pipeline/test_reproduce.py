"""Doing a past run again: the verdict, and what it must not touch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_cli.errors import Inconclusive, MissingObject, RemoteError, StageFailed, UsageError
from mlops_cli.pipeline.verdicts import MetricVerdict, Standard, parse_tolerances
from mlops_cli.workspace.pushing import push
from tests.objects import lose, stored
from tests.workspace.projects import Sandbox, clone, is_alive, listing, make_project, wait_for

PIPELINE = """
stages:
  prepare:
    cmd: tr a-z A-Z < data/raw/words > prepared
    deps: [data/raw]
    outs: [prepared]
  train:
    cmd: sh train.sh
    deps: [train.sh, prepared]
    params: [lr]
    outs: [model]
    metrics: [m.json]
"""


@pytest.fixture
def past(box: Sandbox) -> Sandbox:
    """Return a project with a result in `HEAD~1`, and other data, code and parameters since."""
    box.remote()
    box.write("data/raw/words", "one two\n")
    box.add("data/raw")
    box.write("params.yaml", "lr: 1\n")
    box.write("train.sh", 'cat prepared > model; printf \'{"deep": {"size": %d}}\' $(wc -c < model) > m.json\n')
    box.pipeline(PIPELINE)
    box.run()
    box.commit("result")
    box.write("data/raw/words", "three\n")
    box.add("data/raw")
    box.write("train.sh", box.read("train.sh") + "# other\n")
    box.run()
    box.commit("later")
    return box


def outside_git(box: Sandbox) -> dict[bytes, tuple[str, bytes]]:
    return {path: found for path, found in listing(box.root).items() if not path.startswith(b".git/")}


def verdicts(box: Sandbox, revision: str = "HEAD~1", *targets: str) -> dict[str, bool]:
    return {stage.stage: stage.same for stage in box.reproduce(revision, targets).stages}


def test_same(past: Sandbox):
    box = past
    box.write("prepared", "edited since")
    box.write("new file", "mine")
    before, runs = outside_git(box), set(box.project().cache.list_runs())
    result = box.reproduce("HEAD~1")
    assert result.same
    assert result.commit == box.git("rev-parse", "HEAD~1")
    assert [(stage.stage, [out.path for out in stage.outs]) for stage in result.stages] == [
        ("prepare", ["prepared"]),
        ("train", ["m.json", "model"]),
    ]
    assert outside_git(box) == before
    assert set(box.project().cache.list_runs()) == runs
    assert list((box.project().local / "worktrees").iterdir()) == []
    assert box.git("worktree", "list").count("\n") == 0


def test_some_stages(past: Sandbox):
    assert verdicts(past, "HEAD~1", "train") == {"train": True}
    with pytest.raises(UsageError, match="there is no stage `nothing`"):
        past.reproduce("HEAD~1", ["nothing"])


def test_different_output_and_metric(past: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command depends on something that is not declared."""
    box = past
    box.write("train.sh", f"cat prepared {tmp_path}/hidden > model\nprintf '{{\"n\": %d}}' $(wc -c < model) > m.json\n")
    (tmp_path / "hidden").write_text("1")
    box.run()
    box.commit()
    assert verdicts(box, "HEAD") == {"prepare": True, "train": True}
    (tmp_path / "hidden").write_text("22")
    result = box.reproduce("HEAD")
    assert not result.same
    train = result.stages[1]
    assert {out.path: out.same for out in train.outs} == {"model": False, "m.json": False}
    assert train.metrics == (MetricVerdict("m.json", "n", 7, 8),)
    assert box.read("model") == "THREE\n1"


def test_metrics_that_are_near_enough(past: Sandbox, tmp_path: Path):
    box = past
    box.write("train.sh", f'cp prepared model\nread n < {tmp_path}/n\nprintf \'{{"n": %s, "m": 1}}\' $n > m.json\n')
    (tmp_path / "n").write_text("100\n")
    box.run()
    box.commit()
    (tmp_path / "n").write_text("101.5\n")

    def judge(*texts: str, metrics_only: bool = False) -> bool:
        return box.reproduce("HEAD", ["train"], standard=Standard(parse_tolerances(texts), metrics_only)).same

    near = box.reproduce("HEAD", ["train"], standard=Standard(parse_tolerances(["n=2%"])))
    (train,) = near.stages
    assert near.same
    assert train.metrics == (MetricVerdict("m.json", "n", 100, 101.5, within=True),)
    assert {out.path: (out.same, out.counts) for out in train.outs} == {"model": (True, True), "m.json": (False, False)}
    assert judge("m.json:*=1.5", metrics_only=True)
    assert not judge("n=1%")
    assert not judge("m=5")
    assert not judge(metrics_only=True)
    with pytest.raises(UsageError, match=r"no stage of these has the metric `nn`"):
        judge("nn=1")


def test_an_environment_that_is_another_is_told_before_anything_runs(box: Sandbox):
    box.pipeline("stages:\n  s: {cmd: echo 1 > out, outs: [out], environment: {python: true}}\n")
    box.run()
    lock = box.read("mlx.lock/s.yaml")
    version = next(line for line in lock.splitlines() if "python:" in line).partition(":")[2].strip().strip('"')
    box.write("mlx.lock/s.yaml", lock.replace(version, "3.0.1"))
    box.commit()

    result = box.reproduce()

    assert result.same
    assert [(each.name, each.old, each.new) for each in result.environment] == [("python", "3.0.1", version)]
    assert f"the environment is not the recorded one: `python` was 3.0.1, now {version}" in box.heard.notes


def test_stages_after_a_different_one_get_the_recorded_output(past: Sandbox, tmp_path: Path):
    box = past
    box.pipeline(
        f"""
stages:
  first: {{cmd: cp {tmp_path}/hidden one, outs: [one]}}
  second: {{cmd: cp one two, deps: [one], outs: [two]}}
"""
    )
    (tmp_path / "hidden").write_text("1")
    box.run()
    box.commit()
    (tmp_path / "hidden").write_text("2")
    assert verdicts(box, "HEAD") == {"first": False, "second": True}


def test_recorded_output_that_is_in_no_store(past: Sandbox, tmp_path: Path):
    """What differs is the answer, even when nothing can be said about the stages after it."""
    box = past
    box.pipeline(
        f"""
stages:
  first: {{cmd: cp {tmp_path}/hidden one, outs: [one]}}
  second: {{cmd: cp one two, deps: [one], outs: [two]}}
"""
    )
    (tmp_path / "hidden").write_text("1")
    box.run()
    box.commit()
    (tmp_path / "hidden").write_text("2")
    (out,) = box.snapshot().outputs(box.snapshot().stages[0])
    lose(box.project().cache, out.digest)
    assert verdicts(box, "HEAD") == {"first": False}
    (note,) = box.heard.notes
    assert note.startswith("stage `second` and those after it were not judged: ")


def test_recorded_output_comes_from_the_remote(past: Sandbox, tmp_path: Path):
    box = past
    box.pipeline(
        f"""
stages:
  first: {{cmd: cp {tmp_path}/hidden one, outs: [one]}}
  second: {{cmd: cp one two, deps: [one], outs: [two]}}
"""
    )
    (tmp_path / "hidden").write_text("1")
    box.run()
    box.commit()
    push(box.project())
    shutil.rmtree(box.project().cache.root)
    (tmp_path / "hidden").write_text("2")
    assert verdicts(box, "HEAD") == {"first": False, "second": True}


def test_stale_lock(past: Sandbox):
    past.write("params.yaml", "lr: 5\n")
    past.commit("forgot to run")
    with pytest.raises(Inconclusive) as caught:
        past.reproduce("HEAD")
    assert caught.value.message == (
        "the lock of stage `train` does not belong to this revision: `params.yaml: lr` changed 1 → 5"
    )
    assert caught.value.hint == ("the commit was made without running the stage again: choose one made after `mlx run`")
    assert caught.value.exit_code == 3
    assert verdicts(past, "HEAD", "prepare") == {"prepare": True}


def test_code_that_was_not_committed(past: Sandbox):
    past.git("rm", "--quiet", "--cached", "params.yaml")
    past.git("commit", "--quiet", "-m", "without parameters")
    with pytest.raises(Inconclusive, match=r"takes parameters from `params\.yaml`, which does not exist"):
        past.reproduce("HEAD")


def test_no_lock(past: Sandbox):
    past.git("rm", "--quiet", "-r", "--cached", "mlx.lock")
    past.git("commit", "--quiet", "-m", "without locks")
    with pytest.raises(Inconclusive) as caught:
        past.reproduce("HEAD")
    assert caught.value.message == ("stage `prepare` has no lock in this revision: there is no result to compare with")


def test_revisions_without_an_answer(past: Sandbox):
    with pytest.raises(UsageError, match="Git knows no revision `nothing`"):
        past.reproduce("nothing")
    empty = past.git(
        "commit-tree", "-m", "empty", past.git("mktree", "--missing") or "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
    )
    with pytest.raises(UsageError) as caught:
        past.reproduce(empty)
    assert caught.value.message == f"revision `{empty}` is from before `mlx init`"
    past.git("rm", "--quiet", "mlx.yaml")
    past.commit("no stages")
    with pytest.raises(Inconclusive, match="revision `HEAD` has no stages") as inconclusive:
        past.reproduce("HEAD")
    assert inconclusive.value.hint == "choose a revision that has stages"


@pytest.fixture
def noted(past: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a project whose first stage notes every run of it in `runs`, outside of the project."""
    past.pipeline(
        f"""
stages:
  first: {{cmd: echo >> {tmp_path}/runs && tr a-z A-Z < data/raw/words > one, deps: [data/raw], outs: [one]}}
  second: {{cmd: cat one extra > two, deps: [one, extra], params: [lr], outs: [two]}}
"""
    )
    past.write("extra", "more")
    past.add("extra")
    past.run()
    past.commit()
    (tmp_path / "runs").unlink()
    return past


def test_nothing_runs_when_a_later_stage_has_no_lock(noted: Sandbox, tmp_path: Path):
    noted.git("rm", "--quiet", "mlx.lock/second.yaml")
    noted.commit()
    with pytest.raises(Inconclusive, match="stage `second` has no lock"):
        noted.reproduce("HEAD")
    assert not (tmp_path / "runs").exists()
    assert verdicts(noted, "HEAD", "first") == {"first": True}


def test_nothing_runs_when_a_later_stage_has_a_stale_lock(noted: Sandbox, tmp_path: Path):
    noted.write("params.yaml", "lr: 7\n")
    noted.commit()
    with pytest.raises(Inconclusive, match="the lock of stage `second` does not belong to this revision"):
        noted.reproduce("HEAD")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("target", ["extra", "data"])
def test_nothing_runs_when_an_input_is_in_no_store(noted: Sandbox, tmp_path: Path, target: str):
    """Whether the first stage needs it or the second, nothing is run, and nothing downloaded."""
    push(noted.project(), ["extra"] if target == "data" else ["data/raw"])
    other = clone(noted, tmp_path / "clone")
    with pytest.raises(MissingObject, match="nor on remote `storage`"):
        other.reproduce("HEAD")
    assert not (tmp_path / "runs").exists()
    assert list(other.project().cache.list()) == []


def test_what_stages_before_make_need_not_be_stored(noted: Sandbox, tmp_path: Path):
    push(noted.project(), ["data/raw", "extra"])
    other = clone(noted, tmp_path / "clone")
    with pytest.raises(MissingObject, match="input `one` of stage `second`"):
        other.reproduce("HEAD", ["second"])
    assert verdicts(other, "HEAD") == {"first": True, "second": True}


def test_missing_input(past: Sandbox, tmp_path: Path):
    (tmp_path / "remote").mkdir()
    other = clone(past, tmp_path / "clone")
    with pytest.raises(MissingObject) as caught:
        other.reproduce("HEAD~1")
    assert caught.value.exit_code == 4
    assert caught.value.message.startswith("input `data/raw` of stage `prepare` (blake3:")
    assert caught.value.message.endswith(") is not in the cache, nor on remote `storage`")
    assert caught.value.hint == "`mlx push` from a clone that has it, with that commit checked out"
    assert list((other.project().local / "worktrees").iterdir()) == []


def test_remote_that_is_gone(past: Sandbox, tmp_path: Path):
    other = clone(past, tmp_path / "clone")
    with pytest.raises(RemoteError, match="does not exist"):
        other.reproduce("HEAD")


def test_missing_input_without_a_remote(past: Sandbox, tmp_path: Path):
    past.write(".mlx/config.yaml", "mlx: 1\n")
    past.commit()
    other = clone(past, tmp_path / "clone")
    with pytest.raises(MissingObject) as caught:
        other.reproduce("HEAD")
    assert caught.value.message.endswith("is not in the cache, and there is no remote")
    assert caught.value.hint == "`mlx remote add storage URL`"


def test_fresh_clone_fetches_what_it_needs(past: Sandbox, tmp_path: Path):
    """The remote's URL is relative to the project, not to the scratch worktree."""
    push(past.project())
    other = clone(past, tmp_path / "clone")
    assert verdicts(other, "HEAD") == {"prepare": True, "train": True}
    assert not other.exists("data/raw")
    assert other.changed_in_git() == []


def test_cache_that_is_relative_to_the_project(tmp_path: Path):
    box = make_project(tmp_path / "repo", "sub/project")
    box.configure("cache.dir", "../../../cache")
    box.write("data", "x")
    box.add("data")
    box.pipeline("stages:\n  s: {cmd: cp data out, deps: [data], outs: [out]}\n")
    box.run()
    box.commit()
    assert stored(tmp_path / "cache")
    assert verdicts(box, "HEAD") == {"s": True}


def test_failing_command(past: Sandbox):
    past.write("train.sh", "cat prepared > model; echo '{}' > m.json; test ! -e nope\n")
    past.run()
    past.commit()
    box = past
    box.write("train.sh", "echo said something; exit 4\n")
    lock = box.read("mlx.lock/train.yaml")
    from mlops_cli.hashing import hash_file

    old = lock.partition("path: train.sh, blob: ")[2][:71]
    size = lock.partition(f"{old}, size: ")[2].partition("}")[0]
    new = box.root / "train.sh"
    box.write(
        "mlx.lock/train.yaml", lock.replace(f"{old}, size: {size}", f"{hash_file(new)}, size: {new.stat().st_size}")
    )
    box.commit("a record of a run that never was")
    with pytest.raises(StageFailed) as caught:
        box.reproduce("HEAD")
    assert caught.value.message == "stage `train` failed: exit code 4"
    assert str(caught.value.hint).endswith("it is the revision's command, in today's environment")
    assert b"said something" in box.heard.output
    assert list((box.project().local / "worktrees").iterdir()) == []


def test_metrics_that_were_edited_in_the_commit(past: Sandbox):
    """The lock says what the run made; a commit that says another thing has no one result to compare with."""
    past.write("m.json", past.read("m.json") + " ")
    past.commit("edited by hand")
    with pytest.raises(Inconclusive, match="is not what the lock of stage"):
        past.reproduce("HEAD")


KILLED = """
import os, sys
from pathlib import Path
from tests.workspace.projects import Sandbox

Sandbox(Path(sys.argv[1])).reproduce("HEAD")
"""


def test_killed_reproduction_is_cleaned_up_by_the_next(past: Sandbox, tmp_path: Path):
    box = past
    box.pipeline(
        f"stages:\n  s: {{cmd: 'touch out; echo $$ > {tmp_path}/pid; test -e {tmp_path}/go || sleep 60', outs: [out]}}\n"
    )
    (tmp_path / "go").touch()
    box.run()
    box.commit()
    (tmp_path / "go").unlink()
    (tmp_path / "pid").unlink()
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, box.root], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    (folder,) = (path for path in (box.project().local / "worktrees").iterdir() if path.is_dir())
    pid = int((tmp_path / "pid").read_text())
    assert is_alive(pid)
    (tmp_path / "go").touch()
    assert verdicts(box, "HEAD") == {"s": True}
    assert not is_alive(pid)
    assert not folder.exists()
    assert list((box.project().local / "worktrees").iterdir()) == []
    assert box.git("worktree", "list").count("\n") == 0


def test_worktree_that_git_had_only_begun(past: Sandbox):
    parent = past.project().local / "worktrees"
    dead = 2**22 + 9
    (parent / f"{dead}-half").mkdir(parents=True)
    (parent / f"{dead}-half" / "file").write_text("x")
    past.git("worktree", "add", "--quiet", "--detach", parent / f"{dead}-gone", "HEAD")
    shutil.rmtree(parent / f"{dead}-gone")
    past.git("worktree", "add", "--quiet", "--detach", "--lock", parent / f"{dead}-locked", "HEAD")
    (parent / f"{dead}-locked.json").write_text(json.dumps([dead, "never"]))
    mine = parent / f"{os.getppid()}-alive"
    mine.mkdir()
    assert past.reproduce("HEAD").same
    assert [path.name for path in parent.iterdir()] == [mine.name]
    mine.rmdir()
    assert past.git("worktree", "list").count("\n") == 0


def test_from_a_worktree(past: Sandbox, tmp_path: Path):
    past.git("worktree", "add", "--quiet", tmp_path / "second", "-b", "second", "HEAD~1")
    second = Sandbox(tmp_path / "second")
    assert verdicts(second, "HEAD") == {"prepare": True, "train": True}
    assert outside_git(second).keys() == outside_git(second).keys()


def test_matrix_and_sub_folders(box: Sandbox):
    box.pipeline(
        """
stages:
  train:
    matrix: {model: [rf, gb]}
    cmd: echo ${model} > ${model}.txt
    outs: ["${model}.txt"]
""",
        "sub/mlx.yaml",
    )
    box.pipeline('stages:\n  sum: {cmd: cat sub/*.txt > sum, deps: ["sub/*.txt"], outs: [sum]}\n')
    box.run()
    box.commit()
    assert verdicts(box, "HEAD") == {"sub:train@rf": True, "sub:train@gb": True, "sum": True}
    assert verdicts(box, "HEAD", "sub:train") == {"sub:train@rf": True, "sub:train@gb": True}
    shutil.rmtree(box.project().cache.root)
    with pytest.raises(MissingObject):
        verdicts(box, "HEAD", "sum")
