"""`kill -9` at every call of the engine that changes the disk, for each of its verbs.

Whatever the point: what records name is there, and is theirs; every file of the workspace is the old one or the new; a
check of the cache finds nothing wrong. The same verb again completes, and leaves what it would have left at once. Every
fourth time it is killed there twice, and then no more is left than after once. With the first kind of link of each verb
that is so at every call, with the others at every third.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_cli.store import packs
from mlops_cli.store.batches import open_batch
from tests.crashing import killed_at
from tests.workspace.verbs import CASES, Place, assert_no_mix, assert_well, kept, leftovers, visible

TWICE_EACH = 4
PARAMETERS = [(name, link) for name, case in CASES.items() for link in case.links]


@pytest.mark.parametrize(("name", "link"), PARAMETERS)
def test_killed_at_every_point(name: str, link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_CORE_DURABILITY", "batch")
    monkeypatch.setattr(packs, "MANY_SMALL", 6)
    monkeypatch.setattr("mlops_cli.files.sync_filesystem", lambda _: None)
    case = CASES[name]
    place = Place(tmp_path / "place", tmp_path / "saved")
    box = place.box
    box.configure("cache.link", link)
    case.prepare(box)
    place.save()
    old = visible(box)
    case.work(box)
    new, wanted = visible(box), kept(box)
    git = box.changed_in_git()

    step = 1 if link == case.links[0] else 3
    at, died = 0, True
    while died:
        place.reset()
        for _ in range(1 if at // step % TWICE_EACH else 2):
            died = killed_at(lambda: case.work(box), at)
        assert_no_mix(visible(box), old, new)
        if not case.damaged:
            assert_well(box)

        case.work(box)

        assert visible(box) == new, at
        assert box.changed_in_git() == git, at
        assert kept(box) == wanted, at
        assert_well(box)
        with open_batch(box.project().cache) as batch:  # whoever writes next takes away what was left
            batch.add_bytes(b"next")
        assert leftovers(box) == [], at
        at += step
    assert at > case.at_least, "too few points: is the harness watching the calls that the engine makes?"
