"""Uploads in parts to S3: what was sent before is not sent again, and nothing is seen before it is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from mlops_cli.errors import RemoteError
from mlops_cli.store.multipart import MULTIPART_FROM, PART, part_length
from mlops_cli.store.object_store_bucket import S3Bucket
from mlops_cli.store.remote_collection import find_litter
from tests.servers.proxy import Proxy, proxy
from tests.servers.s3 import S3Server, s3_server

SIZE = 4 * PART + 5  # five parts
numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as found:
        yield found


@pytest.fixture
def door(server: S3Server, monkeypatch) -> Iterator[Proxy]:
    with proxy(server.port) as found:
        for name, value in {**server.environ, "AWS_ENDPOINT_URL": found.url}.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def url(server: S3Server) -> str:
    """A folder with letters that URLs spell in several ways."""
    return f"{server.make_bucket(f'bucket-{next(numbers)}')}/a folder#1/100%/é~"


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    data = os.urandom(SIZE)
    (tmp_path / "file").write_bytes(data)
    return data


def parts_sent(door: Proxy) -> list[int]:
    """Return the numbers of the parts that requests passed the proxy with."""
    return [int(line.rpartition("partNumber=")[2].split("&")[0]) for line in door.requests if "partNumber=" in line]


def unfinished(bucket: S3Bucket) -> list[str]:
    return [found.key for found in bucket.list("tmp")]


def start_and_kill(door: Proxy, url: str, path: Path, at: int) -> None:
    """Let another process put the file under `key`, and kill it when request number `at` is on its way."""
    door.heal()
    program = (
        "import sys\n"
        "from mlops_cli.store.object_store_bucket import S3Bucket\n"
        "S3Bucket('storage', sys.argv[1]).put_file('key', sys.argv[2])\n"
    )
    door.stop_at(at, answered=False)
    with subprocess.Popen([sys.executable, "-c", program, url, str(path)], cwd=Path(__file__).parents[2]) as process:
        try:
            assert door.held.wait(60)
        finally:
            process.kill()
    door.heal()


def test_a_large_file_goes_in_parts(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    bucket = S3Bucket("storage", url)
    bucket.put_file("key", str(tmp_path / "file"))

    assert bucket.get("key") == content
    assert parts_sent(door) == [1, 2, 3, 4, 5]
    assert bucket.traffic.sent == SIZE
    assert bucket.traffic.requests == len(door.requests) == 9  # look, begin, five parts, end; and the reading
    assert not bucket.traffic.under_way
    assert not unfinished(bucket)


def test_a_broken_connection_costs_one_part(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    bucket = S3Bucket("storage", url)
    bucket.put("warm", b"up")
    door.heal()
    door.stop_at(4, answered=False)  # the third part
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bucket.put_file, "key", str(tmp_path / "file"))
        assert door.held.wait(60)
        assert parts_sent(door) == [1, 2, 3]
        door.heal()
        waiting.result(60)

    assert parts_sent(door) == [3, 4, 5]
    assert bucket.get("key") == content


def test_a_kill_costs_one_part(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    start_and_kill(door, url, tmp_path / "file", at=5)
    bucket = S3Bucket("storage", url)
    assert bucket.size("key") is None
    bucket.put_file("key", str(tmp_path / "file"))

    assert parts_sent(door) == [4, 5]
    assert bucket.traffic.sent == PART + 5
    assert bucket.get("key") == content
    assert not unfinished(bucket)


def test_parts_of_other_bytes_are_not_taken(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    start_and_kill(door, url, tmp_path / "file", at=5)
    other = content[:PART] + os.urandom(SIZE - PART)
    (tmp_path / "file").write_bytes(other)
    bucket = S3Bucket("storage", url)
    bucket.put_file("key", str(tmp_path / "file"))

    assert parts_sent(door) == [2, 3, 4, 5]
    assert bucket.get("key") == other


def test_a_shorter_file_under_the_same_key(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    start_and_kill(door, url, tmp_path / "file", at=6)
    (tmp_path / "file").write_bytes(content[: MULTIPART_FROM + 1])
    bucket = S3Bucket("storage", url)
    bucket.put_file("key", str(tmp_path / "file"))

    assert parts_sent(door) == [3]
    assert bucket.get("key") == content[: MULTIPART_FROM + 1]


def test_two_at_once_under_the_same_key(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    start_and_kill(door, url, tmp_path / "file", at=3)  # so that both go on with the same upload
    with ThreadPoolExecutor(2) as pool:
        buckets = [S3Bucket("storage", url) for _ in range(2)]
        for done in [pool.submit(bucket.put_file, "key", str(tmp_path / "file")) for bucket in buckets]:
            done.result(60)

    assert buckets[0].get("key") == content


def test_an_upload_that_somebody_gave_up_begins_anew(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    bucket = S3Bucket("storage", url)
    bucket.put("warm", b"up")
    door.heal()
    door.stop_at(4, answered=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(bucket.put_file, "key", str(tmp_path / "file"))
        assert door.held.wait(60)
        collector = S3Bucket("storage", url)
        door._stop = None  # the held request stays held, and others pass
        collector.delete(unfinished(collector))
        door.heal()
        waiting.result(60)

    assert parts_sent(door)[-5:] == [1, 2, 3, 4, 5]
    assert bucket.get("key") == content
    assert not unfinished(bucket)


def test_unfinished_uploads_can_be_given_up(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    start_and_kill(door, url, tmp_path / "file", at=4)
    bucket = S3Bucket("storage", url)
    (left,) = unfinished(bucket)
    assert left.startswith("tmp/uploads/")
    assert left.endswith("/key")
    assert [found.key for found in bucket.list("")] == []
    bucket.put("other", b"stays")
    bucket.delete([left, "other"])
    bucket.delete([left])  # somebody else may have been quicker

    assert not unfinished(bucket)
    assert bucket.size("other") is None


def test_uploads_of_others_in_the_bucket_are_no_litter(door: Proxy, server: S3Server, tmp_path: Path) -> None:
    place = server.make_bucket(f"bucket-{next(numbers)}")
    mine, theirs = f"packs/{'ab' * 32}.pack", ("backup.tar", f"another-remote/packs/{'ab' * 32}.pack")
    bucket = S3Bucket("storage", place)
    (tmp_path / "file").write_bytes(bytes(MULTIPART_FROM))
    for key in (mine, *theirs):
        door.answer(403, 1, "PUT")
        with pytest.raises(RemoteError):
            bucket.put_file(key, str(tmp_path / "file"))

    assert len(unfinished(bucket)) == 3
    assert [key.split("/", 3)[3] for key in find_litter(bucket, time.time() + 90_000)] == [mine]


@pytest.mark.parametrize("status", [403, 501])
def test_a_server_that_does_not_tell_of_uploads(
    door: Proxy, url: str, content: bytes, tmp_path: Path, status: int
) -> None:
    start_and_kill(door, url, tmp_path / "file", at=4)
    bucket = S3Bucket("storage", url)
    door.answer(status, 1, "GET")
    bucket.put_file("key", str(tmp_path / "file"))

    assert parts_sent(door) == [1, 2, 3, 4, 5]
    assert bucket.get("key") == content


@pytest.mark.parametrize("methods", ["GET", "PUT", "POST"])
def test_a_busy_server_is_asked_again(door: Proxy, url: str, content: bytes, tmp_path: Path, methods: str) -> None:
    bucket = S3Bucket("storage", url)
    bucket.put("warm", b"up")
    door.answer(503, 2, methods)
    bucket.put_file("key", str(tmp_path / "file"))

    assert bucket.get("key") == content
    assert bucket.traffic.sent == SIZE + 2


def test_a_refusal_is_told_once_and_as_it_is(door: Proxy, url: str, content: bytes, tmp_path: Path) -> None:
    bucket = S3Bucket("storage", url)
    bucket.put("warm", b"up")
    door.heal()
    door.answer(403, 100, "PUT")
    with pytest.raises(RemoteError, match=r"does not let you write to it: permission denied \(403\)") as raised:
        bucket.put_file("key", str(tmp_path / "file"))

    assert parts_sent(door) == [1]
    assert "s3:PutObject" in (raised.value.hint or "")
    assert bucket.size("key") is None


@pytest.mark.parametrize("size", [1, MULTIPART_FROM, 10_000 * PART, 10_000 * PART + 1, 5 << 40])
def test_there_are_never_more_parts_than_s3_takes(size: int) -> None:
    assert part_length(size) % PART == 0
    assert -(-size // part_length(size)) <= 10_000
