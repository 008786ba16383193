"""Remotes behind any URL that fsspec can open: Google's and Azure's stores, HDFS and the rest.

Credentials come from where each library looks for them itself. fsspec keeps listings and connections for later by
default; here it keeps none, because another machine may have written meanwhile. A value is written in one step where
that makes it visible as a whole, else under a name of its own in `tmp/` and then moved.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from typing import Any

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import Stored, Traffic, plain_etag
from mlops_cli.store.judgement import Fault, Judgement, first_line, judge_exception, safe_url
from mlops_cli.store.wire import PATIENCE, WireBucket

PIECE = 1 << 20
IN_ONE = 1 << 30  # bytes that are sent in one request where the library asks

# Protocols whose stores make a value visible when its last byte has come.
_WHOLE = frozenset({"gs", "gcs", "az", "abfs", "abfss", "adl", "memory", "s3", "s3a"})
_IN_PIECES = frozenset({"gs", "gcs", "s3", "s3a"})  # take `chunksize`
_EXTRAS = {"gs": "gs", "gcs": "gs", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure"}
_USUAL = "use a folder, or a URL that begins with `s3://`, `gs://`, `az://`, `ssh://`, `webdavs://` or `https://`"

_TALKATIVE = ("adlfs", "asyncio", "azure", "fsspec", "gcsfs", "google")

_GOOGLE = "`gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
_AZURE = "set AZURE_STORAGE_ACCOUNT and `az login`, or set AZURE_STORAGE_CONNECTION_STRING"
_HINTS = {"gs": _GOOGLE, "gcs": _GOOGLE, **dict.fromkeys(("az", "abfs", "abfss", "adl"), _AZURE)}
_ELSE = "check the credentials that this machine uses for it: environment, profile or key"


class FsspecBucket(WireBucket):
    """A folder behind a URL that fsspec can open."""

    def __init__(self, name: str, url: str, *, patience: float = PATIENCE) -> None:
        protocol, _, rest = url.partition("://")
        protocol = protocol.lower()

        def connect(traffic: Traffic) -> _FsspecWire:
            try:
                return _connect(protocol, rest, traffic)
            except ImportError as error:
                message = f"remote `{name}` needs a package for `{protocol}://` that is missing"
                raise RemoteError(message, hint=_how_to_install(protocol, error)) from error
            except Exception as error:
                if isinstance(error, ValueError) and "rotocol not known" in str(error):
                    message = f"remote `{name}`: mlx does not know the protocol `{protocol}://`"
                    raise RemoteError(message, hint=_USUAL) from error
                place = f"remote `{name}` (`{safe_url(url)}`)"
                fault, words = judge_exception(error)
                if "credential" in words:
                    fault, words = Fault.UNKNOWN_USER, "no account or credentials are set"
                if fault in (Fault.REFUSED, Fault.UNKNOWN_USER):
                    message = f"{place} does not let you in: {words}"
                    raise RemoteError(message, hint=_HINTS.get(protocol, _ELSE)) from error
                message = f"cannot reach {place}: {words}"
                raise RemoteError(message, hint="check its URL: `mlx remote list`") from error

        super().__init__(name, url, connect, refusal_hint=_HINTS.get(protocol, _ELSE), patience=patience)


def _connect(protocol: str, rest: str, traffic: Traffic) -> _FsspecWire:
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol == "memory":  # all that a process keeps so is one store
        options = {}
    for library in _TALKATIVE:  # they print what they also raise
        logging.getLogger(library).addHandler(logging.NullHandler())
    files, path = fsspec.core.url_to_fs(f"{protocol}://{rest}", **options)
    _try_once(files, protocol)
    return _FsspecWire(traffic, files, str(path).rstrip("/"), protocol)


def _try_once(files: Any, protocol: str) -> None:
    """Keep a library from trying again itself: it would wait a minute or more before it says that nobody is there."""
    with suppress(AttributeError):
        if _EXTRAS.get(protocol) == "azure":
            files.service_client._config.retry_policy.total_retries = 0  # noqa: SLF001
        elif _EXTRAS.get(protocol) == "gs":
            files._request = partial(type(files)._request.__wrapped__, files)  # noqa: SLF001


def _how_to_install(protocol: str, error: ImportError) -> str:
    """Return the command that brings what a protocol needs, as far as it can be told, and what fsspec says of it."""
    from fsspec.registry import known_implementations

    if extra := _EXTRAS.get(protocol):
        return f"`pip install 'mlops-cli[{extra}]'`"
    words = known_implementations.get(protocol, {}).get("err") or str(error)
    cause = error if error.name else error.__cause__
    module = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
    return f"`pip install {module}`; fsspec says: {words}" if module else f"fsspec says: {words}"


class _FsspecWire:
    """One fsspec file system and the folder in it."""

    def __init__(self, traffic: Traffic, files: Any, folder: str, protocol: str) -> None:
        self._traffic = traffic
        self._files = files
        self._folder = folder
        self._protocol = protocol
        self._made: set[str] = set()
        self._lock = Lock()

    def _count(self, requests: int = 1) -> None:
        self._traffic.count(requests=requests)

    def _path(self, key: str) -> str:
        return f"{self._folder}/{key}" if self._folder else key

    def get(self, key: str, start: int, end: int | None) -> bytes:
        self._count()
        path = self._path(key)
        if not start and end is None:
            return bytes(self._files.cat_file(path))
        try:
            data = bytes(self._files.cat_file(path, start=start, end=end))
        except Exception as error:
            if self.judge(error).fault is not Fault.OUT_OF_RANGE:
                raise
            return b""
        return data if end is None else data[: end - start]

    def get_file(self, key: str, path: str) -> int:
        self._count()
        with suppress(FileNotFoundError):
            os.remove(path)
        self._files.get_file(self._path(key), path)
        return os.path.getsize(path)

    def put(self, key: str, data: bytes) -> None:
        more = {"chunksize": IN_ONE} if self._protocol in _IN_PIECES else {}
        self._place(key, lambda path: self._files.pipe_file(path, data, **more))

    def put_file(self, key: str, path: str) -> int:
        self._place(key, lambda goal: self._files.put_file(path, goal))
        return os.path.getsize(path)

    def _place(self, key: str, write: Any) -> None:
        """Let `write` write a value where it is not seen yet, and make it seen."""
        goal = self._path(key)
        if self._protocol in _WHOLE:
            self._count()
            write(goal)
            return
        temporary = self._path(f"tmp/{os.urandom(16).hex()}")
        try:
            self._in_folder(temporary, partial(write, temporary))
            self._in_folder(goal, partial(self._move, temporary, goal))
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(temporary)
            raise

    def _in_folder(self, path: str, act: Any) -> None:
        """Do what needs the folder of `path`, making it when it seems not to be there."""
        folder = path.rpartition("/")[0]
        if folder not in self._made:
            self._count()
            self._make_folder(folder)
            self._made.add(folder)
        self._count()
        try:
            act()
        except FileNotFoundError:  # somebody removed the folder meanwhile
            self._make_folder(folder)
            act()

    def _make_folder(self, folder: str) -> None:
        with self._lock:
            self._files.makedirs(folder, exist_ok=True)

    def _move(self, temporary: str, goal: str) -> None:
        self._files.mv(temporary, goal)

    def stat(self, key: str) -> Stored | None:
        self._count()
        info = self._files.info(self._path(key))
        return None if info["type"] == "directory" else _stored(key, info)

    def list(self, folder: str) -> Iterator[Stored]:
        self._count()
        top = self._path(folder) if folder else self._folder
        self._files.invalidate_cache()
        cut = len(self._folder) + 1 if self._folder else 0
        for path, info in self._files.find(top, detail=True).items():
            key = str(path)[cut:]
            if folder or not key.startswith("tmp/"):
                yield _stored(key, info)

    def delete(self, keys: Sequence[str]) -> None:
        if self._protocol in ("gs", "gcs", "az", "abfs", "abfss", "adl", "s3", "s3a"):
            self._count()
            with suppress(FileNotFoundError):
                self._files.rm([self._path(key) for key in keys])
                return
        for key in keys:
            self._count()
            with suppress(FileNotFoundError):
                self._remove(self._path(key))

    def _remove(self, path: str) -> None:
        self._files.rm_file(path)

    def judge(self, error: Exception) -> Judgement:
        if isinstance(error, NotADirectoryError | IsADirectoryError):
            return Judgement(Fault.NO_PLACE, "a file stands where a folder must be")
        words = first_line(error).lower()
        if words.startswith("forbidden"):
            return Judgement(Fault.REFUSED, "permission denied (403)")
        if "bucket does not exist" in words or "containernotfound" in words or "specified container" in words:
            return Judgement(Fault.NO_PLACE, "there is no such bucket")
        if isinstance(error, ValueError) and "range" in words:
            return Judgement(Fault.OUT_OF_RANGE, words)
        return judge_exception(error)


def _stored(key: str, info: dict[str, Any]) -> Stored:
    etag = info.get("etag") or info.get("ETag")
    return Stored(key, int(info["size"]), _written(info), plain_etag(str(etag)) if etag else None)


def _written(info: dict[str, Any]) -> float | None:
    """Return when a store says that a value was written (s since the epoch); each library has a word for it."""
    for word in ("mtime", "LastModified", "last_modified", "modified", "updated", "created"):
        value = info.get(word)
        if isinstance(value, datetime):
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value).timestamp()
    return None
