"""What every executor does: the same for all that there are."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, OutsideError, StageFailed, UsageError
from mlops_cli.pipeline.delegation import delegate
from mlops_cli.pipeline.executors import Executor, LocalExecutor, State, open_executor
from mlops_cli.pipeline.jobs import make_job
from mlops_cli.pipeline.runner import run_project
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.records.jobs import Job
from tests.workspace.conftest import box
from tests.workspace.projects import Sandbox

__all__ = ["box"]

DEADLINE = 60.0  # seconds; only a test that fails waits so long

Open = Callable[[], Executor]


@pytest.fixture(params=["local"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return what opens the executor, as a process does that has no handle yet."""
    return lambda: open_executor(request.param, tmp_path / "jobs", os.environ)


def make(box: Sandbox, cmd: str) -> Job:
    box.remote()
    box.write("data", "a\n")
    box.add("data")
    box.pipeline(f"stages:\n  s: {{cmd: '{cmd}', deps: [data], outs: [out]}}\n")
    project = box.project()
    with exclusive(project, "test", box.heard):
        return make_job(project, "s", reporter=box.heard).job


def wait(executor: Executor, handle: str) -> State:
    end = time.monotonic() + DEADLINE
    while (state := executor.poll(handle)) is State.RUNNING and time.monotonic() < end:
        time.sleep(0.02)
    return state


def wait_for_log(executor: Executor, handle: str, text: bytes) -> None:
    end = time.monotonic() + DEADLINE
    while text not in executor.logs(handle) and time.monotonic() < end:
        time.sleep(0.02)


def test_a_job_goes_from_hand_to_hand(box: Sandbox, engine: Open) -> None:
    job = make(box, "cp data out; echo told")
    handle = engine().submit(job)

    assert wait(engine(), handle) is State.DONE
    assert engine().logs(handle) == b"told\n"
    assert engine().logs(handle, 3) == b"d\n"
    assert engine().collect(handle).reused is False
    with pytest.raises(OutsideError, match="there is no job"):
        engine().poll(handle)

    again = engine().submit(job)
    assert wait(engine(), again) is State.DONE
    assert engine().collect(again).reused is True


def test_a_failure_says_what_it_was(box: Sandbox, engine: Open) -> None:
    handle = engine().submit(make(box, "echo told; exit 4"))

    assert wait(engine(), handle) is State.FAILED
    assert b"told\n" in engine().logs(handle)
    with pytest.raises(StageFailed, match="stage `s` failed: exit code 4"):
        engine().collect(handle)


def test_what_the_remote_has_not_is_told(box: Sandbox, engine: Open) -> None:
    job = make(box, "cp data out")
    for pack in (box.root.parent / "remote" / "packs").rglob("*.pack"):
        pack.unlink()
    handle = engine().submit(job)

    assert wait(engine(), handle) is State.FAILED
    with pytest.raises(MissingObject):
        engine().collect(handle)


def test_a_cancelled_job_leaves_nothing_running(box: Sandbox, engine: Open) -> None:
    handle = engine().submit(make(box, "echo pid $$; sleep 60"))
    wait_for_log(engine(), handle, b"pid ")
    number = int(engine().logs(handle).partition(b"pid ")[2].split()[0])

    engine().cancel(handle)

    assert engine().poll(handle) is State.FAILED
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)
    engine().cancel(handle)


def test_a_worker_that_is_killed_has_failed_and_can_be_begun_again(box: Sandbox, tmp_path: Path) -> None:
    executor = LocalExecutor(tmp_path / "jobs", os.environ)
    gate = tmp_path / "gate"
    job = make(box, f"echo begun; while [ ! -e {gate} ]; do sleep 0.02; done; cp data out")
    handle = executor.submit(job)
    wait_for_log(executor, handle, b"begun")
    os.killpg(executor._group(handle).number, signal.SIGKILL)

    assert wait(executor, handle) is State.FAILED
    with pytest.raises(OutsideError, match="gone without a word"):
        executor.collect(handle)
    gate.touch()
    again = executor.submit(job)
    assert wait(executor, again) is State.DONE


def test_an_unknown_engine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no executor `slurm`"):
        open_executor("slurm", tmp_path, os.environ)


def run(box: Sandbox, engine: str = "local") -> dict[str, str]:
    project = box.project()
    with exclusive(project, "mlx run", box.heard) as turn:
        others = delegate(project, engine, os.environ)
        results = run_project(project, (), box.surroundings(), box.heard, turn, delegate=others)
    return {result.decision.stage.address: result.decision.action.value for result in results}


def test_a_run_through_an_executor_ends_as_one_here(box: Sandbox) -> None:
    box.remote()
    box.write("data", "a\n")
    box.add("data")
    box.pipeline(
        "stages:\n"
        "  one: {cmd: 'cp data one; echo told', deps: [data], outs: [one]}\n"
        '  two: {cmd: "cat one > two; echo 1 > m.yaml; sed -i s/^/n:\\\\ / m.yaml", deps: [one], outs: [two], '
        "metrics: [m.yaml]}\n"
    )
    assert run(box) == {"one": "run", "two": "run"}
    assert (box.read("two"), bytes(box.heard.output)) == ("a\n", b"told\n")
    there = {name: box.read(f"mlx.lock/{name}.yaml") for name in ("one", "two")}

    assert box.actions() == {"one": "skip", "two": "skip"}
    assert box.run(force=True) == {"one": "run", "two": "run"}
    assert there == {name: box.read(f"mlx.lock/{name}.yaml") for name in ("one", "two")}
    assert not any((box.project().local / "jobs").iterdir())


def test_what_is_outside_the_project_is_asked_as_by_a_run_here(box: Sandbox) -> None:
    box.remote()
    box.pipeline("stages: {s: {cmd: echo 1 > out, outs: [out], environment: {python: true}}}\n")

    assert run(box) == {"s": "run"}
    assert box.run(force=True) == {"s": "run"}
    assert box.actions() == {"s": "skip"}


def test_what_is_not_declared_is_not_there(box: Sandbox) -> None:
    box.remote()
    box.write("secret", "s\n")
    box.write(".gitignore", "/secret\n")
    box.write("out", "old\n")
    box.pipeline("stages: {s: {cmd: cp secret out, outs: [out]}}\n")

    with pytest.raises(StageFailed, match="stage `s` failed: exit code 1"):
        run(box)

    assert box.read("out") == "old\n"
    assert box.run() == {"s": "run"}
