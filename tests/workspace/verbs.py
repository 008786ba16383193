"""The verbs of the engine, each with a state to begin with: what tests of failures play again and again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlops_cli.errors import UsageError
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store import packs
from mlops_cli.store.batches import open_batch
from mlops_cli.store.checkup import Scope
from mlops_cli.store.contents import read_contents
from mlops_cli.workspace.collect import collect, empty_trash, restore_trash
from mlops_cli.workspace.evict import evict
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.integrity import examine
from mlops_cli.workspace.move import move
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.relink import relink, unprotect
from tests.objects import damage
from tests.workspace.collecting import content, later
from tests.workspace.projects import Sandbox, listing, make_project

LARGE = 70_000  # bytes; an object of its own in every link mode
SHARING = ("copy", "hardlink", "symlink")
Files = dict[bytes, tuple[str, bytes]]  # by path: what kind of file it is, and its bytes
NOW, DAY = later(), 24 * 3600.0


def fill(box: Sandbox, version: str, names: tuple[str, ...] = ("one", "two", "sub/three")) -> None:
    """Write a folder in which, between versions, a large and a small file differ and others do not."""
    for name in names:
        write(box, f"data/{name}", content(f"{name} of {version}", 400))
        write(box, f"data/{name}.large", content(f"{name} of {version}", LARGE))
    write(box, "data/same", content("same", 300))
    write(box, "data/same.large", content("same", LARGE))


def write(box: Sandbox, path: str, text: str) -> None:
    (box.root / path).unlink(missing_ok=True)
    box.write(path, text)


@dataclass(frozen=True, slots=True)
class Case:
    """A verb: `prepare` makes the old state, `work` is what is killed."""

    prepare: Callable[[Sandbox], object]
    work: Callable[[Sandbox], object]
    links: tuple[str, ...] = ("copy",)
    at_least: int = 10  # points that there must be
    damaged: bool = False  # whether the old state is


def nothing(_: Sandbox) -> None: ...


def added(box: Sandbox) -> None:
    fill(box, "old")
    box.add("data")
    box.commit("old")


def changed(box: Sandbox) -> None:
    added(box)
    write(box, "data/sub/three", content("new", 500))
    write(box, "data/two.large", content("new", LARGE))


def two_versions(box: Sandbox) -> None:
    """Commit two versions, and let the records be those of the older one: of a file, and of a folder more and less."""
    fill(box, "old", ("one", "two", "gone/three"))
    box.write("lone", content("lone old", LARGE))
    box.add("data", "lone")
    box.commit("old")
    shutil.rmtree(box.root / "data")
    fill(box, "new", ("one", "two", "come/three"))
    write(box, "lone", content("lone new", LARGE))
    box.add("data", "lone")
    box.commit("new")
    box.git("checkout", "--quiet", "HEAD~1")


def unneeded(box: Sandbox) -> None:
    """Fill the cache with what goes: loose objects, a pack of which nothing is needed, one of which little is, a run."""
    added(box)
    with open_batch(box.project().cache) as batch:
        for number in range(8):
            batch.add_bytes(content(f"sparse {number}", 2000).encode())
    box.write("kept", content("sparse 3", 2000))
    box.add("kept")
    fill(box, "dead")
    box.add("data")
    box.git("checkout", "--quiet", "data.mlx")
    box.checkout(force=True)
    box.project().cache.write_run("abc", b"mlx: 1\ncmd: x\n")


def thrown(box: Sandbox) -> None:
    unneeded(box)
    gc(box)


def gc(box: Sandbox) -> None:
    collect(box.project(), now=NOW, grace=DAY)


def scattered(box: Sandbox) -> None:
    """Leave as many small packs as are gathered at once, but for one."""
    for number in range(packs.MANY_SMALL - 1):
        box.write(f"data/{number}", content(str(number), 300))
        with open_batch(box.project().cache) as batch:
            batch.add_bytes(content(str(number), 300).encode())


def reindex(box: Sandbox) -> None:
    cache = box.project().cache
    with cache.scratch() as scratch, cache.packs.replacing(wait=True):
        cache.packs.reindex(scratch.next_path)


def segmented(box: Sandbox) -> None:
    """Leave three segments of equal size, and a pack that none knows: all become one."""
    added(box)
    for number in range(3):
        before = {path.name for path in (box.project().cache.root / "packs").iterdir()}
        with open_batch(box.project().cache) as batch:
            batch.add_bytes(content(f"more {number}", 300).encode())
        hidden = [box.project().cache.root / "packs" / name for name in before]
        away = [path.rename(path.with_suffix(".away")) for path in hidden]
        kept = {path: path.read_bytes() for path in (box.project().cache.root / "index").glob("*.idx")}
        reindex(box)
        for path in away:
            path.rename(path.with_suffix(".pack"))
        for path, data in kept.items():
            path.write_bytes(data)
    with open_batch(box.project().cache) as batch:
        batch.add_bytes(content("bare", 300).encode())


def alone(verb: Callable[[Project], object]) -> Callable[[Sandbox], object]:
    """Return what a command does that calls `verb`."""

    def work(box: Sandbox) -> None:
        project = box.project()
        with exclusive(project, "mlx"):
            verb(project)

    return work


def moving(old: str, new: str) -> Callable[[Sandbox], object]:
    def verb(project: Project) -> None:
        try:
            move(project, old, new)
        except UsageError as error:  # it was through
            assert error.message == f"nothing tracks `{old}`"  # noqa: PT017

    return alone(verb)


def pushed(box: Sandbox) -> None:
    box.remote()
    added(box)
    push(box.project())


def shared_with_another(box: Sandbox) -> None:
    """Push, and let another path need some of what the first has."""
    box.remote()
    fill(box, "old")
    box.write("other/three", content("sub/three of old", 400))
    box.write("other/one.large", content("one of old", LARGE))
    box.add("data", "other")
    box.commit("old")
    push(box.project())


def lost(box: Sandbox) -> None:
    """Lose what the cache has of what the remote has, too."""
    pushed(box)
    for name in ("objects", "packs", "index"):
        shutil.rmtree(box.project().cache.root / name, ignore_errors=True)
    shutil.rmtree(box.root / "data")


def pull(box: Sandbox) -> None:
    alone(fetch)(box)
    box.checkout(force=True)


def spoilt(box: Sandbox) -> None:
    """Damage a loose object, a record and the index, of what a remote has, too."""
    pushed(box)
    reindex(box)
    cache = box.project().cache
    tracked = {digest for digest in cache.list() if cache.packs.find(digest) is None}
    damage(cache, min(tracked))
    damage(cache, min(digest for digest, place in cache.packs.rows() if place.length > 300))
    segment = next((cache.root / "index").iterdir())
    segment.chmod(0o644)
    data = bytearray(segment.read_bytes())
    data[60] ^= 1
    segment.write_bytes(data)


def repair(box: Sandbox) -> None:
    examine(box.project(), Scope(), repair=True)


def to_be_linked(mode: str) -> Callable[[Sandbox], object]:
    def prepare(box: Sandbox) -> None:
        added(box)
        box.configure("cache.link", mode)

    return prepare


CASES = {
    "add": Case(lambda box: fill(box, "old"), lambda box: box.add("data"), ("reflink", *SHARING), 30),
    "add again": Case(changed, lambda box: box.add("data"), SHARING),
    "add a part": Case(changed, lambda box: box.add("data/sub/three", "data/two.large"), ("copy", "hardlink")),
    "checkout": Case(two_versions, lambda box: box.checkout(), SHARING),
    "gc": Case(unneeded, gc, ("copy", "symlink"), 20),
    "gc --restore": Case(thrown, lambda box: restore_trash(box.project())),
    "gc --empty-trash": Case(thrown, lambda box: empty_trash(box.project())),
    "gather packs": Case(scattered, lambda box: box.add("data")),
    "merge the index": Case(segmented, reindex, at_least=4),
    "move": Case(added, moving("data", "there")),
    "move a part": Case(added, moving("data/sub/three", "data/deep/three")),
    "relink": Case(to_be_linked("hardlink"), alone(relink)),
    "relink to symlinks": Case(to_be_linked("symlink"), alone(relink)),
    "unprotect": Case(added, alone(lambda project: unprotect(project, ["data"])), ("hardlink", "symlink")),
    "push": Case(lambda box: (box.remote(), added(box)), lambda box: push(box.project())),
    "pull": Case(lost, pull, ("copy", "hardlink")),
    "evict": Case(pushed, alone(lambda project: evict(project, ["data"])), ("copy", "hardlink", "symlink"), 12),
    "evict a part": Case(shared_with_another, alone(lambda project: evict(project, ["data/sub", "data/one.large"]))),
    "evict --cache-only": Case(pushed, alone(lambda project: evict(project, ["data"], cache_only=True)), at_least=6),
    "fsck --repair": Case(spoilt, repair, damaged=True),
}


@dataclass(slots=True)
class Place:
    """Where a case is played, always at the same path: links into the cache are absolute."""

    folder: Path
    saved: Path
    box: Sandbox = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.box = make_project(self.folder / "project")
        shutil.rmtree(self.box.root / ".git" / "hooks", ignore_errors=True)  # less to copy

    def save(self) -> None:
        copy(self.folder, self.saved)

    def reset(self) -> None:
        shutil.rmtree(self.folder)
        copy(self.saved, self.folder)


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


def visible(box: Sandbox) -> Files:
    """Return every file that a user sees, by its bytes, whether it is a link into the cache or not."""
    found = {}
    for name, (kind, data) in listing(box.root).items():
        parts = name.split(b"/")
        if b".git" in parts or b".mlx-tmp-" in name or kind == "folder":
            continue
        place = os.path.join(os.fsencode(box.root), name)
        if kind == "symlink":
            with open(place, "rb") as stream:
                found[name] = ("file", stream.read())
        else:
            found[name] = (kind, data)
    return found


def kept(box: Sandbox) -> tuple[set[str], ...]:
    """Return what the cache has by kind: objects, run records, files that nothing serves."""
    cache = box.project().cache
    contents = read_contents(cache)
    objects = {item.raw.hex() for item in contents.loose}
    objects |= {raw.hex() for pack in contents.packs for raw, _ in pack.objects or ()}
    odd = {path.name[:64] for path in (cache.root / "quarantine").glob("*")}
    thrown = {
        path.relative_to(cache.root / "trash").as_posix().partition("/")[2]
        for path in (cache.root / "trash").rglob("*")
        if path.is_file()
    }
    return objects, {run.key for run in contents.runs}, odd, thrown


def leftovers(box: Sandbox) -> list[Path]:
    cache = box.project().cache.root
    found = [*(cache / "tmp").iterdir()] if (cache / "tmp").exists() else []
    return [*found, *box.root.parent.rglob(".mlx-tmp-*")]


def assert_no_mix(seen: Files, old: Files, new: Files) -> None:
    """Each file is as it was before or as it is afterwards; a `.gitignore` may hide what both of them do."""
    for path in old.keys() | new.keys() | seen.keys():
        if path == b".gitignore":
            before, between, after = (set(files.get(path, ("", b""))[1].split()) for files in (old, seen, new))
            assert before & after <= between <= before | after
        else:
            assert seen.get(path) in (old.get(path), new.get(path)), path


def assert_well(box: Sandbox) -> None:
    found = examine(box.project(), Scope(), dry_run=True)
    assert (found.damaged, found.checkup.files, found.checkup.strays) == ((), (), ())
