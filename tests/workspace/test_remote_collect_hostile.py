"""Collection on a remote that others read from meanwhile, or that is not what it should be: nothing needed is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event

import pytest

from mlops_cli.errors import CorruptObject, LockedError, RemoteError
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.pack_format import RECORD_SIZE, ROW_SIZE, TRAILER_SIZE
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote_lease import leased
from mlops_cli.store.remote_sweep import sweep
from mlops_cli.workspace.remote_collect import optimize_store
from tests.servers.proxy import proxy
from tests.servers.s3 import S3Server, s3_server
from tests.store.test_remote import Site, flip, many
from tests.store.watched import Watched, at_request
from tests.workspace.test_remote_collect import (
    DAY,
    DROPPED,
    HUGE,
    KEPT,
    LARGE,
    ROOT,
    Scene,
    collect,
    fetched,
    make_old,
    push,
    remote_of,
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path: Path, store: Path) -> Site:
    return Site(tmp_path / "here", str(store))


@pytest.fixture(scope="module")
def server():
    with s3_server() as found:
        yield found


# --- an index that was lost -----------------------------------------------------------------------------------------


def test_all_that_is_needed_stays_when_the_index_is_lost(here: Site, store: Path) -> None:
    """Not only packs of small objects: one that lies alone, and a large one in chunks with its recipe."""
    kept = here.put(*KEPT, LARGE, HUGE)
    push(here, kept)
    for path in (store / "index").glob("*.idx"):
        path.unlink()
    make_old(store)
    before = [path for name in ("packs", "objects", "recipes") for path in (store / name).rglob("*") if path.is_file()]
    assert len(before) >= 4

    collect(here, kept, age=14 * DAY)
    make_old(store)
    collect(here, kept, age=14 * DAY)

    assert [path for path in before if not path.exists()] == []


def test_a_pack_that_is_larger_than_any_is_not_read(here: Site, store: Path) -> None:
    """Its trailer says that nearly all of it is a footer."""
    kept, other = here.put(*KEPT), here.put(os.urandom(5000))
    push(here, kept)
    stray = store / "packs" / f"{'ab' * 32}.pack"
    (pack,) = (store / "packs").glob("*.pack")
    with open(stray, "wb") as file:
        file.write(pack.read_bytes()[:8])
        file.truncate(8 + 2**31 * ROW_SIZE)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<QIQ", 8, 2**31, 0) + pack.read_bytes()[-8:])
        assert file.tell() == 8 + 2**31 * ROW_SIZE + TRAILER_SIZE
    make_old(store)

    done = collect(here, [*kept, *other], age=14 * DAY)

    assert not done.deleted
    assert stray.exists()


# --- trash ----------------------------------------------------------------------------------------------------------


def test_a_damaged_segment_of_the_trash_stops_it_until_a_repair(here: Site, store: Path, tmp_path: Path) -> None:
    kept, dropped = here.put(*KEPT), here.put(*DROPPED)
    push(here, kept)
    push(here, dropped)
    collect(here, kept)
    (segment,) = (store / "trash").iterdir()
    flip(segment, segment.stat().st_size // 2)
    shutil.rmtree(here.kept)

    with pytest.raises(CorruptObject, match="`trash/"):
        collect(here, kept)

    assert remote_of(here).mend_index() == [f"trash/{segment.name}"]
    collect(here, [*kept, *dropped])
    assert fetched(here, tmp_path, kept)


def test_a_recipe_that_went_with_a_collection_that_was_killed_stops_nothing(
    here: Site, store: Path, tmp_path: Path
) -> None:
    kept, huge = here.put(*KEPT), here.put(HUGE)
    push(here, kept)
    push(here, huge)
    collect(here, kept)
    (recipe,) = (path for path in (store / "recipes").rglob("*") if path.is_file())
    recipe.unlink()

    collect(here, [*kept, *huge])

    assert remote_of(here).missing(huge) == set(huge)
    push(here, huge)
    assert fetched(here, tmp_path, [*kept, *huge])


# --- leases that lie ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [2 * 3600.0, 300 * 365 * DAY])
def test_a_lease_from_the_future_is_nobodys(here: Site, store: Path, ahead: float) -> None:
    """The clock there was set back: who wrote it would hold it for ever."""
    push(here, here.put(*KEPT))
    lease = store / "lease" / "0123456789abcdef.json"
    lease.parent.mkdir()
    lease.write_text(json.dumps({"mlx": 1, "holder": "ada@far", "doing": "mlx remote gc x"}))
    then = time.time() + ahead
    os.utime(lease, (then, then))

    collect(here, [])

    assert list((store / "lease").iterdir()) == []


@pytest.mark.parametrize(
    "value", [b"", b"[]", b"\xff", b"[" * 4000, b'{"process": true, "machine": 1}', b'{"holder": {"a": 1}, "doing": 5}']
)
def test_a_lease_that_cannot_be_read_is_somebodys(here: Site, store: Path, value: bytes) -> None:
    push(here, here.put(*KEPT))
    lease = store / "lease" / "0123456789abcdef.json"
    lease.parent.mkdir()
    lease.write_bytes(value)

    with pytest.raises(LockedError, match="is at work on remote `storage`"):
        collect(here, [])


def test_a_lease_is_renewed_while_nothing_else_is_asked_of_the_remote(here: Site) -> None:
    """Packs may take hours to be copied; who holds a lease meanwhile must not lose it."""
    renewed = Event()
    puts: list[str] = []

    def note(verb: str, key: str) -> None:
        if verb == "put":
            puts.append(key)
            if len(puts) == 4:
                renewed.set()

    with leased(remote_of(here, lambda bucket: Watched(bucket, note)).bucket, "mlx remote gc x", every=0.001) as lease:
        assert renewed.wait(60)

    assert set(puts) == {f"lease/{lease.id}.json"}


def test_a_lease_that_was_taken_is_not_renewed(here: Site, store: Path) -> None:
    asked = Event()
    log: list[str] = []

    def note(verb: str, key: str) -> None:
        log.append(verb)
        if log.count("list") == 2:  # the first after it was taken
            shutil.rmtree(store / "lease")
        if log.count("list") == 5:
            asked.set()

    bucket = remote_of(here, lambda bucket: Watched(bucket, note)).bucket
    with leased(bucket, "mlx remote gc x", every=0.001) as lease:
        assert asked.wait(60)
        with pytest.raises(LockedError):
            lease.check()

    assert log.count("put") == 1


@pytest.mark.parametrize("methods", ["POST DELETE", "PUT"])
def test_who_must_not_delete_or_write_changes_nothing(
    server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, methods: str
) -> None:
    bucket = server.make_bucket(uuid.uuid4().hex)
    with proxy(server.port) as door:
        for key, value in {**server.environ, "AWS_ENDPOINT_URL": door.url}.items():
            monkeypatch.setenv(key, value)
        site = Site(tmp_path / "here", f"{bucket}/data")
        kept, dropped = site.put(*KEPT), site.put(*DROPPED)
        push(site, kept)
        push(site, dropped)
        before = {*remote_of(site).bucket.list("")}
        door.answer(403, 1000, methods)

        for act in (lambda: collect(site, kept), lambda: optimize_store(remote_of(site), site.cache)):
            with pytest.raises(RemoteError, match=r"remote `storage` .* does not let you"):
                act()

        door.heal()
        assert {*remote_of(site).bucket.list("")} == before


# --- readers --------------------------------------------------------------------------------------------------------


def scattered(site: Site) -> tuple[list[str], list[str]]:
    """Return what is needed, and what is not, in packs of which each has a little of both; alone, and in chunks."""
    needed, others = [], []
    for number in range(3):
        digests = site.put(*many(2, seed=50 + number), *(os.urandom(3000) for _ in range(6)))
        push(site, digests)
        needed += digests[:2]
        others += digests[2:]
    large = site.put(LARGE, HUGE)
    push(site, large)
    return [*needed, *large], others


@pytest.mark.parametrize("doing", ["collect", "optimize"])
def test_a_fetch_at_whose_every_request_all_is_rewritten_and_deleted(tmp_path: Path, doing: str) -> None:
    template = Site(tmp_path / "first", str(tmp_path / "template"))
    needed, _ = scattered(template)
    for number in range(1000):
        store = tmp_path / f"store-{number}"
        shutil.copytree(template.url, store, copy_function=os.link)
        site = Site(template.folder, str(store))
        fresh = Site(tmp_path / f"fresh-{number}", str(store))
        done: list[bool] = []

        def rewrite(site: Site = site, done: list[bool] = done) -> None:
            if doing == "optimize":
                optimize_store(remote_of(site), site.cache)
            collect(site, needed)
            collect(site, needed)
            done.append(True)

        remote = remote_of(fresh, lambda bucket, n=number: Watched(bucket, at_request(n, rewrite)))
        remote.bring(fresh.cache, needed)
        assert fresh.cache.missing(needed) == set(), number
        shutil.rmtree(fresh.folder)
        shutil.rmtree(store)
        if not done:
            break
    assert number > 6


# --- pushes that merge segments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [True, False])
def test_a_push_that_merges_segments_does_not_bring_back_what_is_deleted_meanwhile(
    here: Site, tmp_path: Path, store: Path, ended: bool
) -> None:
    """It has read a segment whose writer takes it back, because a collection deletes the file that it names."""
    digests = here.put(*many(40, seed=9))
    for digest in digests:
        push(here, [digest])
        if len(list((store / "index").glob("*.idx"))) == 31:
            break
    (going,) = here.put(os.urandom(4000))
    push(here, [going])
    there = Site(tmp_path / "there", str(store))
    new = there.put(os.urandom(4000))
    pack = f"packs/{remote_of(here).index.find([going])[going].pack}.pack"
    done: list[bool] = []

    def delete(verb: str, key: str) -> None:
        if verb != "put" or not key.startswith("index/") or done:
            return
        done.append(True)
        other = remote_of(here)
        other.index.deny([going])
        other.index.rewrite()
        lease = stack.enter_context(leased(other.bucket, "mlx remote gc storage"))
        if ended:
            assert sweep(other.bucket, other.index, {pack}, lease) == {pack}
        else:
            marks = {"mlx": 1, "keys": [pack]}
            other.bucket.put(f"index/{lease.id}00000000.sweep", json.dumps(marks).encode())

    with ExitStack() as stack, suppress(LockedError):
        push(there, new, remote_of(there, lambda bucket: Watched(bucket, delete)))
        assert ended

    assert done
    assert remote_of(here).missing([going]) == {going}
    push(there, new)
    assert fetched(here, tmp_path, [*new, *digests[:1]])


# --- a repair meanwhile ---------------------------------------------------------------------------------------------


def repair(site: Site, wanted: list[str], wrap: Callable[[Bucket], Bucket] = lambda bucket: bucket) -> None:
    """Do what `mlx push --repair` does."""
    remote = remote_of(site, wrap)
    remote.mend_index()
    if remote.check(wanted, read=True):
        remote.forget_faults()
    lacking = remote.missing(wanted)
    if lacking:
        remote.send(site.cache, Wanted(sorted(lacking), [], site.sizes))


@pytest.mark.parametrize("state", ["named", "condemned"])
@pytest.mark.parametrize("first", ["collect", "repair"])
def test_a_repair_and_a_collection_at_any_moment_of_each_other(tmp_path: Path, state: str, first: str) -> None:
    scene = Scene(tmp_path, state)
    for number in range(1000):
        here, there = scene.sites()
        there.put(*KEPT)
        wanted = [*scene.kept, *scene.wanted]
        place = remote_of(here).index.find(scene.kept)[scene.kept[0]]
        path = Path(here.url) / "packs" / f"{place.pack}.pack"
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data)  # a file of its own: the other copies share it
        flip(path, place.offset + RECORD_SIZE + 10)
        done: list[bool] = []

        def collecting(here: Site = here, wrap: Callable[[Bucket], Bucket] = lambda bucket: bucket) -> None:
            collect(here, scene.kept, age=14 * DAY, remote=remote_of(here, wrap))

        def repairing(
            there: Site = there, wanted: list[str] = wanted, wrap: Callable[[Bucket], Bucket] = lambda bucket: bucket
        ) -> None:
            repair(there, wanted, wrap)

        one, other = (collecting, repairing) if first == "collect" else (repairing, collecting)

        def meanwhile(other: Callable[[], None] = other, done: list[bool] = done) -> None:
            done.append(True)
            with suppress(LockedError):
                other()

        with suppress(LockedError):
            one(wrap=lambda bucket, n=number, act=meanwhile: Watched(bucket, at_request(n, act)))
        if not done:
            break
        repair(there, wanted)
        assert remote_of(here).missing(wanted) == set()
        assert fetched(here, tmp_path, wanted), number
        collect(here, wanted, age=14 * DAY)
        assert fetched(here, tmp_path, wanted), number
        shutil.rmtree(here.url)
    assert number > 8


# --- kill -9 --------------------------------------------------------------------------------------------------------


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.workspace.test_remote_collect import *

folder, url, number, answered = sys.argv[1:]
left = [int(number)]

class Killing(Watched):
    def put(self, key, data):
        self.change(lambda: super(Killing, self).put(key, data))

    def put_file(self, key, path):
        self.change(lambda: super(Killing, self).put_file(key, path))

    def delete(self, keys):
        for key in keys:
            self.change(lambda: super(Killing, self).delete([key]))

    def change(self, act):
        left[0] -= 1
        if left[0] < 0 and answered == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        act()
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

site = Site(Path(folder), url)
optimize_store(remote_of(site, Killing), site.cache)
"""


@pytest.mark.parametrize("answered", ["before", "after"])
def test_an_optimization_of_a_bucket_that_is_killed_at_any_change_can_be_done_again(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: str
) -> None:
    for key, value in server.environ.items():
        monkeypatch.setenv(key, value)
    for number in range(int(answered == "after"), 100, 2):
        site = Site(tmp_path / "here", f"{server.make_bucket(uuid.uuid4().hex)}/team/data")
        digests = site.put(*many(4, seed=5), LARGE)
        for digest in digests:
            push(site, [digest])
        command = [sys.executable, "-c", _KILLED, str(site.folder), site.url, str(number), answered]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        assert remote_of(site).missing(digests) == set()
        assert fetched(site, tmp_path, digests)
        more = site.put(os.urandom(2000))
        push(site, more)
        optimize_store(remote_of(site), site.cache)
        assert remote_of(site).missing([*digests, *more]) == set()
        assert fetched(site, tmp_path, [*digests, *more])
        for _ in range(2):
            collect(site, [*digests, *more])
        assert fetched(site, tmp_path, [*digests, *more])
        remote = remote_of(site)
        assert [stored.key for stored in remote.bucket.list("trash")] == []
        assert [stored.key for stored in remote.bucket.list("lease")] == []
        assert len(list(remote.bucket.list("packs"))) == 1
        if code == 0:
            break
    assert number > 5
