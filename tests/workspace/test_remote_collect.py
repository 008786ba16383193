"""Collection on a remote: nothing that is needed goes, whoever pushes meanwhile and wherever it is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from botocore.session import get_session
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.documents import dump_yaml
from mlops_cli.errors import CorruptObject, LockedError, MlxError, RemoteError
from mlops_cli.hashing import Digest, raw_digest
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.objects import AbsentObjects, Durability
from mlops_cli.store.pack_format import RECORD_SIZE, Row
from mlops_cli.store.pack_index import Place, rows_table
from mlops_cli.store.parcels import Wanted
from mlops_cli.store.remote import Remote
from mlops_cli.store.remote_contents import HeldFile, read_remote
from mlops_cli.store.remote_index import LIST
from mlops_cli.store.remote_lease import leased
from mlops_cli.workspace.collect import Amount
from mlops_cli.workspace.probe import PROBE
from mlops_cli.workspace.remote_collect import Done, collect_store, optimize_store, plan_collection, plan_optimization
from tests.crashing import crashes
from tests.servers.s3 import s3_server
from tests.store.test_remote import Site, flip, many
from tests.store.watched import Timeless, Watched, at_request

ROOT = Path(__file__).parents[2]
DAY = 24 * 3600.0
NOW = -10.0  # an age (s) that everything has, whatever the tick of the store's clock
LARGE = os.urandom(1 << 16) * 145  # too large for a pack
HUGE = os.urandom(1 << 20) * 17  # moves in chunks
KEPT = many(6, seed=1)
DROPPED = [*many(9, seed=2), LARGE]
ADDED = many(4, seed=3)


def remote_of(site: Site, wrap: Callable[[Bucket], Bucket] = lambda bucket: bucket) -> Remote:
    bucket = open_bucket("storage", site.url, site.folder, durability=Durability.NONE)
    return Remote(wrap(bucket), str(site.kept))


def push(site: Site, digests: Iterable[Digest], remote: Remote | None = None) -> int:
    remote = remote or remote_of(site)
    lacking = remote.missing(list(digests))
    if lacking:
        remote.send(site.cache, Wanted(sorted(lacking), [], site.sizes))
    return len(lacking)


def collect(site: Site, needed: Iterable[Digest], age: float = NOW, remote: Remote | None = None) -> Done:
    raws = {raw_digest(digest) for digest in needed}
    return collect_store(remote or remote_of(site), site.cache, lambda: set(raws), age)


def make_old(store: Path, days: float = 30) -> None:
    """Make every file on a folder remote look as if it had been written so long ago."""
    then = time.time() - days * DAY
    for path in store.rglob("*"):
        os.utime(path, (then, then))


def fetched(site: Site, folder: Path, digests: Iterable[Digest]) -> bool:
    """Say whether a machine that has nothing can fetch all of `digests`; each is verified on its way."""
    fresh = Site(folder / f"fresh-{uuid.uuid4().hex}", site.url)
    try:
        fresh.fetch(digests)
    except AbsentObjects:
        return False
    finally:
        shutil.rmtree(fresh.folder, ignore_errors=True)
    return True


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def here(tmp_path: Path, store: Path) -> Site:
    return Site(tmp_path / "here", str(store))


@pytest.fixture
def there(tmp_path: Path, store: Path) -> Site:
    return Site(tmp_path / "there", str(store))


@pytest.fixture(scope="module")
def server():
    with s3_server() as found:
        yield found


@pytest.fixture(params=["folder", "memory", "s3"])
def site(request, monkeypatch, tmp_path: Path) -> Site:
    name = f"remote-{uuid.uuid4().hex}"
    if request.param == "s3":
        found = request.getfixturevalue("server")
        for key, value in found.environ.items():
            monkeypatch.setenv(key, value)
        return Site(tmp_path / "here", f"{found.make_bucket(name)}/team/data")
    return Site(tmp_path / "here", str(tmp_path / "store") if request.param == "folder" else f"memory://{name}/deep")


# --- the plan -------------------------------------------------------------------------------------------------------


def held(key: str, time: float, *objects: tuple[bytes, int]) -> HeldFile:
    rows, offset = [], 8
    for raw, size in objects:
        rows.append((raw, Place(key, offset, size, size)))
        offset += RECORD_SIZE + size
    return HeldFile(key, offset + 100, time, tuple(rows))


RAWS = [bytes([number]) * 32 for number in range(12)]
OBJECTS = st.lists(
    st.tuples(st.sampled_from(RAWS), st.integers(0, 5000)), min_size=1, max_size=6, unique_by=lambda o: o[0]
)


@given(
    st.lists(st.tuples(st.sampled_from(["packs", "objects"]), st.integers(0, 100), OBJECTS), max_size=8),
    st.sets(st.sampled_from(RAWS)),
    st.integers(0, 100),
)
def test_a_plan_keeps_all_that_is_needed_and_accounts_for_everything(found, needed, before) -> None:
    files = [held(f"{kind}/{at}", float(age), *objects) for at, (kind, age, objects) in enumerate(found)]

    plan = plan_collection(files, needed, before)

    change = plan.change
    left = {raw for file in files if file.key not in change.dead | change.anew.keys() for raw, _ in file.rows}
    copied = {raw for rows in change.anew.values() for raw, _ in rows}
    there = {raw for file in files for raw, _ in file.rows}
    assert there & needed <= left | copied
    assert copied <= needed
    young = {file.key for file in files if file.time >= before}
    assert young.isdisjoint(change.dead | change.anew.keys() | change.reduced)
    assert all(file.key.startswith("packs/") for file in files if file.key in change.anew)
    old = [file for file in files if file.key not in young | change.dead | change.anew.keys()]
    assert {file.key for file in old} == change.reduced
    amounts = plan.kept + plan.young + plan.staying + plan.going
    assert amounts.objects == sum(len(file.rows) for file in files)
    assert plan.kept.objects == len(there & needed)


def test_only_small_packs_are_joined_and_not_one_alone() -> None:
    small = [held(f"packs/{at}", 0.0, (RAWS[at], 100)) for at in range(3)]
    full = HeldFile("packs/x", 64 << 20, 0.0, ())
    alone = held("objects/y", 0.0, (RAWS[5], 100))

    assert plan_optimization([*small, full, alone]).anew.keys() == {"packs/0", "packs/1", "packs/2"}
    assert not plan_optimization([small[0], full, alone]).anew


# --- two phases -----------------------------------------------------------------------------------------------------


def test_what_nothing_needs_is_condemned_then_deleted(site: Site, tmp_path: Path) -> None:
    kept, dropped = site.put(*KEPT, HUGE), site.put(*DROPPED, HUGE[:-1])
    push(site, kept)
    push(site, dropped)
    before = sum(stored.size for stored in remote_of(site).bucket.list(""))

    first = collect(site, kept)

    assert first.look.plan.going.objects >= len(dropped)
    assert not first.deleted
    assert remote_of(site).missing(dropped) == set(dropped)
    assert remote_of(site).missing(kept) == set()
    assert fetched(site, tmp_path, [*kept, *dropped])  # readers still have it

    second = collect(site, kept)

    assert len(second.deleted) >= 3
    assert fetched(site, tmp_path, kept)
    assert not any(fetched(site, tmp_path, [digest]) for digest in dropped)
    assert sum(stored.size for stored in remote_of(site).bucket.list("")) < before
    assert list(remote_of(site).bucket.list("trash")) == []
    third = collect(site, kept)
    assert (third.look.plan.going, third.deleted, third.look.litter) == (Amount(), set(), set())


def test_what_is_young_stays(site: Site) -> None:
    digests = site.put(*DROPPED)
    push(site, digests)

    done = collect(site, [], age=3600.0)

    assert done.look.plan.young.objects == len(digests)
    assert remote_of(site).missing(digests) == set()


def test_what_was_condemned_waits_for_the_grace_age(here: Site, store: Path, tmp_path: Path) -> None:
    dropped = here.put(*DROPPED)
    push(here, dropped)
    make_old(store)
    collect(here, [], age=14 * DAY)

    assert not collect(here, [], age=14 * DAY).deleted
    assert fetched(here, tmp_path, dropped)
    make_old(store)
    assert len(collect(here, [], age=14 * DAY).deleted) == 2
    assert not fetched(here, tmp_path, dropped[:1])


def test_what_is_needed_again_comes_back(site: Site, tmp_path: Path) -> None:
    digests = site.put(*DROPPED, HUGE)
    push(site, digests)
    collect(site, [])
    assert remote_of(site).missing(digests) == set(digests)

    done = collect(site, digests)

    assert len(done.look.plan.change.restored) >= len(digests)
    assert not done.deleted
    assert remote_of(site).missing(digests) == set()
    assert fetched(site, tmp_path, digests)


def test_a_pack_of_which_little_is_needed_is_written_anew(site: Site, tmp_path: Path) -> None:
    digests = site.put(*(os.urandom(4000) for _ in range(10)))
    push(site, digests)

    done = collect(site, digests[:2])

    assert len(done.look.plan.change.anew) == 1
    assert remote_of(site).missing(digests) == set(digests[2:])
    collect(site, digests[:2])
    assert fetched(site, tmp_path, digests[:2])
    assert sum(stored.size for stored in remote_of(site).bucket.list("packs")) < 10_000


def test_a_pack_of_tiny_objects_that_are_needed_is_left_alone(here: Site, store: Path) -> None:
    digests = here.put(*(bytes([number]) for number in range(50)))
    push(here, digests)
    (pack,) = (store / "packs").iterdir()

    done = collect(here, digests)

    assert not done.look.plan.change.anew
    assert list((store / "packs").iterdir()) == [pack]
    assert not (store / "trash").exists()


def test_what_shares_a_pack_with_more_that_is_needed_leaves_the_index(site: Site, tmp_path: Path) -> None:
    """A folder's listing that the index still named would promise what is beneath, which goes."""
    digests = site.put(*(os.urandom(4000) for _ in range(10)))
    push(site, digests)

    done = collect(site, digests[:8])

    assert (done.look.plan.staying.objects, done.look.plan.going.objects) == (2, 0)
    assert remote_of(site).missing(digests) == set(digests[8:])
    assert fetched(site, tmp_path, digests)
    collect(site, digests[:8])
    assert fetched(site, tmp_path, digests[:8])
    assert push(site, digests) == 2


def test_a_damaged_pack_is_not_written_anew(here: Site, store: Path) -> None:
    digests = here.put(*(os.urandom(4000) for _ in range(10)))
    push(here, digests)
    (pack,) = (store / "packs").iterdir()
    place = remote_of(here).index.find([digests[0]])[digests[0]]
    flip(pack, place.offset + RECORD_SIZE + 100)

    collect(here, digests[:1])
    collect(here, digests[:1])

    assert pack.exists()
    assert remote_of(here).missing(digests[:1]) == set()


@pytest.mark.parametrize("damage", ["larger", "smaller"])
@pytest.mark.parametrize("needed", [1, 10])
def test_of_an_object_in_two_packs_the_good_one_stays(
    here: Site, there: Site, store: Path, tmp_path: Path, needed: int, damage: str
) -> None:
    """Two that push at once both send it; which of the two is read may be damaged, and rewritten or not."""
    shared = os.urandom(4000)
    first, second = here.put(shared, os.urandom(9000)), there.put(shared, *(os.urandom(4000) for _ in range(9)))
    remote = remote_of(there)
    remote.missing(second)
    push(here, first)
    remote.send(there.cache, Wanted(second, [], there.sizes))
    packs = {path.stat().st_size: path for path in (store / "packs").iterdir()}
    damaged = packs[(max if damage == "larger" else min)(packs)]
    flip(damaged, damaged.read_bytes().index(shared) + 100)

    for _ in range(3):
        collect(here, second[:needed])

    assert fetched(here, tmp_path, second[:needed])


def test_two_copies_of_an_object_become_one(here: Site, there: Site, store: Path, tmp_path: Path) -> None:
    digests = here.put(*KEPT)
    more = there.put(*KEPT, *ADDED)
    remote = remote_of(there)
    remote.missing(more)
    push(here, digests)
    remote.send(there.cache, Wanted(more, [], there.sizes))

    for _ in range(2):
        collect(here, more)

    assert len(list((store / "packs").iterdir())) == 1
    assert fetched(here, tmp_path, more)


def test_a_file_whose_recipe_is_damaged_stops_it(here: Site, store: Path) -> None:
    digests = here.put(HUGE)
    push(here, digests)
    (recipe,) = (path for path in (store / "recipes").rglob("*") if path.is_file())
    flip(recipe, 100)

    with pytest.raises(CorruptObject, match="nobody can tell which chunks"):
        collect(here, digests)

    assert list(store.glob("trash/*")) == list(store.glob("lease/*")) == []


def test_what_an_interrupted_push_left_goes_when_it_is_old(here: Site, store: Path) -> None:
    kept = here.put(*KEPT)
    push(here, kept)
    stray = store / "packs" / f"{'ab' * 32}.pack"
    stray.write_bytes(b"half a push")
    (store / "packs/README").write_bytes(b"of somebody")
    for name in ("tmp/x/0", f"{PROBE}abc"):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_bytes(b"left")

    assert not collect(here, kept, age=14 * DAY).deleted
    make_old(store)
    done = collect(here, kept, age=14 * DAY)

    assert done.deleted == {f"packs/{'ab' * 32}.pack"}
    assert done.look.litter == {"tmp/x/0", f"{PROBE}abc"}
    assert not stray.exists()
    assert (store / "packs/README").exists()


def test_a_pack_that_lost_its_index_stays_when_it_is_needed(here: Site, store: Path, tmp_path: Path) -> None:
    kept, dropped = here.put(*KEPT), here.put(*many(9, seed=2))
    push(here, kept)
    push(here, dropped)
    remote = remote_of(here)
    packs = {digest: place.pack for digest, place in remote.index.find([kept[0], dropped[0]]).items()}
    for path in (store / "index").glob("*.idx"):
        path.unlink()
    make_old(store)

    done = collect(here, kept, age=14 * DAY)

    assert done.deleted == {f"packs/{packs[dropped[0]]}.pack"}
    assert (store / "packs" / f"{packs[kept[0]]}.pack").exists()


def test_what_is_gone_leaves_the_index_so_that_it_can_be_sent_again(here: Site, store: Path, tmp_path: Path) -> None:
    kept, lost = here.put(*KEPT), here.put(*many(9, seed=2))
    push(here, kept)
    push(here, lost)
    pack = store / "packs" / f"{remote_of(here).index.find(lost)[lost[0]].pack}.pack"
    data = pack.read_bytes()
    pack.unlink()

    collect(here, [*kept, *lost])

    assert remote_of(here).missing([*kept, *lost]) == set(lost)
    pack.write_bytes(data)  # a disk that comes back
    collect(here, [*kept, *lost])
    assert remote_of(here).missing(lost) == set()
    pack.unlink()
    collect(here, [*kept, *lost])
    push(here, lost)
    assert fetched(here, tmp_path, [*kept, *lost])


def test_a_pack_that_is_cut_short_stays_as_it_is(here: Site, store: Path) -> None:
    digests = here.put(*KEPT)
    push(here, digests)
    (pack,) = (store / "packs").iterdir()
    size = remote_of(here).index.find(digests[:1])[digests[0]]
    pack.chmod(0o644)
    os.truncate(pack, max(size.offset + size.stored, 300))

    collect(here, [])

    assert pack.exists()
    assert remote_of(here).missing(digests) == set()


def test_run_records_go_with_their_outputs(here: Site, store: Path) -> None:
    kept, dropped = here.put(*KEPT[:1]), here.put(*DROPPED[:1])
    push(here, [*kept, *dropped])
    names = [f"{number:032x}" for number in range(4)]
    for name, digest in zip(names, [*kept, *dropped, *dropped, *kept], strict=True):
        out = {"path": "o", "blob": digest, "size": here.sizes[digest]}
        metrics = {"path": "m", "blob": dropped[0], "size": here.sizes[dropped[0]], "git": True}
        outs = [out, metrics] if name == names[3] else [out]
        remote_of(here).write_run(name, dump_yaml({"mlx": 1, "cmd": "x", "outs": outs}))
    remote_of(here).write_run("abc", b"no record")
    make_old(store)
    os.utime(store / "runs" / f"{names[2]}.yaml")

    done = collect(here, kept, age=14 * DAY)

    assert done.look.litter == {f"runs/{names[1]}.yaml", f"runs/{names[3]}.yaml"}
    assert {*remote_of(here).list_runs()} == {names[0], names[2], "abc"}


def test_the_list_for_servers_that_cannot_list_is_kept(here: Site, store: Path) -> None:
    push(here, here.put(*KEPT))
    collect(here, [])

    listed = json.loads((store / LIST).read_bytes())["segments"]

    assert {f"{name}.idx" for name in listed} == {path.name for path in (store / "index").glob("*.idx")}


def test_what_is_known_of_an_object_takes_little_memory(here: Site, store: Path) -> None:
    push(here, here.put(*KEPT))
    remote = remote_of(here)
    name, count = os.urandom(32).hex(), 20_000
    rows = [Row(os.urandom(32), 8 + 3000 * at, 2000 + at, at) for at in range(count)]
    with open(store / "packs" / f"{name}.pack", "wb") as pack:
        pack.truncate(4000 * count)
    remote.index.add([rows_table(rows, name)])
    tracemalloc.start()
    try:
        contents = read_remote(remote.bucket, remote.index, remote.trash)
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    (found,) = (held.rows for held in contents.files if held.key == f"packs/{name}.pack")
    assert [*found] == sorted((raw, Place(name, *place)) for raw, *place in rows)
    assert len(found) == count
    assert size / count < 120


# --- joining --------------------------------------------------------------------------------------------------------


def test_small_packs_and_segments_are_joined(site: Site, tmp_path: Path) -> None:
    digests = [digest for data in many(8, seed=5) for digest in site.put(data)]
    for digest in digests:
        push(site, [digest])
    assert len(list(remote_of(site).bucket.list("index"))) == 8 + 1

    optimize_store(remote_of(site), site.cache)

    remote = remote_of(site)
    assert remote.missing(digests) == set()
    assert len({place.pack for place in remote.index.find(digests).values()}) == 1
    assert len(list(remote.bucket.list("index"))) == 2
    assert fetched(site, tmp_path, digests)
    assert len(list(remote.bucket.list("packs"))) == 9  # who reads by an older index still finds them
    collect(site, digests)
    assert len(list(remote.bucket.list("packs"))) == 1
    assert fetched(site, tmp_path, digests)
    assert len(optimize_store(remote_of(site), site.cache).segments) == 1


# --- while others push ----------------------------------------------------------------------------------------------


class Scene:
    """A remote on which `dropped` is in some state, copied for every try; `there` has all objects, too."""

    def __init__(self, folder: Path, state: str) -> None:
        self.folder = folder
        template = folder / "template"
        first = Site(folder / "first", str(template))
        self.kept, self.dropped = first.put(*KEPT), first.put(*DROPPED)
        push(first, [*self.kept, *self.dropped])
        push(first, first.put(*ADDED[:1]))
        if state == "condemned":
            make_old(template)
            collect(first, self.kept, age=14 * DAY)
        make_old(template)
        self.template = template
        self.first = first
        self.number = 0

    def sites(self) -> tuple[Site, Site]:
        """Return who collects and who pushes, at a new copy of the remote."""
        self.number += 1
        store = self.folder / f"store-{self.number}"
        shutil.copytree(self.template, store, copy_function=os.link)
        here, there = Site(self.first.folder, str(store)), Site(self.folder / "there", str(store))
        shutil.rmtree(there.kept, ignore_errors=True)
        self.wanted = [*there.put(*DROPPED), *there.put(*ADDED)]
        return here, there


@pytest.mark.parametrize("state", ["named", "condemned"])
@pytest.mark.parametrize("age", [14 * DAY, NOW])
def test_a_push_at_any_moment_of_a_collection(tmp_path: Path, state: str, age: float) -> None:
    scene = Scene(tmp_path, state)
    refused = 0
    for number in range(1000):
        here, there = scene.sites()
        outcomes: list[MlxError | None] = []

        def push_all(there: Site = there, outcomes: list[MlxError | None] = outcomes) -> None:
            try:
                push(there, scene.wanted)
                outcomes.append(None)
            except LockedError as error:
                outcomes.append(error)

        remote = remote_of(here, lambda bucket, n=number: Watched(bucket, at_request(n, push_all)))
        collect(here, scene.kept, age=age, remote=remote)
        if not outcomes:
            break
        if outcomes[0] is not None:
            refused += 1
            push(there, scene.wanted)
        assert fetched(here, tmp_path, [*scene.kept, *scene.wanted]), number
        collect(here, [*scene.kept, *scene.wanted], age=age)
        assert remote_of(there).missing(scene.wanted) == set()
        assert fetched(here, tmp_path, [*scene.kept, *scene.wanted])
        shutil.rmtree(here.url)
    assert number > 20
    assert (refused > 0) == (state == "condemned")  # just before its very files are deleted, it cannot be helped


def test_a_push_at_any_moment_of_an_optimization(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "named")
    for number in range(1000):
        here, there = scene.sites()
        sent: list[int] = []

        def push_all(there: Site = there, sent: list[int] = sent) -> None:
            sent.append(push(there, scene.wanted))

        optimize_store(remote_of(here, lambda bucket, n=number: Watched(bucket, at_request(n, push_all))), here.cache)
        if not sent:
            break
        assert sent == [len(ADDED) - 1]
        assert remote_of(here).missing([*scene.kept, *scene.wanted]) == set()
        assert fetched(here, tmp_path, [*scene.kept, *scene.wanted])
        shutil.rmtree(here.url)
    assert number > 10


@pytest.mark.parametrize("state", ["named", "condemned"])
def test_a_collection_at_any_moment_of_a_push(tmp_path: Path, state: str) -> None:
    scene = Scene(tmp_path, state)
    for number in range(1000):
        here, there = scene.sites()
        done: list[Done] = []

        def collect_all(here: Site = here, done: list[Done] = done) -> None:
            done.append(collect(here, scene.kept, age=14 * DAY))

        remote = remote_of(there, lambda bucket, n=number: Watched(bucket, at_request(n, collect_all)))
        push(there, scene.wanted, remote)
        if not done:
            break
        assert fetched(here, tmp_path, [*scene.kept, *scene.wanted]), number
        shutil.rmtree(here.url)
    assert number > 5


def test_a_push_puts_back_what_was_condemned_meanwhile(here: Site, there: Site) -> None:
    old, new = there.put(*DROPPED), there.put(*ADDED)
    here.put(*DROPPED)
    push(there, old)
    remote = remote_of(there)
    assert remote.missing([*old, *new]) == set(new)
    collect(here, [])
    sent = remote.bucket.traffic.sent

    remote.send(there.cache, Wanted(new, [], there.sizes))

    assert remote_of(here).missing([*old, *new]) == set()
    assert remote.bucket.traffic.sent - sent < 100_000  # its 9 MB did not go again


def test_a_push_sends_again_what_was_deleted_meanwhile(here: Site, there: Site, tmp_path: Path) -> None:
    old, new = there.put(*DROPPED, HUGE), there.put(*ADDED)
    push(there, old)
    remote = remote_of(there)
    remote.missing([*old, *new])
    collect(here, [])
    collect(here, [])

    remote.send(there.cache, Wanted(new, [], there.sizes))

    assert fetched(here, tmp_path, [*old, *new])


def test_a_push_that_relies_on_what_is_gone_and_not_here_is_refused(here: Site, there: Site) -> None:
    old, new = here.put(*DROPPED), there.put(*ADDED)
    push(here, old)
    remote = remote_of(there)
    remote.missing([*old, *new])
    collect(here, [])
    collect(here, [])

    with pytest.raises(AbsentObjects):
        remote.send(there.cache, Wanted(new, [], there.sizes))


def test_a_push_asks_no_more_when_nothing_was_collected(here: Site) -> None:
    push(here, here.put(*KEPT))
    bucket: list[Watched] = []

    def watch(found: Bucket) -> Bucket:
        bucket.append(Watched(found))
        return bucket[0]

    push(here, here.put(*ADDED), remote_of(here, watch))

    assert [verb for verb, key in bucket[0].log] == ["get", "list", "get", "put", "put", "list", "put", "list"]


# --- one at a time --------------------------------------------------------------------------------------------------


def test_two_collections_at_once(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "condemned")
    refused = 0
    for number in range(1000):
        here, there = scene.sites()
        tried: list[bool] = []

        def again(there: Site = there, tried: list[bool] = tried) -> None:
            try:
                collect(there, scene.kept, age=14 * DAY)
                tried.append(True)
            except LockedError as error:
                tried.append(
                    " is at work on remote `storage` (`mlx remote gc storage`), last heard of at 20" not in str(error)
                )

        remote = remote_of(here, lambda bucket, n=number: Watched(bucket, at_request(n, again)))
        collect(here, scene.kept, age=14 * DAY, remote=remote)
        if not tried:
            break
        refused += not tried[0]
        assert fetched(here, tmp_path, scene.kept)
        shutil.rmtree(here.url)
    assert refused > 15


@pytest.mark.parametrize("moment", [("trash/", ".idx"), ("index/", ".idx"), ("index/", ".sweep")])
def test_a_holder_whose_lease_was_taken_stops_before_it_destroys(
    here: Site, store: Path, tmp_path: Path, moment: tuple[str, str]
) -> None:
    kept, dropped = here.put(*KEPT), here.put(*DROPPED)
    push(here, kept)
    push(here, dropped)
    if moment[1] == ".sweep":
        collect(here, kept)

    def steal(verb: str, key: str) -> None:
        if verb == "put" and key.startswith(moment[0]) and key.endswith(moment[1]):
            shutil.rmtree(store / "lease")

    with pytest.raises(LockedError) as caught:
        collect(here, kept, remote=remote_of(here, lambda bucket: Watched(bucket, steal)))

    assert (
        caught.value.message == "`mlx remote gc storage` was stopped: another command has taken over remote `storage`"
    )
    assert fetched(here, tmp_path, [*kept, *dropped])


def test_a_lease_that_is_not_renewed_for_an_hour_is_taken_over(here: Site, store: Path) -> None:
    push(here, here.put(*KEPT))
    lease = store / "lease" / "0123456789abcdef.json"
    lease.parent.mkdir()
    lease.write_text(json.dumps({"mlx": 1, "holder": "ada@far", "doing": "mlx remote gc x"}))

    with pytest.raises(LockedError, match="`ada@far` is at work"):
        collect(here, [])

    then = time.time() - 3700
    os.utime(lease, (then, then))
    collect(here, [])
    assert list((store / "lease").iterdir()) == []


def test_a_lease_of_a_process_that_is_gone_is_taken_over(here: Site, store: Path) -> None:
    push(here, here.put(*KEPT))
    if (child := os.fork()) == 0:
        with leased(remote_of(here).bucket, "mlx remote gc storage"):
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list((store / "lease").iterdir())) == 1

    collect(here, [])

    assert list((store / "lease").iterdir()) == []


def test_a_store_that_tells_no_times_is_refused(here: Site, store: Path) -> None:
    digests = here.put(*KEPT)
    push(here, digests)

    with pytest.raises(RemoteError, match="does not tell when something was written"):
        collect(here, [], remote=remote_of(here, Timeless))

    assert remote_of(here).missing(digests) == set()
    assert list((store / "lease").iterdir()) == []


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["named", "condemned"])
def test_a_collection_that_is_killed_at_any_point_can_be_done_again(tmp_path: Path, state: str) -> None:
    scene = Scene(tmp_path, state)
    here, there = scene.sites()
    states = 0

    def work() -> None:
        collect(here, scene.kept, age=14 * DAY)

    for _ in crashes(work):
        assert remote_of(there).missing(scene.kept) == set()
        push(there, scene.wanted)
        assert fetched(here, tmp_path, [*scene.kept, *scene.wanted])
        work()
        assert remote_of(there).missing(scene.kept) == set()
        assert fetched(here, tmp_path, [*scene.kept, *scene.wanted])
        assert list(Path(here.url).glob("lease/*")) == []
        shutil.rmtree(here.url)
        here, there = scene.sites()
        states += 1
    assert states > 20


def test_an_optimization_that_is_killed_at_any_point_can_be_done_again(here: Site, tmp_path: Path, store: Path) -> None:
    digests = here.put(*many(4, seed=5))
    for digest in digests:
        push(here, [digest])
    copies = iter(Site(here.folder, str(tmp_path / f"copy-{number}")) for number in range(1000))

    def copy() -> Site:
        found = next(copies)
        shutil.copytree(store, found.url, copy_function=os.link)
        return found

    site = copy()

    def work() -> None:
        optimize_store(remote_of(site), site.cache)

    states = 0
    for _ in crashes(work):
        assert fetched(site, tmp_path, digests)
        work()
        assert remote_of(site).missing(digests) == set()
        assert fetched(site, tmp_path, digests)
        assert len({place.pack for place in remote_of(site).index.find(digests).values()}) == 1
        site = copy()
        states += 1
    assert states > 20


_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.workspace.test_remote_collect import *

folder, url, number, *kept = sys.argv[1:]
left = [int(number)]

def before(verb, key):
    if verb in ("put", "delete"):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

site = Site(Path(folder), url)
collect(site, kept, remote=remote_of(site, lambda bucket: Watched(bucket, before)))
"""


def test_a_collection_of_a_bucket_that_is_killed_at_any_change_can_be_done_again(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.environ.items():
        monkeypatch.setenv(key, value)
    for number in range(0, 100, 2):  # a folder is killed at every point
        site = Site(tmp_path / "here", f"{server.make_bucket(uuid.uuid4().hex)}/team/data")
        kept, dropped = site.put(*KEPT), site.put(*DROPPED)
        push(site, [*kept, *dropped[:1]])
        push(site, dropped[1:])
        collect(site, [*kept, *dropped[:1]])
        command = [sys.executable, "-c", _KILLED, str(site.folder), site.url, str(number), *kept]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        assert code in (0, -signal.SIGKILL)
        push(site, site.put(*ADDED))
        assert fetched(site, tmp_path, [*kept, *site.put(*ADDED)])
        collect(site, kept)
        collect(site, kept)
        assert remote_of(site).missing(kept) == set()
        assert remote_of(site).missing(dropped) == set(dropped)
        assert [stored.key for stored in remote_of(site).bucket.list("trash")] == []
        if code == 0:
            break
    assert number > 8


def test_an_upload_in_parts_that_nobody_ended_is_given_up(
    server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in server.environ.items():
        monkeypatch.setenv(key, value)
    site = Site(tmp_path / "here", f"{server.make_bucket(uuid.uuid4().hex)}/team/data")
    kept = site.put(*KEPT)
    push(site, kept)
    client = get_session().create_client("s3", endpoint_url=server.url)
    bucket, _, folder = site.url.removeprefix("s3://").partition("/")
    key = f"packs/{'ab' * 32}.pack"
    begun = client.create_multipart_upload(Bucket=bucket, Key=f"{folder}/{key}")  # moto dates it to 2010
    begun_elsewhere = client.create_multipart_upload(Bucket=bucket, Key=key)

    done = collect(site, kept)

    assert done.look.litter == {f"tmp/uploads/{begun['UploadId']}/{key}"}
    left = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [upload["UploadId"] for upload in left] == [begun_elsewhere["UploadId"]]
    assert collect(site, kept).look.litter == set()
    assert fetched(site, tmp_path, kept)
