"""Files that are one with the cache's objects: what must never be, and what a moved cache leaves behind."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MissingObject
from mlops_cli.workspace.add import add
from mlops_cli.workspace.browse import find_object, write_copy
from mlops_cli.workspace.snapshot import workspace_snapshot
from tests.objects import large
from tests.workspace.projects import Sandbox

pytestmark = pytest.mark.usefixtures("crew")

SHARING = ["hardlink", "symlink"]
SCORED = """
stages:
  score:
    cmd:
      - cp raw model
      - printf '{"size":%d}' $(wc -c < raw) > m.json
      - cp raw plot.csv
      - test ! -e fail
    deps: [raw]
    outs: [model]
    metrics: [m.json]
    plots: [plot.csv]
"""


@pytest.fixture(params=SHARING)
def scored(box: Sandbox, request: pytest.FixtureRequest) -> Sandbox:
    """Return a project whose stage has run twice, with another input each time; files and objects share their bytes."""
    box.configure("cache.link", request.param)
    box.pipeline(SCORED)
    for content in ("first version", "second"):
        box.write("raw", large(content))
        box.run()
        box.commit(content)
    return box


def is_own(box: Sandbox, path: str) -> bool:
    """Say whether a file is a regular one that nothing else shares."""
    info = os.lstat(box.root / path)
    return not os.path.islink(box.root / path) and info.st_nlink == 1 and bool(info.st_mode & 0o200)


def test_what_git_keeps_is_never_shared_with_the_cache(scored: Sandbox):
    assert not is_own(scored, "model")
    assert is_own(scored, "m.json")
    assert is_own(scored, "plot.csv")
    assert not [line for line in scored.git("ls-files", "--stage").split("\n") if line.startswith("120000")]


def test_what_git_keeps_is_restored_as_its_own_file(scored: Sandbox):
    scored.write("raw", large("first version"))
    assert scored.run() == {"score": "restore"}
    assert scored.read("plot.csv") == large("first version")
    assert not is_own(scored, "model")
    assert is_own(scored, "m.json")
    assert is_own(scored, "plot.csv")


def test_what_git_keeps_comes_back_after_a_failure_as_its_own_file(scored: Sandbox):
    scored.write("raw", large("third"))
    scored.write("fail")
    with pytest.raises(Exception, match="failed"):
        scored.run()
    assert scored.read("plot.csv") == large("second")
    assert not is_own(scored, "model")
    assert is_own(scored, "m.json")
    assert is_own(scored, "plot.csv")


@pytest.fixture
def linked(box: Sandbox) -> Sandbox:
    """Return a project whose data are symlinks into its first cache."""
    box.configure("cache.link", "symlink")
    box.write("d/a", "a")
    box.write("d/large", os.urandom((1 << 20) + 1))
    box.write("lone", large("lone"))
    box.add("d", "lone")
    box.commit()
    return box


def test_links_into_a_copy_of_the_cache(linked: Sandbox):
    old = linked.project().cache.root
    shutil.copytree(old, linked.root.parent / "copy")
    linked.configure("cache.dir", "../copy")
    assert not any(added.changed for added in linked.add("d", "lone").added)
    assert linked.clean()


def test_links_into_another_cache_bring_their_bytes(linked: Sandbox):
    linked.configure("cache.dir", "../empty")
    assert not any(added.changed for added in linked.add("d", "lone").added)
    shutil.rmtree(linked.root / ".git/mlx/cache")
    linked.checkout()
    assert linked.clean()
    assert linked.read("lone") == large("lone")


def test_link_to_another_caches_damaged_object_brings_nothing(linked: Sandbox):
    place = (linked.root / "lone").resolve()
    place.chmod(0o644)
    place.write_text(large("enol"))
    place.chmod(0o444)
    linked.configure("cache.dir", "../empty")
    with pytest.raises(CorruptObject, match="are not its own"):
        linked.add("lone")
    assert list(linked.project().cache.list()) == []


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(("dead", "target"), [("lone", "lone"), ("d/sub/dead", "d"), ("d/sub/dead", "d/sub/dead")])
def test_link_to_an_object_that_is_nowhere(linked: Sandbox, dead: str, target: str, dry_run: bool):
    objects = (linked.root / "lone").resolve()
    place = linked.root / dead
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(objects)
    objects.unlink()
    with pytest.raises(MissingObject) as caught:
        add(linked.project(), [target], dry_run=dry_run)
    assert caught.value.message == f"`{dead}` is a link to an object that is not there"
    assert caught.value.hint
    place.unlink()
    assert add(linked.project(), ["d"], dry_run=dry_run).added


def test_dead_links_that_are_left_out_or_lead_elsewhere_stop_nothing(linked: Sandbox):
    (linked.root / "d/own").symlink_to("nowhere")
    (linked.root / "d/left out").symlink_to((linked.root / "lone").resolve())
    (linked.root / "lone").resolve().unlink()
    linked.write(".mlxignore", "left out\n")
    planned = add(linked.project(), ["d"], dry_run=True)
    assert planned.added == add(linked.project(), ["d"]).added


@pytest.mark.parametrize("link", SHARING)
def test_copy_written_elsewhere_is_no_part_of_the_cache(box: Sandbox, tmp_path: Path, link: str):
    box.configure("cache.link", link)
    box.write("data/a", large("good"))
    box.add("data")
    snapshot = workspace_snapshot(box.project())
    entry = find_object(box.project().cache, snapshot, "data/a")
    write_copy(box.project().cache, entry, tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    (tmp_path / "copy").write_text("bad")
    shutil.rmtree(box.root / "data")
    box.checkout()
    assert box.read("data/a") == large("good")
