"""A pointer or a lock in place never names bytes that a power cut could still take."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.powercut import Disk
from tests.workspace.projects import Sandbox

SMALL, LARGE = 100, 70_000


def fill(box: Sandbox, few: bool) -> None:
    """Write files of both kinds, more of them than are synced one by one unless `few`."""
    for number in range(3 if few else 40):
        box.write(f"data/sub/{number}", f"{number:0{SMALL}}")
        box.write(f"data/{number}", f"{number:0{LARGE}}")


@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
@pytest.mark.parametrize("durability", ["batch", "strict"])
def test_adding(box: Sandbox, durability: str, few: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLX_CORE_DURABILITY", durability)
    fill(box, few)
    disk = Disk(box.root, monkeypatch).watch()
    box.add("data")
    assert disk.commits == {"data.mlx": []}
    box.write("data/new", "1")
    box.add("data/new")
    assert disk.commits == {"data.mlx": []}


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_adding_by_links(box: Sandbox, link: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLX_CORE_DURABILITY", "batch")
    box.configure("cache.link", link)
    fill(box, few=True)
    disk = Disk(box.root, monkeypatch).watch()
    box.add("data")
    assert disk.commits == {"data.mlx": []}


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_running(box: Sandbox, size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLX_CORE_DURABILITY", "batch")
    box.pipeline(f"stages:\n  s:\n    cmd: head -c {size} /dev/zero > out && echo '{{}}' > m.json\n    outs: [out]\n")
    disk = Disk(box.root, monkeypatch).watch()
    box.run()
    assert disk.commits == {"mlx.lock/s.yaml": []}


def test_packs_that_are_gathered_stay_durable(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """The old packs go only when the new one would survive."""
    monkeypatch.setenv("MLX_CORE_DURABILITY", "batch")
    disk = Disk(box.root, monkeypatch).watch()
    for number in range(40):
        box.write("data/x", str(number))
        box.add("data")
        assert disk.at_risk() == []
    assert len(list((box.root / ".git/mlx/cache/packs").iterdir())) < 40
    assert disk.commits == {"data.mlx": []}


def test_the_watch_would_tell(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without any sync, everything that was just added is at risk."""
    monkeypatch.setenv("MLX_CORE_DURABILITY", "none")
    fill(box, few=True)
    disk = Disk(box.root, monkeypatch).watch()
    box.add("data")
    (lost,) = disk.commits.values()
    assert any("/cache/packs/" in path for path in lost)
    assert sum("/cache/objects/" in path for path in lost) > 3
