"""`kill -9` at every request of a push and of a pull: nothing half is visible, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

from tests.servers.proxy import Proxy, proxy
from tests.servers.s3 import S3Server, s3_server

MOST = 40  # requests that a transfer of this data may take; far fewer do


class Clone:
    """A clone of one repository, in which `mlx` and Git run as programs."""

    def __init__(self, root: Path, environ: Mapping[str, str]) -> None:
        self.root = root
        self._environ = {**os.environ, **environ, "HOME": str(root.parent), "MLX_CORE_JOBS": "1"}

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start `mlx ARGS`."""
        command = [sys.executable, "-m", "mlops_cli", *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env=self._environ, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, *args: str) -> int:
        """Run `mlx ARGS` and return its exit code; a crash of ours fails the test."""
        process = self.start(*args)
        _, said = process.communicate(timeout=120)
        assert process.returncode != 70, said
        return process.returncode

    def configure(self, text: str) -> None:
        """Set what `mlx config set --clone` sets."""
        (self.root / ".git" / "mlx").mkdir(exist_ok=True)
        (self.root / ".git" / "mlx" / "config.yaml").write_text(f"mlx: 1\n{text}")

    def git(self, *args: str) -> None:
        """Run `git ARGS`."""
        subprocess.run(["git", *args], cwd=self.root, env=self._environ, check=True, capture_output=True)

    def data(self) -> dict[str, bytes]:
        """Return what is in the workspace's data, by path."""
        files = (path for path in (self.root / "data").rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as found:
        yield found


@pytest.fixture
def door(server: S3Server) -> Iterator[Proxy]:
    with proxy(server.port) as found:
        yield found


@pytest.fixture
def project(door: Proxy, server: S3Server, tmp_path: Path) -> Clone:
    """Return a committed project with a pack of small files, one that lies alone, and one that goes in chunks."""
    server_of_bucket = server.make_bucket(f"bucket-{tmp_path.name.lower().replace('_', '-')[:40]}")
    root = tmp_path / "project"
    (root / "data" / "many").mkdir(parents=True)
    numbers = random.Random(7)
    for index in range(12):
        (root / "data" / "many" / f"{index}.bin").write_bytes(numbers.randbytes(3000))
    (root / "data" / "alone.bin").write_bytes(numbers.randbytes(9 << 20))
    (root / "data" / "chunked.bin").write_bytes(numbers.randbytes(17 << 20))
    clone = Clone(root, {**server.environ, "AWS_ENDPOINT_URL": door.url})
    clone.git("init", "--quiet")
    clone.git("config", "user.email", "ada@example.com")
    clone.git("config", "user.name", "Ada")
    for args in (["init"], ["remote", "add", "storage", f"{server_of_bucket}/data"], ["add", "data"]):
        assert clone(*args) == 0
    clone.git("add", ".")
    clone.git("commit", "--quiet", "--message=data")
    return clone


def clone_of(project: Clone, name: str, remote: str | None = None) -> Clone:
    """Return a new clone, whose remote is at the URL `remote`."""
    root = project.root.parent / name
    project.git("clone", "--quiet", str(project.root), str(root))
    clone = Clone(root, project._environ)
    if remote is not None:
        clone.configure(f"remotes:\n  storage:\n    url: {remote}\n")
    return clone


def killed(door: Proxy, clone: Clone, *args: str, at: int, answered: bool) -> bool:
    """Kill `mlx ARGS` at request number `at`; False when it had ended before."""
    door.heal()
    door.stop_at(at, answered=answered)
    process = clone.start(*args)
    try:
        while not door.held.wait(0.02):
            if process.poll() is not None:
                assert process.returncode == 0
                return False
        process.kill()
    finally:
        process.kill()
        process.communicate()
        door.heal()
    return True


@pytest.mark.parametrize("answered", [False, True], ids=["unsent", "unanswered"])
def test_a_push_that_is_killed_at_any_request(project: Clone, door: Proxy, server: S3Server, answered: bool) -> None:
    bucket = server.make_bucket("pushes-answered" if answered else "pushes-unsent")
    wanted = project.data()
    for at in count(int(answered), 3):  # what was answered and never heard of is as the next one unsent
        url = f"{bucket}/{at}"
        project.configure(f"remotes:\n  storage:\n    url: {url}\n")
        if not killed(door, project, "push", at=at, answered=answered):
            break
        reader = clone_of(project, f"reader-{answered}-{at}", url)
        if reader("pull") == 0:
            assert reader.data() == wanted  # all is there but what comes after the data
        else:
            assert all(wanted[path] == data for path, data in reader.data().items())
        assert project("push") == 0
        assert reader("pull") == 0
        assert reader.data() == wanted
        assert at < MOST
    assert at > 4  # else nothing was killed


@pytest.mark.parametrize("answered", [False, True], ids=["unsent", "unanswered"])
def test_a_pull_that_is_killed_at_any_request(project: Clone, door: Proxy, answered: bool) -> None:
    wanted = project.data()
    assert project("push") == 0
    for at in count(int(answered), 2):  # what was answered and never heard of is as the next one unsent
        clone = clone_of(project, f"clone-{at}")
        if not killed(door, clone, "pull", at=at, answered=answered):
            break
        assert all(wanted[path] == data for path, data in clone.data().items())
        assert clone("fsck") in (0, 4)  # what has come is as it should be, and the rest is absent
        assert clone("pull") == 0
        assert clone.data() == wanted
        assert at < MOST
    assert at > 3


def test_a_large_file_goes_on_where_a_kill_left_it(door: Proxy, server: S3Server, tmp_path: Path) -> None:
    size = 33 << 20
    bucket = server.make_bucket("large")
    root = tmp_path / "project"
    root.mkdir()
    (root / "large.bin").write_bytes(random.Random(8).randbytes(size))
    project = Clone(root, {**server.environ, "AWS_ENDPOINT_URL": door.url})
    project.git("init", "--quiet")
    for args in (["init"], ["remote", "add", "storage", f"{bucket}/data"], ["add", "large.bin"], ["push"]):
        assert project(*args) == 0
    clone = clone_of(committed(project), "clone")
    cache = clone.root / ".git/mlx/cache"
    door.heal()
    door.hold_download(24 << 20)
    process = clone.start("pull")
    try:
        assert door.held.wait(60), process.communicate()
        assert Clone(clone.root, server.environ)("fetch") == 0  # another one, meanwhile, gets it all by itself
        (whole,) = (cache / "objects").glob("*/*")
        whole.unlink()  # or there would be nothing left to do
    finally:
        process.kill()
        process.communicate()
    assert not (clone.root / "large.bin").exists()
    (partial,) = (cache / "partial").iterdir()
    assert partial.stat().st_size >= 14 << 20

    door.heal()
    assert clone("pull") == 0
    assert door.downloaded < size - (13 << 20)
    assert (clone.root / "large.bin").read_bytes() == (root / "large.bin").read_bytes()
    assert not list((cache / "partial").iterdir())
    assert clone("fsck") == 0


def test_a_push_of_a_large_file_goes_on_where_a_kill_left_it(door: Proxy, server: S3Server, tmp_path: Path) -> None:
    size = 33 << 20
    bucket = server.make_bucket("large-push")
    root = tmp_path / "project"
    root.mkdir()
    (root / "large.bin").write_bytes(random.Random(9).randbytes(size))
    project = Clone(root, {**server.environ, "AWS_ENDPOINT_URL": door.url})
    project.git("init", "--quiet")
    for args in (["init"], ["remote", "add", "storage", f"{bucket}/data"], ["add", "large.bin"]):
        assert project(*args) == 0
    for part in (1, 3):  # twice: the second push goes on with what the first began
        door.heal()
        process = project.start("push")
        try:
            while f"partNumber={part}" not in (door.requests or [""])[-1]:
                assert process.poll() is None
                time.sleep(0.005)
            door.stop_at(0, answered=False)
            assert door.held.wait(60)
        finally:
            process.kill()
            process.communicate()

    door.heal()
    process = project.start("push", "--json")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(said)["transferred"] < size - (15 << 20)
    reader = clone_of(committed(project), "clone")
    assert reader("pull") == 0
    assert (reader.root / "large.bin").read_bytes() == (root / "large.bin").read_bytes()


def committed(project: Clone) -> Clone:
    project.git("add", ".")
    project.git("-c", "user.name=Ada", "-c", "user.email=ada@example.com", "commit", "--quiet", "--message=data")
    return project


def test_adding_to_a_cache_behind_a_url(project: Clone, door: Proxy, server: S3Server) -> None:
    bucket = server.make_bucket("added")
    wanted = project.data()
    for at in count(0, 3):
        project.configure(f"cache:\n  dir: {bucket}/{at}\n")
        (project.root / "data.mlx").unlink()
        if not killed(door, project, "add", "data", at=at, answered=bool(at % 2)):
            break
        assert not (project.root / "data.mlx").exists()  # it comes last
        assert project("add", "data") == 0
        reader = clone_of(project, f"reader-{at}")
        reader.configure(f"cache:\n  dir: {bucket}/{at}\n")
        assert reader("checkout") == 0
        assert reader.data() == wanted
        assert at < MOST
    assert at > 4


def test_checkout_from_a_cache_behind_a_url(project: Clone, door: Proxy, server: S3Server) -> None:
    bucket = server.make_bucket("checked-out")
    assert project("config", "set", "cache.dir", f"{bucket}/cache") == 0
    assert project("add", "data") == 0
    project.git("commit", "--all", "--quiet", "--message=cache")
    wanted = project.data()
    for at in count(0, 3):
        clone = clone_of(project, f"clone-{at}")
        if not killed(door, clone, "checkout", at=at, answered=True):
            break
        assert all(wanted[path] == data for path, data in clone.data().items())
        assert clone("checkout") == 0
        assert clone.data() == wanted
        assert at < MOST
    assert at > 3
    assert clone("fsck") == 0
