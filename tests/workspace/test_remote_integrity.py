"""A remote that was poisoned, in every way that one can be: it is told, with the paths, and nothing is changed."""

from __future__ import annotations

import random
import shutil
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_cli.errors import MissingObject, RemoteError, UsageError
from mlops_cli.hashing import Digest, hash_bytes, raw_digest
from mlops_cli.store.checkup import Scope
from mlops_cli.store.pack_format import Row
from mlops_cli.store.pack_index import rows_table
from mlops_cli.store.pack_segment import encode_segment
from mlops_cli.store.recipe import decode_recipe, encode_recipe
from mlops_cli.words import naming, spelled
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.integrity import Examination, Fault
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remote_integrity import examine_remote, remote_remedies
from mlops_cli.workspace.remotes import add_remote
from mlops_cli.workspace.transfers import Pushing, Trust
from tests.objects import lose_all
from tests.servers.s3 import S3Server, s3_server
from tests.workspace.projects import Sandbox, clone, listing, make_project

BIG = random.Random(1).randbytes(17 << 20)
ALL = Scope()
LOOSE = random.Random(2).randbytes(9 << 20)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a project that has pushed: small files, one that lies alone, one in chunks."""
    folder = tmp_path_factory.mktemp("saved")
    box = make_project(folder / "project")
    box.remote()
    box.write("data/a", "content of a")
    box.write("data/sub/b", "content of b")
    box.write("alone", LOOSE)
    box.write("big", BIG)
    box.add("data", "alone", "big")
    box.commit()
    push(box.project())
    return folder


@pytest.fixture
def box(saved: Path, tmp_path: Path) -> Sandbox:
    shutil.copytree(saved, tmp_path / "place", symlinks=True)
    return Sandbox(tmp_path / "place" / "project")


@pytest.fixture
def remote(box: Sandbox) -> Path:
    return box.root.parent / "remote"


def examine(box: Sandbox, scope: Scope = ALL, name: str = "storage") -> Examination:
    return examine_remote(box.project(), name, scope)


def owners(faults: tuple[Fault, ...]) -> set[tuple[str, ...]]:
    return {fault.paths for fault in faults}


def pack_of(box: Sandbox, digest: Digest) -> Path:
    """Return the pack of the remote that has an object."""
    _, store = open_project_remote(box.project(), "storage")
    place = store.index.find([digest])[digest]
    return box.root.parent / "remote" / "packs" / f"{place.pack}.pack"


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_remote_that_is_well_is_read_to_its_end(box: Sandbox, remote: Path) -> None:
    before = listing(remote)

    found = examine(box)

    assert (found.exit_code, found.damaged, found.absent, found.checkup.files) == (0, (), (), ())
    assert found.checkup.complete
    assert found.checkup.objects == 2 + 2 + 2  # two small files, two listings, the large ones; chunks are parts of one
    assert found.checkup.bytes >= len(BIG) + len(LOOSE)
    assert found.examined == "storage"
    assert list(remote_remedies(found)) == []
    assert listing(remote) == before


def object_replaced(box: Sandbox, remote: Path) -> tuple[str, ...]:
    pack = pack_of(box, hash_bytes(b"content of a"))
    overwrite(pack, pack.read_bytes().replace(b"content of a", b"content of X"))
    return ("data",)


def pack_cut(box: Sandbox, remote: Path) -> tuple[str, ...]:
    pack = pack_of(box, hash_bytes(b"content of b"))
    overwrite(pack, pack.read_bytes()[:70])
    return ("data",)


def alone_replaced(box: Sandbox, remote: Path) -> tuple[str, ...]:
    overwrite(next((remote / "objects").glob("*/*")), flipped(LOOSE, 5 << 20))
    return ("alone",)


def alone_cut(box: Sandbox, remote: Path) -> tuple[str, ...]:
    overwrite(next((remote / "objects").glob("*/*")), LOOSE[:-1])
    return ("alone",)


def alone_grown(box: Sandbox, remote: Path) -> tuple[str, ...]:
    overwrite(next((remote / "objects").glob("*/*")), LOOSE + b"!")
    return ("alone",)


def chunk_replaced(box: Sandbox, remote: Path) -> tuple[str, ...]:
    pack = max((remote / "packs").iterdir(), key=lambda path: path.stat().st_size)
    overwrite(pack, flipped(pack.read_bytes(), pack.stat().st_size // 2))
    return ("big",)


def recipe_cut(box: Sandbox, remote: Path) -> tuple[str, ...]:
    recipe = next((remote / "recipes").glob("*/*"))
    overwrite(recipe, recipe.read_bytes()[:-1])
    return ("big",)


def recipe_in_another_order(box: Sandbox, remote: Path) -> tuple[str, ...]:
    """All its chunks are there and well, and its checksum is right: only putting the file together tells."""
    path = next((remote / "recipes").glob("*/*"))
    recipe = decode_recipe(path.read_bytes(), hash_bytes(BIG))
    raws = [recipe.raw(number) for number in range(len(recipe))][::-1]
    turned = type(recipe)(recipe.digest, recipe.size, array("I", recipe.lengths[::-1]), b"".join(raws))
    overwrite(path, encode_recipe(turned))
    return ("big",)


DAMAGES = [
    object_replaced,
    pack_cut,
    alone_replaced,
    alone_cut,
    alone_grown,
    chunk_replaced,
    recipe_cut,
    recipe_in_another_order,
]


@pytest.mark.parametrize("poison", DAMAGES)
def test_damage_is_told_with_its_path(poison: Callable[[Sandbox, Path], tuple[str, ...]], box: Sandbox) -> None:
    remote = box.root.parent / "remote"
    paths = poison(box, remote)
    before = listing(remote)

    found = examine(box)

    assert found.exit_code == 5
    assert owners(found.damaged) == {paths}
    assert not found.absent
    assert all(fault.why and fault.files for fault in found.damaged)
    assert listing(remote) == before
    (advice,) = remote_remedies(found)
    line = f"mlx push --repair --remote storage {' '.join(paths)}"
    assert spelled(advice) == f"`{line}`, in a clone that has the data, sends it again"
    push(box.project(), how=Pushing(trust=Trust.NOTHING))
    assert examine(box).exit_code == 0


def pack_gone(box: Sandbox, remote: Path) -> tuple[str, ...]:
    pack_of(box, hash_bytes(b"content of a")).unlink()
    return ("data",)


def alone_gone(box: Sandbox, remote: Path) -> tuple[str, ...]:
    next((remote / "objects").glob("*/*")).unlink()
    return ("alone",)


def recipe_gone(box: Sandbox, remote: Path) -> tuple[str, ...]:
    next((remote / "recipes").glob("*/*")).unlink()
    return ("big",)


def chunks_gone(box: Sandbox, remote: Path) -> tuple[str, ...]:
    max((remote / "packs").iterdir(), key=lambda path: path.stat().st_size).unlink()
    return ("big",)


@pytest.mark.parametrize("poison", [pack_gone, alone_gone, recipe_gone, chunks_gone])
def test_what_is_gone_is_told_with_its_path(poison: Callable[[Sandbox, Path], tuple[str, ...]], box: Sandbox) -> None:
    paths = poison(box, box.root.parent / "remote")

    found = examine(box)

    assert found.exit_code == 4
    assert owners(found.absent) == {paths}
    assert not found.damaged
    (advice,) = remote_remedies(found)
    assert spelled(advice).startswith(f"`mlx push --repair --remote storage {' '.join(paths)}`")
    with pytest.raises(MissingObject) as caught:  # to who brings it, it is absent just so
        fetch(clone(box, box.root.parent / "clone").project())
    assert (caught.value.exit_code, (caught.value.hint or "").partition("`")[2][:17]) == (4, "mlx push --repair")
    assert naming(paths) in caught.value.message
    push(box.project(), how=Pushing(trust=Trust.NOTHING))
    assert examine(box).exit_code == 0


def test_what_was_never_pushed_is_absent(box: Sandbox) -> None:
    box.write("data/new", "new")
    box.add("data")

    found = examine(box)

    assert (found.exit_code, owners(found.absent)) == (4, {("data",)})
    (advice,) = remote_remedies(found)
    assert spelled(advice).startswith("`mlx push --remote storage data`")


def test_an_index_that_lies_is_found_out(box: Sandbox, remote: Path) -> None:
    """It leads to bytes that are another object's."""
    digest = hash_bytes(b"content of a")
    _, store = open_project_remote(box.project(), "storage")
    places = store.index.find([digest, hash_bytes(b"content of b")])
    wrong = places[hash_bytes(b"content of b")]
    by_pack: dict[str, list[Row]] = {}
    for raw, place in store.index.rows():
        at = wrong if raw == raw_digest(digest) else place
        by_pack.setdefault(place.pack, []).append(Row(raw, at.offset, at.length, at.stored))
    for segment in (remote / "index").glob("*.idx"):
        segment.unlink()
    data = b"".join(encode_segment([rows_table(rows, pack) for pack, rows in by_pack.items()]))
    (remote / "index" / f"{hash_bytes(data).removeprefix('blake3:')}.idx").write_bytes(data)

    found = examine(box)

    assert found.exit_code == 5
    assert ("data",) in owners(found.damaged)
    assert any("another object" in fault.why for fault in found.damaged)


def test_a_damaged_index_is_told(box: Sandbox, remote: Path) -> None:
    examine(box)  # this clone keeps what it was
    segment = next((remote / "index").glob("*.idx"))
    overwrite(segment, flipped(segment.read_bytes(), 60))

    known = examine(box)
    shutil.rmtree(box.project().local / "remotes")
    unknown = examine(box)

    for found in (known, unknown):
        assert found.exit_code == 5
        assert [file.file for file in found.checkup.files] == [f"index/{segment.name}"]
    assert known.checkup.objects == 6
    assert unknown.checkup.objects == 0  # nobody here knows what it has
    assert (known.absent, unknown.absent) == ((), ())


def test_a_damaged_index_of_the_trash_is_told_and_mended(box: Sandbox, remote: Path) -> None:
    _, store = open_project_remote(box.project(), "storage")
    store.trash.add([rows_table([Row(bytes(32), 0, 1, 1)], "ab" * 32)])
    (segment,) = (remote / "trash").iterdir()
    overwrite(segment, flipped(segment.read_bytes(), 60))

    found = examine(box)

    assert found.exit_code == 5
    assert [file.file for file in found.checkup.files] == [f"trash/{segment.name}"]
    assert any("`mlx push --repair" in text for text in remote_remedies(found))
    push(box.project(), how=Pushing(trust=Trust.NOTHING))
    assert examine(box).exit_code == 0


def test_an_object_that_is_good_in_another_pack_is_not_lost(box: Sandbox, remote: Path) -> None:
    digest = hash_bytes(b"content of a")
    pack = pack_of(box, digest)
    index = {path.name: path.read_bytes() for path in (remote / "index").iterdir()}
    whole = pack.read_bytes()
    pack.unlink()
    push(box.project(), ["data/a"], Pushing(trust=Trust.NOTHING))
    pack.write_bytes(whole.replace(b"content of a", b"content of X"))
    for name, data in index.items():
        (remote / "index" / name).write_bytes(data)

    found = examine(box)

    assert found.exit_code == 5
    assert not found.damaged
    assert [file.file for file in found.checkup.files] == [f"packs/{pack.name}"]


def test_what_no_record_names_is_told_without_a_path(box: Sandbox, remote: Path) -> None:
    box.git("rm", "--quiet", "--cached", "alone.mlx")
    (box.root / "alone.mlx").unlink()
    alone_replaced(box, remote)

    found = examine(box)

    assert (found.exit_code, owners(found.damaged)) == (5, {()})


def test_listings_are_read_there_when_they_are_not_here(box: Sandbox, remote: Path) -> None:
    object_replaced(box, remote)
    lose_all(box.project().cache.root)

    found = examine(box)

    assert [fault.files for fault in found.damaged] == [("data/a",)]


class Ticking:
    """A clock on which each look takes a second."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1
        return self.time


def test_a_little_at_a_time_comes_round_to_all(box: Sandbox, remote: Path) -> None:
    alone_replaced(box, remote)
    now = iter(range(1000, 2000))
    seen = []
    for _ in range(6):
        scope = Scope(seconds=2, clock=Ticking(), now=lambda: float(next(now)), random=random.Random(0))
        found = examine(box, scope)
        assert not found.checkup.complete
        seen.append(bool(found.damaged))
    assert True in seen
    assert False in seen


def test_a_sample_is_a_part(box: Sandbox) -> None:
    found = examine(box, Scope(percent=1))

    assert found.exit_code == 0
    assert 0 < found.checkup.units < found.checkup.of_units


def test_only_what_belongs_to_a_remote_is_looked_for_there(box: Sandbox) -> None:
    add_remote(box.project(), {}, "private", "../private", paths=["big"])
    push(box.project(), ["big"])

    assert examine(box, name="private").exit_code == 0
    assert examine(box).exit_code == 0
    assert examine(box, name="private").checkup.objects == 1


def test_a_remote_that_holds_nothing_yet(box: Sandbox, remote: Path) -> None:
    add_remote(box.project(), {}, "empty", "../empty")

    found = examine(box, name="empty")

    assert (found.exit_code, found.checkup.objects) == (4, 0)
    with pytest.raises(UsageError, match="there is no remote `nowhere`"):
        examine(box, name="nowhere")


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as found:
        yield found


def test_a_bucket_is_examined_as_a_folder_is(server: S3Server, box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    add_remote(box.project(), {}, "cloud", f"{server.make_bucket('examined')}/x")
    push(box.project(), how=Pushing(remote="cloud"))
    assert examine(box, name="cloud").exit_code == 0
    _, store = open_project_remote(box.project(), "cloud")
    key = next(stored.key for stored in store.bucket.list("objects"))
    store.bucket.put(key, flipped(LOOSE, 100))
    store.bucket.delete([next(stored.key for stored in store.bucket.list("recipes"))])

    found = examine(box, name="cloud")

    assert (owners(found.damaged), owners(found.absent)) == ({("alone",)}, {("big",)})
    assert found.exit_code == 5


def test_a_remote_that_cannot_be_reached_is_an_error(box: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    add_remote(box.project(), {}, "cloud", "s3://nowhere")
    with pytest.raises(RemoteError):
        examine(box, name="cloud")
