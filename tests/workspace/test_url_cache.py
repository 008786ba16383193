"""A cache behind a URL: what is added goes straight up, what is needed comes straight down, listings alone stay here."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.errors import MissingObject, RecordError, UsageError
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.pipeline.plan import Action
from mlops_cli.pipeline.status import project_status
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store import url_batch
from mlops_cli.store.folder_bucket import FolderBucket
from mlops_cli.store.remote import Remote
from mlops_cli.store.trees import decode_tree
from mlops_cli.store.url_cache import UrlCache
from mlops_cli.workspace import clients
from mlops_cli.workspace.evict import evict
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.importing import import_data
from mlops_cli.workspace.move import move
from mlops_cli.workspace.origins import UrlOrigin
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remotes import add_remote, list_remotes, remove_remote
from mlops_cli.workspace.snapshot import workspace_snapshot
from mlops_cli.workspace.usage import measure
from tests.crashing import crashes
from tests.objects import contents
from tests.servers.s3 import s3_server
from tests.workspace.projects import Sandbox, clone, listing

BIG = random.Random(3).randbytes(17 << 20)
FAR = "file://../far"


@pytest.fixture
def box(box: Sandbox) -> Sandbox:
    """Return a project whose cache is the folder `far` beside it, as a URL."""
    box.configure("cache.dir", FAR)
    for number in range(30):
        box.write(f"data/{number % 3}/{number}", f"content {number}")
    box.write("data/run.sh", "#!/bin/sh\n", mode=0o755)
    box.write("data/twin", "content 1")
    (box.root / "data" / "empty").mkdir()
    (box.root / "data" / "link").symlink_to("0/0")
    return box


def far(box: Sandbox) -> Path:
    return box.root.parent / "far"


def is_listing(data: bytes) -> bool:
    return data[:4] == b"MLXT" and decode_tree(data, hash_bytes(data)) is not None


def assert_only_listings_here(box: Sandbox, *, killed: bool = False) -> None:
    root = box.project().cache.root
    assert all(is_listing(data) for data in contents(root).values())
    if not killed:  # then the next that writes there removes what was left
        assert not list((root / "tmp").glob("*"))


def test_everything_is_there_and_listings_alone_are_here(box: Sandbox, crew: str, tmp_path: Path) -> None:
    box.write("big", BIG)
    before = listing(box.root / "data")

    box.add("data", "big")

    assert box.clean()
    assert_only_listings_here(box)
    assert list((far(box) / "recipes").glob("*/*"))
    shutil.rmtree(box.root / "data")
    (box.root / "big").unlink()
    assert box.states() == {"data": "missing", "big": "missing"}
    box.checkout()
    assert listing(box.root / "data") == before
    assert (box.root / "big").read_bytes() == BIG
    assert os.access(box.root / "data" / "run.sh", os.X_OK)
    assert not os.access(box.root / "big", os.X_OK)
    assert_only_listings_here(box)
    box.commit()
    other = clone(box, tmp_path / "elsewhere" / "clone")
    other.configure("cache.dir", far(box).as_uri())
    other.checkout()
    assert listing(other.root / "data") == before
    assert (other.root / "big").read_bytes() == BIG
    assert_only_listings_here(other)


def test_the_pointer_is_the_one_of_any_cache(box: Sandbox) -> None:
    box.add("data")
    written = box.read("data.mlx")
    (box.root / "data.mlx").unlink()
    box.configure("cache.dir", "../folder")

    box.add("data")

    assert box.read("data.mlx") == written


def test_adding_again_sends_what_is_new(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Collection[Digest]] = []
    send = Remote.send

    def watched(self: Remote, cache: Any, wanted: Any, **options: Any) -> Any:
        sent.append([*wanted.blobs, *wanted.trees])
        return send(self, cache, wanted, **options)

    monkeypatch.setattr(Remote, "send", watched)
    box.add("data")
    assert len(sent) == 1
    box.add("data")
    assert len(sent) == 1
    box.write("data/0/new", "new")
    box.add("data/0/new")
    assert [len(each) for each in sent[1:]] == [3]  # the file, its folder, the folder above
    assert box.clean()


def test_folders_are_not_believed_to_be_held(box: Sandbox) -> None:
    box.add("data")
    box.settle("data")
    box.add("data")
    for part in ("packs", "index", "recipes", "objects"):  # others may take away what is not here, without a trace
        shutil.rmtree(far(box) / part, ignore_errors=True)

    box.add("data")

    shutil.rmtree(box.root / "data")
    box.checkout()
    assert box.clean()


def test_what_comes_down_at_once_is_bounded(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        box.write(f"data/large/{number}", random.Random(number).randbytes(200_000))
    before = listing(box.root / "data")
    box.add("data")
    shutil.rmtree(box.root / "data")
    most = 0
    bring = Remote.bring

    def watched(self: Remote, cache: Any, digests: Collection[Digest], **options: Any) -> Any:
        nonlocal most
        done = bring(self, cache, digests, **options)
        size = sum(path.stat().st_size for path in cache.root.rglob("*") if path.is_file())
        most = max(most, size)
        return done

    monkeypatch.setattr(Remote, "bring", watched)
    monkeypatch.setattr("mlops_cli.store.url_cache.ROUND", 500_000)

    box.checkout()

    assert listing(box.root / "data") == before
    assert 400_000 < most < 600_000
    assert_only_listings_here(box)


def test_a_file_that_changes_on_its_way_up_is_refused(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    send = UrlCache.send

    def late(self: UrlCache, *args: Any) -> None:
        box.write("data/0/0", "edited meanwhile")
        send(self, *args)

    monkeypatch.setattr(UrlCache, "send", late)
    with pytest.raises(UsageError, match="0/0` was changed while it was sent"):
        box.add("data")
    assert not box.exists("data.mlx")
    monkeypatch.undo()
    box.add("data")
    assert box.clean()


def test_stages_are_run_restored_and_reproduced(box: Sandbox) -> None:
    box.add("data")
    box.pipeline(
        """\
stages:
  copy:
    cmd: cp -r data out && echo 1 > out/more
    deps: [data]
    outs: [out]
"""
    )
    assert box.run() == {"copy": "run"}
    made = listing(box.root / "out")
    assert_only_listings_here(box)
    box.commit()
    shutil.rmtree(box.root / "out")
    box.checkout()
    assert listing(box.root / "out") == made
    box.write("data/twin", "another")
    box.add("data")
    assert box.run() == {"copy": "run"}
    box.write("data/twin", "content 1")
    box.add("data")

    assert box.run() == {"copy": "restore"}

    assert listing(box.root / "out") == made
    assert list((far(box) / "runs").iterdir())
    found = box.reproduce("HEAD")
    assert found.same
    assert_only_listings_here(box)


def test_what_a_stage_overwrites_is_kept(box: Sandbox) -> None:
    box.pipeline("stages:\n  make:\n    cmd: echo made > out\n    outs: [out]\n")
    box.write("out", "precious")

    box.run()

    kept = [note for note in box.heard.notes if "held bytes that no store had" in note]
    assert kept
    digest = kept[0].split("`")[3]
    assert box.project().cache.read(digest) == b"precious"


def test_moving_takes_listings_alone(box: Sandbox) -> None:
    box.add("data")
    project = box.project()
    with exclusive(project, "mlx move", box.heard):
        move(project, "data/0", "zero")
    assert box.clean()
    shutil.rmtree(box.root / "data")
    box.checkout()
    assert not box.exists("data/0")
    assert box.read("zero/3") == "content 3"


def test_push_and_fetch_pass_through(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlops_cli.store.url_cache.ROUND", 100)
    box.write("big", BIG)
    before = listing(box.root / "data")
    box.add("data", "big")
    assert push(box.project()).objects == 0  # the cache is the only remote, and has it all
    box.remote()

    assert push(box.project()).objects == 38

    assert push(box.project()).objects == 0
    assert_only_listings_here(box)
    box.commit()
    other = clone(box, tmp_path / "elsewhere" / "clone")
    other.configure("remotes.storage.url", str(tmp_path / "remote"))
    with pytest.raises(MissingObject):
        other.checkout()
    assert fetch(other.project()).objects == 38
    assert fetch(other.project()).objects == 0
    assert_only_listings_here(other)
    other.checkout()
    assert listing(other.root / "data") == before
    assert (other.root / "big").read_bytes() == BIG
    assert (tmp_path / "elsewhere" / "far" / "packs").is_dir()


def test_imports_go_up_in_rounds(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(6):
        (source / str(number)).write_bytes(random.Random(number).randbytes(100_000 if number % 2 else 50))
    published = 0
    publish = url_batch.UrlBatch.publish

    def counted(self: url_batch.UrlBatch) -> None:
        nonlocal published
        published += 1
        publish(self)

    monkeypatch.setattr(url_batch.UrlBatch, "publish", counted)
    monkeypatch.setattr(url_batch, "ROUND", 150_000)
    project = box.project()
    with exclusive(project, "mlx import", box.heard):
        import_data(project, UrlOrigin(source.as_uri()), "got")
    assert published == 2
    assert_only_listings_here(box)
    shutil.rmtree(box.root / "got")
    box.checkout()
    assert listing(box.root / "got") == listing(source)


def test_evicting_takes_the_files(box: Sandbox) -> None:
    box.add("data")
    box.commit()
    done = evict(box.project(), ["data"])
    assert (done.paths[0].remote, done.paths[0].files, done.paths[0].objects) == ("cache", 34, 0)
    assert not box.exists("data/0")
    box.checkout()
    assert box.clean()


def test_sizes_are_those_of_the_far_side(box: Sandbox) -> None:
    box.write("big", BIG)
    box.add("big")
    assert measure(box.project()).used[0].unique == len(BIG)


def test_status_asks_nobody(box: Sandbox) -> None:
    box.add("data")
    shutil.rmtree(far(box))
    assert box.clean()
    box.write("data/0/0", "edited")
    assert box.states() == {"data": "modified"}
    shutil.rmtree(box.root / "data")
    assert box.states() == {"data": "missing"}
    with pytest.raises(MissingObject):
        box.checkout()


def test_it_is_a_remote(box: Sandbox) -> None:
    box.add("data")
    (remote,) = list_remotes(box.project())
    assert (remote.name, remote.default, remote.origin) == ("cache", True, "project (.mlx/config.yaml)")
    with pytest.raises(UsageError, match="is the cache at") as caught:
        remove_remote(box.project(), os.environ, "cache")
    assert caught.value.hint == "`mlx config unset cache.dir` puts the cache into this clone again"
    with pytest.raises(UsageError, match="is there already"):
        add_remote(box.project(), os.environ, "cache", "/elsewhere")
    box.configure("remotes.cache.owner", "single")
    assert box.project().config.remotes["cache"].owner == "single"
    box.remote()
    assert [(remote.name, remote.default) for remote in list_remotes(box.project())] == [
        ("storage", True),
        ("cache", False),
    ]


def test_settings_that_do_not_go_together(box: Sandbox) -> None:
    box.configure("cache.link", "hardlink")
    with pytest.raises(UsageError, match="the cache is not on this machine"):
        box.add("data")
    box.configure("cache.link", "copy")
    box.configure("cache.dir", "../folder")
    box.remote("cache", "../other")
    box.configure("cache.dir", FAR)
    with pytest.raises(UsageError, match="a remote is called `cache`"):
        box.add("data")
    with pytest.raises(UsageError, match="holds a password"):
        box.configure("cache.dir", "s3://key:secret@bucket")
    box.write(".mlx/config.yaml", "mlx: 1\ncache: {dir: 's3://key:secret@bucket'}\n")
    with pytest.raises(RecordError, match="holds a password"):
        box.project()


def test_a_note_is_left_for_whoever_collects(box: Sandbox) -> None:
    box.git("commit", "--quiet", "--allow-empty", "-m", "first")
    box.add("data")
    assert len(list((far(box) / "projects").iterdir())) == 1
    assert clients.list_registered(box.project().cache) == []


@pytest.fixture
def few(box: Sandbox) -> Sandbox:
    """Leave a file that lies alone, two in one pack, and a folder."""
    shutil.rmtree(box.root / "data")
    box.write("data/alone", random.Random(1).randbytes(5 << 20))
    box.write("data/a", "a")
    box.write("data/below/b", "b")
    return box


def test_killed_at_every_third_call_of_add(few: Sandbox) -> None:
    box = few
    before = listing(box.root / "data")
    for at in crashes(lambda: box.add("data"), every=3):
        if box.exists("data.mlx"):
            other = Sandbox(box.root.parent / f"reader-{at}")
            shutil.copytree(box.root, other.root, ignore=shutil.ignore_patterns("data", "mlx"))
            (other.root / ".git" / "mlx").mkdir()
            other.checkout()
            assert listing(other.root / "data") == before
        box.add("data")
        assert box.clean()
        assert_only_listings_here(box, killed=True)
        shutil.rmtree(far(box))
        shutil.rmtree(box.root / ".git" / "mlx")
        (box.root / "data.mlx").unlink()
        (box.root / ".gitignore").unlink()


def test_killed_at_every_third_call_of_checkout(few: Sandbox) -> None:
    box = few
    before = listing(box.root / "data")
    box.add("data")
    shutil.rmtree(box.root / "data")
    for _ in crashes(box.checkout, every=3):
        box.checkout()
        assert listing(box.root / "data") == before
        assert_only_listings_here(box, killed=True)
        shutil.rmtree(box.root / "data")


def test_workers_ask_no_server(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """What speaks over a network hangs in a copy of a process in which it was at work."""
    with s3_server() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        box.configure("cache.dir", server.make_bucket("cache"))
        box.add("data")
        box.write("lone", "content 2")  # what is in the largest segment tells nothing of the others
        for number in range(1200):
            box.write(f"more/{number % 3}/{number}", str(number % 500))
        box.write("second", "in a segment of its own")
        box.add("second")
        shutil.rmtree(box.root / ".git" / "mlx")
        command = [sys.executable, "-m", "mlops_cli", "-C", str(box.root), "add", "lone", "more"]

        subprocess.run(command, check=True, timeout=30)


def test_what_is_taken_away_while_nothing_is_sent_is_told(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.add("data")
    (box.root / "data.mlx").unlink()
    publish = url_batch.UrlBatch.publish

    def late(self: url_batch.UrlBatch) -> None:
        _, store = open_project_remote(box.project(), "cache")
        store.deny([hash_bytes(b"content 1")])
        store.forget_faults()
        publish(self)

    monkeypatch.setattr(url_batch.UrlBatch, "publish", late)
    with pytest.raises(MissingObject):
        box.add("data")
    assert not box.exists("data.mlx")
    monkeypatch.undo()
    box.add("data")
    shutil.rmtree(box.root / "data")
    box.checkout()
    assert box.clean()


def test_what_was_stored_here_before_is_pushed(box: Sandbox, tmp_path: Path) -> None:
    (box.root / ".mlx" / "config.yaml").write_text("mlx: 1\n")
    box.write("big", BIG)
    before = listing(box.root / "data")
    box.add("data", "big")
    box.commit()
    shutil.rmtree(box.root / "data")
    (box.root / "big").unlink()
    box.configure("cache.dir", FAR)
    with pytest.raises(MissingObject):
        box.checkout()

    assert push(box.project()).objects == 38

    assert push(box.project()).objects == 0
    shutil.rmtree(box.root / ".git" / "mlx" / "cache")
    box.checkout()
    assert listing(box.root / "data") == before
    assert (box.root / "big").read_bytes() == BIG


def actions(box: Sandbox) -> list[Action]:
    return [decision.action for decision in project_status(box.project()).stages]


def test_status_of_stages_asks_nobody(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.add("data")
    box.pipeline(
        """\
stages:
  copy: {cmd: cp -r data out, deps: [data], outs: [out]}
  count: {cmd: ls out > lines, deps: [out], outs: [lines]}
"""
    )
    box.run()
    monkeypatch.setattr(FolderBucket, "get", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr(FolderBucket, "list", lambda *_: pytest.fail("asked"))
    assert box.clean()
    assert actions(box) == [Action.SKIP, Action.SKIP]
    shutil.rmtree(box.root / "out")
    assert actions(box) == [Action.RESTORE, Action.SKIP]
    box.write("data/0/0", "edited")
    assert actions(box) == [Action.RUN, Action.RUN]
    shutil.rmtree(box.project().cache.root)
    assert project_status(box.project()).data


def test_a_listing_that_is_not_here_is_asked_for_once(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.add("data")
    cache = box.project().cache
    pointer = workspace_snapshot(box.project()).pointer("data")
    assert pointer is not None
    digest = pointer.digest
    shutil.rmtree(cache.root)
    data = cache.read(digest)
    monkeypatch.setattr(FolderBucket, "get", lambda *_: pytest.fail("asked again"))
    assert cache.read(digest) == data


REPLACED = {
    "truncated": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "link": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "loop": lambda path: (path.unlink(), path.symlink_to(path.name)),
}


@pytest.mark.parametrize("size", [10, 5 << 20, 17 << 20])
@pytest.mark.parametrize("how", REPLACED)
def test_whatever_takes_the_place_of_a_file_on_its_way_up(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, how: str, size: int
) -> None:
    box.write("data/2/file", random.Random(size).randbytes(size))
    send = UrlCache.send

    def late(self: UrlCache, *args: Any) -> None:
        REPLACED[how](box.root / "data" / "2" / "file")
        send(self, *args)

    monkeypatch.setattr(UrlCache, "send", late)
    with pytest.raises(UsageError, match="2/file` was changed while it was sent"):
        box.add("data")
    assert not box.exists("data.mlx")
    assert_only_listings_here(box)


@pytest.mark.parametrize("place", ["memory://cache", "file://", "file://.", "file://..", "file:///"])
def test_places_that_cannot_be_a_cache(box: Sandbox, place: str) -> None:
    box.configure("cache.dir", place)
    with pytest.raises(UsageError, match=r"`cache\.dir` is `"):
        box.add("data")
    assert not box.exists("data.mlx")
    assert not box.exists("mlx.json")
