"""What is not needed goes, by way of the trash; whatever happens meanwhile, nothing that is needed is ever missing."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_cli.errors import LockedError
from mlops_cli.hashing import Digest, digest_from_raw, hash_bytes
from mlops_cli.progress import SILENT
from mlops_cli.store.batches import open_batch
from mlops_cli.store.contents import Contents, Loose, Packed, Run, read_contents
from mlops_cli.store.guard import alone
from mlops_cli.store.recipe import Recipe
from mlops_cli.store.recipes import Recipes
from mlops_cli.store.trees import tree_objects
from mlops_cli.workspace import collect as collecting
from mlops_cli.workspace import repository
from mlops_cli.workspace.collect import Amount, Emptied, Plan, collect, empty_trash, plan_collection, restore_trash
from mlops_cli.workspace.roots import Marker
from tests.crashing import killed_at
from tests.objects import is_loose
from tests.workspace.collecting import LARGE, add_new, content, gc, held, in_trash, later
from tests.workspace.projects import Sandbox, make_project

RAWS = [bytes([number]) * 32 for number in range(8)]


# The plan ------------------------------------------------------------------------------------------------------------


def test_an_empty_cache_gives_nothing_to_do() -> None:
    assert plan_collection(Contents(), set(), set(), 100.0) == Plan()
    assert Plan().empty


def test_what_is_needed_or_young_stays() -> None:
    contents = Contents(loose=(Loose(RAWS[0], 10, 0.0), Loose(RAWS[1], 20, 100.0), Loose(RAWS[2], 30, 99.0)))

    plan = plan_collection(contents, {RAWS[0]}, set(), 100.0)

    assert (plan.kept, plan.young, plan.going) == (Amount(1, 10), Amount(1, 20), Amount(1, 30))
    assert plan.loose == (RAWS[2],)


def test_packs_go_are_written_anew_or_stay() -> None:
    dead = Packed("dead", 500, 0.0, ((RAWS[0], 100), (RAWS[1], 100)))
    sparse = Packed("sparse", 500, 0.0, ((RAWS[2], 99), (RAWS[3], 101)))
    half = Packed("half", 500, 0.0, ((RAWS[2], 100), (RAWS[3], 100)))
    young = Packed("young", 500, 100.0, ((RAWS[0], 7),))
    damaged = Packed("damaged", 500, 0.0, None)

    plan = plan_collection(Contents(packs=(dead, sparse, half, young, damaged)), {RAWS[2]}, set(), 100.0)

    assert (plan.dead, plan.sparse, plan.unreadable) == (("dead",), ("sparse",), ("damaged",))
    assert plan.kept == Amount(2, 199)
    assert plan.going == Amount(3, 601)
    assert plan.staying == Amount(1, 100)
    assert plan.young == Amount(1, 7)


def test_run_records_go_that_are_not_to_stay() -> None:
    plan = plan_collection(Contents(runs=(Run("a", 1, 0.0), Run("b", 1, 0.0))), set(), {"a"}, 100.0)

    assert plan.runs == ("b",)
    assert not plan.empty


objects = st.sampled_from(RAWS)
loose = st.builds(Loose, objects, st.integers(0, 9), st.floats(0, 200))
packs = st.builds(
    Packed, st.uuids().map(str), st.integers(1, 9), st.floats(0, 200), st.tuples(st.tuples(objects, st.integers(1, 9)))
)


@given(st.lists(loose, unique_by=lambda item: item.raw), st.lists(packs), st.sets(objects))
def test_a_plan_accounts_for_everything_and_never_takes_what_is_needed(
    files: list[Loose], many: list[Packed], needed: set[bytes]
) -> None:
    plan = plan_collection(Contents(tuple(files), tuple(many)), needed, set(), 100.0)

    total = plan.kept + plan.young + plan.staying + plan.going
    assert total.objects == len(files) + sum(len(pack.objects or ()) for pack in many)
    assert needed.isdisjoint(plan.loose)
    assert all(item.raw in needed or item.time >= 100.0 or item.raw in plan.loose for item in files)
    for pack in many:
        if pack.name in plan.dead:
            assert needed.isdisjoint(raw for raw, _ in pack.objects or ())


# The doing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anything_else", [False, True])
def test_unfinished_files_go_with_the_grace_age(used: Sandbox, box: Sandbox, anything_else: bool) -> None:
    cache = box.project().cache
    if not anything_else:
        collect(box.project(), now=later(), grace=0)
        empty_trash(box.project())
    unfinished = cache.root / "partial" / ("ab" * 32)
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"half")
    collect(box.project(), now=later(), grace=0, dry_run=True)
    collect(box.project(), now=later(), grace=1e9)
    assert unfinished.exists()
    with unfinished.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # somebody is at it
        collect(box.project(), now=later(), grace=0)
        assert unfinished.exists()
    collect(box.project(), now=later(), grace=0)
    assert not unfinished.exists()


@pytest.fixture
def used(box: Sandbox) -> Sandbox:
    """Return a project with two versions of a folder, large and small files, of which the first is not needed."""
    for number in range(4):
        box.write(f"data/small{number}", content(f"first {number}", 300))
    box.write("data/large", content("first", LARGE))
    box.write("data/same", content("same", LARGE))
    box.add("data")
    for number in range(3):
        box.write(f"data/small{number}", content(f"second {number}", 300))
    box.write("data/large", content("second", LARGE))
    box.add("data")
    return box


def needed_by(box: Sandbox) -> set[Digest]:
    cache = box.project().cache
    found = set()
    for entry in box.snapshot().tracked():
        below = tree_objects(cache, entry.digest) if entry.kind == "tree" else ()
        found |= {entry.digest, *(digest for digest, _ in below)}
    return found


def stored(box: Sandbox) -> set[Digest]:
    return set(box.project().cache.list())


def assert_all_is_well(box: Sandbox) -> None:
    cache = box.project().cache
    for digest in needed_by(box):
        cache.check(digest)


def test_exactly_what_is_needed_is_left(used: Sandbox) -> None:
    before, needed = stored(used), needed_by(used)
    assert needed < before

    found = gc(used)

    assert stored(used) == needed
    assert_all_is_well(used)
    assert found.plan.kept.objects == len(needed)
    assert not gc(used).plan.going.objects


def test_what_is_known_of_an_object_that_went_goes_too(used: Sandbox) -> None:
    """It comes neither into the trash nor back from there: whoever reads the object knows it again."""
    cache = used.project().cache
    recipes = Recipes(cache)
    needed = needed_by(used)
    loose = [digest for digest in cache.list() if is_loose(cache, digest)]
    for digest in loose:
        recipes.keep(Recipe(digest, 5, array("I", [5]), bytes(32)))

    gc(used, dry_run=True)
    assert set(recipes.list()) == set(loose)
    gc(used)

    assert set(recipes.list()) == needed.intersection(loose) < set(loose)
    assert not [name for name in in_trash(used) if name.startswith("recipes")]
    restore_trash(used.project())
    assert stored(used) > needed


def test_a_dry_run_moves_nothing_and_says_the_same(used: Sandbox) -> None:
    before = stored(used)

    foreseen = gc(used, dry_run=True)

    assert stored(used) == before
    assert in_trash(used) == []
    assert gc(used).plan == foreseen.plan


def test_a_no_moves_nothing(used: Sandbox) -> None:
    before = stored(used)

    gc(used, agree=lambda _: False)

    assert stored(used) == before


def test_what_is_young_stays(used: Sandbox) -> None:
    before = stored(used)

    found = collect(used.project(), now=time.time())

    assert stored(used) == before
    assert found.plan.young.objects == len(before) - len(needed_by(used))


def test_a_file_taken_over_by_a_link_is_as_young_as_the_link(box: Sandbox) -> None:
    box.configure("cache.link", "hardlink")
    box.write("data/a", content("a", LARGE))
    box.settle("data")
    box.add("data")
    (box.root / "data.mlx").unlink()

    collect(box.project(), now=time.time())

    assert held(box, hash_bytes(content("a", LARGE).encode()))


def test_the_trash_gives_everything_back(used: Sandbox) -> None:
    before = stored(used)
    gc(used)
    assert in_trash(used)

    amount = restore_trash(used.project(), dry_run=True)
    assert stored(used) != before
    assert restore_trash(used.project()) == amount

    assert stored(used) == before
    assert in_trash(used) == []
    cache = used.project().cache
    for digest in before:
        cache.check(digest)
    assert not collect(used.project(), now=time.time()).plan.going.objects  # it counts as new


def test_what_has_come_again_meanwhile_is_not_replaced(used: Sandbox) -> None:
    gc(used)
    used.write("data/large", content("first", LARGE))
    used.add("data")
    path = Path(used.project().cache.object_path(hash_bytes(content("first", LARGE).encode())))
    inode = path.stat().st_ino

    restore_trash(used.project())

    assert path.stat().st_ino == inode
    assert in_trash(used) == []


def test_old_trash_is_deleted_and_young_trash_is_not(used: Sandbox) -> None:
    now = later()
    gc(used, now=now)
    thrown = in_trash(used)

    gc(used, now=now + 13 * 24 * 3600)
    assert in_trash(used) == thrown
    found = gc(used, now=now + 15 * 24 * 3600)

    assert found.expired.objects == len(thrown)
    assert in_trash(used) == []


def test_without_a_grace_age_there_is_still_a_trash(used: Sandbox) -> None:
    gc(used, grace=0.0)

    assert in_trash(used)


def test_the_trash_can_be_emptied(used: Sandbox) -> None:
    assert empty_trash(used.project()) == Emptied(Amount(), Amount())
    gc(used)
    thrown = in_trash(used)

    empty_trash(used.project(), agree=lambda _: False)
    empty_trash(used.project(), dry_run=True)
    assert in_trash(used) == thrown
    empty_trash(used.project())

    assert in_trash(used) == []
    assert_all_is_well(used)


def test_a_sparse_pack_is_written_anew(box: Sandbox) -> None:
    texts = [content(str(number), 2000) for number in range(10)]
    with open_batch(box.project().cache) as batch:
        digests = [batch.add_bytes(text.encode()) for text in texts]
    for number in (0, 1):
        box.write(f"data{number}", texts[number])
        box.add(f"data{number}")
    assert len(box.project().cache.packs.names()) == 1

    found = gc(box)

    assert len(found.plan.sparse) == 1
    assert stored(box) == set(digests[:2])
    for digest in digests[:2]:
        box.project().cache.check(digest)
    restore_trash(box.project())
    assert stored(box) == set(digests)


def test_a_damaged_pack_is_left_alone(box: Sandbox) -> None:
    texts = [content(str(number), 2000) for number in range(10)]
    cache = box.project().cache
    with open_batch(cache) as batch:
        digests = [batch.add_bytes(text.encode()) for text in texts]
    box.write("data", texts[0])
    box.add("data")
    place = cache.packs.find(digests[5])
    assert place is not None
    path = Path(cache.packs.path_of(place.pack))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[place.offset + 60] ^= 1
    path.write_bytes(data)

    gc(box)

    assert path.exists()
    assert any("mlx fsck" in note for note in box.heard.notes)


def test_a_collection_waits_for_who_is_at_work_and_then_gives_up(used: Sandbox) -> None:
    used.configure("core.lock_timeout", "0")
    other = used.project()

    with other.guard.held(), pytest.raises(LockedError, match="other mlx commands are at work"):
        gc(used)

    gc(used)


def test_commands_wait_for_a_collection_and_then_give_up(used: Sandbox) -> None:
    used.configure("core.lock_timeout", "0")

    with alone(used.project().cache.root, doing="mlx gc", timeout=0):
        with pytest.raises(LockedError, match=r"`mlx gc` .* is clearing the cache"):
            used.add("data")
        with pytest.raises(LockedError):
            used.checkout()

    used.add("data")


def test_a_stage_that_runs_lets_a_collection_in(box: Sandbox) -> None:
    wait = "echo > begun; while ! test -e go; do sleep 0.01; done; echo new > out"
    box.pipeline(f"stages: {{wait: {{cmd: '{wait}', outs: [out]}}}}")
    box.write("out", content("by hand"))
    running = threading.Thread(target=box.run)
    running.start()
    while not box.exists("begun"):
        time.sleep(0.01)

    gc(box)
    box.write("go")
    running.join()

    assert box.read("out") == "new\n"
    assert held(box, hash_bytes(b"new\n"))
    assert held(box, hash_bytes(content("by hand").encode()))  # the journal named it when it was collected


# While others are at work --------------------------------------------------------------------------------------------


def test_what_is_added_between_looking_and_sweeping_stays(used: Sandbox) -> None:
    """The bytes that are about to go are added again, without being stored again, before the sweep."""

    def add_again(_: object) -> bool:
        for number in range(4):
            used.write(f"again/small{number}", content(f"first {number}", 300))
        used.write("again/large", content("first", LARGE))
        used.write("again/same", content("same", LARGE))
        used.add("again")
        return True

    gc(used, agree=add_again)

    assert_all_is_well(used)
    assert used.snapshot().pointer("again") is not None


def test_what_is_committed_and_left_while_it_is_looked_for_stays(
    used: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git needs no leave of ours: a new record goes from the workspace into a commit just before the files are read."""
    used.commit("before")
    real = repository.in_files

    def add_more(_: object) -> bool:
        add_new(used, "more", content("more"))
        monkeypatch.setattr(repository, "in_files", commit_and_leave)
        return True

    def commit_and_leave(*arguments: object) -> object:
        monkeypatch.setattr(repository, "in_files", real)
        used.commit("more")
        used.git("checkout", "--quiet", "HEAD~1")
        return real(*arguments)  # type: ignore[arg-type]

    gc(used, agree=add_more)

    assert not used.exists("more.mlx")
    assert held(used, hash_bytes(content("more").encode()))


def test_what_is_fetched_between_looking_and_sweeping_stays(used: Sandbox) -> None:
    """A folder whose listing was not here when it was looked for, and that shares bytes which were about to go."""
    pointer = used.read("data.mlx")
    used.write("data/large", content("first", LARGE))
    used.add("data")
    tree = used.snapshot().tracked()[0].digest
    recorded = used.read("data.mlx")
    data = used.project().cache.read(tree)
    used.write("data.mlx", pointer)
    gc(used, grace=0.0)
    empty_trash(used.project())
    used.write("data.mlx", recorded)
    with open_batch(used.project().cache) as batch:
        large = batch.add_bytes(content("first", LARGE).encode())

    def fetch(_: object) -> bool:
        with open_batch(used.project().cache) as batch:
            batch.add_bytes(data)
        return True

    used.write("unneeded", content("unneeded"))
    used.add("unneeded")
    (used.root / "unneeded.mlx").unlink()
    gc(used, agree=fetch)

    assert held(used, tree)
    assert held(used, large)


def test_a_dedup_hit_makes_a_file_young(used: Sandbox) -> None:
    cache = used.project().cache
    digest = hash_bytes(content("first", LARGE).encode())
    path = Path(cache.object_path(digest))
    os.utime(path, (0, 0))

    assert cache.holds(digest, LARGE)

    assert path.stat().st_mtime > 1


def test_adding_and_collecting_at_once_never_loses(box: Sandbox) -> None:
    """Two programs: one adds and drops the same few files for ever, one collects without grace."""
    script = (
        "import sys, time\n"
        "from tests.workspace.projects import Sandbox\n"
        "from pathlib import Path\n"
        "from mlops_cli.workspace.collect import collect\n"
        "box = Sandbox(Path(sys.argv[1]))\n"
        "for _ in range(15):\n"
        "    collect(box.project(), now=time.time() + 3600, grace=0.0)\n"
    )
    box.configure("core.lock_timeout", "60")
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", script, box.root], cwd=root, stderr=subprocess.PIPE)
    rounds = 0
    while process.poll() is None or rounds < 3:
        which = rounds % 3
        for name, size in (("small", 300), ("large", LARGE)):
            box.write(f"data/{name}", content(f"{name} {which}", size))
        box.add("data")
        assert_all_is_well(box)
        rounds += 1
    _, err = process.communicate()

    assert process.returncode == 0, err.decode()
    assert_all_is_well(box)


# Cut short -----------------------------------------------------------------------------------------------------------


def test_killed_at_any_point_it_can_be_done_again(used: Sandbox, tmp_path: Path) -> None:
    with open_batch(used.project().cache) as batch:  # a pack that is to be written anew
        for number in range(9):
            batch.add_bytes(content(f"sparse {number}", 2000).encode())
    used.write("one", content("sparse 3", 2000))
    used.add("one")
    add_new(used, "two", content("two"))
    (used.root / "two.mlx").unlink()
    used.project().cache.write_run("abc", b"mlx: 1\ncmd: x\n")
    before = stored(used)
    died = True
    at = 0
    while died:
        root = tmp_path / f"copy{at}"
        shutil.copytree(used.root, root, symlinks=True)
        box = Sandbox(root)
        project = box.project()
        marker = Marker(project.cache, project.git)
        now = later()
        plan = collecting._look(project, marker, now, SILENT)[0].plan
        assert plan.loose
        assert plan.dead
        assert plan.sparse
        assert plan.runs
        needed = marker.needed.objects

        def work(project: object = project, plan: Plan = plan, needed: set[bytes] = needed, now: float = now) -> None:
            collecting._carry_out(project, plan, needed, now, SILENT)  # type: ignore[arg-type]

        died = killed_at(work, at)

        assert_all_is_well(box)
        gc(box)
        assert stored(box) == needed_by(box)
        restore_trash(box.project())
        assert stored(box) == before
        at += 1
    assert at > 20


def test_killed_at_any_point_restoring_can_be_done_again(used: Sandbox, tmp_path: Path) -> None:
    before = stored(used)
    gc(used)
    died = True
    at = 0
    while died:
        root = tmp_path / f"copy{at}"
        shutil.copytree(used.root, root, symlinks=True)
        box = Sandbox(root)
        project = box.project()

        died = killed_at(lambda project=project: restore_trash(project), at)  # type: ignore[misc]

        assert_all_is_well(box)
        restore_trash(box.project())
        assert stored(box) == before
        at += 1
    assert at > 5


# The property --------------------------------------------------------------------------------------------------------

files = st.dictionaries(st.sampled_from(["a", "b", "d/e", "d/f"]), st.integers(0, 5), min_size=1)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(st.tuples(files, st.sampled_from(["commit", "drop", "stay"])), min_size=1, max_size=4))
def test_a_collection_removes_all_that_is_unreachable_and_nothing_else(
    history: list[tuple[dict[str, int], str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    box = make_project(tmp_path_factory.mktemp("property") / "project")
    cache = box.project().cache
    needed: set[Digest] = set()
    for tree, fate in history:
        shutil.rmtree(box.root / "data", ignore_errors=True)
        for name, number in tree.items():
            box.write(f"data/{name}", content(str(number), LARGE if number % 2 else 100))
        box.add("data")
        digest = box.snapshot().tracked()[0].digest
        if fate == "commit":
            box.commit()
            needed |= {digest for digest, _ in tree_objects(cache, digest)}
        elif fate == "drop":
            (box.root / "data.mlx").unlink()
    for entry in box.snapshot().tracked():
        needed |= {digest for digest, _ in tree_objects(cache, entry.digest)}

    gc(box)

    contents = read_contents(box.project().cache)
    left = {digest_from_raw(item.raw) for item in contents.loose}
    packed = {digest_from_raw(raw) for pack in contents.packs for raw, _ in pack.objects or ()}
    assert needed <= left | packed
    assert left <= needed
    for pack in contents.packs:  # a pack may keep some: less than half
        live = sum(size for raw, size in pack.objects or () if digest_from_raw(raw) in needed)
        assert live * 2 >= sum(size for _, size in pack.objects or ())
