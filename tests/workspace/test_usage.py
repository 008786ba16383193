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
    box.write("a.bin", bytes(1000))
    box.add("a.bin")

    found = du(box)

    (item,) = found.used
    assert (item.path, item.revision, item.size, item.files) == ("a.bin", None, 1000, 1)
    assert (item.unique, item.shared, found.total) == (1000, 0, 1000)


def test_what_two_paths_need_is_shared(box: Sandbox, shared: bytes) -> None:
    box.write("one/shared.bin", shared)
    box.write("one/own.bin", b"x" * 500)
    box.write("two.bin", shared)
    box.write("three.bin", shared)
    box.add("one", "two.bin", "three.bin")

    found = by_path(du(box))

    tree = (found["one"].unique or 0) - 500
    assert 0 < tree < 500  # its listing
    assert (found["one"].size, found["one"].shared) == (100_500, 100_000)
    assert [(found[path].unique, found[path].shared) for path in ("two.bin", "three.bin")] == [(0, 100_000)] * 2
    assert du(box).total == 100_500 + tree


def test_bytes_that_one_path_has_twice_count_once(box: Sandbox) -> None:
    box.write("data/a", b"same" * 1000)
    box.write("data/b", b"same" * 1000)
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
    for size in (1000, 2000, 1000, 3000):
        box.write("a.bin", bytes(size))
        box.add("a.bin")
        commits.append(box.commit()[:12])

    found = du(box, every=True)

    assert [(item.revision, item.size, item.unique) for item in found.used] == [
        (None, 3000, 3000),
        (commits[2], 1000, 1000),
        (commits[1], 2000, 2000),
    ]
    assert found.total == 6000
    assert [item.size for item in du(box, revision=commits[1]).used] == [2000]


def test_outputs_count_too(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: head -c 1000 /dev/zero > out.bin\n    outs: [out.bin]\n")
    box.run()
    box.commit()

    assert [(item.path, item.unique) for item in du(box).used] == [("out.bin", 1000)]
    assert [(item.path, item.unique) for item in du(box, every=True).used] == [("out.bin", 1000)]


def test_what_is_not_here_cannot_be_told(box: Sandbox) -> None:
    box.write("data/a", "a" * 1000)
    box.write("b.bin", "b" * 1000)
    box.add("data", "b.bin")
    shutil.rmtree(box.project().cache.root)

    found = by_path(du(box))

    assert (found["data"].size, found["data"].unique, found["data"].shared) == (1000, None, None)
    assert found["b.bin"].unique == 1000


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
