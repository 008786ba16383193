"""Remotes on WebDAV servers: `webdavs://host/folder`, and `webdav://` without encryption.

A value is written below `tmp/` and moved, because not every server shows a whole value only. User and password come
from `~/.netrc`, or from the URL.
"""

from __future__ import annotations

import netrc
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree as ET

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import Stored, Traffic
from mlops_cli.store.judgement import Fault, Judgement, judge_exception, judge_status, safe_url
from mlops_cli.store.wire import CONNECT, PATIENCE, SILENCE, WireBucket

PIECE = 1 << 20
PARALLEL = 8
_HTTP = {"webdav": "http", "dav": "http", "webdavs": "https", "davs": "https"}
_HINT = "put user and password for its host into `~/.netrc`"
_ASK = (
    b'<?xml version="1.0"?><propfind xmlns="DAV:"><prop>'
    b"<resourcetype/><getcontentlength/><getlastmodified/></prop></propfind>"
)


class WebdavBucket(WireBucket):
    """A folder on a WebDAV server."""

    def __init__(self, name: str, url: str, *, patience: float = PATIENCE, silence: float = SILENCE) -> None:
        def connect(traffic: Traffic) -> _WebdavWire:
            try:
                import httpx  # noqa: F401
            except ImportError as error:
                message = f"remote `{name}` needs a package for `webdav://` that is missing"
                raise RemoteError(message, hint="`pip install 'mlops-cli[webdav]'`") from error
            protocol, _, rest = url.partition("://")
            parts = urlsplit(f"{_HTTP[protocol.lower()]}://{rest}")
            if not parts.hostname:
                raise RemoteError(f"remote `{name}` (`{safe_url(url)}`) names no host", hint="`webdavs://HOST/FOLDER`")
            try:
                return _WebdavWire(traffic, parts, silence)
            except (netrc.NetrcParseError, OSError) as error:
                message = f"remote `{name}`: `~/.netrc` cannot be read: {str(error).splitlines()[0]}"
                raise RemoteError(message, hint="`chmod 600 ~/.netrc`, or correct it") from error

        super().__init__(name, url, connect, refusal_hint=_HINT, parallel=PARALLEL, patience=patience)


class _Answered(Exception):
    """A server's answer that is not what was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the server answers {status}")
        self.status = status


class _WebdavWire:
    def __init__(self, traffic: Traffic, parts: Any, silence: float) -> None:
        import httpx

        host = parts.netloc.rpartition("@")[2]
        auth: Any = None
        if parts.username:
            auth = httpx.BasicAuth(unquote(parts.username), unquote(parts.password or ""))
        elif os.path.exists(os.path.expanduser("~/.netrc")):
            # Not its `default`: the URL may be one that somebody else's record names.
            found = netrc.netrc().hosts.get(parts.hostname)
            auth = httpx.BasicAuth(found[0], found[2]) if found else None
        self._traffic = traffic
        self._folder = unquote(parts.path).strip("/")
        self._host = f"{parts.scheme}://{host}"
        self._client = httpx.Client(
            auth=auth,
            timeout=httpx.Timeout(silence, connect=CONNECT),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=PARALLEL * 2),
            event_hooks={"request": [lambda _: traffic.count()]},
        )
        weakref.finalize(self, self._client.close)

    def _url(self, key: str) -> str:
        return f"{self._host}/{quote('/'.join(part for part in (self._folder, key) if part))}"

    def _ask(self, method: str, key: str, good: Sequence[int], **more: Any) -> Any:
        answer = self._client.request(method, self._url(key), **more)
        if answer.status_code not in good:
            raise _Answered(answer.status_code)
        return answer

    def get(self, key: str, start: int, end: int | None) -> bytes:
        if not start and end is None:
            return bytes(self._ask("GET", key, (200,)).content)
        wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        answer = self._ask("GET", key, (200, 206, 416), headers=wanted)
        if answer.status_code == 416:
            return b""
        data = bytes(answer.content)
        return data if answer.status_code == 206 else data[start:end]  # 200: a server that knows no ranges

    def get_file(self, key: str, path: str) -> int:
        total = 0
        with self._client.stream("GET", self._url(key)) as answer:
            if answer.status_code != 200:
                raise _Answered(answer.status_code)
            with open(path, "wb") as file:
                for piece in answer.iter_bytes(PIECE):
                    total += file.write(piece)
                    self._traffic.arrived(path, total)
        return total

    def put(self, key: str, data: bytes) -> None:
        self._place(key, lambda: {"content": data})

    def put_file(self, key: str, path: str) -> int:
        size = os.path.getsize(path)

        def pieces() -> Iterator[bytes]:
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    yield piece
                    self._traffic.departed(path, file.tell())

        self._place(key, lambda: {"content": pieces(), "headers": {"Content-Length": str(size)}})
        return size

    def _place(self, key: str, content: Any) -> None:
        temporary = f"tmp/{os.urandom(16).hex()}"
        goal = {"Destination": self._url(key), "Overwrite": "T"}
        try:
            self._making(temporary, lambda: self._ask("PUT", temporary, (200, 201, 204), **content()))
            self._making(key, partial(self._ask, "MOVE", temporary, (201, 204), headers=goal))
        except BaseException:
            with suppress(Exception):
                self._ask("DELETE", temporary, (200, 204, 404))
            raise

    def _making(self, key: str, act: Any) -> None:
        """Do what needs the folder of `key`; make that when it is not there (409, and 404 or 403 from some)."""
        try:
            act()
        except _Answered as error:
            if error.status not in (404, 409):
                raise
            self._make_folder(key.rpartition("/")[0])
            act()

    def _make_folder(self, key: str) -> None:
        """Make a folder and those above it, the remote's own included."""
        parts = [part for part in f"{self._folder}/{key}".split("/") if part]
        for count in range(1, len(parts) + 1):
            url = f"{self._host}/{quote('/'.join(parts[:count]))}"
            answer = self._client.request("MKCOL", url)
            there = (201, 405, 301, 302, 409) if count < len(parts) else (201, 405, 301, 302)
            if answer.status_code not in there and (answer.status_code != 403 or count == len(parts)):
                raise _Answered(answer.status_code)

    def stat(self, key: str) -> Stored | None:
        entry = next(self._entries(key, "0"), None)  # of a folder, some servers say by HEAD that it is an empty file
        return None if entry is None or entry[3] else Stored(key, *entry[1:3])

    def list(self, folder: str) -> Iterator[Stored]:
        waiting = [folder]
        while waiting:
            here = waiting.pop()
            try:
                entries = [*self._entries(here, "1")]
            except _Answered as error:
                if error.status != 404:
                    raise
                continue
            for key, size, modified, is_folder in entries:
                if is_folder:
                    if key not in (here, "tmp"):
                        waiting.append(key)
                else:
                    yield Stored(key, size, modified)

    def _entries(self, key: str, depth: str) -> Iterator[tuple[str, int, float | None, bool]]:
        """Yield key, bytes, time and whether it is a folder, of a key and, at depth 1, of what lies in it."""
        headers = {"Depth": depth, "Content-Type": "application/xml"}
        url = f"{self._url(key)}/" if depth == "1" else self._url(key)
        answer = self._client.request("PROPFIND", url, content=_ASK, headers=headers)
        if answer.status_code != 207:
            raise _Answered(answer.status_code)
        for entry in ET.fromstring(answer.content).iter("{DAV:}response"):  # noqa: S314 - expat bounds what entities grow to
            path = unquote(urlsplit(entry.findtext("{DAV:}href") or "").path).strip("/")
            modified = _time(entry.findtext(".//{DAV:}getlastmodified"))
            size = int(entry.findtext(".//{DAV:}getcontentlength") or 0)
            is_folder = entry.find(".//{DAV:}collection") is not None
            yield path.removeprefix(self._folder).strip("/"), size, modified, is_folder

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._ask("DELETE", key, (200, 204, 404))

    def judge(self, error: Exception) -> Judgement:
        if isinstance(error, _Answered):
            if error.status == 409:
                return Judgement(Fault.NO_PLACE, "there is no such folder, or a file stands in its place")
            return judge_status(error.status)
        return judge_exception(error)


def _time(text: str | None) -> float | None:
    """Return the time (s since the epoch) that a header or property spells, None when it spells none."""
    with suppress(TypeError, ValueError):
        return parsedate_to_datetime(text or "").timestamp()
    return None
