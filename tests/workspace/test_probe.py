"""What `mlx remote check` tells of remotes that work, refuse and are not there: real servers on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_cli.store.bucket import Bucket
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.fsspec_bucket import FsspecBucket
from mlops_cli.store.object_store_bucket import HttpBucket, S3Bucket
from mlops_cli.store.objects import Durability
from mlops_cli.workspace.probe import Outcome, RemoteCheck, Step, try_bucket
from tests.servers.proxy import Proxy, proxy
from tests.servers.s3 import S3Server, s3_server
from tests.servers.web import web_server

NAMES = ["reach", "list", "write", "read", "range", "delete"]


def outcomes(bucket: Bucket) -> dict[str, str]:
    return {step.name: step.outcome.value for step in try_bucket(bucket)}


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[S3Server, Proxy]]:
    with s3_server() as found, proxy(found.port) as door:
        found.make_bucket("storage")
        yield found, door


@pytest.fixture
def door(server: tuple[S3Server, Proxy], monkeypatch, tmp_path: Path) -> Proxy:
    found, door = server
    for name, value in {**found.environ, "AWS_ENDPOINT_URL": door.url, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    door.heal()
    return door


def test_a_remote_that_works_is_left_as_it_was(door: Proxy) -> None:
    bucket = S3Bucket("storage", "s3://storage/a")

    assert outcomes(bucket) == dict.fromkeys(NAMES, "works")
    assert [*bucket.list("")] == []


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("hello", "remote `storage` holds a `mlx.json` that mlx cannot read"),
        ('{"mlx": 3}', "remote `storage` has layout version 3, and this mlx understands 2"),
    ],
)
def test_a_place_that_is_no_remote_is_told(tmp_path: Path, marker: str, message: str) -> None:
    (tmp_path / "mlx.json").write_text(marker)
    bucket = open_bucket("storage", str(tmp_path), tmp_path, durability=Durability.NONE)

    steps = {step.name: step for step in try_bucket(bucket)}

    assert (steps["reach"].outcome, steps["reach"].detail) == (Outcome.FAILED, message)
    assert steps["reach"].hint
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mlx.json"]


def test_what_is_refused_is_told_with_what_to_set(door: Proxy) -> None:
    door.answer(403, 100, "PUT")
    steps = {step.name: step for step in try_bucket(S3Bucket("storage", "s3://storage/b"))}

    assert {name: step.outcome.value for name, step in steps.items()} == {
        **dict.fromkeys(NAMES, "untried"),
        "reach": "works",
        "list": "works",
        "write": "failed",
    }
    assert "does not let you write" in steps["write"].detail
    assert "s3:PutObject" in steps["write"].hint


def test_what_cannot_be_removed_is_told(door: Proxy) -> None:
    door.answer(403, 100, "POST DELETE")

    assert outcomes(S3Bucket("storage", "s3://storage/c")) == {**dict.fromkeys(NAMES, "works"), "delete": "failed"}


def test_no_credentials_are_told_once(door: Proxy) -> None:
    door.answer(401, 100)
    steps = [*try_bucket(S3Bucket("storage", "s3://storage/d"))]

    assert [step.outcome.value for step in steps] == ["failed", *["untried"] * 5]
    assert "aws sso login" in steps[0].hint
    assert len(door.requests) == 1


def test_a_server_that_is_not_there_is_waited_for_once(tmp_path: Path) -> None:
    steps = [*try_bucket(HttpBucket("storage", "http://127.0.0.1:1/x", patience=0.1))]

    assert [step.outcome.value for step in steps] == [
        "failed", "impossible", "impossible", "untried", "untried", "impossible"
    ]  # fmt: skip
    assert "cannot reach remote `storage`" in steps[0].detail


def test_a_web_server_need_not_take_anything(tmp_path: Path) -> None:
    with web_server(tmp_path) as port:
        steps = tuple(try_bucket(HttpBucket("public", f"http://127.0.0.1:{port}")))

    assert steps[0].outcome is Outcome.WORKS
    assert RemoteCheck("public", "", steps).usable
    assert not RemoteCheck("public", "", (*steps, Step("read", Outcome.FAILED, 0.0, "no"))).usable


def test_nothing_is_left_in_a_folder(tmp_path: Path) -> None:
    bucket = open_bucket("storage", "../storage", tmp_path / "project", durability=Durability.NONE)

    assert outcomes(bucket) == dict.fromkeys(NAMES, "works")
    assert [path.name for path in (tmp_path / "storage").iterdir() if path.name != "tmp"] == []


def test_a_folder_that_could_not_be_made_is_not_reached(tmp_path: Path) -> None:
    bucket = open_bucket("storage", str(tmp_path / "gone" / "storage"), tmp_path, durability=Durability.NONE)
    steps = {step.name: step for step in try_bucket(bucket)}

    assert {name: step.outcome.value for name, step in steps.items()} == {
        **dict.fromkeys(NAMES, "untried"),
        "reach": "failed",
    }
    assert f"there is no folder `{tmp_path / 'gone'}` to make it in" in steps["reach"].detail


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    steps = {step.name: step for step in try_bucket(FsspecBucket("storage", f"local://{tmp_path}/file"))}

    assert steps["write"].outcome is Outcome.FAILED
    assert "a file stands where a folder must be" in steps["write"].detail


def test_a_value_that_comes_back_otherwise_is_told() -> None:
    class Forgetful(FsspecBucket):
        def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
            return super().get(key, start, end)[:-1]

    steps = {step.name: step for step in try_bucket(Forgetful("storage", "memory://forgetful"))}

    assert [steps[name].outcome for name in ("read", "range")] == [Outcome.FAILED] * 2
    assert "gives other bytes than were stored" in steps["read"].detail
    assert steps["delete"].outcome is Outcome.WORKS
