"""`mlx run -j N` from outside: what is shown, and what an interrupt or a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import Project

DEADLINE = 60.0  # seconds; only a test that fails waits so long
BOTH = """\
mlx: 1
stages:
  one: {cmd: sh one.sh, outs: [one]}
  two: {cmd: sh two.sh, outs: [two]}
  after: {cmd: cat one two > after, deps: [one, two], outs: [after]}
"""


@pytest.fixture
def both(project: Project) -> Project:
    """Return a project whose two independent stages have run."""
    project.write("mlx.yaml", BOTH)
    for name in ("one", "two"):
        project.write(f"{name}.sh", f"echo {name} > {name}\n")
    project.must("run")
    return project


def let_them_wait(both: Project) -> None:
    """Let both stages leave their number, say so, and wait for a line that never comes."""
    os.mkfifo(both.root / "gate")
    for name in ("one", "two"):
        both.write(f"{name}.sh", f"echo half > {name}; echo $$ > {name}.pid; echo begun; cat gate\n")


def begin(both: Project) -> subprocess.Popen[bytes]:
    """Start a run of both, and wait until both have begun."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_cli", "run", "-j", "2", "--force", "one", "two"],
        cwd=both.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    begun = 0
    for line in process.stderr:
        begun += line.endswith(b"| begun\n")
        if begun == 2:
            return process
    raise AssertionError("it ended before both had begun")


def wait_until_gone(both: Project) -> None:
    deadline = time.monotonic() + DEADLINE
    for name in ("one", "two"):
        number = int((both.root / f"{name}.pid").read_text())
        while os.path.exists(f"/proc/{number}/root/.") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not os.path.exists(f"/proc/{number}/root/."), f"{name} is still running"


def test_lines_are_told_with_their_stage(both: Project) -> None:
    for name in ("one", "two"):
        both.write(f"{name}.sh", f"printf 'first\\nsecond'; echo {name} > {name}\n")

    done = both.must("run", "-j", "2", "--force", "one", "two")

    for name in ("one", "two"):
        assert [line for line in done.stderr.splitlines() if line.startswith(f"{name} |")] == [
            f"{name} | first",
            f"{name} | second",
        ]
        assert f"  {name} is done in " in done.stderr


def test_the_last_line_of_a_failure_is_told(both: Project) -> None:
    both.write("one.sh", "printf 'out of memory'; exit 3\n")
    done = both("run", "-j", "2", "--force", "one")
    assert done.code == 1
    assert "one | out of memory\n" in done.stderr


def test_one_at_a_time_shows_what_comes_as_it_comes(both: Project) -> None:
    both.write("one.sh", "printf 'first\\nsecond'; echo one > one\n")
    assert "\nfirst\nsecond" in both.must("run", "--force", "one").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_and_brings_the_outputs_back(both: Project, number: signal.Signals) -> None:
    let_them_wait(both)
    process = begin(both)

    process.send_signal(number)
    said = process.communicate(timeout=DEADLINE)[1].decode()

    assert process.returncode == 130
    assert "error: interrupted" in said
    assert (both.root / "one").read_text() == "one\n"
    assert (both.root / "two").read_text() == "two\n"
    wait_until_gone(both)


def test_after_a_kill_the_next_command_puts_all_right(both: Project) -> None:
    let_them_wait(both)
    process = begin(both)
    process.kill()
    process.communicate(timeout=DEADLINE)
    for name in ("one", "two"):
        both.write(f"{name}.sh", f"echo new {name} > {name}\n")

    done = both.must("run", "-j", "2")

    wait_until_gone(both)
    assert "stage `one` was cut short: its old outputs are back" in done.stderr
    assert "stage `two` was cut short: its old outputs are back" in done.stderr
    both.must("run", "-j", "2", "--force", "one", "two")
    assert (both.root / "one").read_text() == "new one\n"


def test_much_output_of_several_does_not_mix_lines(both: Project) -> None:
    for name in ("one", "two"):
        both.write(f"{name}.sh", f"yes {name * 20} | head -n 20000; echo {name} > {name}\n")

    done = both.must("run", "-j", "2", "--force", "one", "two")

    for name in ("one", "two"):
        lines = [line for line in done.stderr.splitlines() if line.startswith(f"{name} | ")]
        assert len(lines) == 20_000
        assert set(lines) == {f"{name} | {name * 20}"}


def test_how_a_stage_is_carried_out_is_shown(both: Project) -> None:
    both.write(
        "mlx.yaml",
        "mlx: 1\nstages:\n  one: {cmd: sh one.sh, outs: [one], resources: {cpus: 2, memory: 1KiB}, mutex: net, "
        "timeout: 2h, retries: {times: 2, delay: 30s}}\n",
    )
    shown = json.loads(both.must("stage", "show", "one", "--json").stdout)["stages"][0]
    assert shown["resources"] == {"cpus": 2, "memory": 1024}
    assert shown["mutex"] == ["net"]
    assert (shown["timeout"], shown["retries"], shown["delay"]) == (7200, 2, 30)


def test_a_reader_that_is_slow_does_not_mix_lines(both: Project) -> None:
    for name in ("one", "two"):
        both.write(f"{name}.sh", f"yes {name * 20} | head -n 20000; echo {name} > {name}\n")
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "mlops_cli", "run", "-j", "2", "--force", "one", "two"],
        cwd=both.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stderr is not None
    said = bytearray()
    while data := os.read(process.stderr.fileno(), 1000):  # the pipe is always full: every write waits in its middle
        said += data
    process.communicate(timeout=DEADLINE)

    lines = said.decode().splitlines()
    assert {line for line in lines if "oneone" in line} == {"one | " + "one" * 20}
    assert {line for line in lines if "twotwo" in line} == {"two | " + "two" * 20}
    assert sum("oneone" in line or "twotwo" in line for line in lines) == 40_000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-j", "-1"], "`--jobs`: -1 is not in the range 0<=x<=1000"),
        (["-j", "many"], "`--jobs`: `many` is not a whole number"),
        (["--resource", "gpus"], "`--resource gpus`: `` is not an amount"),
        (["--resource", "memory=" + "9" * 400], "9` is not an amount"),
        (["--dry-run", "--resource", "gpus"], "`--resource gpus`: `` is not an amount"),
        (["--resource", "gpus=some"], "`--resource gpus=some`: `some` is not an amount"),
    ],
)
def test_what_cannot_be_meant(both: Project, words: list[str], message: str) -> None:
    done = both("run", *words)
    assert done.code == 2
    assert message in done.stderr
