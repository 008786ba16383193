"""Who needs what on a remote: this clone, what its Git remotes name, and other repositories that share the place."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from mlops_cli.errors import Inconclusive, MlxError, OutsideError, RemoteError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.trees import find
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.remote_collect import RemoteCollected, collect_remote, forget_repository, optimize_remote
from mlops_cli.workspace.remotes import add_remote
from tests.objects import lose
from tests.workspace.projects import Sandbox, clone, make_project

DAY = 24 * 3600.0


def gc(box: Sandbox, **options) -> RemoteCollected:
    return collect_remote(box.project(), None, now=time.time(), reporter=box.heard, **{"dry_run": False, **options})


def make_old(store: Path, days: float = 30) -> None:
    then = time.time() - days * DAY
    for path in store.rglob("*"):
        os.utime(path, (then, then))


def missing(box: Sandbox, *texts: str) -> set[str]:
    """Return those of `texts` that are, as objects, not in the index of the remote."""
    digests = {hash_bytes(text.encode()): text for text in texts}
    _, store = open_project_remote(box.project(), None)
    return {digests[digest] for digest in store.missing(digests)}


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Return a bare Git repository."""
    path = tmp_path / "origin.git"
    os.mkdir(path)
    Sandbox(path).git("init", "--quiet", "--bare", "--initial-branch=main")
    return path


@pytest.fixture
def box(tmp_path: Path, origin: Path) -> Sandbox:
    """Return a clone with a data remote, and data of a month ago: `old` is in no commit any more, `data` is."""
    box = make_project(tmp_path / "project")
    box.git("remote", "add", "origin", f"../{origin.name}")
    box.remote()
    box.write("data/a", "content of a")
    box.write("data/sub/b", "content of b")
    box.write("lone", "old")
    box.add("data", "lone")
    push(box.project())
    box.write("lone", "new")
    box.add("lone")
    box.commit()
    push(box.project())
    box.git("push", "--quiet", "--all", "origin")
    make_old(tmp_path / "remote")
    return box


@pytest.fixture
def store(box: Sandbox) -> Path:
    return box.root.parent / "remote"


def test_only_what_no_commit_names_goes(box: Sandbox, store: Path, tmp_path: Path) -> None:
    done = gc(box)

    assert (done.plan.staying.objects + done.plan.going.objects, done.deleted.objects) == (1, 0)
    assert missing(box, "old", "new", "content of a", "content of b") == {"old"}
    make_old(store)
    gc(box)
    other = clone(box, tmp_path / "clone")
    fetch(other.project())
    other.checkout()
    assert other.read("lone") == "new"
    assert other.read("data/sub/b") == "content of b"


def test_a_dry_run_changes_nothing_and_says_the_same(box: Sandbox, store: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file())

    planned = gc(box, dry_run=True)

    assert sorted((path, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file()) == before
    assert planned == gc(box)


def test_what_is_younger_than_the_grace_age_stays(box: Sandbox, store: Path) -> None:
    make_old(store, days=10)

    assert gc(box).plan.young.objects == 1
    assert missing(box, "old") == set()
    gc(box, grace=5 * DAY)
    assert missing(box, "old") == {"old"}


def test_a_branch_that_others_pushed_must_be_here(box: Sandbox, store: Path, origin: Path, tmp_path: Path) -> None:
    other = clone(Sandbox(box.root), tmp_path / "other")
    other.git("remote", "set-url", "origin", origin)
    other.git("switch", "--quiet", "--create", "topic")
    other.write("lone", "old")
    other.add("lone")
    other.commit()
    other.git("push", "--quiet", "origin", "topic")

    with pytest.raises(Inconclusive) as caught:
        gc(box)

    assert caught.value.message == "`origin` has 1 commit or tag that is not here: what it needs is unknown"
    assert caught.value.hint == "`git fetch --all --tags`, then again"
    box.git("fetch", "--quiet", "--all")
    assert gc(box).plan.going.objects == 0
    assert missing(box, "old") == set()


def test_a_tag_on_a_commit_that_no_branch_has_counts(box: Sandbox, store: Path, origin: Path) -> None:
    """Only the Git remote names it by now."""
    box.git("switch", "--quiet", "--detach")
    box.write("lone", "old")
    box.add("lone")
    box.commit()
    box.git("tag", "-m", "kept", "kept")
    box.git("push", "--quiet", "origin", "kept")
    box.git("tag", "--delete", "kept")
    box.git("checkout", "--quiet", "main")
    box.git("reflog", "expire", "--expire=now", "--all")
    (box.root / "lone").write_text("new")

    gc(box)

    assert missing(box, "old") == set()


def test_proposals_that_a_forge_keeps_need_not_be_here(box: Sandbox, store: Path, origin: Path, tmp_path: Path) -> None:
    other = clone(Sandbox(box.root), tmp_path / "other")
    other.git("remote", "set-url", "origin", origin)
    other.write("lone", "old")
    other.add("lone")
    other.commit()
    other.git("push", "--quiet", "origin", "HEAD:refs/pull/1/head")

    box.git("fetch", "--quiet", "--all")
    planned = gc(box, dry_run=True)
    box.git("fetch", "--quiet", "origin", "refs/pull/1/head")
    (box.root / ".git" / "FETCH_HEAD").unlink()

    assert planned.plan.staying.objects + planned.plan.going.objects == 1
    assert gc(box, dry_run=True).plan.staying.objects == 0  # where it is here, it counts


def test_without_a_git_remote_nobody_can_tell_unless_there_is_one_owner(box: Sandbox, store: Path) -> None:
    box.git("remote", "remove", "origin")

    with pytest.raises(Inconclusive, match="no Git remote that could tell") as caught:
        gc(box)

    assert caught.value.hint is not None
    assert caught.value.hint.startswith("`mlx config set remotes.storage.owner single`")
    box.configure("remotes.storage.owner", "single")
    gc(box)
    assert missing(box, "old") == {"old"}


def test_a_git_remote_that_cannot_be_asked_stops_it(box: Sandbox, store: Path, origin: Path) -> None:
    shutil.rmtree(origin)

    with pytest.raises(OutsideError, match="Git remote `origin` cannot be asked which commits it has: "):
        gc(box)

    assert missing(box, "old") == set()


def test_a_shallow_clone_is_refused(box: Sandbox, tmp_path: Path) -> None:
    box.commit()
    box.git("clone", "--quiet", "--depth", "1", f"file://{box.root}", tmp_path / "shallow")

    with pytest.raises(Inconclusive, match="is shallow"):
        gc(Sandbox(tmp_path / "shallow"))


def test_a_record_that_cannot_be_read_stops_it(box: Sandbox) -> None:
    box.write("broken.mlx", "mlx: 1\nouts: {\n")

    with pytest.raises(UsageError, match="nobody can tell what a record needs"):
        gc(box)


def test_listings_that_only_the_remote_has_are_read_there(box: Sandbox, store: Path, tmp_path: Path) -> None:
    """A clone that never fetched anything knows all the same what its folders need."""
    other = clone(box, tmp_path / "clone")
    other.git("remote", "set-url", "origin", store.parent / "origin.git")

    gc(other)

    assert missing(box, "old", "new", "content of a", "content of b") == {"old"}


def two_remotes(box: Sandbox) -> Path:
    """Let `data/private` be on a remote of its own; return where that is."""
    private = box.root.parent / "private"
    add_remote(box.project(), {}, "private", "../private", paths=["data/private/**", "private/**"])
    box.write("private/x/y", "private")
    box.add("private")
    box.commit()
    push(box.project())
    box.git("push", "--quiet", "--all", "origin")
    return private


def test_listings_that_only_another_remote_has_are_read_there(box: Sandbox, store: Path, tmp_path: Path) -> None:
    """A clone that has none of the private data collects the remote of the rest."""
    private = two_remotes(box)
    other = clone(box, tmp_path / "clone")
    fetch(other.project(), ["data"])
    make_old(store)

    found = gc(other)

    assert found.plan.kept.objects == 5
    assert missing(box, "old") == {"old"}
    assert not (private / "lease").exists()


def test_a_listing_that_only_an_unreachable_remote_has_stops_it(box: Sandbox, store: Path, tmp_path: Path) -> None:
    private = two_remotes(box)
    other = clone(box, tmp_path / "clone")
    private.rename(tmp_path / "away")
    make_old(store)

    with pytest.raises(Inconclusive, match=r"`private\.mlx") as caught:
        gc(other)

    assert "neither here nor on remote `storage`" in caught.value.message
    assert "`mlx fetch --all-branches --all-tags`" in (caught.value.hint or "")
    assert missing(box, "old") == set()


def test_a_listing_that_is_nowhere_stops_it(box: Sandbox, store: Path) -> None:
    box.write("more/x", "never pushed")
    box.add("more")
    box.commit()
    box.git("push", "--quiet", "origin", "main")
    pointer = box.snapshot().pointer("more")
    assert pointer is not None
    assert find(box.project().cache, pointer.digest, [b"x"]) is not None
    lose(box.project().cache, pointer.digest)

    with pytest.raises(
        Inconclusive, match=r"more\.mlx .*whose listing `blake3:.*` is neither here nor on remote `storage`"
    ):
        gc(box)

    assert missing(box, "old") == set()
    gc(box, allow_absent=True)
    assert missing(box, "old") == {"old"}


def test_two_repositories_on_one_remote_are_told_apart(box: Sandbox, store: Path, tmp_path: Path) -> None:
    stranger = make_project(tmp_path / "stranger")
    stranger.write("theirs", "theirs")
    stranger.git("commit", "--quiet", "--allow-empty", "-m", "another beginning")
    stranger.remote()
    stranger.add("theirs")
    stranger.commit()
    push(stranger.project())
    (note,) = (path for path in (store / "projects").iterdir() if "origin.git" not in path.read_text())

    with pytest.raises(Inconclusive) as caught:
        gc(box)

    assert caught.value.message == (
        "another repository (that has no Git remote) has pushed to remote `storage`, too: what it needs is unknown here"
    )
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f"`mlx remote gc storage --forget {note.stem}`")
    with pytest.raises(UsageError, match="has no note `abc` of a repository"):
        forget_repository(box.project(), None, "abc")
    forget_repository(box.project(), None, note.stem, dry_run=False)
    gc(box)
    assert missing(box, "theirs") == set()  # it is young


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (b"", Inconclusive),
        (b"[" * 5000, Inconclusive),
        (b'{"mlx": 1, "first": 5, "git": ""}', Inconclusive),
        (b'{"mlx": 1, "first": [], "git": ""}', Inconclusive),
        (b'{"first": ["x"], "git": ""}', Inconclusive),
        (b'{"mlx": 2, "first": ["FIRST"], "git": ""}', RemoteError),
        (b'{"mlx": 2, "needs": "all"}', RemoteError),
    ],
)
def test_a_note_that_cannot_be_read_stops_it_until_it_is_forgotten(
    box: Sandbox, store: Path, value: bytes, error: type[MlxError]
) -> None:
    first = box.git("rev-list", "--max-parents=0", "HEAD").encode()
    note = store / "projects" / f"{'0a' * 16}.json"
    note.write_bytes(value.replace(b"FIRST", first))

    with pytest.raises(error) as caught:
        gc(box)

    assert missing(box, "old") == set()
    if error is RemoteError:
        assert "is of version 2" in caught.value.message
    else:
        assert f"`mlx remote gc storage --forget {note.stem}`" in (caught.value.hint or "")
        forget_repository(box.project(), None, note.stem, dry_run=False)
        gc(box)


def test_the_own_note_is_not_forgotten(box: Sandbox, store: Path) -> None:
    (note,) = (store / "projects").iterdir()
    box.git("checkout", "--quiet", "--orphan", "other")

    with pytest.raises(UsageError, match="is this repository's own note on remote `storage`"):
        forget_repository(box.project(), None, note.stem, dry_run=False)

    assert note.exists()


def test_a_note_that_was_taken_away_comes_back_before_any_data_goes(box: Sandbox, store: Path) -> None:
    """Somebody was wrong about who uses a remote: who goes on pushing there says so again within half a grace age."""
    (note,) = (store / "projects").iterdir()
    note.unlink()
    (told,) = (box.project().local / "remotes").glob("*/announced")

    def pushed(text: str, days: float) -> bool:
        then = time.time() - days * DAY
        os.utime(told, (then, then))
        box.write("lone", text)
        box.add("lone")
        push(box.project())
        return note.exists()

    assert not pushed("newer", 6)
    assert pushed("newest", 8)
    note.unlink()
    assert pushed("latest", -8)  # a clock that was wrong


def test_clones_of_one_repository_are_no_strangers(box: Sandbox, store: Path, tmp_path: Path) -> None:
    other = clone(box, tmp_path / "clone")
    other.write("new", "from a clone")
    other.add("new")
    other.commit()
    push(other.project())

    (note,) = (store / "projects").iterdir()
    value = json.loads(note.read_bytes())
    assert value["first"] == [box.git("rev-list", "--max-parents=0", "HEAD")]
    gc(box)


def test_a_push_with_nothing_to_do_leaves_no_note(box: Sandbox, store: Path, tmp_path: Path) -> None:
    other = clone(box, tmp_path / "clone")
    note = next((store / "projects").iterdir())
    note.unlink()

    push(other.project())  # brings the index
    assert push(other.project()).requests <= 3
    assert not note.exists()


def test_what_was_never_pushed_to_is_refused(tmp_path: Path) -> None:
    box = make_project(tmp_path / "project")
    box.remote()

    for verb in (gc, lambda box: optimize_remote(box.project(), None, dry_run=False)):
        with pytest.raises(RemoteError, match="nothing was ever pushed to remote `storage`"):
            verb(box)
    assert not (tmp_path / "remote").exists()


def test_joining_needs_no_records(box: Sandbox, store: Path) -> None:
    planned = optimize_remote(box.project(), None)
    done = optimize_remote(box.project(), None, dry_run=False)

    assert planned == done
    assert (done.packs.objects, done.segments) == (2, 2)
    assert missing(box, "old", "new", "content of a") == set()
    assert optimize_remote(box.project(), None, dry_run=False).segments == 0
