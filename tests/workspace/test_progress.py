"""Whatever may take more than a moment tells how it goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from mlops_cli.progress import Reporter, Silent
from mlops_cli.store.checkup import Scope
from mlops_cli.workspace.collect import collect, empty_trash, restore_trash
from mlops_cli.workspace.integrity import examine
from mlops_cli.workspace.relink import relink, unprotect
from mlops_cli.workspace.usage import measure
from tests.workspace.collecting import later
from tests.workspace.projects import Sandbox


@dataclass(slots=True)
class Heard(Silent):
    """Adds up what each piece of work told; `totals` is what was expected."""

    done: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int | None] = field(default_factory=dict)
    label: str = ""

    def start(self, label: str, total: int | None, unit: str) -> None:
        self.label = label
        self.totals[label] = total

    def advance(self, amount: int) -> None:
        assert amount >= 0
        self.done[self.label] = self.done.get(self.label, 0) + amount


FILES = 70


@pytest.fixture
def filled(box: Sandbox) -> Sandbox:
    box.configure("cache.link", "hardlink")
    for number in range(FILES):
        box.write(f"data/{number}", os.urandom(20_000))
    box.add("data")
    for number in range(FILES):
        (box.root / f"data/{number}").unlink()
        box.write(f"data/{number}", os.urandom(20_000))
    box.add("data")
    relink(box.project())
    return box


def thrown(box: Sandbox) -> None:
    collect(box.project(), now=later())


def nothing(box: Sandbox) -> None:
    pass


def collecting(box: Sandbox, reporter: Reporter) -> None:
    collect(box.project(), now=later(), reporter=reporter)


def restoring(box: Sandbox, reporter: Reporter) -> None:
    restore_trash(box.project(), reporter=reporter)


def emptying(box: Sandbox, reporter: Reporter) -> None:
    empty_trash(box.project(), reporter=reporter)


def checking(box: Sandbox, reporter: Reporter) -> None:
    examine(box.project(), Scope(), reporter=reporter)


def unprotecting(box: Sandbox, reporter: Reporter) -> None:
    unprotect(box.project(), reporter=reporter)


def relinking(box: Sandbox, reporter: Reporter) -> None:
    box.configure("cache.link", "copy")
    relink(box.project(), reporter=reporter)


@pytest.mark.parametrize(
    ("before", "work", "label", "least"),
    [
        (nothing, collecting, "looking for what is needed", FILES),
        (nothing, collecting, "looking through the cache", 2 * FILES),
        (nothing, collecting, "putting away", FILES),
        (thrown, restoring, "bringing back", FILES),
        (thrown, emptying, "deleting", FILES),
        (nothing, checking, "checking", 2 * FILES * 20_000),
        (nothing, checking, "looking for what the records need", 1),
        (nothing, unprotecting, "unprotecting", 64),
        (nothing, relinking, "relinking", 64),
    ],
)
def test_it_tells_how_it_goes(
    before: Callable[[Sandbox], None],
    work: Callable[[Sandbox, Reporter], None],
    label: str,
    least: int,
    filled: Sandbox,
) -> None:
    before(filled)
    heard = Heard()

    work(filled, heard)

    assert heard.done[label] >= least
    total = heard.totals[label]
    assert total is None or heard.done[label] <= total


def test_measuring_tells_how_it_goes(filled: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_cli.workspace.usage._REPORT_EVERY", 10)
    heard = Heard()

    measure(filled.project(), reporter=heard)

    assert heard.done["measuring"] == 70
