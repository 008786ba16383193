"""What a stage that runs has to itself."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlops_cli.errors import LockedError
from mlops_cli.workspace.evict import evict
from mlops_cli.workspace.relink import unprotect
from mlops_cli.workspace.reservations import Reservation, Reservations, find_reservations, refuse_in_use
from tests.workspace.projects import Sandbox


def test_a_reservation_is_seen_until_it_is_given_back(box: Sandbox) -> None:
    own = Reservations(box.project())
    own.take("sub:train@a/b", ["data"], ["model.txt"])

    (found,) = find_reservations(box.project())
    assert (found.stage, found.reads, found.writes) == ("sub:train@a/b", ("data",), ("model.txt",))
    assert own.others() == ()
    assert Reservations(box.project()).others() == (found,)
    own.give_back("sub:train@a/b")
    assert find_reservations(box.project()) == ()


@pytest.mark.parametrize(
    ("path", "uses", "makes"),
    [
        ("data/a", True, False),
        ("data", True, False),
        ("", True, True),
        ("models", True, True),
        ("models/x/y", True, True),
        ("database", False, False),
        ("models/xy", False, False),
    ],
)
def test_what_it_keeps_others_from(path: str, uses: bool, makes: bool) -> None:
    reservation = Reservation("train", ("data",), ("models/x",), 1)

    assert (reservation.uses(path), reservation.makes(path)) == (uses, makes)


def test_a_process_that_is_killed_reserves_nothing(box: Sandbox) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mlops_cli.workspace.project import find_project\n"
        "from mlops_cli.workspace.reservations import Reservations\n"
        "own = Reservations(find_project(Path.cwd(), os.environ))\n"
        "own.take('train', [], ['model.txt'])\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=box.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"taken\n"
        with pytest.raises(LockedError, match=f"stage `train`, which process {process.pid} runs, makes `model.txt`"):
            refuse_in_use(box.project(), ["other", "model.txt"])
        process.kill()
    assert find_reservations(box.project()) == ()
    refuse_in_use(box.project(), ["model.txt"])


def test_commands_leave_what_is_reserved(box: Sandbox) -> None:
    for name in ("data", "other"):
        box.write(name, f"{name}\n")
        box.add(name)
        (box.root / name).unlink()
    own = Reservations(box.project())
    own.take("train", ["data"], [])

    box.checkout()

    assert (box.exists("data"), box.read("other")) == (False, "other\n")
    assert box.heard.notes == ["left as they are, for stages use them that are being run: `data`"]
    for verb in (
        box.checkout,
        lambda path: unprotect(box.project(), [path]),
        lambda path: evict(box.project(), [path]),
    ):
        with pytest.raises(LockedError):
            verb("data")
    own.give_back("train")
    box.checkout()
    assert box.read("data") == "data\n"
