"""Push, fetch and pull: what the records name, and only that, moves; parts too; nothing that is there moves twice."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from mlops_cli.errors import CorruptObject, MissingObject, RemoteError, UsageError
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.store.trees import Kind, find, tree_objects, walk
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remotes import add_remote
from mlops_cli.workspace.transfers import Fetching, Pushing, Trust
from mlops_cli.workspace.unpushed import find_unpushed
from mlops_cli.workspace.versions import Versions
from tests.objects import cache_at, damage, lose, lose_all, stored
from tests.servers.azure import azure_server, connection_string, needs_azurite
from tests.servers.gcs import gcs_server
from tests.workspace.projects import Sandbox, clone, listing


@pytest.fixture
def shared(box: Sandbox) -> Sandbox:
    """Return a project with a remote that does not exist yet, and data in it."""
    box.remote()
    for name in ("a", "b", "sub/c", "sub/deep/d"):
        box.write(f"data/{name}", f"content of {name}")
    box.write("data/same as a", "content of a")
    box.write("lone", "lone")
    box.add("data", "lone")
    box.commit()
    return box


@pytest.fixture
def other(shared: Sandbox, tmp_path: Path) -> Sandbox:
    """Return a fresh clone, the data being on the remote."""
    push(shared.project())
    return clone(shared, tmp_path / "clone")


def test_push_moves_what_is_missing(shared: Sandbox):
    remote = shared.root.parent / "remote"
    planned = push(shared.project(), how=Pushing(dry_run=True))
    assert not remote.exists()
    done = push(shared.project())
    assert (planned.objects, planned.size) == (done.objects, done.size)
    assert done.objects == 5 + 3  # five different files, three folders
    assert stored(remote) == stored(shared.project().cache.root)
    again = push(shared.project())
    assert (again.objects, again.size, again.remote, again.url) == (0, 0, "storage", "../remote")


def test_push_after_a_change(shared: Sandbox):
    push(shared.project())
    shared.write("data/sub/new", "new")
    shared.add("data/sub/new")
    assert push(shared.project()).objects == 3  # the file, `sub` and `data`


@pytest.mark.parametrize(("target", "count"), [("lone", 1), ("data/a", 1), ("data/sub", 4), ("data/sub/deep", 2)])
def test_push_of_a_part(shared: Sandbox, target: str, count: int):
    assert push(shared.project(), [target]).objects == count


def test_part_that_is_not_there(shared: Sandbox, other: Sandbox):
    for box, verb in ((shared, push), (shared, fetch), (other, fetch)):
        with pytest.raises(UsageError) as caught:
            verb(box.project(), ["data/nothing"])
        assert caught.value.message == "`data` has no `nothing`"


def test_fetch_and_checkout(shared: Sandbox, other: Sandbox):
    done = fetch(other.project())
    assert done.objects == 8
    assert stored(other.project().cache.root) == stored(shared.project().cache.root)
    other.checkout()
    assert listing(other.root / "data") == listing(shared.root / "data")
    assert fetch(other.project()).objects == 0


@pytest.mark.parametrize(
    ("targets", "files"),
    [
        (["data/a"], {b"a"}),
        (["data/sub/deep"], {b"sub", b"sub/deep", b"sub/deep/d"}),
        (["data/sub/deep", "data/b"], {b"b", b"sub", b"sub/deep", b"sub/deep/d"}),
        (["data/sub", "data/sub/deep/d"], {b"sub", b"sub/c", b"sub/deep", b"sub/deep/d"}),
    ],
)
def test_parts_bring_only_what_they_need(other: Sandbox, targets: Sequence[str], files: set[bytes]):
    fetch(other.project(), targets)
    other.checkout(*targets)
    assert set(listing(other.root / "data")) == files
    blobs = sum(kind == "file" for kind, _ in listing(other.root / "data").values())
    trees = 1 + sum(name.rpartition(b"/")[2] in (b"sub", b"deep") for name in files)
    assert len(stored(other.project().cache.root)) == blobs + trees
    assert fetch(other.project(), targets).objects == 0
    fetch(other.project())
    other.checkout()
    assert other.clean()


def test_dry_run_of_a_fetch(other: Sandbox):
    planned = fetch(other.project(), how=Fetching(dry_run=True))
    assert (planned.objects, planned.size) == (2, None)  # `lone` and a listing; what it lists is not known here
    assert planned.unlisted == (1, 5, sum(len(f"content of {name}") for name in ("a", "a", "b", "sub/c", "sub/deep/d")))
    assert stored(other.project().cache.root) == set()
    fetch(other.project(), ["data/a"])
    planned = fetch(other.project(), ["lone"], Fetching(dry_run=True))
    assert (planned.objects, planned.size) == (1, 4)
    assert planned.unlisted == (0, 0, 0)


def test_dry_run_of_a_fetch_after_a_part_came(other: Sandbox):
    fetch(other.project(), ["data/a"])
    planned = fetch(other.project(), how=Fetching(dry_run=True))
    assert (planned.objects, planned.size) == (3, None)  # `lone`, `data/b` and the listing of `data/sub`
    assert planned.known == len("lone") + len("content of b")
    assert planned.unlisted == (1, 2, len("content of sub/c") + len("content of sub/deep/d"))
    assert fetch(other.project()).objects == 3 + 2 + 1  # and that of `data/sub/deep`


def test_push_from_a_clone_without_data(other: Sandbox):
    """What the remote holds already need not be here."""
    assert push(other.project()).objects == 0
    other.write("new", "new")
    other.add("new")
    assert push(other.project()).objects == 1


def test_push_of_what_is_nowhere(shared: Sandbox):
    shared.remote().mkdir()
    cache = shared.project().cache
    shutil.rmtree(cache.root)
    with pytest.raises(MissingObject) as caught:
        push(shared.project(), ["data"])
    assert caught.value.message == "the cache does not hold `data`, nor does remote `storage`, so it cannot be pushed"
    assert caught.value.hint == "`mlx fetch data` from where it is, or `mlx add data` again"
    with pytest.raises(MissingObject) as caught:
        push(shared.project(), ["lone"])
    assert caught.value.message == "1 object of `lone` is neither in the cache nor on remote `storage`"
    assert caught.value.hint == "`mlx add lone` stores it again, or a clone that has it pushes it"


def test_fetch_of_what_is_nowhere(other: Sandbox):
    lose_all(other.root.parent / "remote")
    for target in ("lone", "data", "data/a"):
        with pytest.raises(MissingObject) as caught:
            fetch(other.project(), [target])
        assert (
            caught.value.message
            == f"remote `storage` lacks 1 object of `{target.partition('/')[0]}`, as does the cache"
        )
        assert caught.value.hint == (
            "`mlx push` from a clone that has it, with this commit checked out; what could be fetched is in the cache"
        )


def test_remote_that_is_gone(other: Sandbox):
    shutil.rmtree(other.root.parent / "remote")
    with pytest.raises(RemoteError) as caught:
        fetch(other.project())
    assert caught.value.message == f"remote `storage` (`{other.root.parent / 'remote'}`) does not exist"
    assert caught.value.hint == "mount it, or check its URL: `mlx remote list`"
    for target in ("data", "lone"):
        with pytest.raises(RemoteError, match="does not exist"):
            push(other.project(), [target])


def test_damaged_object_here_is_not_pushed(shared: Sandbox):
    cache = shared.project().cache
    pointer = shared.snapshot().pointer("lone")
    assert pointer is not None
    damage(cache, pointer.digest)
    with pytest.raises(CorruptObject) as caught:
        push(shared.project())
    assert caught.value.message.startswith(f"`lone`: object `{pointer.digest[:19]}` in the cache is damaged: ")
    assert caught.value.hint == "`mlx add lone` or `mlx run` makes a good one again"
    remote = shared.root.parent / "remote"
    assert pointer.digest.removeprefix("blake3:") not in stored(remote)
    (shared.root / "lone").unlink()
    shared.write("lone", "lone")
    shared.add("lone")
    push(shared.project())
    assert pointer.digest.removeprefix("blake3:") in stored(remote)


@pytest.mark.parametrize("url", ["../remote", "memory://half-pushed"])
def test_no_tree_goes_up_over_what_did_not(shared: Sandbox, url: str):
    text = shared.read(".mlx/config.yaml")
    assert "../remote" in text
    shared.write(".mlx/config.yaml", text.replace("../remote", url))  # of memory, no command would write this
    cache = shared.project().cache
    found = find(cache, pointed(shared, "data"), [b"sub", b"deep", b"d"])
    assert found is not None
    damage(cache, found.digest)
    with pytest.raises(CorruptObject):
        push(shared.project(), ["data"])
    _, store = open_project_remote(shared.project(), None)
    trees = [pointed(shared, "data"), *folders(shared, "data")]
    assert store.missing(trees) == set(trees)
    shared.add("data")
    push(shared.project(), ["data"])
    _, store = open_project_remote(shared.project(), None)
    assert store.missing([digest for digest, _ in tree_objects(cache, pointed(shared, "data"))]) == set()


def test_push_says_what_it_could_not_look_for(other: Sandbox):
    assert push(other.project()).unread == ("data",)
    fetch(other.project())
    assert push(other.project()).unread == ()


def pointed(box: Sandbox, path: str) -> Digest:
    pointer = box.snapshot().pointer(path)
    assert pointer is not None
    return pointer.digest


def folders(box: Sandbox, path: str) -> list[Digest]:
    return [entry.digest for _, entry in walk(box.project().cache, pointed(box, path)) if entry.kind == Kind.FOLDER]


def test_damaged_object_there_does_not_come_in(other: Sandbox):
    pointer = other.snapshot().pointer("lone")
    assert pointer is not None
    damage(cache_at(other.root.parent / "remote"), pointer.digest)
    with pytest.raises(CorruptObject) as caught:
        fetch(other.project())
    start = f"`lone`: object `{pointer.digest[:19]}` in remote `storage` is damaged: "
    assert caught.value.message.startswith(start)
    assert pointer.digest.removeprefix("blake3:") not in stored(other.project().cache.root)


def test_remotes_that_are_not_there(shared: Sandbox, box: Sandbox):
    for attempt in (
        lambda: push(shared.project(), how=Pushing(remote="nowhere")),
        lambda: fetch(shared.project(), how=Fetching(remote="nowhere")),
    ):
        with pytest.raises(UsageError) as caught:
            attempt()
        assert caught.value.message == "there is no remote `nowhere` (there is: `storage`)"
        assert caught.value.hint == "`mlx remote add nowhere URL`"


def test_project_without_a_remote(box: Sandbox, tmp_path: Path):
    box.write("lone", "x")
    box.add("lone")
    assert fetch(box.project()).objects == 0
    with pytest.raises(UsageError) as caught:
        push(box.project())
    assert caught.value.message == "this project has no remote"
    box.commit()
    with pytest.raises(UsageError, match="this project has no remote"):
        fetch(clone(box, tmp_path / "clone").project())


def test_relative_url_is_from_the_root(shared: Sandbox, tmp_path: Path):
    push(shared.project())
    assert (tmp_path / "remote/mlx.json").is_file()


def test_second_remote(shared: Sandbox, tmp_path: Path):
    shared.remote("backup", str(tmp_path / "backup"))
    assert push(shared.project(), how=Pushing(remote="backup")).remote == "backup"
    assert not (tmp_path / "remote").exists()
    assert push(shared.project()).objects == 8


def test_nested_folders_that_are_equal_move_once(shared: Sandbox):
    for name in ("one", "two", "three/one"):
        shared.write(f"twins/{name}/file", "twin")
    shared.add("twins")
    assert push(shared.project(), ["twins"]).objects == 1 + 1 + 1 + 1  # the file, its folder, `three`, `twins`


# Outputs that are kept from remotes -----------------------------------------------------------------------------------


@pytest.fixture
def private(shared: Sandbox) -> Sandbox:
    shared.pipeline(
        """
stages:
  make:
    cmd: echo big > big && echo small > small
    outs: [{big: {push: false}}, small]
"""
    )
    shared.run()
    shared.commit()
    return shared


def test_private_output_stays_here(private: Sandbox, tmp_path: Path):
    done = push(private.project())
    assert done.paths == ("data", "lone", "small")
    other = clone(private, tmp_path / "clone")
    fetch(other.project())
    other.checkout()
    assert other.read("small") == "small\n"
    assert not other.exists("big")
    with pytest.raises(MissingObject):
        other.checkout("big")
    with pytest.raises(MissingObject):
        fetch(other.project(), ["big"])


def test_output_that_turns_private_without_a_run(private: Sandbox):
    private.pipeline(private.read("mlx.yaml").replace("mlx: 1\n", "").replace(", small]", ", {small: {push: false}}]"))
    assert private.actions() == {"make": "skip"}
    assert push(private.project()).paths == ("data", "lone")


def test_private_output_that_is_here_is_checked_out(private: Sandbox):
    (private.root / "big").unlink()
    private.checkout()
    assert private.read("big") == "big\n"


# Other versions than the workspace's ----------------------------------------------------------------------------------


@pytest.fixture
def grown(shared: Sandbox) -> Sandbox:
    """Return a project with three versions of `lone`: on a tag, on a branch, and in the workspace."""
    shared.git("tag", "v1")
    shared.git("checkout", "-q", "-b", "side")
    shared.write("lone", "on the branch")
    shared.write("only there", "x")
    shared.add("lone", "only there")
    shared.commit()
    shared.git("checkout", "-q", "-")
    shared.checkout(force=True)
    shared.write("lone", "in the workspace")
    shared.add("lone")
    return shared


@pytest.mark.parametrize(
    ("versions", "count"),
    [
        (Versions(["v1"]), 1),
        (Versions(["side"]), 1),
        (Versions(["v1", "side"]), 2),
        (Versions(branches=True), 2),
        (Versions(tags=True), 1),
        (Versions(["side"], tags=True), 2),
        (Versions(), 1),
    ],
)
def test_versions_of_a_path(grown: Sandbox, tmp_path: Path, versions: Versions, count: int):
    assert push(grown.project(), ["lone"], Pushing(versions=versions)).objects == count
    grown.git("add", "-A")
    grown.commit()
    other = clone(grown, tmp_path / "clone")
    other.git("branch", "side", "origin/side")
    if versions.revisions:
        assert fetch(other.project(), ["lone"], Fetching(versions)).objects == count


def test_a_path_that_only_some_versions_track(grown: Sandbox):
    assert push(grown.project(), ["only there"], Pushing(versions=Versions(["v1", "side"]))).objects == 1
    with pytest.raises(UsageError, match="nothing tracks `only there`"):
        push(grown.project(), ["only there"], Pushing(versions=Versions(["v1"])))


def test_a_revision_that_is_none(grown: Sandbox):
    with pytest.raises(UsageError) as caught:
        push(grown.project(), how=Pushing(versions=Versions(["nowhere"])))
    assert "`nowhere`" in caught.value.message
    assert caught.value.hint
    for kind in ("v1", "side"):
        grown.git("tag" if kind == "v1" else "branch", "-D" if kind == "side" else "-d", kind)
    with pytest.raises(UsageError, match="there is no tag yet"):
        push(grown.project(), how=Pushing(versions=Versions(tags=True)))


# What is not pushed ---------------------------------------------------------------------------------------------------


def test_what_a_remote_lacks(shared: Sandbox):
    (found,) = find_unpushed(shared.project())
    lacking = found.paths
    assert found.store.name == "storage"
    assert [(item.path, item.objects) for item in lacking] == [("data", 4 + 3), ("lone", 1)]
    assert lacking[1].size == 4
    push(shared.project(), ["lone"])
    shared.write("lone", "another")
    assert [item.path for item in find_unpushed(shared.project())[0].paths] == ["data"]
    push(shared.project())
    assert find_unpushed(shared.project())[0].paths == ()


def test_outputs_that_remotes_never_get_are_not_lacking(private: Sandbox):
    push(private.project())
    assert find_unpushed(private.project())[0].paths == ()


# Not taking the index's word ------------------------------------------------------------------------------------------


def pack_of(remote: Path) -> Path:
    (pack,) = (remote / "packs").iterdir()
    return pack


def test_push_of_what_is_nowhere_says_how_the_rest_goes(shared: Sandbox):
    push(shared.project())
    shared.write("gone", "gone")
    shared.write("new", "new")
    shared.add("gone", "new")
    lose(shared.project().cache, hash_bytes(b"gone"))
    with pytest.raises(MissingObject) as caught:
        push(shared.project())
    assert caught.value.message == "1 object of `gone` is neither in the cache nor on remote `storage`"
    assert caught.value.hint == (
        "`mlx add gone` stores it again, or a clone that has it pushes it; `mlx push new` sends what is here"
    )
    assert push(shared.project(), ["new"]).objects == 1


def test_verify_looks_whether_it_is_there(other: Sandbox):
    fetch(other.project())
    assert push(other.project(), how=Pushing(trust=Trust.FILES)).repaired == 0
    pack_of(other.root.parent / "remote").unlink()
    with pytest.raises(MissingObject) as caught:
        push(other.project(), how=Pushing(trust=Trust.FILES))
    assert "has not what its index says, 8 objects of `data`, `lone`" in caught.value.message
    assert (caught.value.hint or "").startswith("the same `mlx push` with `--repair`")
    assert push(other.project()).objects == 0  # the index is believed


def test_repair_sends_again_what_is_gone_or_damaged(other: Sandbox, tmp_path: Path):
    fetch(other.project())
    remote = other.root.parent / "remote"
    pointer = other.snapshot().pointer("lone")
    assert pointer is not None
    damage(cache_at(remote), pointer.digest)
    assert push(other.project(), how=Pushing(trust=Trust.FILES)).objects == 0  # nothing shows from outside
    planned = push(other.project(), how=Pushing(trust=Trust.NOTHING, dry_run=True))
    assert (planned.objects, planned.repaired) == (1, 1)
    done = push(other.project(), how=Pushing(trust=Trust.NOTHING))
    assert (done.objects, done.repaired) == (1, 1)
    assert push(other.project(), how=Pushing(trust=Trust.NOTHING)).repaired == 0
    fresh = clone(other, tmp_path / "fresh")
    fetch(fresh.project())
    fresh.checkout()
    assert fresh.read("lone") == "lone"


def test_repair_of_a_large_file_whose_recipe_is_gone_and_a_chunk_damaged(shared: Sandbox, tmp_path: Path):
    """What chunks it has only the recipe tells, so they are looked at when there is one again."""
    shared.write("large", random.Random(5).randbytes(17 << 20))
    shared.add("large")
    shared.commit()
    push(shared.project(), ["large"])
    remote = shared.root.parent / "remote"
    pack, (recipe,) = pack_of(remote), (remote / "recipes").glob("*/*")
    pack.chmod(0o644)
    written = bytearray(pack.read_bytes())
    written[200] ^= 1
    pack.write_bytes(written)
    recipe.unlink()

    push(shared.project(), ["large"], Pushing(trust=Trust.NOTHING))

    fresh = clone(shared, tmp_path / "fresh")
    fetch(fresh.project(), ["large"])
    fresh.checkout("large")
    assert (fresh.root / "large").read_bytes() == (shared.root / "large").read_bytes()


def test_repair_forgets_all_that_was_in_a_pack_that_is_gone(shared: Sandbox):
    shared.write("other", "in the same pack")
    shared.add("other")
    push(shared.project())
    pack_of(shared.root.parent / "remote").unlink()
    assert push(shared.project(), ["lone"], Pushing(trust=Trust.NOTHING)).repaired == 1
    assert push(shared.project(), ["other"]).objects == 1  # nobody had asked for it, and it is missing now


def test_an_index_that_is_damaged_there_and_good_here(other: Sandbox, tmp_path: Path):
    fetch(other.project())
    (segment,) = (other.root.parent / "remote" / "index").glob("*.idx")
    segment.chmod(0o644)
    written = segment.read_bytes()
    segment.write_bytes(written[:40] + bytes([written[40] ^ 1]) + written[41:])
    assert push(other.project()).objects == 0  # what is kept here is believed
    with pytest.raises(CorruptObject, match="the index of remote `storage` is damaged") as caught:
        push(other.project(), how=Pushing(trust=Trust.FILES))
    assert caught.value.hint == "the same `mlx push` with `--repair` writes it anew"

    push(other.project(), how=Pushing(trust=Trust.NOTHING, reporter=other.heard))

    key = f"index/{segment.name}"
    assert f"`{key}` of remote `storage` was damaged, and is written anew" in other.heard.notes
    assert segment.read_bytes() == written
    push(other.project(), how=Pushing(trust=Trust.FILES))
    fetch(clone(other, tmp_path / "fresh").project())


def test_repair_makes_an_index_that_is_damaged_anew(other: Sandbox, tmp_path: Path):
    fetch(other.project())
    remote = other.root.parent / "remote"
    (segment,) = (remote / "index").glob("*.idx")
    segment.chmod(0o644)
    segment.write_bytes(segment.read_bytes()[:-1])
    fresh = clone(other, tmp_path / "fresh")
    with pytest.raises(CorruptObject, match="the index of remote `storage` is damaged"):
        fetch(fresh.project())
    shutil.rmtree(other.project().local / "remotes")  # as in a clone that has not seen it
    assert push(other.project(), how=Pushing(trust=Trust.NOTHING)).objects == 8
    fetch(fresh.project())
    fresh.checkout()
    assert fresh.clean()


# --- what the remote has not as its index says ------------------------------------------------------------------------


def test_a_repair_that_cannot_be_done_leaves_no_tree_over_what_is_not_there(
    shared: Sandbox, other: Sandbox, tmp_path: Path
):
    """Whoever has only the trees must learn that what they promise is gone."""
    fetch(other.project(), ["data/sub"])  # and so the trees above it
    third = clone(shared, tmp_path / "third")
    fetch(third.project())
    for pack in (shared.root.parent / "remote/packs").iterdir():
        pack.chmod(0o644)
        data = pack.read_bytes().replace(b"content of sub/deep/d", b"content of sub/deep/X")
        pack.write_bytes(data)
    (deep,) = (
        digest
        for digest in shared.project().cache.list()
        if shared.project().cache.read(digest) == b"content of sub/deep/d"
    )
    lose(third.project().cache, deep)

    with pytest.raises(MissingObject, match="neither in the cache nor on remote"):
        push(third.project(), how=Pushing(trust=Trust.NOTHING))

    fourth = clone(shared, tmp_path / "fourth")
    with pytest.raises(MissingObject, match="cannot be pushed"):
        push(fourth.project())
    assert push(shared.project()).objects == 4  # `d`, and the three folders above it
    assert push(fourth.project()).unread
    assert fetch(fourth.project()).objects


def test_looking_whether_all_is_there_looks_at_folders_that_are_not_here(other: Sandbox):
    for pack in (other.root.parent / "remote/packs").iterdir():
        pack.unlink()

    with pytest.raises(MissingObject, match="has not what its index says"):
        push(other.project(), ["data"], Pushing(trust=Trust.FILES))


def test_what_the_index_names_and_is_not_there_takes_a_repair(other: Sandbox):
    """A mere push believes the index, and would say that all is there."""
    for pack in (other.root.parent / "remote/packs").iterdir():
        pack.unlink()

    with pytest.raises(MissingObject) as caught:
        fetch(other.project())
    assert (caught.value.hint or "").startswith("`mlx push --repair` from a clone that has it")


def test_an_output_that_is_kept_from_remotes_is_not_said_to_be_there(private: Sandbox):
    push(private.project())

    with pytest.raises(UsageError, match="`big` is kept from remotes"):
        push(private.project(), ["big"])
    assert push(private.project(), ["small"]).objects == 0


@pytest.mark.parametrize("cloud", ["gs", pytest.param("az", marks=needs_azurite)])
def test_other_clouds(box: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cloud: str) -> None:
    with ExitStack() as stack:
        if cloud == "gs":
            port = stack.enter_context(gcs_server())
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        else:
            port = stack.enter_context(azure_server(tmp_path))
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(port))
        add_remote(box.project(), os.environ, "storage", f"{cloud}://storage/team/data")
        for number in range(40):
            box.write(f"data/{number % 3}/{number}", f"content {number}")
        box.write("data/large", os.urandom(17 << 20))
        box.add("data")
        box.commit()
        before = listing(box.root / "data")

        pushed = push(box.project(), how=Pushing(jobs=1)).remotes[0]  # Google's stand-in mixes up what comes at once

        assert (pushed.objects, pushed.requests < 12) == (45, True)
        assert push(box.project()).objects == 0
        push(box.project(), how=Pushing(trust=Trust.NOTHING, jobs=1))
        other = clone(box, tmp_path / "clone")
        assert fetch(other.project()).objects == 45
        other.checkout()
        assert listing(other.root / "data") == before


def test_a_remote_that_is_gone_does_not_lack_everything(box: Sandbox) -> None:
    folder = box.remote()
    box.write("data", "a\n")
    box.add("data")
    assert [len(each.missing) for each in find_unpushed(box.project())] == [1]  # nothing was ever pushed
    push(box.project())
    folder.rename(folder.with_name("away"))

    with pytest.raises(RemoteError, match="is empty, and this clone knows it with data"):
        find_unpushed(box.project())
