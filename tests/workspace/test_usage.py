"""What paths take alone, what they share, and what older versions add."""

from __future__ import annotations

import os
import shutil

import pytest

from mlops_cli.errors import UsageError
from mlops_cli.workspace.usage import Usage, Used, measure
from tests.workspace.projects import Sandbox


def du(box: Sandbox, *targets: str, revision: str | None = None, every: bool = False) -> Usage:
    return measure(box.project(), targets, revision=revision, every=every, reporter=box.heard)


def by_path(found: Usage) -> dict[str, Used]:
    return {item.path: item for item in found.used}


@pytest.fixture
def shared() -> bytes:
    return os.urandom(100_000)


def test_a_file_of_its_own_is_unique(box: Sandbox) -> None:
    box.write("a.bin", os.urandom(100_000))
    box.add("a.bin")

    found = du(box)

    (item,) = found.used
    assert (item.path, item.revision, item.size, item.files) == ("a.bin", None, 100_000, 1)
    assert (item.stored, item.unique, item.shared, found.total) == (100_000, 100_000, 0, 100_000)


def test_what_is_compressed_takes_less_than_its_size(box: Sandbox) -> None:
    """Each object's record counts: nothing else is in a pack but its ends."""
    for number in range(20):
        box.write(f"data/{number}", f"{number} " * 2000)
    box.add("data")

    found = du(box)

    (item,) = found.used
    assert item.size > 80_000
    assert (item.unique, item.shared, item.absent) == (found.total, 0, 0)
    packs = next(part.bytes for part in found.cache if part.name == "packs")
    assert 0.6 * packs < found.total < packs < 10_000


def test_what_two_paths_need_is_shared(box: Sandbox, shared: bytes) -> None:
    box.write("one/shared.bin", shared)
    box.write("one/own.bin", os.urandom(500))
    box.write("two.bin", shared)
    box.write("three.bin", shared)
    box.add("one", "two.bin", "three.bin")

    found = by_path(du(box))

    tree = (found["one"].unique or 0) - 500
    assert 0 < tree < 700  # its listing, and what records of packs begin with
    assert (found["one"].size, found["one"].shared) == (100_500, 100_000)
    assert [(found[path].unique, found[path].shared) for path in ("two.bin", "three.bin")] == [(0, 100_000)] * 2
    assert du(box).total == 100_500 + tree


def test_bytes_that_one_path_has_twice_count_once(box: Sandbox) -> None:
    same = os.urandom(4000)
    box.write("data/a", same)
    box.write("data/b", same)
    box.add("data")

    item = by_path(du(box))["data"]

    assert item.size == 8000
    assert 4000 < (item.unique or 0) < 4500
    assert item.shared == 0


def test_targets_choose_what_is_told_but_not_what_is_shared(box: Sandbox, shared: bytes) -> None:
    box.write("one.bin", shared)
    box.write("two.bin", shared)
    box.add("one.bin", "two.bin")

    found = du(box, "one.bin")

    assert [(item.path, item.unique, item.shared) for item in found.used] == [("one.bin", 0, 100_000)]
    assert found.total == 100_000


def test_a_part_of_a_tracked_folder_is_refused(box: Sandbox) -> None:
    box.write("data/a", "a")
    box.add("data")

    with pytest.raises(UsageError, match="is a part of `data`"):
        du(box, "data/a")


def test_older_versions_are_told_with_the_commit_that_recorded_them(box: Sandbox) -> None:
    commits = []
    bytes_of = {size: os.urandom(size) for size in (100_000, 200_000, 300_000)}
    for size in (100_000, 200_000, 100_000, 300_000):
        box.write("a.bin", bytes_of[size])
        box.add("a.bin")
        commits.append(box.commit()[:12])

    found = du(box, every=True)

    assert [(item.revision, item.size, item.unique) for item in found.used] == [
        (None, 300_000, 300_000),
        (commits[2], 100_000, 100_000),
        (commits[1], 200_000, 200_000),
    ]
    assert found.total == 600_000
    assert [item.size for item in du(box, revision=commits[1]).used] == [200_000]


def test_versions_of_a_folder_share_what_did_not_change(box: Sandbox, shared: bytes) -> None:
    box.write("data/same", shared)
    box.write("data/own", os.urandom(100_000))
    box.add("data")
    box.commit()
    box.write("data/own", os.urandom(100_000))
    box.add("data")
    box.commit()

    new, old = du(box, every=True).used

    assert (new.shared, old.shared) == (100_000, 100_000)
    assert all(100_000 < (item.unique or 0) < 101_000 for item in (new, old))
    assert (new.stored or 0) == (new.unique or 0) + 100_000


def test_outputs_count_too(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: head -c 100000 /dev/urandom > out.bin\n    outs: [out.bin]\n")
    box.run()
    box.commit()

    assert [(item.path, item.unique) for item in du(box).used] == [("out.bin", 100_000)]
    assert [(item.path, item.unique) for item in du(box, every=True).used] == [("out.bin", 100_000)]


def test_what_is_not_here_cannot_be_told(box: Sandbox) -> None:
    box.write("data/a", "a" * 1000)
    box.write("b.bin", "b" * 1000)
    box.add("data", "b.bin")
    shutil.rmtree(box.project().cache.root)

    found = by_path(du(box))

    assert (found["data"].size, found["data"].unique, found["data"].shared) == (1000, None, None)
    assert found["data"].stored is found["data"].absent is None
    assert (found["b.bin"].size, found["b.bin"].stored, found["b.bin"].absent) == (1000, 0, 1)


def test_the_parts_of_the_cache_are_measured(box: Sandbox) -> None:
    box.write("large.bin", os.urandom(100_000))
    box.write("small", "small")
    box.add("large.bin", "small")
    quarantine = box.project().cache.root / "quarantine"
    quarantine.mkdir()
    (quarantine / "bad").write_bytes(b"12345")

    parts = {part.name: (part.files, part.bytes) for part in du(box).cache}

    assert parts["objects"] == (1, 100_000)
    assert parts["packs"][0] == 1
    assert parts["quarantine"] == (1, 5)
    assert parts["trash"] == parts["tmp"] == (0, 0)


def test_a_project_without_data(box: Sandbox) -> None:
    found = du(box)

    assert (found.used, found.total) == ((), 0)
    assert du(box, every=True).used == ()
