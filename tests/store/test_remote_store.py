"""What only remotes do: URLs, the layout's marker, and turning foreign exceptions into sentences."""

from __future__ import annotations

import io
import json
import os
import sys
import uuid
from functools import partial
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from mlops_cli.errors import CorruptObject, MissingObject, OutsideError, RemoteError
from mlops_cli.hashing import hash_bytes
from mlops_cli.store.objects import Durability
from mlops_cli.store.remote import FsspecRemote, open_remote
from tests.crashing import crashes
from tests.disks import small_disk


def open_at(url, root, durability=Durability.BATCH):
    return open_remote("storage", str(url), root, durability=durability)


def put(store, *contents):
    digests = [hash_bytes(data) for data in contents]
    store.write((digest, partial(io.BytesIO, data)) for digest, data in zip(digests, contents, strict=True))
    return digests


@pytest.fixture
def memory_url():
    return f"memory://remote-{uuid.uuid4().hex}"


# --- which URL is what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["../shared store", "{root}/../shared store", "file://{root}/../shared store", "file://{root}/../shared%20store"],
)
def test_every_spelling_of_a_folder_is_that_folder(tmp_path, url):
    root = tmp_path / "project"
    (digest,) = put(open_at(url.format(root=root), root), b"content")

    stored = tmp_path / "shared store" / "objects" / digest[7:9] / digest[9:]
    assert stored.read_bytes() == b"content"


def test_a_home_folder_is_expanded(tmp_path, home):
    put(open_at("~/storage", tmp_path), b"content")

    assert (home / "storage" / "mlx.json").exists()


def test_a_folder_needs_no_fsspec(tmp_path):
    with mock.patch.dict(sys.modules, {"fsspec": None}):
        put(open_at(tmp_path / "store", tmp_path), b"content")


def test_a_remote_knows_its_name_and_url(tmp_path, memory_url):
    for url in (str(tmp_path), memory_url):
        store = open_at(url, tmp_path)

        assert (store.name, store.url, store.label) == ("storage", url, "remote `storage`")


@pytest.mark.parametrize("protocol", ["carrier-pigeon", "unknown", "my_store"])
def test_an_unknown_protocol_is_told(tmp_path, protocol):
    with pytest.raises(RemoteError) as caught:
        open_at(f"{protocol}://loft/nest", tmp_path)

    assert caught.value.message == f"remote `storage`: mlx does not know the protocol `{protocol}://`"
    assert caught.value.hint == (
        "use a folder, or a URL that begins with `s3://`, `gs://`, `az://`, `ssh://`, `hdfs://` or `https://`"
    )
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("url", "extra"),
    [
        ("s3://bucket/x", "s3"),
        ("s3a://bucket/x", "s3"),
        ("gs://bucket/x", "gs"),
        ("gcs://bucket/x", "gs"),
        ("az://box/x", "azure"),
        ("abfs://box/x", "azure"),
        ("ssh://host/x", "ssh"),
        ("sftp://host/x", "ssh"),
    ],
)
def test_a_missing_package_is_named_by_the_extra_that_brings_it(tmp_path, monkeypatch, url, extra):
    def lacks(url):
        raise ImportError("Install something to access it")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)  # which packages are installed is not this test's choice

    with pytest.raises(RemoteError) as caught:
        open_at(url, tmp_path)

    assert caught.value.hint == f"`pip install 'mlops-cli[{extra}]'`"


@pytest.mark.parametrize(
    ("url", "module", "hint"),
    [
        ("hdfs://host/x", "pyarrow", "`pip install pyarrow`; fsspec says: pyarrow and local java libraries required"),
        ("http://host/x", "aiohttp", "`pip install aiohttp`; fsspec says: HTTPFileSystem requires"),
        ("https://host/x", "aiohttp", "`pip install aiohttp`; fsspec says: HTTPFileSystem requires"),
        ("github://owner:repo@main/x", "requests", "`pip install requests`; fsspec says: Install the requests package"),
        ("oss://bucket/x", "ossfs", "`pip install ossfs`; fsspec says: Install ossfs to access Alibaba"),
    ],
)
def test_a_missing_package_without_an_extra_is_named_with_fsspecs_words(tmp_path, monkeypatch, url, module, hint):
    monkeypatch.setitem(sys.modules, module, None)  # even if it is installed here
    for name in ("arrow", "github", "http"):  # what was found once is kept, here and in the registry
        monkeypatch.delitem(sys.modules, f"fsspec.implementations.{name}", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)

    with pytest.raises(RemoteError) as caught:
        open_at(url, tmp_path)

    assert caught.value.message == f"remote `storage` needs a package for `{url.partition(':')[0]}://` that is missing"
    assert caught.value.hint.startswith(hint)


def test_a_missing_package_that_nobody_names_is_told_in_fsspecs_words(tmp_path, monkeypatch):
    def lacks(url):
        raise ImportError("it takes more than a package")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)

    with pytest.raises(RemoteError) as caught:
        open_at("odd://host/x", tmp_path)

    assert caught.value.hint == "fsspec says: it takes more than a package"


def test_a_protocol_in_capitals_is_the_same(memory_url, tmp_path):
    (digest,) = put(open_at(memory_url, tmp_path), b"content")

    assert open_at(memory_url.replace("memory", "MEMORY"), tmp_path).read(digest) == b"content"


def test_a_url_that_cannot_be_reached_is_told(tmp_path, monkeypatch):
    def unreachable(url):
        raise OSError("no route to host")

    monkeypatch.setattr(fsspec.core, "url_to_fs", unreachable)

    with pytest.raises(RemoteError, match=r"cannot reach remote `storage` .* no route to host"):
        open_at("sftp://host/x", tmp_path)


# --- the marker -----------------------------------------------------------------------------------------------------


def test_writing_marks_the_layout(tmp_path, memory_url):
    put(open_at(tmp_path / "store", tmp_path), b"x")
    put(open_at(memory_url, tmp_path), b"x")

    assert json.loads((tmp_path / "store" / "mlx.json").read_bytes()) == {"mlx": 1}
    with fsspec.open(f"{memory_url}/mlx.json") as stream:
        assert json.load(stream) == {"mlx": 1}


@pytest.mark.parametrize("marker", ['{"mlx": 2}', '{"mlx": "1"}', "{}", "[]", "not json", ""])
@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_layout_that_is_newer_or_foreign_is_refused_by_every_verb(tmp_path, memory_url, kind, marker):
    if kind == "folder":
        url = str(tmp_path)
        (tmp_path / "mlx.json").write_text(marker)
    else:
        url = memory_url
        fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/mlx.json", marker.encode())
    digest = hash_bytes(b"x")
    verbs = [
        lambda store: store.missing([digest]),
        lambda store: store.read(digest),
        lambda store: list(store.list()),
        lambda store: store.write([(digest, partial(io.BytesIO, b"x"))]),
        lambda store: store.read_run("ab"),
        lambda store: store.write_run("ab", b""),
    ]

    for verb in verbs:
        with pytest.raises(RemoteError, match="remote `storage`") as caught:
            verb(open_at(url, tmp_path))
        assert caught.value.hint


def test_an_unmarked_folder_is_an_empty_remote(tmp_path):
    store = open_at(tmp_path, tmp_path)
    digest = hash_bytes(b"x")

    assert store.missing([digest]) == {digest}
    assert store.read_run("ab") is None
    with pytest.raises(MissingObject, match="not in remote `storage`"):
        store.read(digest)


# --- a folder that is not there -------------------------------------------------------------------------------------


def test_a_folder_that_does_not_exist_lacks_everything_and_is_made_by_writing(tmp_path):
    store = open_at("deep/down/store", tmp_path)
    digest = hash_bytes(b"x")

    assert store.missing([digest]) == {digest}
    assert store.read_run("ab") is None
    with pytest.raises(RemoteError, match="does not exist") as caught:
        store.read(digest)
    assert str(tmp_path / "deep/down/store") in caught.value.message
    assert caught.value.hint

    put(store, b"x")

    assert store.read(digest) == b"x"


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OutsideError) as caught:
        put(open_at("file/store", tmp_path), b"x")

    assert str(tmp_path / "file" / "store") in caught.value.message
    assert caught.value.exit_code == 6
    assert caught.value.hint


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    with small_disk(tmp_path) as disk:
        store = open_at(disk / "store", tmp_path)
        contents = [os.urandom(300 << 10) for _ in range(5)]

        with pytest.raises(RemoteError, match="the disk is full") as caught:
            put(store, *contents)

        assert "remote `storage`" in caught.value.message
        for digest in store.list():  # what had arrived before is whole, and need not come again
            store.check(digest)
        assert list((disk / "store" / "tmp").iterdir()) == []


def test_a_damaged_object_stays_on_a_shared_remote(tmp_path):
    store = open_at(tmp_path / "store", tmp_path)
    (digest,) = put(store, b"content")
    stored = tmp_path / "store" / "objects" / digest[7:9] / digest[9:]
    stored.chmod(0o644)
    stored.write_bytes(b"CONTENT")

    with pytest.raises(CorruptObject) as caught:
        store.read(digest)

    assert str(stored) in caught.value.hint
    assert stored.read_bytes() == b"CONTENT"


def test_a_crash_anywhere_while_writing_leaves_whole_objects(tmp_path):
    contents = [b"one", b"two", os.urandom((1 << 20) + 7)]

    turns = iter(range(1000))
    folder = tmp_path / str(next(turns))

    def work():
        put(open_at(folder, tmp_path), *contents)

    for _ in crashes(work):
        store = open_at(folder, tmp_path)
        for digest in store.list():
            store.check(digest)
        work()
        assert len(list(store.list())) == 3
        assert list((folder / "tmp").iterdir()) == []
        folder = tmp_path / str(next(turns))
    assert next(turns) > 20


# --- through fsspec -------------------------------------------------------------------------------------------------


class Broken:
    """A file system that fails every call in the same way."""

    def __init__(self, error):
        self.error = error

    def invalidate_cache(self): ...

    def __getattr__(self, name):
        def fail(*_, **__):
            raise self.error

        return fail


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError("Access Denied"), "permission denied or no credentials"),
        (NoCredentialsError("Unable to locate credentials"), "permission denied or no credentials"),
        (ConnectionRefusedError("connection refused\nmore lines"), "connection refused"),
        (TimeoutError(), "TimeoutError"),
        (KeyError("surprise"), "surprise"),
    ],
)
def test_whatever_a_library_raises_is_one_sentence(error, says):
    store = FsspecRemote("storage", "s3://bucket/x", Broken(error), "bucket/x", "s3")
    digest = hash_bytes(b"x")
    verbs = [
        lambda: store.missing([digest]),
        lambda: store.missing([hash_bytes(bytes([number % 256, number // 256])) for number in range(400)]),
        lambda: store.read(digest),
        lambda: list(store.list()),
        lambda: list(store.list_runs()),
        lambda: store.delete([digest]),
        lambda: store.read_run("ab"),
        lambda: store.write_run("ab", b""),
        lambda: put(store, b"x"),
    ]

    for verb in verbs:
        with pytest.raises(RemoteError) as caught:
            verb()
        assert says in caught.value.message
        assert "remote `storage` (`s3://bucket/x`)" in caught.value.message
        assert "\n" not in caught.value.message
        assert caught.value.hint
        assert caught.value.__cause__ is error


def test_a_bucket_that_does_not_exist_is_told_when_written_to():
    store = FsspecRemote("storage", "s3://bucket/x", Broken(FileNotFoundError("NoSuchBucket")), "bucket/x", "s3")

    with pytest.raises(RemoteError, match="it does not exist"):
        put(store, b"x")


def test_a_remote_that_fails_on_the_way_keeps_what_arrived(tmp_path, memory_url):
    class Flaky(fsspec.get_filesystem_class("memory")):
        cachable = False
        sent = 0

        def pipe_file(self, path, value, **options):
            if "/objects/" in path:
                Flaky.sent += 1
                if Flaky.sent > 3:
                    raise ConnectionResetError("gone")
            super().pipe_file(path, value, **options)

    path = memory_url.removeprefix("memory:/")
    store = FsspecRemote("storage", memory_url, Flaky(), path, "memory")
    contents = [str(number).encode() for number in range(6)]

    with pytest.raises(RemoteError, match="gone"):
        store.write([(hash_bytes(data), partial(io.BytesIO, data)) for data in contents], jobs=1)

    arrived = list(open_at(memory_url, tmp_path).list())
    assert sorted(arrived) == sorted(hash_bytes(data) for data in contents[:3])


def test_a_small_object_is_one_request_and_a_large_one_is_read_in_ranges(memory_url):
    class Counting(fsspec.get_filesystem_class("memory")):
        cachable = False
        asked = mock.Mock()

        def cat_file(self, path, start=None, end=None, **options):
            if "/objects/" in path:
                self.asked(start, end)
            return super().cat_file(path, start, end, **options)

        def info(self, path, **options):
            self.asked("info")
            return super().info(path, **options)

    store = FsspecRemote("storage", memory_url, Counting(), memory_url.removeprefix("memory:/"), "memory")
    piece = 8 << 20
    small, exact, large = put(store, b"small", b"x" * piece, b"y" * (piece + 1))
    first, second = mock.call(0, piece), mock.call(piece, 2 * piece)
    info = mock.call("info")

    for digest, expected in ((small, [first]), (exact, [first, info]), (large, [first, info, second])):
        Counting.asked.reset_mock()
        store.check(digest)
        assert Counting.asked.mock_calls == expected


def test_temporary_files_are_moved_and_none_is_left(tmp_path):
    local = fsspec.filesystem("file", auto_mkdir=True)
    store = FsspecRemote("storage", "sftp://host/x", local, str(tmp_path / "store"), "sftp")
    bad = hash_bytes(b"expected")

    put(store, b"small", b"large" * (2 << 20))
    with pytest.raises(CorruptObject):
        store.write([(bad, partial(io.BytesIO, b"other" * (2 << 20)))])

    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert len(list(store.list())) == 2


def test_paths_are_taken_from_the_projects_root_not_from_here(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    put(open_at("store", tmp_path / "project"), b"x")

    assert (tmp_path / "project" / "store" / "mlx.json").exists()
    assert list(Path.cwd().iterdir()) == []
