"""Adding straight to a remote: everything is there before the pointer is, and nothing but listings is here."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.errors import RemoteError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.progress import Silent
from mlops_cli.store.backed_cache import BackedCache
from mlops_cli.store.trees import decode_tree
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remotes import add_remote
from mlops_cli.workspace.streamed_add import add_to_remote
from mlops_cli.workspace.transfers import Pushing
from tests.crashing import killed_at
from tests.objects import contents, stored
from tests.servers.proxy import Proxy, proxy
from tests.servers.s3 import s3_server
from tests.workspace.projects import Sandbox, clone, listing

BIG = random.Random(3).randbytes(17 << 20)
MIDDLE = random.Random(4).randbytes(9 << 20)


def run(box: Sandbox, *paths: str, **options: Any) -> Any:
    project = box.project()
    with exclusive(project, "mlx add", box.heard, dry_run=options.get("dry_run", False)):
        return add_to_remote(project, paths, reporter=options.pop("reporter", box.heard), **options)


@pytest.fixture
def box(box: Sandbox) -> Sandbox:
    box.remote()
    for number in range(30):
        box.write(f"data/{number % 3}/{number}", f"content {number}")
    box.write("data/run.sh", "#!/bin/sh\n", mode=0o755)
    (box.root / "data" / "empty").mkdir()
    (box.root / "data" / "link").symlink_to("0/0")
    return box


def is_listing(data: bytes) -> bool:
    return data[:4] == b"MLXT" and decode_tree(data, hash_bytes(data)) is not None


def test_everything_is_there_and_only_listings_are_here(box: Sandbox, tmp_path: Path) -> None:
    box.write("data/middle", MIDDLE)
    box.write("big", BIG)
    before = listing(box.root / "data")

    planned, foreseen = run(box, "data", "big", dry_run=True)
    assert not box.exists("data.mlx")
    result, (moved,) = run(box, "data", "big")

    assert [item.path for item in result.added] == [item.path for item in planned.added] == ["data", "big"]
    assert (moved.objects, moved.size) == (foreseen[0].objects, foreseen[0].size)
    assert listing(box.root / "data") == before
    assert all(is_listing(data) for data in contents(box.project().cache.root).values())
    assert len(stored(box.project().cache.root)) == 5
    assert list((box.root.parent / "remote" / "recipes").glob("*/*"))
    assert len(list((box.root.parent / "remote" / "packs").iterdir())) <= 2
    assert box.clean()
    box.commit()
    assert push(box.project()).objects == 0
    other = clone(box, tmp_path / "clone")
    fetch(other.project())
    other.checkout()
    assert listing(other.root / "data") == before
    assert (other.root / "big").read_bytes() == BIG


def test_again_sends_nothing(box: Sandbox) -> None:
    run(box, "data")
    box.settle()

    result, (moved,) = run(box, "data")

    assert (moved.objects, result.added[0].changed) == (0, False)
    box.write("data/new", "new")
    result, (moved,) = run(box, "data")
    assert (moved.objects, result.added[0].changed) == (2, True)


def test_the_pointer_is_the_one_that_add_writes(box: Sandbox) -> None:
    run(box, "data")
    written = box.read("data.mlx")
    ignored = box.read(".gitignore")
    (box.root / "data.mlx").unlink()

    box.add("data")

    assert (box.read("data.mlx"), box.read(".gitignore")) == (written, ignored)


@pytest.mark.parametrize("mode", ["hardlink", "symlink"])
def test_files_stay_what_they_are_in_every_link_mode(box: Sandbox, mode: str) -> None:
    box.configure("cache.link", mode)
    box.write("data/middle", MIDDLE)
    before = os.stat(box.root / "data" / "middle")

    run(box, "data")

    after = os.lstat(box.root / "data" / "middle")
    assert (after.st_ino, after.st_mode, after.st_nlink) == (before.st_ino, before.st_mode, 1)


def test_what_add_refuses_is_refused(box: Sandbox) -> None:
    for path in ("absent", "data/0/../../.mlx"):
        with pytest.raises(UsageError):
            run(box, path)
    run(box, "data")
    with pytest.raises(UsageError, match="a part of `data`, which is tracked as a whole"):
        run(box, "data/0")
    os.mkfifo(box.root / "pipe")
    with pytest.raises(UsageError):
        run(box, "pipe")


def test_each_path_goes_to_its_own_remote(box: Sandbox) -> None:
    private = box.root.parent / "private"
    add_remote(box.project(), {}, "private", "../private", paths=["secret/**"])
    box.write("secret/x", "secret")
    box.write("mixed/secret.key", "secret, too")

    _, moved = run(box, "data", "secret")

    assert [each.name for each in moved] == ["private", "storage"]
    assert hash_bytes(b"secret").removeprefix("blake3:") in stored(private)
    with pytest.raises(UsageError, match="belongs to remote `private`"):
        run(box, "secret", remote="storage")
    add_remote(box.project(), {}, "private", "../private", paths=["*.key"], replace=True)
    with pytest.raises(UsageError, match=r"`mixed/secret.key` belongs to remote `private`"):
        run(box, "mixed")
    assert not box.exists("mixed.mlx")


class Meddling(Silent):
    """A reporter that writes to a file as soon as something is sent."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data

    def start(self, label: str, total: int | None, unit: str) -> None:
        if label == "pushing":
            self._path.write_bytes(self._data)


@pytest.mark.parametrize("size", [100, 9 << 20, 17 << 20])
def test_a_file_that_changes_while_it_is_sent_is_told(box: Sandbox, size: int) -> None:
    data = random.Random(5).randbytes(size)
    path = box.write("data/changing", data)

    with pytest.raises(UsageError, match=r"`.*/data/changing` was changed while it was sent|are not its own"):
        run(box, "data", reporter=Meddling(path, data[:-1] + b"!" + data[-1:]))

    assert not box.exists("data.mlx")
    run(box, "data")
    assert push(box.project()).objects == 0


def test_no_copy_of_a_large_file_is_made(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.write("big", BIG)
    most = 0
    send = BackedCache.open_descriptor

    def look(self: BackedCache, digest: Any) -> int:
        nonlocal most
        below = (path for path in box.project().cache.root.rglob("*") if path.is_file())
        most = max(most, sum(path.stat().st_size for path in below))
        return send(self, digest)

    monkeypatch.setattr(BackedCache, "open_descriptor", look)
    run(box, "big")
    assert most < len(BIG)
    assert stored(box.project().cache.root) == set()


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[Proxy, str]]:
    with s3_server() as server, proxy(server.port) as door:
        url = server.make_bucket("streamed")
        for name, value in {**server.environ, "AWS_ENDPOINT_URL": door.url}.items():
            os.environ[name] = value
        yield door, url
        for name in server.environ:
            os.environ.pop(name, None)


def test_a_bucket_that_fails_leaves_nothing_tracked(box: Sandbox, bucket: tuple[Proxy, str]) -> None:
    door, url = bucket
    box.write("big", BIG)
    add_remote(box.project(), {}, "cloud", f"{url}/x", make_default=True)
    door.answer(403, 1000, "PUT")
    with pytest.raises(RemoteError):
        run(box, "data", "big")
    assert not box.exists("data.mlx")
    assert not box.exists("big.mlx")
    door.heal()

    run(box, "data", "big")

    assert len(door.requests) < 30
    assert push(box.project()).objects == 0
    shutil.rmtree(box.root / "data")
    fetch(box.project())
    box.checkout()
    assert box.clean()


def test_killed_at_every_point(box: Sandbox, tmp_path: Path) -> None:
    """Whatever the point: without the pointer nothing is tracked; with it everything is on the remote."""
    for folder in ("data/1", "data/2", ".git/hooks"):
        shutil.rmtree(box.root / folder, ignore_errors=True)
    saved = tmp_path / "saved"
    shutil.copytree(box.root.parent / "project", saved, symlinks=True)
    at, died = 0, True
    while died:
        shutil.rmtree(box.root)
        shutil.copytree(saved, box.root, symlinks=True)
        shutil.rmtree(box.root.parent / "remote", ignore_errors=True)
        died = killed_at(lambda: run(box, "data"), at)
        if box.exists("data.mlx"):
            assert push(box.project(), how=Pushing(dry_run=True)).objects == 0
        else:
            assert all(is_listing(data) for data in contents(box.project().cache.root).values())
        run(box, "data")
        assert push(box.project()).objects == 0
        fetch(box.project())
        box.checkout()
        assert box.clean()
        at += 1
    assert at > 70
