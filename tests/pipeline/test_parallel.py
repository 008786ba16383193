"""Several stages at once: what runs beside what, and what failures, retries and limits of time come to."""

from __future__ import annotations

import pytest

from mlops_cli.errors import StageFailed
from tests.workspace.projects import Sandbox

# A command that ends when another has begun; one that has a folder to itself, or fails.
MEET = "touch here.{me}; while [ ! -e here.{other} ]; do sleep 0.01; done; echo {me} > {me}"
ALONE = "mkdir taken && sleep 0.05 && rmdir taken && echo {me} > {me}"


def stages(box: Sandbox, **texts: str) -> None:
    box.pipeline("stages:\n" + "".join(f"  {name}: {{{text}}}\n" for name, text in texts.items()))


def test_independent_stages_run_beside_one_another(box: Sandbox) -> None:
    stages(
        box,
        one=f"cmd: '{MEET.format(me='one', other='two')}', outs: [one], timeout: 60",
        two=f"cmd: '{MEET.format(me='two', other='one')}', outs: [two], timeout: 60",
        after="cmd: cat one two > after, deps: [one, two], outs: [after]",
    )

    assert box.run(jobs=2) == {"one": "run", "two": "run", "after": "run"}

    assert box.read("after") == "one\ntwo\n"
    assert box.run(jobs=2) == {"one": "skip", "two": "skip", "after": "skip"}


@pytest.mark.parametrize(
    ("limit", "jobs"), [("", 1), ("mutex: disk", 4), ("mutex: [net, disk]", 4), ("resources: {cpus: 0.6}", 4)]
)
def test_what_may_not_run_beside_anything_does_not(box: Sandbox, limit: str, jobs: int) -> None:
    more = f", {limit}" if limit else ""
    stages(box, **{name: f"cmd: '{ALONE.format(me=name)}', outs: [{name}]{more}" for name in "abcde"})

    assert set(box.run(jobs=jobs, resources={"cpus": 1.0}).values()) == {"run"}


def test_a_pipeline_says_what_there_is(box: Sandbox) -> None:
    box.pipeline(
        "resources: {licence: 2}\nstages:\n"
        + "".join(
            f"  {name}: {{cmd: '{ALONE.format(me=name)}', outs: [{name}], resources: {{licence: 2}}}}\n"
            for name in "abc"
        )
    )
    assert set(box.run(jobs=3).values()) == {"run"}


def test_after_a_failure_what_runs_goes_on_and_nothing_begins(box: Sandbox) -> None:
    stages(
        box,
        bad="cmd: 'while [ ! -e here ]; do sleep 0.01; done; exit 3', outs: [bad], timeout: 60",
        long="cmd: 'touch here; sleep 0.3; echo long > long', outs: [long]",
        more="cmd: echo more > more, outs: [more], resources: {cpus: 1}",
    )

    with pytest.raises(StageFailed, match="stage `bad` failed: exit code 3"):
        box.run(jobs=2, resources={"cpus": 1.0})

    assert any("what runs already goes on to its end: `long`" in note for note in box.heard.notes)
    assert box.actions() == {"bad": "run", "long": "skip", "more": "run"}


def test_going_on_runs_all_that_does_not_need_what_failed(box: Sandbox) -> None:
    stages(
        box,
        bad="cmd: exit 3, outs: [bad]",
        worse="cmd: exit 4, outs: [worse]",
        below="cmd: cp bad below, deps: [bad], outs: [below]",
        further="cmd: cp below further, deps: [below], outs: [further]",
        good="cmd: echo good > good, outs: [good]",
    )

    with pytest.raises(StageFailed, match="2 stages failed: `bad`, `worse`"):
        box.run(keep_going=True)

    assert "not run, for what they need failed: `below`, `further`" in box.heard.notes
    assert box.actions() == {"bad": "run", "worse": "run", "below": "run", "further": "run", "good": "skip"}


def test_a_failure_is_tried_again(box: Sandbox) -> None:
    stages(
        box,
        shaky="cmd: 'echo x >> tries; echo half > out; [ $(wc -l < tries) -eq 3 ] && echo whole > out', outs: [out], "
        "retries: {times: 2, delay: 0.1s}",
    )

    assert box.run() == {"shaky": "run"}

    assert box.read("out") == "whole\n"
    assert box.read("tries") == "x\nx\nx\n"
    tries = [note for note in box.heard.notes if "trying again in 0.1 s" in note]
    assert [note.rpartition("(")[2] for note in tries] == ["2 tries left)", "1 try left)"]


def test_one_that_keeps_failing_fails(box: Sandbox) -> None:
    stages(box, shaky="cmd: 'echo x >> tries; exit 5', outs: [out], retries: 1")
    with pytest.raises(StageFailed, match="exit code 5"):
        box.run()
    assert box.read("tries") == "x\nx\n"


def test_what_takes_too_long_is_stopped(box: Sandbox) -> None:
    stages(box, slow="cmd: echo old > out, outs: [out]")
    box.run()
    stages(box, slow="cmd: 'echo new > out; (sleep 300); true', outs: [out], timeout: 0.3s")

    with pytest.raises(StageFailed, match=r"took longer than its `timeout` of 0\.3 s"):
        box.run()

    assert box.read("out") == "old\n"


def test_a_wide_and_deep_graph(box: Sandbox) -> None:
    lines = {"s0": "cmd: echo 0 > f0, outs: [f0]"}
    for number in range(1, 120):
        deps = sorted({f"f{(number - 1) // 3}", f"f{number // 2}"} - {f"f{number}"})
        lines[f"s{number}"] = (
            f"cmd: 'cat {' '.join(deps)} | tail -c 20 > f{number}; echo {number} >> f{number}', deps: [{', '.join(deps)}], "
            f"outs: [f{number}]"
        )
    stages(box, **lines)

    assert set(box.run(jobs=4).values()) == {"run"}

    made = {f"f{number}": box.read(f"f{number}") for number in range(120)}
    assert set(box.run(jobs=4).values()) == {"skip"}
    assert set(box.run("s119", jobs=4, force=True, run_cache=False).values()) == {"skip", "run"}
    assert {name: box.read(name) for name in made} == made
