"""A full disk, a quota, a disk that fails, too many open files: at every call of each verb of the engine.

Whatever the call: the verb says so in words and with the exit code 6, or does its work all the same; what records name
is there; every file of the workspace is the old one or the new; no temporary file is left. Then the verb again completes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_cli.errors import MlxError, OutsideError
from mlops_cli.store import packs
from mlops_cli.store.batches import open_batch
from tests.faults import BROKEN, FULL, QUOTA, TOO_MANY, Refusal, refusing
from tests.workspace.verbs import CASES, Place, assert_no_mix, assert_well, kept, leftovers, visible

WORDS = {
    "ENOSPC": "the disk is full",
    "EDQUOT": "the disk quota is used up",
    "EIO": "input/output error",
    "EMFILE": "too many open files",
}
STEP = 3  # one call in so many is refused: the others are much like it
CORE = {"merge the index"}  # not a command: whoever calls translates
EVERY_KIND = ("add", "checkout", "gc", "gather packs", "pull")
PARAMETERS = [
    *((name, case.links[0], FULL) for name, case in CASES.items()),
    *((name, CASES[name].links[0], refusal) for name in EVERY_KIND for refusal in (BROKEN, TOO_MANY)),
    *(("add", link, FULL) for link in CASES["add"].links[1:]),
    ("add", "copy", QUOTA),
]


@pytest.mark.parametrize(("name", "link", "refusal"), PARAMETERS, ids=str)
def test_refused_at_every_call(
    name: str, link: str, refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLX_CORE_DURABILITY", "batch")
    monkeypatch.setattr(packs, "MANY_SMALL", 6)
    case = CASES[name]
    place = Place(tmp_path / "place", tmp_path / "saved")
    box = place.box
    box.configure("cache.link", link)
    case.prepare(box)
    place.save()
    old = visible(box)
    case.work(box)
    new, wanted = visible(box), kept(box)

    at, refused = 0, True
    while refused:
        place.reset()
        told: MlxError | OSError | None = None
        with refusing(refusal, at) as count:
            try:
                case.work(box)
            except (MlxError, OSError) as error:
                told = error
        refused = count.refused > 0

        if isinstance(told, OSError):  # the command line tells it, with the file's name
            assert told.errno == refusal.code
            assert told.filename is not None or name in CORE, at
        elif told is not None:
            assert isinstance(told, OutsideError), (at, told)
            assert WORDS[str(refusal)] in told.message, (at, told)
            assert told.hint
        assert_no_mix(visible(box), old, new)
        if not case.damaged:
            assert_well(box)
        assert leftovers(box) == [], at

        case.work(box)

        assert visible(box) == new, at
        assert kept(box) == wanted, at
        assert_well(box)
        with open_batch(box.project().cache) as batch:  # whoever writes next takes away what was left
            batch.add_bytes(b"next")
        assert leftovers(box) == [], at
        at += STEP
    assert at > 3
