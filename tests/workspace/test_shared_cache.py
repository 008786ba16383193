"""One cache for several users: what one stores the others read, add to, mend and collect, whatever their umasks are."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_cli.store.scratch import Scratch
from mlops_cli.store.sharing import grant, make_folder
from tests.disks import bound
from tests.objects import LARGE, cache_at, damage, stored
from tests.users import TEAM, Place, User, open_place

SCRATCH_OF_A_KILLED_PROCESS = """
import os, sys
from mlops_cli.store.scratch import Scratch
Scratch(sys.argv[1]).write(b"half an object")
os._exit(9)
"""
MANY_PACKS = """
import sys
from pathlib import Path
from mlops_cli.store.batches import open_batch
from mlops_cli.store.cache import Cache, Durability
from mlops_cli.store.links import LinkMode
for number in range(20):
    with open_batch(Cache(Path(sys.argv[1]), link=LinkMode.COPY, durability=Durability.NONE)) as batch:
        batch.add_bytes(f"{sys.argv[2]} {number}".encode())
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with open_place() as found:
        yield found


@pytest.fixture
def cache(place: Place) -> Iterator[Path]:
    """Return the root of an empty cache that belongs to the team."""
    root = place.root / "cache"
    root.mkdir()
    os.chown(root, 0, TEAM)
    root.chmod(0o2770)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def users(place: Place) -> Iterator[list[User]]:
    """Return Ada and Bob; files that Ada makes are her own, Bob's may be read by his group only."""
    found = [place.user(1, umask=0o077), place.user(2, umask=0o027)]
    yield found
    for user in found:
        shutil.rmtree(user.home)


def project(user: User, cache: Path, **files: str) -> Path:
    """Return a project of the user's with `cache` and these files in `data`, not added yet."""
    repo = user.home / "repo"
    assert user.run("git", "init", "--quiet", "--initial-branch=main", repo).code == 0
    assert user.mlx("init", cwd=repo).code == 0
    assert user.mlx("config", "set", "--clone", "cache.dir", cache, cwd=repo).code == 0
    (repo / "data").mkdir()
    for name, content in files.items():
        (repo / "data" / name).write_text(content)
    user.own(repo)
    return repo


def commit(user: User, repo: Path) -> None:
    assert user.run("git", "add", "--all", cwd=repo).code == 0
    assert user.run("git", "commit", "--quiet", "-m", "commit", cwd=repo).code == 0


def fine(user: User, repo: Path, *args: str | Path) -> str:
    result = user.mlx(*args, cwd=repo)
    assert result.code == 0, result.stderr
    return result.stdout


def check_shared(root: Path, mode: int = 0o2770) -> None:
    """Every folder grants what the root does, every lock is the team's to hold, every other file theirs to read."""
    for folder, _, names in os.walk(root):
        info = os.stat(folder)
        assert (stat.S_IMODE(info.st_mode), info.st_gid) == (mode, TEAM), folder
        for name in names:
            info = os.stat(Path(folder, name))
            expected = 0o660 if name.endswith(".lock") else 0o440
            assert (stat.S_IMODE(info.st_mode), info.st_gid) == (expected, TEAM), name


@pytest.mark.parametrize(
    ("umask", "mode"),
    [(0o077, 0o2770), (0o027, 0o2770), (0o022, 0o2770), (0o002, 0o2770), (0o077, 0o770)],
    ids=["077", "027", "022", "002", "without setgid"],
)
def test_all_that_is_stored_is_the_groups(place: Place, cache: Path, umask: int, mode: int) -> None:
    ada, bob = place.user(1, umask), place.user(2)
    cache.chmod(mode)
    try:
        repo = project(ada, cache, small="small", large="large" * LARGE)
        fine(ada, repo, "add", "data")
        check_shared(cache, mode)
        own = project(bob, cache, small="small", large="other" * LARGE)
        fine(bob, own, "add", "data")
        fine(bob, own, "fsck")
        check_shared(cache, mode)
        assert len({os.stat(path).st_uid for path in cache.rglob("*")}) == 2
    finally:
        shutil.rmtree(ada.home)
        shutil.rmtree(bob.home)


def test_one_brings_back_what_the_other_stored(cache: Path, users: list[User]) -> None:
    ada, bob = users
    fine(ada, first := project(ada, cache, small="small", large="large" * LARGE), "add", "data")
    second = project(bob, cache)
    (second / "data").rmdir()
    shutil.copy(first / "data.mlx", second)
    bob.own(second)

    fine(bob, second, "checkout")

    assert (second / "data/small").read_text() == "small"
    assert (second / "data/large").read_text() == "large" * LARGE


@pytest.mark.parametrize("mode", ["hardlink", "symlink"])
def test_a_linked_object_of_another_user_is_used(cache: Path, users: list[User], mode: str) -> None:
    """The system may forbid links to other people's files; then they are copied."""
    bob = users[1]
    repos = [project(user, cache, large="large" * LARGE) for user in users]
    for user, repo in zip(users, repos, strict=True):
        fine(user, repo, "config", "set", "--clone", "cache.link", mode)
        fine(user, repo, "add", "data")
    (repos[1] / "data/large").unlink()

    fine(bob, repos[1], "checkout")

    assert bob.run("cat", "data/large", cwd=repos[1]).stdout == "large" * LARGE
    assert len(stored(cache)) == 2


def test_what_a_killed_command_left_is_removed_by_whoever_is_next(cache: Path, users: list[User]) -> None:
    ada, bob = users
    assert ada.run(ada.python, "-c", SCRATCH_OF_A_KILLED_PROCESS, cache).code == 9
    assert len(os.listdir(cache / "tmp")) == 2

    fine(bob, project(bob, cache, a="a"), "add", "data")

    assert os.listdir(cache / "tmp") == []


def test_a_damaged_object_of_another_user_is_put_away(cache: Path, users: list[User]) -> None:
    ada, bob = users
    for content in ("small", "large" * LARGE):
        fine(ada, repo := project(ada, cache, file=content), "add", "data")
        (digest,) = [d for d in cache_at(cache).list() if cache_at(cache).read(d, limit=None) == content.encode()]
        damage(cache_at(cache), digest)
        second = project(bob, cache)
        (second / "data").rmdir()
        shutil.copy(repo / "data.mlx", second)
        bob.own(second)

        assert bob.mlx("checkout", cwd=second).code == 5

        assert len(os.listdir(cache / "quarantine")) == 1
        assert cache_at(cache).missing([digest])
        check_shared(cache)
        shutil.rmtree(cache / "quarantine")
        shutil.rmtree(repo)
        shutil.rmtree(second)


def test_packs_of_all_users_are_gathered(cache: Path, users: list[User]) -> None:
    for user in users:
        done = user.run(user.python, "-c", MANY_PACKS, cache, f"{user.number}")
        assert done.code == 0, done.stderr

    assert len(os.listdir(cache / "packs")) < 20
    assert len(stored(cache)) == 40
    check_shared(cache)


def test_who_cannot_read_a_project_does_not_collect(cache: Path, users: list[User]) -> None:
    ada, bob = users
    fine(ada, repo := project(ada, cache, a="ada's"), "add", "data")
    commit(ada, repo)
    (repo / ".git").chmod(0o700)
    fine(bob, own := project(bob, cache, b="bob's"), "add", "data")
    commit(bob, own)

    refused = bob.mlx("gc", "--yes", "--grace", "0", cwd=own)

    assert refused.code != 0
    assert str(repo) in refused.stderr
    assert len(stored(cache)) == 4


def test_one_collects_and_the_other_brings_back(place: Place, cache: Path) -> None:
    ada, bob = place.user(1), place.user(2)
    try:
        fine(ada, repo := project(ada, cache, a="ada's" * LARGE), "add", "data")
        commit(ada, repo)
        fine(bob, own := project(bob, cache, b="bob's" * LARGE), "add", "data")
        (own / "data.mlx").unlink()
        before = stored(cache)

        fine(bob, own, "gc", "--yes", "--grace", "0s")

        assert len(before - stored(cache)) == 2
        check_shared(cache)
        fine(ada, repo, "gc", "--restore")
        assert stored(cache) == before
        check_shared(cache)
    finally:
        shutil.rmtree(ada.home)
        shutil.rmtree(bob.home)


def test_a_cache_of_ones_own_is_left_to_the_umask(place: Place) -> None:
    ada = place.user(1, umask=0o077)
    root = ada.home / "cache"
    try:
        fine(ada, project(ada, root, a="a", large="large" * LARGE), "add", "data")
        modes = {stat.S_IMODE(path.stat().st_mode) for path in (root, *root.rglob("*"))}
    finally:
        shutil.rmtree(ada.home)

    assert modes == {0o700, 0o400, 0o600}


# --- without other users --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("root_mode", "mode"), [(0o2775, 0o444), (0o770, 0o440), (0o777, 0o444), (0o755, 0o400)])
def test_what_files_grant_follows_the_root(tmp_path: Path, root_mode: int, mode: int) -> None:
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(root_mode)
    before = os.umask(0o077)
    try:
        make_folder(f"{root}/a/b", root)
        (root / "a/file").write_bytes(b"")
        (root / "a/file").chmod(0o400)
        grant([f"{root}/a/file"], root, 0o444)
        scratch = Scratch(str(root))
        scratch.write(b"object")
    finally:
        os.umask(before)

    lock, folder = sorted((root / "tmp").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert stat.S_IMODE((root / "a/file").stat().st_mode) == mode
    shared = root_mode if root_mode & 0o020 else 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (root / "a", root / "a/b", folder)} == {shared}
    assert stat.S_IMODE(lock.stat().st_mode) == shared & 0o666
    scratch.close()


# --- a cache that cannot be written to ------------------------------------------------------------------------------

READING = (
    ("checkout",),
    ("pull",),
    ("status",),
    ("ls", "data"),
    ("diff", "HEAD"),
    ("diff", "HEAD~1", "HEAD"),
    ("cat", "data/b"),
    ("fsck",),
    ("du",),
)


def check_reading_works(user: User, repo: Path, source: Path) -> None:
    """What needs nothing stored works; `add` of something new is refused in one sentence, and stores nothing."""
    shutil.rmtree(repo / "data", ignore_errors=True)
    for command in READING:
        fine(user, repo, *command)
    assert {path.name: path.read_text() for path in (repo / "data").iterdir()} == {"a": "1" * LARGE, "b": "2"}
    before = stored(source)
    fine(user, repo, "add", "data")  # nothing of it is new
    (repo / "data/new").write_text("new")
    user.own(repo / "data")
    pointer = (repo / "data.mlx").read_bytes()

    refused = user.mlx("add", "data", cwd=repo)

    assert refused.code == 6, refused.stderr
    message, hint = refused.stderr.splitlines()
    assert message.startswith(f"error: cannot add to the cache (the cache is `{source}`): ")
    assert message.endswith(("permission denied", "the file system is read-only"))
    assert hint.startswith("hint: ")
    assert (repo / "data.mlx").read_bytes() == pointer
    assert stored(source) == before
    assert "data/new" in user.mlx("diff", "HEAD", cwd=repo).stdout


def two_versions(user: User, cache: Path) -> Path:
    """Return a project of the user's whose versions are all in the cache."""
    repo = project(user, cache, a="1" * LARGE, b="1")
    for content in ("1", "2"):
        (repo / "data/b").write_text(content)
        fine(user, repo, "add", "data")
        commit(user, repo)
    fine(user, repo, "remote", "add", "storage", user.home / "remote")
    fine(user, repo, "push")
    return repo


def test_a_cache_that_others_wrote_is_read(cache: Path, users: list[User]) -> None:
    ada, bob = users
    repo = two_versions(bob, cache)
    shutil.rmtree(cache / "projects")
    for path in (cache, *cache.rglob("*")):
        os.chown(path, ada.number, TEAM)
        path.chmod(0o2750 if path.is_dir() else 0o440)

    check_reading_works(bob, repo, cache)


def test_a_cache_on_a_read_only_disk_is_read(cache: Path, users: list[User]) -> None:
    ada, _ = users
    repo = two_versions(ada, cache)
    shown = ada.home / "shown"
    shown.mkdir()
    with bound(cache, shown, read_only=True):
        fine(ada, repo, "config", "set", "--clone", "cache.dir", shown)
        check_reading_works(ada, repo, shown)
