"""What every bucket must do, whichever it is: one suite over all of them, against real servers on loopback.

Servers start when the first test needs them and serve all tests of a process. In front of most stands a proxy, which
fails as networks do.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlops_cli.errors import OutsideError, RemoteError
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.fsspec_bucket import FsspecBucket
from mlops_cli.store.object_store_bucket import HttpBucket, S3Bucket
from mlops_cli.store.objects import Durability
from mlops_cli.store.sftp_bucket import SftpBucket
from mlops_cli.store.webdav_bucket import WebdavBucket
from tests.servers.azure import CONTAINER as AZURE_CONTAINER
from tests.servers.azure import azure_server, connection_string, needs_azurite
from tests.servers.gcs import BUCKET as GCS_BUCKET
from tests.servers.gcs import gcs_server
from tests.servers.proxy import Proxy, proxy
from tests.servers.s3 import ENVIRONMENT, s3_server
from tests.servers.ssh import SSHD, ssh_server
from tests.servers.web import web_server
from tests.servers.webdav import webdav_server

LARGE = 72 << 20
DIGEST = "0123456789abcdef" * 4
needs_sshd = pytest.mark.skipif(SSHD is None, reason="no sshd here: install `openssh-server`")
NEEDS = {"ssh": needs_sshd, "azure": needs_azurite}


@dataclass
class Bed:
    """A server and how to make buckets on it; `door` is what stands in front, if anything does."""

    kind: str
    make: Callable[..., Bucket]
    url: str
    door: Proxy | None = None
    environ: dict[str, str] = field(default_factory=dict)

    def bucket(self, *, patience: float = 20, silence: float = 10) -> Bucket:
        """Return a bucket of its own; with a short `silence` (s) and `patience` (s) where a test waits for them."""
        if self.door is None:
            return self.make("storage", self.url)
        return self.make("storage", self.url, patience=patience, silence=silence)


def s3_bed(stack: ExitStack, folder: Path) -> Bed:
    server = stack.enter_context(s3_server())
    door = stack.enter_context(proxy(server.port))
    environ = {**server.environ, "AWS_ENDPOINT_URL": door.url, "HOME": str(folder)}
    return Bed("s3", S3Bucket, f"{server.make_bucket('storage')}/some/project", door, environ)


def ssh_bed(stack: ExitStack, folder: Path) -> Bed:
    server = stack.enter_context(ssh_server(folder / "keys"))
    door = stack.enter_context(proxy(server.port, http=False))
    server.trust(door.port)
    url = server.url(folder / "remote/project", door.port)
    return Bed("ssh", SftpBucket, url, door, {"HOME": str(server.home)})


def webdav_bed(stack: ExitStack, folder: Path) -> Bed:
    port = stack.enter_context(webdav_server(folder, "ada", "not telling"))
    door = stack.enter_context(proxy(port))
    (folder / ".netrc").write_text("machine 127.0.0.1 login ada password 'not telling'\n".replace("'", '"'))
    (folder / ".netrc").chmod(0o600)
    environ = {"HOME": str(folder)}
    return Bed("webdav", WebdavBucket, f"webdav://127.0.0.1:{door.port}/remote/my project", door, environ)


def gcs_bed(stack: ExitStack, folder: Path) -> Bed:
    port = stack.enter_context(gcs_server())
    environ = {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "HOME": str(folder)}
    return Bed("gcs", FsspecBucket, f"gs://{GCS_BUCKET}/some/project", environ=environ)


def azure_bed(stack: ExitStack, folder: Path) -> Bed:
    port = stack.enter_context(azure_server(folder))
    environ = {"AZURE_STORAGE_CONNECTION_STRING": connection_string(port), "HOME": str(folder)}
    return Bed("azure", FsspecBucket, f"az://{AZURE_CONTAINER}/some/project", environ=environ)


def local_bed(stack: ExitStack, folder: Path) -> Bed:
    return Bed("fsspec local", FsspecBucket, f"local://{folder}/remote")


def memory_bed(stack: ExitStack, folder: Path) -> Bed:
    return Bed("fsspec memory", FsspecBucket, f"memory://{folder.name}/remote")


def folder_bed(stack: ExitStack, folder: Path) -> Bed:
    def make(name: str, url: str) -> Bucket:
        return open_bucket(name, url, folder, durability=Durability.BATCH)

    return Bed("folder", make, "remote")


BEDS = {
    "s3": s3_bed,
    "ssh": ssh_bed,
    "webdav": webdav_bed,
    "gcs": gcs_bed,
    "azure": azure_bed,
    "fsspec-local": local_bed,
    "fsspec-memory": memory_bed,
}
if importlib.util.find_spec("mlops_cli.store.folder_bucket"):
    BEDS["folder"] = folder_bed


def beds(*names: str) -> list:
    """Return what parametrizes a test over these beds."""
    return [pytest.param(name, marks=NEEDS.get(name, ())) for name in names]


ALL = beds(*BEDS)
BEHIND_A_DOOR = beds("s3", "ssh", "webdav")
OVER_HTTP = beds("s3", "webdav")


@pytest.fixture(scope="module")
def make_bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Bed]]:
    with ExitStack() as stack:

        @cache
        def make(name: str) -> Bed:
            return BEDS[name](stack, tmp_path_factory.mktemp(name))

        yield make


@pytest.fixture
def bed(request: pytest.FixtureRequest, make_bed: Callable[[str], Bed], monkeypatch) -> Iterator[Bed]:
    found = make_bed(request.param)
    for name, value in found.environ.items():
        monkeypatch.setenv(name, value)
    if found.door is not None:
        found.door.heal()
    yield found
    if found.door is not None:
        found.door.heal()


@pytest.fixture
def bucket(bed: Bed) -> Bucket:
    return bed.bucket()


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder in a bucket for one test."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())


def keys(bucket: Bucket, folder: str) -> set[str]:
    return {found.key for found in bucket.list(folder)}


# --- what every bucket does -----------------------------------------------------------------------------------------

on_all = pytest.mark.parametrize("bed", ALL, indirect=True)


@on_all
def test_what_was_put_is_there(bucket: Bucket, folder: str) -> None:
    bucket.put(f"{folder}/a", b"one")

    assert bucket.get(f"{folder}/a") == b"one"
    assert bucket.size(f"{folder}/a") == 3
    assert [(found.key, found.size) for found in bucket.list(folder)] == [(f"{folder}/a", 3)]


@on_all
def test_another_bucket_of_the_same_url_sees_it(bed: Bed, folder: str) -> None:
    one, other = bed.bucket(), bed.bucket()
    assert keys(other, folder) == set()
    one.put(f"{folder}/a", b"one")
    assert keys(other, folder) == {f"{folder}/a"}
    one.put(f"{folder}/a", b"another")
    assert other.get(f"{folder}/a") == b"another"
    assert other.size(f"{folder}/a") == 7
    one.delete([f"{folder}/a"])

    assert keys(other, folder) == set()
    assert other.size(f"{folder}/a") is None


@on_all
def test_what_is_put_again_replaces_what_was_there(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    (tmp_path / "shorter").write_bytes(b"2")
    bucket.put(f"{folder}/a", b"first")
    bucket.put_file(f"{folder}/a", str(tmp_path / "shorter"))

    assert bucket.get(f"{folder}/a") == b"2"


@on_all
def test_a_file_that_is_moved_there(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    for number, content in enumerate((b"first", b"", b"again" * 100_000)):
        (tmp_path / "file").write_bytes(content)
        bucket.move_file(f"{folder}/{number % 2}", str(tmp_path / "file"))
        assert bucket.get(f"{folder}/{number % 2}") == content
        assert not (tmp_path / "file").exists()


@on_all
def test_absent_keys(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    bucket.put(f"{folder}/a", b"one")
    for key in (f"{folder}/b", f"{folder}/b/c", f"{folder}/a.b", f"never-{folder}/a"):
        assert bucket.size(key) is None
        for start, end in ((0, None), (0, 5), (3, 3), (3, None)):
            with pytest.raises(AbsentKey) as caught:
                bucket.get(key, start, end)
            assert caught.value.key == key
        with pytest.raises(AbsentKey):
            bucket.get_file(key, str(tmp_path / "file"))

    assert not (tmp_path / "file").exists()
    assert keys(bucket, f"never-{folder}") == set()


@on_all
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 1), (0, 10), (3, 7), (9, 10), (9, 11), (5, 100), (10, 11), (11, 20), (4, 4), (0, 0), (0, None), (4, None), (10, None), (20, None)],
)  # fmt: skip
def test_ranges_are_exact(bucket: Bucket, folder: str, start: int, end: int | None) -> None:
    bucket.put(f"{folder}/a", b"0123456789")

    assert bucket.get(f"{folder}/a", start, end) == b"0123456789"[start:end]


@on_all
def test_an_empty_value(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    bucket.put(f"{folder}/a", b"")
    bucket.put_file(f"{folder}/b", str(tmp_path / "empty"))

    for key in (f"{folder}/a", f"{folder}/b"):
        assert bucket.size(key) == 0
        assert bucket.get(key) == bucket.get(key, 0, 5) == bucket.get(key, 0, 0) == bucket.get(key, 3) == b""
        assert bucket.get_file(key, str(tmp_path / f"out{key[-1]}")) == 0
        assert (tmp_path / f"out{key[-1]}").read_bytes() == b""
    assert {found.size for found in bucket.list(folder)} == {0}


@on_all
def test_a_listing_is_deep_and_of_one_folder(bucket: Bucket, folder: str) -> None:
    names = {"a", "b/c", "b/d/e.idx", "b-c", f"objects/01/{DIGEST}", f"packs/ab/{DIGEST}.pack", "mlx.json", ".x"}
    for name in names:
        bucket.put(f"{folder}/{name}", name.encode())
    bucket.put(f"{folder}-2/a", b"")

    assert keys(bucket, folder) == {f"{folder}/{name}" for name in names}
    assert keys(bucket, f"{folder}/b") == {f"{folder}/b/c", f"{folder}/b/d/e.idx"}
    assert keys(bucket, "") >= {f"{folder}/a", f"{folder}-2/a"}
    assert all(bucket.get(f"{folder}/{name}") == name.encode() for name in names)
    assert all(found.modified is None or found.modified > 1.7e9 for found in bucket.list(folder))


@on_all
def test_deleting(bucket: Bucket, folder: str) -> None:
    for name in "abc":
        bucket.put(f"{folder}/{name}", b"x")
    bucket.delete(f"{folder}/{name}" for name in ("a", "c", "never", "never/at/all"))
    bucket.delete([])

    assert keys(bucket, folder) == {f"{folder}/b"}


@on_all
def test_a_large_value(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * (LARGE >> 20)
    (tmp_path / "large").write_bytes(content)
    before = bucket.traffic.sent, bucket.traffic.received
    bucket.put_file(f"{folder}/a", str(tmp_path / "large"))

    assert bucket.get_file(f"{folder}/a", str(tmp_path / "back")) == LARGE
    assert (tmp_path / "back").read_bytes() == content
    assert bucket.get(f"{folder}/a", LARGE - 5, LARGE + 5) == content[-5:]
    assert bucket.get(f"{folder}/a", 40_000_000, 50_000_000) == content[40_000_000:50_000_000]
    assert (bucket.traffic.sent - before[0], bucket.traffic.received - before[1]) == (LARGE, LARGE + 5 + 10_000_000)
    bucket.delete([f"{folder}/a"])


# Not `gcs`: plain multipart uploads from eight threads, without gcsfs, mix values up in that server now and then.
@pytest.mark.parametrize("bed", beds(*(name for name in BEDS if name != "gcs")), indirect=True)
def test_eight_threads_at_once(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    contents = {f"{folder}/{number % 3}/{number}": os.urandom(200_000 + number) for number in range(24)}

    def there_and_back(item: tuple[str, bytes]) -> bool:
        key, content = item
        bucket.put(key, content)
        path = tmp_path / key.replace("/", "-")
        bucket.get_file(key, str(path))
        bucket.put(f"{folder}/shared", content)
        return bucket.get(key, 5, 500) == content[5:500] and path.read_bytes() == content

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, contents.items()))
    assert bucket.get(f"{folder}/shared") in contents.values()
    assert keys(bucket, folder) == {*contents, f"{folder}/shared"}


@pytest.mark.parametrize("bed", beds("s3", "ssh", "webdav"), indirect=True)
def test_a_local_file_that_cannot_be_used_is_not_the_remotes_fault(bucket: Bucket, folder: str, tmp_path: Path) -> None:
    bucket.put(f"{folder}/a", b"one")
    path = str(tmp_path / "nowhere" / "file")
    for act in (lambda: bucket.get_file(f"{folder}/a", path), lambda: bucket.put_file(f"{folder}/b", path)):
        with pytest.raises(OutsideError, match=r"cannot use `.*nowhere/file`: No such file") as caught:
            act()
        assert not isinstance(caught.value, RemoteError)


# --- networks that fail ---------------------------------------------------------------------------------------------

behind_a_door = pytest.mark.parametrize("bed", BEHIND_A_DOOR, indirect=True)
over_http = pytest.mark.parametrize("bed", OVER_HTTP, indirect=True)


@over_http
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(bed: Bed, folder: str, status: int) -> None:
    bucket = bed.bucket()
    bucket.put(f"{folder}/a", b"one")
    bed.door.answer(status, 2)
    assert bucket.get(f"{folder}/a") == b"one"
    bed.door.answer(status, 1)
    bucket.put(f"{folder}/a", b"two")
    bed.door.answer(status, 1)
    assert keys(bucket, folder) == {f"{folder}/a"}
    bed.door.answer(status, 1)
    bucket.delete([f"{folder}/b"])

    assert bucket.get(f"{folder}/a") == b"two"


@over_http
@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_told_at_once(bed: Bed, folder: str, status: int) -> None:
    bucket = bed.bucket()
    bucket.put(f"{folder}/a", b"one")
    bed.door.heal()
    bed.door.answer(status)
    with pytest.raises(RemoteError) as caught:
        bucket.get(f"{folder}/a")

    assert len(bed.door.requests) == 1
    assert "remote `storage`" in caught.value.message
    assert "not telling" not in caught.value.message
    assert caught.value.hint
    if status == 401:  # without credentials there is no use in asking any further
        with pytest.raises(RemoteError) as again:
            bucket.put(f"{folder}/b", b"")
        assert again.value is caught.value
        assert len(bed.door.requests) == 1


@over_http
def test_what_is_absent_is_asked_for_once(bed: Bed, folder: str) -> None:
    bucket = bed.bucket()
    with pytest.raises(AbsentKey):
        bucket.get(f"{folder}/a")

    assert len(bed.door.requests) == 1


@over_http
def test_requests_are_counted_as_they_are_made(bed: Bed, folder: str, tmp_path: Path) -> None:
    bucket = bed.bucket()
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    bucket.put(f"{folder}/a", b"one")
    bed.door.answer(503)
    bucket.put_file(f"{folder}/b", str(tmp_path / "file"))
    bucket.get(f"{folder}/b", 5, 10)
    bucket.get_file(f"{folder}/b", str(tmp_path / "back"))
    assert keys(bucket, folder) == {f"{folder}/a", f"{folder}/b"}
    bucket.delete([f"{folder}/a", f"{folder}/b"])

    assert bucket.traffic.requests == len(bed.door.requests)


@behind_a_door
def test_a_download_that_is_cut_is_begun_again(bed: Bed, folder: str, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    bucket = bed.bucket()
    bucket.put(f"{folder}/a", content)
    bed.door.cut_download(1 << 20)
    assert bucket.get(f"{folder}/a") == content
    bed.door.cut_download(1 << 20)
    assert bucket.get_file(f"{folder}/a", str(tmp_path / "file")) == len(content)

    assert (tmp_path / "file").read_bytes() == content


@behind_a_door
def test_an_upload_that_is_cut_is_begun_again(bed: Bed, folder: str, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "file").write_bytes(content)
    bucket = bed.bucket()
    bucket.put(f"{folder}/a", b"old")
    before = keys(bucket, "tmp")  # what a test that kills leaves there
    bed.door.cut_upload(1 << 20, 2)
    bucket.put_file(f"{folder}/a", str(tmp_path / "file"))

    assert bucket.get(f"{folder}/a") == content
    assert keys(bucket, "tmp") == before


@behind_a_door
def test_a_server_that_says_nothing_is_given_up(bed: Bed, folder: str) -> None:
    bucket = bed.bucket(patience=1, silence=1)
    bucket.put(f"{folder}/a", b"old")
    bed.door.stall()
    with pytest.raises(RemoteError, match="remote `storage`"):
        bucket.get(f"{folder}/a")
    with pytest.raises(RemoteError, match="remote `storage`"):
        bucket.put(f"{folder}/a", b"new")
    bed.door.heal()

    assert bed.bucket().get(f"{folder}/a") in (b"old", b"new")


@behind_a_door
def test_half_an_upload_is_never_seen(bed: Bed, folder: str, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new" * 3_000_000)
    bed.bucket().put(f"{folder}/a", b"old")
    bed.door.hold_upload(1 << 20)
    program = (
        "import sys\n"
        f"from {bed.make.__module__} import {bed.make.__name__} as Bucket\n"
        "bucket = Bucket('storage', sys.argv[1])\n"
        "bucket.put_file(sys.argv[2], sys.argv[3])\n"
    )
    command = [sys.executable, "-c", program, bed.url, f"{folder}/a", str(tmp_path / "new")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        try:
            assert bed.door.held.wait(60)
        finally:
            process.send_signal(signal.SIGKILL)
    bed.door.heal()
    bucket = bed.bucket()

    assert bucket.get(f"{folder}/a") == b"old"
    assert keys(bucket, folder) == {f"{folder}/a"}
    bucket.put_file(f"{folder}/a", str(tmp_path / "new"))
    assert bucket.size(f"{folder}/a") == 9_000_000


# --- what cannot be reached -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "url"),
    [
        (SftpBucket, "ssh://ada:secret@127.0.0.1:1/folder"),
        (WebdavBucket, "webdav://ada:secret@127.0.0.1:1/folder?token=secret"),
        (HttpBucket, "http://ada:secret@127.0.0.1:1/folder?token=secret"),
    ],
)
def test_a_host_that_is_not_there_is_told_without_secrets(make, url: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteError) as caught:
        make("storage", url, patience=0.1).get("a")

    assert caught.value.message.startswith("cannot reach remote `storage` (`")
    assert "127.0.0.1:1/folder" in caught.value.message
    assert "secret" not in f"{caught.value.message}{caught.value.hint}{make('storage', url).url}"


@pytest.mark.parametrize("host", ["-oProxyCommand=touch${IFS}x", "h%20-oX=y", "a b", "a;b", "a$(b)"])
def test_a_host_that_could_be_an_option_of_ssh_is_refused(host: str) -> None:
    with pytest.raises(RemoteError, match=r"names (a host that is none|no host)"):
        SftpBucket("storage", f"ssh://{host}/folder").get("a")


@pytest.mark.parametrize("bed", beds("s3"), indirect=True)
def test_an_s3_bucket_that_is_not_there(bed: Bed) -> None:
    bucket = S3Bucket("storage", "s3://never-made/project")
    for act in (lambda: bucket.get("a"), lambda: bucket.put("a", b""), lambda: [*bucket.list("")]):
        with pytest.raises(RemoteError, match="there is no such bucket"):
            act()


@pytest.mark.parametrize("bed", beds("s3"), indirect=True)
def test_a_profile_that_is_not_there(bed: Bed, monkeypatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "never-made")
    with pytest.raises(RemoteError, match="never-made") as caught:
        S3Bucket("storage", "s3://storage").get("a")

    assert "AWS_PROFILE" in caught.value.hint


@pytest.mark.parametrize("bed", beds("s3"), indirect=True)
def test_a_profile_says_who_and_where(bed: Bed, monkeypatch, tmp_path: Path, folder: str) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws/credentials").write_text("[team]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
    (tmp_path / ".aws/config").write_text(f"[profile team]\nregion = us-east-1\nendpoint_url = {bed.door.url}\n")
    for name in bed.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_PROFILE", "team")
    bucket = S3Bucket("storage", bed.url)
    bucket.put(f"{folder}/a", b"one")

    assert bucket.get(f"{folder}/a") == b"one"


@pytest.mark.parametrize("bed", beds("ssh"), indirect=True)
def test_a_host_whose_key_is_not_known_is_refused(bed: Bed) -> None:
    Path(bed.environ["HOME"], ".ssh/known_hosts").rename(known := Path(bed.environ["HOME"], "known"))
    try:
        with pytest.raises(RemoteError, match="its host key is not in `known_hosts`"):
            bed.bucket().get("a")
    finally:
        known.rename(Path(bed.environ["HOME"], ".ssh/known_hosts"))


@pytest.mark.parametrize("bed", beds("ssh"), indirect=True)
def test_a_key_that_is_not_taken_is_told(bed: Bed) -> None:
    key = Path(bed.environ["HOME"], ".ssh/id_ed25519")
    key.rename(key.with_name("aside"))
    try:
        with pytest.raises(RemoteError, match="does not let you in") as caught:
            bed.bucket().get("a")
        assert "agent" in caught.value.hint
    finally:
        key.with_name("aside").rename(key)


@pytest.mark.parametrize("bed", beds("webdav"), indirect=True)
def test_a_server_that_asks_who_you_are(bed: Bed, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteError, match="does not let you in") as caught:
        bed.bucket().get("a")

    assert ".netrc" in caught.value.hint


@pytest.mark.parametrize("bed", beds("webdav"), indirect=True)
def test_credentials_for_every_host_are_not_sent(bed: Bed, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text('default login ada password "not telling"')
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteError, match="does not let you in"):
        bed.bucket().get("a")


@pytest.mark.parametrize("bed", beds("webdav"), indirect=True)
def test_credentials_that_others_may_read_are_not_taken(bed: Bed, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ada password secret")
    (tmp_path / ".netrc").chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(RemoteError, match="too permissive") as caught:
        bed.bucket().get("a")

    assert "chmod 600" in caught.value.hint


def test_a_protocol_that_nobody_knows() -> None:
    with pytest.raises(RemoteError, match="does not know the protocol `gopher://`") as caught:
        FsspecBucket("storage", "gopher://hole").get("a")

    assert "s3://" in caught.value.hint


# --- reading from a web server --------------------------------------------------------------------------------------


def test_a_web_server_is_read_from(tmp_path: Path) -> None:
    (tmp_path / "remote/packs").mkdir(parents=True)
    content = os.urandom(3 << 20)
    (tmp_path / "remote/packs/a").write_bytes(content)
    (tmp_path / "remote/empty").touch()
    with web_server(tmp_path) as port, proxy(port) as door:
        bucket = HttpBucket("public", f"{door.url}/remote", patience=10, silence=5)

        assert (bucket.lists, bucket.writes) == (False, False)
        assert bucket.get("packs/a") == content
        assert bucket.get("packs/a", 5, 1000) == content[5:1000]
        assert bucket.get("packs/a", len(content) - 1, len(content) + 9) == content[-1:]
        assert bucket.get("packs/a", len(content), len(content) + 9) == bucket.get("empty", 0, 5) == b""
        assert bucket.size("packs/a") == len(content)
        assert bucket.size("packs/b") is None
        with pytest.raises(AbsentKey):
            bucket.get("packs/b")
        door.cut_download(1 << 20)
        door.answer(503)
        assert bucket.get_file("packs/a", str(tmp_path / "back")) == len(content)
        assert (tmp_path / "back").read_bytes() == content
        assert bucket.traffic.requests == len(door.requests)
        for act in (lambda: bucket.put("a", b""), lambda: bucket.delete(["a"])):
            with pytest.raises(RemoteError, match=r"remote `public` .* can only be read"):
                act()
        with pytest.raises(RemoteError, match="cannot be listed"):
            [*bucket.list("")]


@contextmanager
def odd_web_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[int]:
    """Run a web server of this process that answers every request with `answer`, and yield its port."""

    class Odd(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_of_an_answer_no_more_is_read_than_was_asked_for() -> None:
    promised, sent = 1 << 30, []

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 10-109/{promised}")
        request.send_header("Content-Length", str(promised))
        request.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        request.end_headers()
        request.close_connection = True
        with suppress(OSError):
            while len(sent) < 1024:
                request.wfile.write(b"x" * (1 << 20))
                sent.append(1 << 20)

    with odd_web_server(answer) as port:
        assert HttpBucket("public", f"http://127.0.0.1:{port}").get("key", 10, 110) == b"x" * 100
    assert len(sent) < 1024


def test_a_server_that_knows_no_ranges_is_told_as_such() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        request.end_headers()
        with suppress(OSError):
            request.wfile.write(b"x" * 1000)

    with odd_web_server(answer) as port, pytest.raises(RemoteError) as caught:
        HttpBucket("public", f"http://127.0.0.1:{port}", patience=1).get("key", 10, 110)

    assert "the server sends whole files only, and mlx reads parts of them" in caught.value.message


@pytest.mark.parametrize(
    "endpoint", ["localhost:9000", "foo", " ", "ftp://127.0.0.1:9", "https://", "http://[::1", "http://a:b"]
)
def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(RemoteError, match=r"the endpoint of S3 is `.*`, which is no `https://` or `http://` URL"):
        S3Bucket("storage", "s3://bucket/folder").get("a")
