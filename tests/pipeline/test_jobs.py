"""Jobs: a stage runs with its file and the remote, in a folder that knows nothing else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, Inconclusive, MissingObject, RecordError, StageFailed, UsageError
from mlops_cli.pipeline.jobs import MadeJob, make_job
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.pipeline.worker import JobResult, Place, run_job
from mlops_cli.progress import SILENT
from mlops_cli.records.jobs import Job, read_job
from tests.workspace.projects import Sandbox

PIPELINE = """\
stages:
  prepare: {cmd: 'mkdir -p prepared; cat data/* > prepared/all', deps: [data], outs: [prepared]}
  train:
    cmd: [cat lib/head prepared/all > model, 'echo "{\\"n\\": 1}" > m.json', grep lr params.yaml]
    deps: [prepared, lib/head]
    params: [lr]
    outs: [model]
    metrics: [m.json]
"""


@pytest.fixture
def ready(box: Sandbox) -> Sandbox:
    box.remote()
    box.write("data/a", "1\n")
    box.write("data/b", "2\n")
    box.add("data")
    box.write("lib/head", "head\n", mode=0o755)
    box.write("params.yaml", "lr: 0.1\n")
    box.pipeline(PIPELINE)
    return box


def make(box: Sandbox, target: str = "train", remote: str | None = None) -> MadeJob:
    project = box.project()
    with exclusive(project, "test", box.heard):
        return make_job(project, target, remote=remote, reporter=box.heard)


def work(
    job: Job, folder: Path, *, force: bool = False, url: str | None = None, log: bytearray | None = None
) -> JobResult:
    heard = bytearray() if log is None else log
    place = Place(folder, None, {"PATH": os.environ["PATH"], "HOME": str(folder)})
    return run_job(job, place, url=url, force=force, output=heard.extend, reporter=SILENT)


def test_a_worker_needs_the_file_and_the_remote_alone(ready: Sandbox, tmp_path: Path) -> None:
    ready.run("prepare")
    ready.write("lib/head", "edited, and in no commit\n", mode=0o755)
    made = make(ready).job
    job = read_job(made.to_bytes(), "job.yaml")
    assert job == made
    away = tmp_path / "away"
    ready.root.rename(away)
    log = bytearray()

    result = work(job, tmp_path / "worker", log=log)

    assert (result.stage, result.reused, [out.path for out in result.outs]) == ("train", False, ["m.json", "model"])
    assert (result.metrics, bytes(log)) == ({"m.json": {"n": 1}}, b"lr: 0.1\n")
    assert (tmp_path / "worker/project/model").read_text() == "edited, and in no commit\n1\n2\n"
    again = work(job, tmp_path / "other")
    assert (again.reused, again.outs) == (True, result.outs)

    # What it made is what the stage makes here.
    away.rename(ready.root)
    assert ready.run() == {"prepare": "skip", "train": "run"}
    lock = ready.snapshot().lock(ready.snapshot().stages[1])
    assert lock is not None
    assert [(out.path, out.digest) for out in lock.outs] == [(out.path, out.digest) for out in result.outs]
    assert make(ready).job.key == job.key


def test_what_is_sent_is_what_the_remote_lacks(ready: Sandbox) -> None:
    ready.run("prepare")
    assert make(ready).moved.objects > 0
    assert make(ready).moved.objects == 0
    ready.write("lib/head", "x\n", mode=0o755)
    assert make(ready).moved.objects == 3  # the file, its folder, the project


def test_data_that_is_not_here_need_not_come(ready: Sandbox, tmp_path: Path) -> None:
    ready.run("prepare")
    first = make(ready).job
    shutil.rmtree(ready.root / "prepared")
    shutil.rmtree(ready.root / "data")

    assert make(ready).job == first
    assert not ready.exists("prepared")
    assert work(first, tmp_path / "worker").reused is False


def test_a_stage_whose_inputs_are_still_to_be_made_is_no_job(ready: Sandbox) -> None:
    with pytest.raises(UsageError, match="stage `prepare` must run before `train`: it has not run yet"):
        make(ready)
    with pytest.raises(UsageError, match="there is no stage `tain`"):
        make(ready, "tain")
    ready.pipeline(PIPELINE + "  many: {matrix: {a: [1, 2]}, cmd: 'echo ${a} > m${a}', outs: ['m${a}']}\n")
    with pytest.raises(UsageError, match="`many` means 2 stages"):
        make(ready, "many")


def test_a_failure_leaves_no_result(ready: Sandbox, tmp_path: Path) -> None:
    ready.pipeline("stages: {bad: {cmd: 'echo half > out; exit 3', outs: [out]}}\n")
    job = make(ready, "bad").job

    with pytest.raises(StageFailed, match="stage `bad` failed: exit code 3") as caught:
        work(job, tmp_path / "worker")
    assert caught.value.hint is not None
    assert Path(caught.value.hint.split("`")[1]).is_file()

    ready.pipeline("stages: {bad: {cmd: 'echo whole > out', outs: [out]}}\n")
    assert work(make(ready, "bad").job, tmp_path / "next").reused is False


def test_a_result_that_differs_is_told_and_the_first_one_stays(ready: Sandbox, tmp_path: Path) -> None:
    ready.pipeline("stages: {dice: {cmd: 'head -c 9 /dev/urandom > out; echo 1 > same', outs: [out, same]}}\n")
    job = make(ready, "dice").job
    first = work(job, tmp_path / "one")

    second = work(job, tmp_path / "two", force=True)

    assert second.nondeterministic == ("out",)
    assert work(job, tmp_path / "three").outs == first.outs


def test_a_result_is_not_shared_when_its_inputs_changed_meanwhile(ready: Sandbox, tmp_path: Path) -> None:
    ready.write("in", "1\n")
    ready.pipeline("stages: {edits: {cmd: 'cat in > out; echo 2 >> in', deps: [in], outs: [out]}}\n")
    job = make(ready, "edits").job

    for name in ("one", "two"):  # the second time, too: the first has left no record
        with pytest.raises(Inconclusive, match="`in` changed while stage `edits` ran"):
            work(job, tmp_path / name)
    assert (tmp_path / "one/project/out").read_text() == "1\n"


def test_inputs_that_are_others_there_are_not_run(ready: Sandbox, tmp_path: Path) -> None:
    ready.run("prepare")
    text = make(ready).job.to_bytes().replace(b"lr: 0.1", b"lr: 0.2")

    with pytest.raises(Inconclusive, match=r"not those of the job: `params.yaml: lr` changed 0.2 → 0.1"):
        work(read_job(text.replace(b"key: ", b"key: 0"), "job.yaml"), tmp_path / "worker")


def test_a_remote_that_lost_something_or_lies(ready: Sandbox, tmp_path: Path) -> None:
    ready.run("prepare")
    job = make(ready).job
    packs = list((ready.root.parent / "remote" / "packs").rglob("*.pack"))
    for pack in packs:
        data = bytearray(pack.read_bytes())
        data[60] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
    with pytest.raises((CorruptObject, MissingObject)):
        work(job, tmp_path / "worker")
    for pack in packs:
        pack.unlink()
    with pytest.raises(MissingObject):
        work(job, tmp_path / "next")
    with pytest.raises(UsageError, match="is not empty"):
        work(job, tmp_path / "worker")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"mlx: 1\n", b"mlx: 2\n"), "mlx"),
        ((b"stage: train", b"stagge: train"), "stagge"),
        ((b'folder: ""', b"folder: ../.."), "leaves the project"),
        ((b"key: ", b"key: ../"), "must be a fingerprint"),
        ((b"tree: blake3:", b"tree: blake4:"), "tree"),
        ((b"  cmd:", b"  cnd:"), "cnd"),
    ],
)
def test_a_job_that_is_none(ready: Sandbox, change: tuple[bytes, bytes], message: str) -> None:
    ready.run("prepare")
    data = make(ready).job.to_bytes()
    assert change[0] in data

    with pytest.raises(RecordError, match=message):
        read_job(data.replace(*change, 1), "job.yaml")
