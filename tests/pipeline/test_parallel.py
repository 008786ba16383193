"""Several stages at once: what runs beside what, and what failures, retries and limits of time come to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlops_cli.errors import OutsideError, StageFailed
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
    """Two hundred stages, each of two that have ancestors in common: diamonds upon diamonds."""
    lines, values = {"s0": "cmd: echo 1 > f0, outs: [f0]"}, [1]
    for number in range(1, 200):
        one, two = (number - 1) // 3, number // 2 if number > 1 else 0
        cmd = f"read x < f{one}; read y < f{two}; echo $(((x + 3 * y + {number}) % 9973)) > f{number}"
        lines[f"s{number}"] = f"cmd: '{cmd}', deps: [{', '.join(sorted({f'f{one}', f'f{two}'}))}], outs: [f{number}]"
        values.append((values[one] + 3 * values[two] + number) % 9973)
    stages(box, **lines)

    assert set(box.run(jobs=4).values()) == {"run"}

    assert [int(box.read(f"f{number}")) for number in range(200)] == values
    assert set(box.run(jobs=4).values()) == {"skip"}
    assert set(box.run("s199", jobs=4, force=True, run_cache=False).values()) == {"skip", "run"}
    assert [int(box.read(f"f{number}")) for number in range(200)] == values


def test_what_stands_in_the_way_of_one_stage_stops_no_other(box: Sandbox) -> None:
    stages(box, bad="cmd: echo bad > bad, outs: [bad]", long="cmd: 'sleep 0.3; echo long > long', outs: [long]")
    (box.surroundings().logs / "bad.log").mkdir(parents=True)

    with pytest.raises(OutsideError, match=r"cannot write the log `.*bad\.log`: "):
        box.run(jobs=2)

    assert box.actions() == {"bad": "run", "long": "skip"}


def test_a_command_too_long_to_be_started_stops_no_other(box: Sandbox) -> None:
    stages(
        box,
        bad=f"cmd: 'true {'x' * 200_000}', outs: [bad]",
        long="cmd: 'sleep 0.3; echo long > long', outs: [long]",
    )
    with pytest.raises(OutsideError, match="cannot start "):
        box.run(jobs=2)
    assert box.actions() == {"bad": "run", "long": "skip"}


def test_a_retry_reads_the_inputs_anew(box: Sandbox) -> None:
    box.write("in", "one")
    stages(
        box,
        shaky="cmd: 'if [ -e tried ]; then cat in > out; else touch tried; echo two > in; exit 3; fi', deps: [in], "
        "outs: [out], retries: 1",
    )

    box.run()

    assert box.read("out") == "two\n"
    assert not any("changed while" in note for note in box.heard.notes)
    assert box.run() == {"shaky": "skip"}


def test_a_stage_that_rests_when_another_fails_has_failed_too(box: Sandbox) -> None:
    stages(
        box,
        bad="cmd: 'while [ ! -e tried ]; do sleep 0.01; done; sleep 0.2; exit 4', outs: [bad]",
        shaky="cmd: 'touch tried; exit 3', outs: [out], retries: {times: 1, delay: 99999999999d}",
    )
    with pytest.raises(StageFailed, match="2 stages failed: `bad`, `shaky`"):
        box.run(jobs=2)


def test_going_on_after_a_failure_tells_it_at_once_and_once(box: Sandbox) -> None:
    stages(
        box,
        bad="cmd: exit 3, outs: [bad]",
        good="cmd: echo good > good, outs: [good]",
        worse="cmd: exit 4, outs: [worse]",
    )

    with pytest.raises(StageFailed, match="2 stages failed") as caught:
        box.run(keep_going=True)
    assert caught.value.hint == "`mlx logs bad`, `mlx logs worse`: what they wrote"

    told = [note for note in box.heard.notes if "failed: exit code" in note]
    assert len(told) == 2
    assert "what does not need it goes on" in told[0]
    assert all(f"`mlx logs {name}`" in note for name, note in zip(("bad", "worse"), told, strict=True))


def test_no_more_at_once_than_files_may_be_open(box: Sandbox) -> None:
    stages(box, **{f"s{number}": f"cmd: 'sleep 0.1; echo 1 > o{number}', outs: [o{number}]" for number in range(40)})
    program = (  # a process of its own: this one has files open of other tests
        "import resource, sys\n"
        "from mlops_cli.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "sys.exit(main(['run', '-j', '1000']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=box.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(box.exists(f"o{number}") for number in range(40))
    assert "a process may have 100 files open, which is enough for 5 stages at once" in done.stderr


def test_what_is_recorded_is_the_same_however_many_run_at_once(box: Sandbox) -> None:
    names = [f"s{number}" for number in range(12)]
    stages(
        box,
        **{
            name: f"cmd: 'sleep 0.{9 - number % 9:02}; echo {name} > {name}', outs: [{name}]"
            for number, name in enumerate(names)
        },
        end=f"cmd: cat {' '.join(names)} > end, deps: [{', '.join(names)}], outs: [end]",
    )
    records = [".gitignore", *(f"mlx.lock/{name}.yaml" for name in (*names, "end"))]

    box.run(run_cache=False)
    alone = {name: box.read(name) for name in records if box.exists(name)}
    for name in alone:
        (box.root / name).unlink()
    box.run(jobs=6, force=True, run_cache=False)

    assert {name: box.read(name) for name in alone} == alone
    assert ".gitignore" in alone
