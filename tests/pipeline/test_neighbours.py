"""A stage and the stages of other runs of the checkout: what it waits for, what it says, and what ends the wait."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import pytest

from mlops_cli.errors import StageFailed
from mlops_cli.pipeline import runner
from mlops_cli.pipeline.processes import is_ancestor
from mlops_cli.workspace.reservations import Reservations
from tests.workspace.projects import Notes, Sandbox

DEADLINE = 20  # seconds; only a test that fails waits so long


@dataclass(slots=True)
class Waiting(Notes):
    """A listener that calls `waited` with the number of spells for which the run has waited so far."""

    waited: Callable[[int], None] = lambda _: None
    spells: int = 0

    def wait(self) -> None:
        self.spells += 1
        self.waited(self.spells)


@pytest.mark.parametrize(
    "reserved",
    [
        {"reads": ["made"], "writes": []},  # what it would replace
        {"reads": [], "writes": ["data"]},  # what it reads
        {"reads": [], "writes": [], "mutex": ["gpu"]},
    ],
    ids=["read", "written", "mutex"],
)
def test_waiting_for_another_run_is_told_once(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, reserved: dict[str, list[str]]
) -> None:
    monkeypatch.setattr(runner, "_SPELL_SECONDS", 0.01)
    box.pipeline("stages: {make: {cmd: cp data made, deps: [data], outs: [made], mutex: [gpu, disk]}}\n")
    box.write("data", "1\n")
    other = Reservations(box.project())
    other.take("other", **reserved)

    def waited(spells: int) -> None:
        if spells == 4:
            assert not box.exists("made")
            other.give_back("other")

    heard = Waiting(waited=waited)

    assert Sandbox(box.root, heard).run() == {"make": "run"}

    assert heard.notes == [f"stage `make` waits: process {os.getpid()} runs `other`"]
    assert box.read("made") == "1\n"


def test_an_interrupt_ends_the_commands_before_the_checkout_is_free(box: Sandbox) -> None:
    box.pipeline("stages: {long: {cmd: sh long.sh, outs: [made]}}\n")
    box.write("long.sh", "trap 'touch stopped; exit 1' TERM; touch begun; while :; do sleep 0.01; done")
    box.write("made", "old\n")
    held, found = Event(), []

    def hold_until_stopped() -> None:
        with box.project().lock("test"):
            held.set()
            end = time.monotonic() + DEADLINE
            while not box.exists("stopped") and time.monotonic() < end:
                time.sleep(0.005)
            found.append(box.exists("stopped"))

    holder = Thread(target=hold_until_stopped)

    def waited(_: int) -> None:
        while not box.exists("begun"):
            time.sleep(0.005)
        holder.start()
        held.wait(DEADLINE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Sandbox(box.root, Waiting(waited=waited)).run()
    holder.join()

    assert found == [True]
    assert box.read("made") == "old\n"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="nothing tells which process started which")
def test_a_run_that_would_wait_for_its_own_stage_is_refused(box: Sandbox) -> None:
    again = f"{shlex.quote(sys.executable)} -m mlops_cli run below"
    box.pipeline(
        "stages:\n"
        f"  above: {{cmd: [echo 1 > made, '{again}'], outs: [made]}}\n"
        "  below: {cmd: cp made copy, deps: [made], outs: [copy]}\n"
    )

    with pytest.raises(StageFailed, match="stage `above` failed: exit code 2"):
        box.run("above")

    assert b"stage `above` waits for stage `above`, whose own command has started this run" in box.heard.output
    assert (is_ancestor(os.getppid()), is_ancestor(os.getpid())) == (True, False)
