"""One file of a web server, as anybody reads it: whatever its URL is, with a query or without, and however it answers.

Remotes behind web servers are `HttpBucket`'s. This one asks for nothing that servers may lack (lengths, ranges, HEAD),
goes on where a connection broke when the server says that it can, and knows when an answer was cut short.
"""

from __future__ import annotations

import base64
import io
import netrc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib import request as urllib_request
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import Stored, Traffic, plain_etag
from mlops_cli.store.judgement import Judgement, judge_exception, safe_url
from mlops_cli.store.wire import PATIENCE, SILENCE, WireBucket

PIECE = 1 << 20
_HINT = "put user and password for its host into `~/.netrc`"
_SPELLED = "%/:?#[]@!$&'()*+,;=-._~"  # what stands in a URL as it is
_NO_HEAD = frozenset({400, 403, 405, 501})  # what servers answer that know no HEAD, or signed the URL for GET alone


class WebBucket(WireBucket):
    """The file at `url`; its key is whatever one calls it."""

    def __init__(self, name: str, url: str, *, patience: float = PATIENCE, silence: float = SILENCE) -> None:
        super().__init__(
            name,
            url,
            lambda traffic: _WebWire(traffic, url, silence),
            refusal_hint=_HINT,
            parallel=1,
            lists=False,
            writes=False,
            patience=patience,
        )


class _WebWire:
    def __init__(self, traffic: Traffic, url: str, silence: float) -> None:
        parts = urlsplit(url)
        place = parts.netloc.rpartition("@")[2]
        self._traffic = traffic
        self._silence = silence
        path, query = quote(parts.path or "/", safe=_SPELLED), quote(parts.query, safe=_SPELLED)
        self._url = urlunsplit((parts.scheme, place, path, query, ""))
        self._login = _login(parts.hostname or "", parts.username, parts.password)
        self._opener = _opener()
        self._versions: dict[str, str] = {}  # of the files that are half here

    def get(self, key: str, start: int, end: int | None) -> bytes:  # noqa: ARG002 - there is one value
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        with self._ask("GET", wanted) as answer:
            data: bytes = answer.read()
        return data if answer.status == 206 or not wanted else data[start:end]

    def get_file(self, key: str, path: str) -> int:  # noqa: ARG002
        version = self._versions.pop(path, "")
        begun = os.path.getsize(path) if version and os.path.exists(path) else 0
        wanted = {"Range": f"bytes={begun}-", "If-Range": version} if begun else {}
        with self._ask("GET", wanted) as answer:
            goes_on = answer.status == 206 and _begins_at(answer, begun)
            if answer.status == 206 and not goes_on:
                raise OSError("the server sent another part than was asked for")
            self._versions[path] = _strong_version(answer)
            total = begun if goes_on else 0
            with open(path, "ab" if goes_on else "wb") as file:
                for piece in _whole(answer):
                    total += file.write(piece)
                    self._traffic.arrived(path, total)
        del self._versions[path]
        return total

    def stat(self, key: str) -> Stored:
        try:
            answer = self._ask("HEAD", {})
        except HTTPError as error:
            if error.code not in _NO_HEAD:
                raise
            answer = self._ask("GET", {})  # and nothing of its body is read
        with answer:
            length = answer.headers.get("Content-Length", "")
            size = int(length) if length.isdigit() else -1
            return Stored(key, size, _time(answer), plain_etag(answer.headers.get("ETag")))

    def list(self, folder: str) -> Iterable[Stored]:  # noqa: ARG002
        raise io.UnsupportedOperation("a web server tells no names")

    def put(self, key: str, data: bytes) -> None:  # noqa: ARG002
        raise io.UnsupportedOperation("a web server only gives")

    def put_file(self, key: str, path: str) -> int:  # noqa: ARG002
        raise io.UnsupportedOperation("a web server only gives")

    def delete(self, keys: Sequence[str]) -> None:  # noqa: ARG002
        raise io.UnsupportedOperation("a web server only gives")

    def _ask(self, method: str, headers: dict[str, str]) -> Any:
        self._traffic.count()
        request = urllib_request.Request(self._url, headers={"User-Agent": "mlx", **headers}, method=method)  # noqa: S310 - see `_opener`
        if self._login:
            request.add_unredirected_header("Authorization", self._login)
        try:
            return self._opener.open(request, timeout=self._silence)
        except HTTPError as error:
            error.close()
            if 300 <= error.code < 400:
                raise _astray(self._url, f"to no page, or in circles ({error.code})") from error
            raise

    def judge(self, error: Exception) -> Judgement:
        return judge_exception(error)


def _opener() -> Any:
    """Return what opens web pages alone: no files, no FTP, and nothing unprotected after a start with TLS."""

    class Redirects(urllib_request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
            if req.type == "https" and not newurl.lower().startswith("https:"):
                fp.close()
                raise _astray(req.full_url, "to a place without encryption")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    opener = urllib_request.OpenerDirector()
    for handler in (
        urllib_request.ProxyHandler(),
        urllib_request.HTTPHandler(),
        urllib_request.HTTPSHandler(),
        Redirects(),
        urllib_request.HTTPDefaultErrorHandler(),
        urllib_request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _astray(url: str, where: str) -> RemoteError:
    return RemoteError(f"`{safe_url(url)}` leads on {where}", hint="name the place where the data is")


def _login(host: str, user: str | None, password: str | None) -> str:
    """Return the header that says who asks: by the URL, else by `~/.netrc`; empty when neither knows.

    What is in there for every host (`default`) is not sent: a record may be somebody else's, and its host too.
    """
    user, password = unquote(user or ""), None if password is None else unquote(password)
    if password is None:
        found = None
        with suppress(OSError, ValueError, netrc.NetrcParseError):
            found = netrc.netrc(os.path.expanduser("~/.netrc")).hosts.get(host)
        if found and user in ("", found[0]):
            user, password = found[0], found[2]
    if not user:
        return ""
    return "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode()


def _begins_at(answer: Any, start: int) -> bool:
    return str(answer.headers.get("Content-Range", "")).startswith(f"bytes {start}-")


def _strong_version(answer: Any) -> str:
    """Return what tells that the rest is of the same file; empty where the server cannot promise that."""
    etag = str(answer.headers.get("ETag", ""))
    return etag if etag.startswith('"') else ""


def _whole(answer: Any) -> Iterator[bytes]:
    """Yield the pieces of an answer's body; EOFError when it ends before its end."""
    length = answer.headers.get("Content-Length", "")
    left = int(length) if length.isdigit() else -1
    while piece := answer.read1(PIECE):  # what has come, so that slow servers are seen to send
        left -= len(piece)
        yield piece
    if length.isdigit() and left > 0:
        raise EOFError("the answer ends before its end")


def _time(answer: Any) -> float | None:
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(answer.headers.get("Last-Modified") or "").timestamp()
    return None
