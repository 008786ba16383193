"""Files and folders behind plain URLs, on real servers: what is there, its version, and bringing it whole."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_cli.errors import RemoteError, UsageError
from mlops_cli.progress import SILENT, Silent
from mlops_cli.store.bucket import Stored
from mlops_cli.store.place import Contents, Place, version_of
from tests.servers.processes import free_port, running
from tests.servers.proxy import Proxy, proxy
from tests.servers.s3 import S3Server, s3_server
from tests.servers.ssh import SSHD, ssh_server
from tests.servers.web import web_server
from tests.servers.webdav import webdav_server

FILES = {"one.txt": b"one", "sub/two.bin": b"2" * 3_000_000, "sub/deep/naïve name.txt": b"", "tmp/kept": b"x"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files, in a folder that servers serve."""
    top = tmp_path_factory.mktemp("served")
    for name, data in FILES.items():
        (top / "my data" / name).parent.mkdir(parents=True, exist_ok=True)
        (top / "my data" / name).write_bytes(data)
    return top


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def upload(server: S3Server, bucket: str, key: str, data: bytes) -> None:
    scope = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
    headers = {
        "Authorization": f"{scope}, SignedHeaders=host, Signature=0",
        "Content-Type": "application/octet-stream",
    }
    url = f"{server.url}/{bucket}/{urllib.request.quote(key)}"  # type: ignore[attr-defined]
    urllib.request.urlopen(urllib.request.Request(url, data, headers, method="PUT"), timeout=30).close()


def brought(place: Place, contents: Contents, target: Path) -> dict[str, bytes]:
    """Return the bytes of every file, after bringing them."""
    target.mkdir(exist_ok=True)
    names = {item.path: str(target / str(number)) for number, item in enumerate(contents.items)}
    came = place.bring(contents.items, lambda item: names[item.path], 4, SILENT)
    return {item.path: Path(path).read_bytes() for item, path in came}


def check_folder(url: str, tmp_path: Path) -> Contents:
    place = Place(url)
    contents = place.look()
    assert contents.is_folder
    assert contents.size == sum(map(len, FILES.values()))
    assert contents.version == Place(url).look().version
    assert brought(place, contents, tmp_path / "came") == FILES
    return contents


def check_file(url: str, tmp_path: Path) -> Contents:
    place = Place(url)
    contents = place.look()
    assert (contents.is_folder, contents.size, len(contents.items)) == (False, 3, 1)
    assert contents.version
    assert brought(place, contents, tmp_path / "came") == {"": b"one"}
    return contents


def test_a_folder_of_this_machine(folder: Path, tmp_path: Path):
    url = (folder / "my data").as_uri()
    assert Place(url).name == "my data"
    before = check_folder(url, tmp_path)
    check_file(f"{url}/one.txt", tmp_path / "came")
    assert before.version is not None
    assert before.version.startswith("listing:")


def test_a_changed_folder_has_another_version(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "my data", tmp_path / "data")
    url = (tmp_path / "data").as_uri()
    first = Place(url).look().version
    os.utime(tmp_path / "data/one.txt", ns=(1, 1))
    second = Place(url).look().version
    (tmp_path / "data/new").touch()
    assert len({first, second, Place(url).look().version}) == 3


def test_s3(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("plain")
    for name, data in FILES.items():
        upload(s3, "plain", f"my data/{name}", data)
    upload(s3, "plain", "my data/sub/", b"")  # as consoles mark a folder
    upload(s3, "plain", "my data 2/other", b"")
    check_folder("s3://plain/my data", tmp_path)
    contents = check_file("s3://plain/my data/one.txt", tmp_path / "came")
    assert contents.version == "f97c5d29941bfb1b2fdab0874906ab82"  # what S3 calls it: its MD5
    upload(s3, "plain", "my data/one.txt", b"two")
    assert Place("s3://plain/my data/one.txt").look().version != contents.version
    with pytest.raises(RemoteError, match="there is nothing at `s3://plain/my`"):
        Place("s3://plain/my").look()
    with pytest.raises(RemoteError, match="there is no such bucket"):
        Place("s3://absent/x").look()


@pytest.mark.parametrize("key", [".git/config", ".mlx-tmp-1-x/y", "a\\b/../c"])
def test_a_name_that_no_folder_can_have_is_refused(
    key: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
):
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    bucket = f"hostile{abs(hash(request.node.name)) % 10**8}"
    s3.make_bucket(bucket)
    upload(s3, bucket, "raw/fine", b"")
    upload(s3, bucket, f"raw/{key}", b"x")
    with pytest.raises(RemoteError):
        Place(f"s3://{bucket}/raw").look()


def test_a_file_that_is_a_folder_too_is_refused(s3: S3Server, monkeypatch: pytest.MonkeyPatch):
    for name, value in s3.environ.items():
        monkeypatch.setenv(name, value)
    s3.make_bucket("both")
    upload(s3, "both", "raw/a", b"x")
    upload(s3, "both", "raw/a/b", b"y")
    with pytest.raises(RemoteError, match="`raw/a` is both a file and a folder there"):
        Place("s3://both/raw").look()


@pytest.mark.skipif(SSHD is None, reason="no sshd here: install `openssh-server`")
def test_sftp(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with ssh_server(tmp_path / "ssh") as server:
        monkeypatch.setenv("HOME", str(server.home))
        url = server.url(folder).replace(" ", "%20")
        check_folder(f"{url}/my%20data", tmp_path)
        check_file(f"{url}/my%20data/one.txt", tmp_path / "came")
        with pytest.raises(RemoteError, match="there is nothing at"):
            Place(f"{url}/absent").look()


def test_webdav(folder: Path, tmp_path: Path):
    with webdav_server(folder) as port:
        url = f"webdav://127.0.0.1:{port}/my%20data"
        check_folder(url, tmp_path)
        check_file(f"{url}/one.txt", tmp_path / "came")


@pytest.fixture
def door(folder: Path) -> Iterator[Proxy]:
    with web_server(folder) as port, proxy(port) as found:
        yield found


def test_a_web_server(folder: Path, door: Proxy, tmp_path: Path):
    url = f"{door.url}/my%20data/one.txt"
    assert Place(url).name == "one.txt"
    contents = check_file(url, tmp_path)
    assert contents.version is not None
    assert contents.version.endswith("Z/3")  # it tells no ETag, but a time
    for url in (f"{door.url}/absent", f"{door.url}/my%20data/"):
        with pytest.raises(RemoteError, match="there is nothing at"):
            Place(url).look()


def test_a_broken_download_is_made_again(door: Proxy, tmp_path: Path):
    place = Place(f"{door.url}/my%20data/sub/two.bin")
    contents = place.look()
    door.cut_download(1_000_000, times=2)
    assert brought(place, contents, tmp_path) == {"": FILES["sub/two.bin"]}
    door.answer(503, times=2)
    assert brought(place, contents, tmp_path / "again") == {"": FILES["sub/two.bin"]}


def test_a_download_that_stays_short_is_refused_and_leaves_nothing(door: Proxy, tmp_path: Path):
    place = Place(f"{door.url}/my%20data/sub/two.bin", patience=0.3)
    contents = place.look()
    door.cut_download(1_000_000, times=1000)
    with pytest.raises(RemoteError, match=r"cannot read from its source .*: the connection broke"):
        brought(place, contents, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("status", "words"), [(403, "permission denied"), (401, "asks for credentials")])
def test_who_may_not_read_is_told_so_at_once(status: int, words: str, door: Proxy):
    door.answer(status, times=100)
    with pytest.raises(RemoteError, match=words) as caught:
        Place(f"{door.url}/my%20data/one.txt").look()
    assert "~/.netrc" in (caught.value.hint or "")


def test_without_head_a_get_tells(door: Proxy, tmp_path: Path):
    door.answer(405, times=1000, methods="HEAD")
    check_file(f"{door.url}/my%20data/one.txt", tmp_path)


STRANGE = """
import os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DATA = b"0123456789" * 200_000

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked = []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path == "/asked":
            return self.whole("\\n".join(self.asked).encode())
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range')} {self.headers.get('Authorization')}")
        if self.path.startswith("/away"):
            self.send_response(302)
            places = {"/away-file": "file:///etc/passwd", "/away-ftp": "ftp://127.0.0.1/x", "/away-circle": self.path}
            self.send_header("Location", places.get(self.path, "/resumed"))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if self.path == "/more":  # than it says, without end
            if self.command == "HEAD":
                return self.whole(b"secret")
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        if self.path.startswith("/chunks"):
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            if self.command == "GET":
                for _ in range(3):
                    self.wfile.write(b"5\\r\\nhello\\r\\n")
                if self.path == "/chunks":
                    self.wfile.write(b"0\\r\\n\\r\\n")
                else:
                    self.close_connection = True
            return
        if self.path.startswith("/resumed"):
            start = int(self.headers.get("Range", "bytes=0-")[6:].rstrip("-"))
            self.send_response(206 if start else 200)
            self.send_header("ETag", '"v1"')
            self.send_header("Content-Length", str(len(DATA) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(DATA[start:start + 700_000])
                self.close_connection = True
            return
        self.whole(b"secret")

    def whole(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def strange() -> Iterator[str]:
    """Return the URL of a server that ends answers early, knows no lengths, and leads elsewhere."""
    import sys

    port = free_port()
    with running([sys.executable, "-c", STRANGE, str(port)], port):
        yield f"http://127.0.0.1:{port}"


def asked(strange: str) -> list[str]:
    with urllib.request.urlopen(f"{strange}/asked", timeout=30) as answer:
        return str(answer.read().decode()).splitlines()


def test_a_download_goes_on_where_it_broke(strange: str, tmp_path: Path):
    place = Place(f"{strange}/resumed?x=1")
    contents = place.look()
    assert (contents.version, place.name) == ("v1", "resumed")
    assert brought(place, contents, tmp_path) == {"": b"0123456789" * 200_000}
    ranges = [line.split()[2] for line in asked(strange) if line.startswith("GET /resumed?x=1 ")]
    assert ranges == ["None", "bytes=700000-", "bytes=1400000-"]


def test_a_download_that_goes_on_is_never_out_of_patience(strange: str, tmp_path: Path):
    place = Place(f"{strange}/resumed?slow", patience=0.25)  # the second pause may pass it, counted from the start
    assert brought(place, place.look(), tmp_path) == {"": b"0123456789" * 200_000}


class Heard(Silent):
    """Adds up what a reporter is told."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def advance(self, amount: int) -> None:
        self.steps.append(amount)


def test_one_file_tells_while_it_comes(strange: str, tmp_path: Path):
    place = Place(f"{strange}/resumed")
    contents, heard = place.look(), Heard()
    [*_] = place.bring(contents.items, lambda _: str(tmp_path / "came"), 4, heard)
    assert len(heard.steps) > 3
    assert sum(heard.steps) == 2_000_000
    assert min(heard.steps) >= 0


def test_more_than_was_told_is_not_taken(strange: str, tmp_path: Path):
    place = Place(f"{strange}/more")
    contents = place.look()
    with pytest.raises(RemoteError, match="had 6 bytes, and more came"):
        brought(place, contents, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_without_a_length_is_whole_or_refused(strange: str, tmp_path: Path):
    place = Place(f"{strange}/chunks")
    contents = place.look()
    assert (contents.size, contents.version) == (None, None)
    assert brought(place, contents, tmp_path) == {"": b"hello" * 3}
    place = Place(f"{strange}/chunks-cut", patience=0.3)
    with pytest.raises(RemoteError, match="the connection broke"):
        brought(place, place.look(), tmp_path / "cut")


def test_a_redirect_is_followed_to_web_pages_only(strange: str, tmp_path: Path):
    assert Place(f"{strange}/away").look().version == "v1"
    for away in ("away-file", "away-ftp", "away-circle"):
        with pytest.raises(RemoteError, match=rf"`{strange}/{away}` leads on to no page, or in circles"):
            Place(f"{strange}/{away}", patience=0.3).look()


def test_a_login_comes_from_the_url_or_netrc(strange: str, tmp_path: Path, home: Path):
    place = Place(strange.replace("//", "//ada:pass%20word@") + "/login")
    assert place.look().size == 6
    assert "pass" not in place.url
    (home / ".netrc").write_text("machine 127.0.0.1 login bob password secret\n")
    (home / ".netrc").chmod(0o600)
    Place(f"{strange}/netrc").look()
    (home / ".netrc").write_text("machine 127.0.0.1 login bob password secret\ndefault login any password for-all\n")
    Place(strange.replace("127.0.0.1", "localhost") + "/default").look()
    Place(strange.replace("//", "//bob@") + "/user").look()
    logins = {line.split()[1]: line.split(maxsplit=3)[3] for line in asked(strange)}
    assert logins["/login"] == "Basic YWRhOnBhc3Mgd29yZA=="
    assert logins["/netrc"] == "Basic Ym9iOnNlY3JldA=="
    assert logins["/user"] == "Basic Ym9iOnNlY3JldA=="
    assert logins["/default"] == "None"


@pytest.mark.parametrize("url", ["s3://bucket", "gs://bucket/", "ssh://host/"])
def test_a_whole_store_is_refused(url: str):
    with pytest.raises(UsageError, match="names a whole store"):
        Place(url)


def test_what_is_no_url_is_refused():
    with pytest.raises(UsageError, match=r"`http://\[::1` is no URL"):
        Place("http://[::1")


def test_names_are_bytes(tmp_path: Path):
    name = os.fsdecode(b"odd \xff%41")
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_bytes(b"x")
    place = Place((tmp_path / name).as_uri())
    assert place.name == name
    assert brought(place, place.look(), tmp_path / "came") == {"file": b"x"}


def test_a_file_at_the_very_top():
    name = next(path for path in sorted(Path("/").iterdir()) if path.is_dir() and not path.is_symlink()).name
    assert Place(f"file:///{name}").bucket.url == "file:///"


def test_any_time_is_a_version(tmp_path: Path):
    assert version_of(Stored("x", 1, 1e15)) == "1000000000000000.000000/1"
    long = version_of(Stored("x", 1, None, "a" * 60_000))
    assert long is not None
    assert len(long) < 60
    assert long != version_of(Stored("x", 1, None, "b" * 60_000))


def test_what_is_no_file_is_told_without_words_about_remotes(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    place = Place((tmp_path / "pipe").as_uri())
    with pytest.raises(RemoteError, match="no file is in the way") as caught:
        brought(place, place.look(), tmp_path / "came")
    assert "mlx" not in (caught.value.hint or "")


@pytest.mark.parametrize("url", ["https://host/..%2F..%2Fx", "https://host/%2e%2e", "file:///x/.."])
def test_what_ends_in_no_name_is_refused(url: str):
    with pytest.raises(UsageError, match="does not end in a name"):
        Place(url)


def test_a_chain_of_places_is_refused():
    with pytest.raises(UsageError, match="is a chain of places"):
        Place("simplecache::file:///etc/passwd")
    with pytest.raises(UsageError, match="is a chain of places"):
        Place("zip://x::file:///etc/passwd")


def test_links_in_a_folder_are_refused(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/link").symlink_to("/etc/passwd")
    place = Place((tmp_path / "data").as_uri())
    with pytest.raises(RemoteError, match="something that is no file is in the way"):
        brought(place, place.look(), tmp_path / "came")


@pytest.mark.parametrize("url", ["nonsense://host/x", "hdfs://host/x"])
def test_a_place_that_cannot_be_opened_is_not_called_a_remote(url: str):
    with pytest.raises(RemoteError) as caught:
        Place(url, patience=0.2).look()
    assert "remote" not in caught.value.message
    assert "mlx remote" not in (caught.value.hint or "")
