"""A run of several stages at once, killed or out of room at each call that changes the disk: the next one completes it.

Whatever the point: every output is the old one, the new one or away, the cache is sound, and the same run again leaves
what one would have left that nothing disturbed. Among the calls are those of the journal, of reservations, of the turns
that a run gives and takes, of the run cache and of locks. Each time some of the points are played, from another first
one; `pytest --points 1 tests/pipeline/test_cut_short.py` plays all.
"""

from __future__ import annotations

import os
import random
import traceback
import warnings
from pathlib import Path

import pytest

from mlops_cli.errors import OutsideError, StageFailed
from mlops_cli.store.batches import open_batch
from mlops_cli.workspace.reservations import find_reservations
from tests.crashing import killed_at
from tests.faults import FULL, refusing
from tests.workspace.projects import Sandbox
from tests.workspace.verbs import Place, assert_well, kept, leftovers, visible

PIPELINE = """
stages:
  one: {cmd: 'mkdir one; cp a one/out; echo "{\\"x\\": $(cat a)}" > one.json', deps: [a], outs: [one], metrics: [one.json]}
  two: {cmd: cp b two, deps: [b], outs: [two]}
  both: {cmd: cat one/out two > both, deps: [one, two], outs: [both]}
"""
OUTPUTS = {b"one/out", b"one.json", b"two", b"both"}


def prepare(box: Sandbox) -> None:
    """Leave one stage that is to be restored, one that is to run, and one that needs both."""
    box.pipeline(PIPELINE)
    for values in (("1", "1"), ("1", "2")):
        for name, value in zip("ab", values, strict=True):
            box.write(name, value)
        box.run(jobs=2)
    box.commit()
    box.write("a", "2")
    box.write("b", "1")


def work(box: Sandbox) -> None:
    box.run(jobs=2)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Return a project that is to be run, saved as it is then."""
    made = Place(tmp_path / "place", tmp_path / "saved")
    prepare(made.box)
    made.save()
    return made


@pytest.fixture
def points(request: pytest.FixtureRequest) -> range:
    """Return the points to be played: one in so many, from any on."""
    step = request.config.getoption("--points")
    return range(random.SystemRandom().randrange(step), 10_000, step)


class Undisturbed:
    """What the run leaves when nothing comes between."""

    def __init__(self, place: Place) -> None:
        self.box = place.box
        self.old = visible(self.box)
        work(self.box)
        self.new, self.git, self.kept = visible(self.box), self.box.changed_in_git(), kept(self.box)

    def assert_sound(self, at: int) -> None:
        """Look at a project in which the run was cut short."""
        now = visible(self.box)
        for path in (self.old.keys() | self.new.keys() | now.keys()) - {b".gitignore"}:
            allowed = [self.old.get(path), self.new.get(path), *([None] if path in OUTPUTS else [])]
            assert now.get(path) in allowed, (at, path)
        assert_well(self.box)
        assert find_reservations(self.box.project()) == (), at

    def assert_completed(self, at: int) -> None:
        """Look at a project in which it was run again."""
        assert visible(self.box) == self.new, at
        assert self.box.changed_in_git() == self.git, at
        assert kept(self.box) == self.kept, at
        assert set(self.box.actions().values()) == {"skip"}, at
        with open_batch(self.box.project().cache) as batch:  # whoever writes next takes away what was left
            batch.add_bytes(b"next")
        assert leftovers(self.box) == [], at


def test_killed_at_every_point(place: Place, points: range) -> None:
    undisturbed = Undisturbed(place)
    for at in points:
        place.reset()
        if not killed_at(lambda: work(place.box), at):
            break
        undisturbed.assert_sound(at)
        work(place.box)
        undisturbed.assert_completed(at)
    assert at > 60, "too few points: is the harness watching the calls that a run makes?"


def out_of_room_at(box: Sandbox, at: int) -> bool:
    """Run in a child whose disk is full from its call number `at` on; return whether it came to that.

    Its end gives back what it has reserved, as that of a command does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about: the child only makes calls
        child = os.fork()
    if child == 0:
        code = 2
        try:
            with refusing(FULL, at) as count:
                try:
                    work(box)
                except (OutsideError, StageFailed) as error:
                    assert error.hint  # noqa: PT017 - a child has nobody who would look at it afterwards
                except OSError as error:  # the command line tells it
                    assert error.errno == FULL.code  # noqa: PT017
            code = int(count.refused > 0)
        except BaseException:  # noqa: BLE001 - the parent is told by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 1), at
    return code == 1


def test_out_of_room_at_every_point(place: Place, points: range) -> None:
    undisturbed = Undisturbed(place)
    for at in points:
        place.reset()
        if not out_of_room_at(place.box, at):
            break
        undisturbed.assert_sound(at)
        work(place.box)
        undisturbed.assert_completed(at)
    assert at > 40
