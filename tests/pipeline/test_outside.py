"""Stages that read URLs: decided by the version that the place tells, with nothing downloaded."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from mlops_cli.errors import RecordError, RemoteError, UsageError
from mlops_cli.pipeline.acceptance import accept
from mlops_cli.pipeline.outside import Outside
from mlops_cli.pipeline.status import project_status
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.records.locks import Lock, inputs_of, read_lock
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.urls import UrlInput
from tests.servers.s3 import s3_server
from tests.workspace.projects import Sandbox

STAGE = """
stages:
  count:
    cmd: {cmd}
    deps: [notes, "{url}"]
    outs: [out]
  use:
    cmd: cat out > used
    deps: [out, "{url}"]
    outs: [used]
"""


class Web:
    """A web server on loopback, in a thread, with one page: what it sends is what is set here."""

    def __init__(self) -> None:
        self.headers = {"ETag": '"a"', "Content-Length": "3"}
        self.requests: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                web.requests.append(self.command)
                self.send_response(200)
                for key, value in web.headers.items():
                    self.send_header(key, value)
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                self.wfile.write(b"x" * int(web.headers["Content-Length"]))
                web.headers = {**web.headers, "ETag": '"read"'}

            def log_message(self, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/data.csv"
        Thread(target=self._server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def turn(self, etag: str, size: int = 3) -> None:
        self.headers = {"ETag": f'"{etag}"', "Content-Length": str(size)}


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.stop()


@pytest.fixture
def two(box: Sandbox, web: Web) -> Sandbox:
    """Return a project whose two stages, which have run, read one URL."""
    box.write("notes", "n\n")
    box.pipeline(STAGE.format(cmd="cat notes > out", url=web.url))
    assert box.run() == {"count": "run", "use": "run"}
    return box


def reasons(box: Sandbox, *, ask: bool = True) -> dict[str, tuple[str, ...]]:
    planned = box.plan(outside=Outside(ask=ask))
    return {address: decision.reasons for address, decision in planned.items()}


def test_a_version_that_changed_is_a_reason_and_nothing_is_downloaded(two: Sandbox, web: Web):
    assert f'  - {{url: "{web.url}", etag: a, size: 3}}\n' in two.read("mlx.lock/count.yaml").replace("'", '"')
    web.requests.clear()
    assert two.run() == {"count": "skip", "use": "skip"}
    assert web.requests == ["HEAD"]  # once a run, though two stages read it

    web.turn("b", 4)
    assert reasons(two)["count"] == (f"`{web.url}` changed: version a → b, 3 → 4 bytes",)
    web.requests.clear()
    assert two.run() == {"count": "run", "use": "run"}
    assert web.requests == ["HEAD"] * 3  # and once more after each stage that ran
    assert "changed_during_run" not in two.read("mlx.lock/use.yaml")

    web.turn("a")
    assert two.run() == {"count": "restore", "use": "restore"}


def test_status_asks_nobody_and_says_so(two: Sandbox, web: Web):
    web.turn("b")
    web.requests.clear()
    assert project_status(two.project(), two.heard).clean
    assert reasons(two, ask=False)["count"] == ("nothing changed",)
    assert f"`{web.url}` counts as its lock recorded it: `mlx run --dry-run` asks for more" in two.heard.notes
    assert web.requests == []


def test_without_an_answer_a_run_ends_with_one_sentence(two: Sandbox, web: Web):
    web.stop()
    with pytest.raises(RemoteError) as caught:
        two.plan(outside=Outside(ask=True, patience=0))
    assert caught.value.message.startswith(f"stage `count`: cannot reach its dependency (`{web.url}`): ")
    assert "`--offline` takes what the lock records" in str(caught.value.hint)
    assert two.run(offline=True) == {"count": "skip", "use": "skip"}

    two.pipeline(STAGE.replace("outs: [", "frozen: true\n    outs: [").format(cmd="cat notes > out", url=web.url))
    assert two.run() == {"count": "skip", "use": "skip"}  # what never runs asks nobody

    two.pipeline(STAGE.format(cmd="cat notes > out", url=web.url))
    two.write("notes", "other\n")
    with pytest.raises(UsageError, match="stage `count` has to run, and what `http") as refused:
        two.run(offline=True)
    assert refused.value.hint == "leave `--offline` out"


def test_a_url_that_changes_while_its_stage_runs(two: Sandbox, web: Web):
    command = f"python -c 'import urllib.request as u; u.urlopen(\\\"{web.url}\\\").read()'; cp notes out"
    two.pipeline(STAGE.format(cmd=f'"{command}"', url=web.url))
    assert two.run() == {"count": "run", "use": "run"}
    assert f"changed_during_run:\n  - {web.url}\n" in two.read("mlx.lock/count.yaml")
    assert "etag: read" in two.read("mlx.lock/use.yaml")  # what came after it was told the newer version
    assert reasons(two)["count"] == (
        f"`{web.url}` changed: version a → read",
        f"`{web.url}` changed while the stage last ran",
    )


def test_what_changed_outside_can_be_accepted(two: Sandbox, web: Web):
    web.turn("b")
    project = two.project()
    with exclusive(project, "test", two.heard):
        (count, _) = accept(project, ["count", "use"], "same rows", outside=Outside(ask=True))
    assert count.changes == (f"`{web.url}` changed: version a → b",)
    assert two.run() == {"count": "skip", "use": "skip"}
    web.turn("c")
    assert reasons(two)["count"] == (f"`{web.url}` changed: version b → c",)


def test_a_place_that_tells_no_version_makes_its_stage_due(two: Sandbox, web: Web):
    web.headers = {"Content-Length": "3"}
    assert two.run() == {"count": "run", "use": "run"}
    assert two.run() == {"count": "run", "use": "run"}
    assert reasons(two)["use"][-1] == f"`{web.url}` may have changed: its place tells no version"


def test_a_prefix_of_a_bucket_and_a_folder_of_this_machine(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    shared = box.root.parent / "shared"
    shared.mkdir()
    (shared / "a.csv").write_text("1\n", encoding="utf-8")
    with s3_server() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        bucket = server.make_bucket("bucket")
        put(server.environ, "raw/a.csv", b"1\n")
        box.pipeline(
            f"stages:\n  s:\n    cmd: date > out\n    deps: [{bucket}/raw, {shared.as_uri()}/]\n    outs: [out]\n"
        )
        assert box.run() == {"s": "run"}
        assert box.run() == {"s": "skip"}
        put(server.environ, "raw/b.csv", b"22\n")
        (said,) = reasons(box)["s"]
        assert said == f"`{bucket}/raw` changed: other files, or other versions of them, 2 → 5 bytes"
        assert box.run() == {"s": "run"}
    (shared / "a.csv").write_text("12\n", encoding="utf-8")
    assert [entry.url for entry in lock_of(box).urls] == [f"{shared.as_uri()}/", f"{bucket}/raw"]


def put(environ: dict[str, str], key: str, data: bytes) -> None:
    scope = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    url = f"{environ['AWS_ENDPOINT_URL']}/bucket/{key}"
    request = urllib.request.Request(
        url, data=data, headers={"Authorization": scope, "Content-Type": "text/csv"}, method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()


def lock_of(box: Sandbox) -> Lock:
    return read_lock((box.root / "mlx.lock/s.yaml").read_bytes(), "lock", "")


def test_a_lock_with_urls_is_read_as_it_was_written():
    urls = (UrlInput("s3://b/x", "listing:1", 7), UrlInput("file:///a/b"))
    lock = Lock(cmd=("x",), wdir="sub", urls=urls, changed_during_run=("s3://b/x", "sub/a"))
    assert read_lock(lock.to_bytes("sub"), "lock", "sub") == lock
    assert inputs_of(lock)["urls"] == [["file:///a/b", None], ["s3://b/x", "listing:1"]]
    assert "urls" not in inputs_of(Lock(("x",)))


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("https://me:secret@host/x", "a URL has a password in it"),
        ("https://host/x?X-Amz-Signature=secret", "a URL has a signature or token in it"),
        ("s3://bucket/*.csv", "is a pattern, and a URL cannot be one"),
        ("local://x", "is not a URL that can be asked for its version"),
        ("zip::s3://b/x", "is not a URL that can be asked"),
        ("s3://bucket", "is not a URL, as in"),
        ("file://host/x", "is not a URL that can be asked"),
        ("s3://b/x: {optional: true}", "a URL takes no options"),
    ],
)
def test_what_cannot_be_a_dependency(url: str, sentence: str):
    text = f"mlx: 1\nstages:\n  s:\n    cmd: x\n    deps: [a, {url}]\n"
    with pytest.raises(RecordError) as caught:
        read_pipeline(text.encode(), "mlx.yaml", folder="", read_file={}.get)
    assert caught.value.message.startswith("mlx.yaml:5: `deps[1]`: ")
    assert sentence in caught.value.message
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"
