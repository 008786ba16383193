"""What is remembered of a run: its record while it is on and afterwards, which logs are kept, what a stage took."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mlops_cli.errors import StageFailed
from mlops_cli.pipeline import run_history
from mlops_cli.pipeline.execution import Surroundings
from mlops_cli.pipeline.manner import Manner
from mlops_cli.pipeline.recorder import recorded
from mlops_cli.pipeline.run_history import Run, list_runs, read_run, read_times, saved_by, tail_start
from mlops_cli.pipeline.run_record import RECORD, Outcome, line, read_record
from mlops_cli.pipeline.runner import run_project
from mlops_cli.pipeline.turn import exclusive
from tests.workspace.projects import Sandbox

MIB = 1 << 20


def run(box: Sandbox, *targets: str, name: str = "20260102-030405-a00000", **how: bool) -> Run:
    """Run `targets`, which may fail, in a run of that name; returns what is remembered of it."""
    folder = box.project().local / "runs" / name
    project = box.project()
    with (
        suppress(StageFailed),
        exclusive(project, "mlx run", box.heard) as turn,
        recorded(box.heard, folder) as record,
    ):
        run_project(project, targets, Surroundings(os.environ, folder), record, turn, Manner(**how))
    return read_run(folder)


def test_what_a_stage_took(box: Sandbox):
    size = 64 * MIB + 2 * _own_peak()
    script = f"b = bytearray({size}); sum(range(10**6)); open('a', 'w')"
    box.write("make.py", script)
    box.pipeline(f"stages:\n  a: {{cmd: ['true', '{sys.executable} make.py'], outs: [a]}}\n")

    facts = run(box).facts

    (stage,) = facts.stages
    assert (stage.stage, stage.action, stage.attempt, stage.outcome) == ("a", "run", 1, Outcome.DONE)
    assert stage.reasons == ("it has not run yet (no lock)",)
    assert (facts.outcome, stage.exit_status, stage.message) == (Outcome.DONE, 0, None)
    assert stage.peak_memory is not None
    assert size < stage.peak_memory < size + 64 * MIB
    assert stage.cpu_seconds is not None
    assert facts.seconds is not None
    assert 0 < stage.cpu_seconds <= stage.seconds * 1.5 < facts.seconds * 1.5
    assert facts.started is not None
    assert facts.started <= stage.started


def _own_peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_a_process_smaller_than_mlx_has_no_known_peak(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: 'echo > a', outs: [a]}\n")
    assert run(box).facts.stages[0].peak_memory is None


def test_every_attempt_and_how_it_ended(box: Sandbox):
    box.pipeline(
        "stages:\n"
        "  bad: {cmd: 'exit 3', outs: [bad], retries: 1}\n"
        "  killed: {cmd: 'kill -9 $$', outs: [killed]}\n"
        "  late: {cmd: 'sleep 60', outs: [late], timeout: 0.05}\n"
        "  lazy: {cmd: 'true', outs: [lazy]}\n"
    )
    stages = run(box, keep_going=True).facts.stages
    told = [(each.stage, each.attempt, each.outcome, each.exit_status) for each in stages]
    assert sorted(told) == [
        ("bad", 1, Outcome.FAILED, 3),
        ("bad", 2, Outcome.FAILED, 3),
        ("killed", 1, Outcome.FAILED, -signal.SIGKILL),
        ("late", 1, Outcome.TIMED_OUT, None),
        ("lazy", 1, Outcome.FAILED, 0),
    ]
    assert {each.stage: each.message for each in stages}["lazy"] == "stage `lazy` did not write its output `lazy`"


def test_a_run_that_only_skips_leaves_no_record(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: 'echo > a', outs: [a]}\n")
    run(box)
    run(box, name="20260102-030405-b00000")
    assert [folder.name for folder in list_runs(box.project().local / "runs")] == ["20260102-030405-a00000"]


def test_what_is_restored_is_recorded_and_what_it_saved_known(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: 'sleep 0.05; echo > a', outs: [a]}\n")
    run(box)
    (box.root / "a").unlink()
    facts = run(box, name="20260102-030405-b00000").facts
    assert [(each.action, each.outcome, each.cpu_seconds) for each in facts.stages] == [("restore", Outcome.DONE, None)]
    runs = box.project().local / "runs"
    assert saved_by(box.plan().values(), read_times(runs))["a"] >= 0.05
    (runs / "times.json").write_text('{"seconds": {"a": "long", "b": -1, "c": true, "d": 2}}')
    assert read_times(runs) == {"d": 2.0}


def test_the_record_is_there_while_the_run_is_on_and_after_it_was_killed(box: Sandbox):
    os.mkfifo(box.root / "gate")
    box.pipeline("stages:\n  a: {cmd: 'echo begun > gate; cat gate', outs: [a]}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_cli", "-q", "run"], cwd=box.root, stderr=subprocess.DEVNULL
    )
    (box.root / "gate").read_text()
    (folder,) = list_runs(box.project().local / "runs")

    assert [each.outcome for each in read_run(folder).facts.stages] == [Outcome.RUNNING]
    run_history.prune(folder.parent, kept_runs=0, kept_bytes=0)
    process.kill()
    process.wait()

    facts = read_run(folder).facts
    assert (facts.outcome, [each.outcome for each in facts.stages]) == (Outcome.KILLED, [Outcome.KILLED])


def test_a_project_has_its_own_runs(tmp_path: Path):
    for name, prefix in (("1", "a"), ("2", ""), ("3", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / RECORD).write_bytes(line("run", project=prefix or None) + b"torn")
    (tmp_path / "0").mkdir()
    assert [folder.name for folder in list_runs(tmp_path, "a")] == ["3", "1", "0"]
    assert [folder.name for folder in list_runs(tmp_path, "")] == ["2", "0"]
    run_history.write_times(tmp_path, "a", {"s": 1.0})
    assert (read_times(tmp_path, "a"), read_times(tmp_path)) == ({"s": 1.0}, {})


def test_a_stage_that_is_tried_again_may_write_more(tmp_path: Path):
    begin, end = line("begin", stage="s"), line("end", stage="s", outcome="failed", again=True)
    for data, is_on, writing in ((begin, True, True), (begin + end, True, True), (begin + end, False, False)):
        run = Run("r", tmp_path, read_record(data, is_on=is_on))
        assert run_history.is_writing(run, "s") is writing
    last = line("end", stage="s", outcome="failed")
    assert not run_history.is_writing(Run("r", tmp_path, read_record(begin + last, is_on=True)), "s")


def test_what_is_interrupted(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: 'echo > a', outs: [a]}\n")
    folder = box.project().local / "runs" / "r"
    decision = box.plan()["a"]

    def begin_and_stop() -> None:
        with recorded(box.heard, folder) as record:
            record.begin(decision)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_and_stop()
    facts = read_run(folder).facts
    assert (facts.outcome, [each.outcome for each in facts.stages]) == (Outcome.INTERRUPTED, [Outcome.INTERRUPTED])


def test_a_record_that_cannot_be_written_stops_no_run(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: 'echo > a', outs: [a]}\n")
    (box.project().local / "runs" / "r" / RECORD).mkdir(parents=True)
    assert run(box, name="r").facts.outcome is Outcome.UNKNOWN
    assert box.exists("a")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[" * 100_000 + b"\n",
        b'{"event": "begin"}\n{"event": "begin", "stage": 1}\n{"event": "end", "stage": "x"}\n[1]\nnull\n\xff\n',
        b'{"event": "begin", "stage": ["a"], "attempt": {}}\n',
    ],
)
def test_what_means_nothing_is_passed_over(data: bytes):
    facts = read_record(data + line("begin", stage="a", attempt=True, reasons=[1, "why"]), is_on=False)
    assert [(each.stage, each.attempt, each.reasons, each.outcome) for each in facts.stages] == [
        ("a", 1, ("why",), Outcome.KILLED)
    ]


def test_a_torn_line_is_passed_over():
    whole = line("begin", stage="a") + line("end", stage="a", outcome="done", seconds=2.5, exit_status=10**30)
    assert read_record(whole[:-9], is_on=True).stages[0].outcome is Outcome.RUNNING
    (stage,) = read_record(whole, is_on=True).stages
    assert (stage.outcome, stage.seconds, stage.exit_status) == (Outcome.DONE, 2.5, None)


def test_the_newest_runs_are_kept(tmp_path: Path):
    for number in range(6):
        folder = tmp_path / f"20260102-03040{number}-aaaaaa"
        folder.mkdir()
        (folder / "a.log").write_bytes(b"x" * 10)
        (folder / RECORD).write_bytes(line("run"))
    (tmp_path / "notes").mkdir()
    run_history.prune(tmp_path, kept_runs=4)
    assert [folder.name[14:15] for folder in list_runs(tmp_path)] == ["", "5", "4", "3", "2"]
    run_history.prune(tmp_path, kept_bytes=80)
    assert len(list_runs(tmp_path)) == 3
    run_history.prune(tmp_path, kept_bytes=1)
    assert [folder.name for folder in list_runs(tmp_path)] == ["notes", "20260102-030405-aaaaaa"]


@pytest.mark.parametrize("text", ["", "a", "a\n", "a\nb", "a\nb\n", "\n\n", "x" * 200_000 + "\nb\n", "a\n" * 100_000])
@pytest.mark.parametrize("lines", [0, 1, 2, 3])
def test_where_the_last_lines_begin(text: str, lines: int, tmp_path: Path):
    log = tmp_path / "log"
    log.write_text(text)
    kept = "".join(text.splitlines(keepends=True)[-lines:]) if lines else ""
    assert text[tail_start(log, lines) :] == kept


def test_following_ends_with_the_stage(tmp_path: Path):
    log = tmp_path / "log"
    log.write_bytes(b"one\n")
    on = [True, True, False]
    more = iter([b"two\n", b"three"])

    def pause() -> None:
        with log.open("ab") as file:
            file.write(next(more))

    assert b"".join(run_history.follow(log, lambda: on.pop(0), start=0, pause=pause)) == b"one\ntwo\n"


def test_much_output_goes_through_in_small_pieces(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: 'head -c 50000000 /dev/zero; echo > a', outs: [a]}\n")
    pieces: list[int] = []
    lock = threading.Lock()

    class Ear(type(box.heard)):  # type: ignore[misc]  # the class of a value
        def write(self, stage: str, data: bytes) -> None:
            with lock:
                pieces.append(len(data))

    project = box.project()
    with exclusive(project, "mlx run") as turn:
        run_project(project, [], box.surroundings(), Ear(), turn)
    assert sum(pieces) == 50_000_000
    assert max(pieces) <= 65536
    assert (box.surroundings().logs / "a.log").stat().st_size == 50_000_000
