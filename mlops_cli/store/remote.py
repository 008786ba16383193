"""Remotes: object stores that a team shares behind a URL.

A path or a `file://` URL is a `FolderRemote`. Any other URL goes through fsspec, which no other module may import and
none of whose objects leave this one; its many kinds of exceptions are turned into one sentence here. The layout is that
of a folder remote; `tmp/` serves only where a store cannot make a file appear in one step.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RemoteError
from mlops_cli.hashing import Digest, Hasher, hash_bytes, parse_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.copying import SMALL, fill, hash_stream
from mlops_cli.store.folder import MARKER, FolderRemote, check_marker, damaged_object, marker
from mlops_cli.store.loose import RUN_SIZE_LIMIT
from mlops_cli.store.objects import (
    AbsentObjects,
    Durability,
    Failures,
    ObjectStore,
    Opener,
    damaged_in_flight,
    too_large,
)
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.tree_format import TREE_LIMIT

IN_MEMORY = 8 << 20
LIST_FROM = 256
JOBS = 8
EMPTY = hash_bytes(b"")

# Stores whose PUT makes a whole object visible at once, and those whose streams are visible only when committed.
_ATOMIC_PUT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory", "http", "https"})
_COMMITTED = frozenset({"s3", "s3a", "gs", "gcs"})
_CANNOT_LIST = frozenset({"http", "https"})
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "azure", "abfs": "azure", "abfss": "azure", "adl": "azure",
    "ssh": "ssh", "sftp": "ssh",
}  # fmt: skip
_USUAL = "use a folder, or a URL that begins with `s3://`, `gs://`, `az://`, `ssh://`, `hdfs://` or `https://`"


class RemoteStore(ObjectStore, Protocol):
    """An object store with the name and the URL that the configuration gives it."""

    @property
    def name(self) -> str: ...

    @property
    def url(self) -> str: ...


def open_remote(name: str, url: str, root: Path, *, durability: Durability) -> RemoteStore:
    """Return the remote `name`; relative paths are taken from the project's `root`.

    Nothing is contacted before the first verb. RemoteError when the URL's protocol is unknown or its package is not
    installed.
    """
    protocol = url.partition("://")[0].lower() if "://" in url else ""
    if protocol in ("", "file", "local"):
        return FolderRemote(name, url, _folder_of(url, root), durability)
    filesystem, path = _connect(name, url, protocol)
    return FsspecRemote(name, url, filesystem, path, protocol)


def _folder_of(url: str, root: Path) -> Path:
    if "://" not in url:
        return Path(os.path.normpath(root / Path(url).expanduser()))
    parts = urlsplit(url)
    if parts.netloc in ("", "localhost"):
        return Path(os.path.normpath(root / unquote(parts.path)))
    return Path(os.path.normpath(root / unquote(parts.netloc + parts.path)))  # file://relative/folder


def _connect(name: str, url: str, protocol: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL and the path inside it."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(f"{protocol}://{url.partition('://')[2]}")
    except ImportError as error:
        message = f"remote `{name}` needs a package for `{protocol}://` that is missing"
        raise RemoteError(message, hint=_how_to_install(protocol, error)) from error
    except Exception as error:
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            message = f"remote `{name}`: mlx does not know the protocol `{protocol}://`"
            raise RemoteError(message, hint=_USUAL) from error
        raise _translate(error, f"reach remote `{name}` (`{url}`)", name) from error
    return filesystem, str(path).rstrip("/")


def _how_to_install(protocol: str, error: ImportError) -> str:
    """Return the command that brings what a protocol needs, as far as it can be told, and what fsspec says of it."""
    from fsspec.registry import known_implementations

    if extra := _EXTRAS.get(protocol):
        return f"`pip install 'mlops-cli[{extra}]'`"
    words = known_implementations.get(protocol, {}).get("err") or str(error)
    cause = error if error.name else error.__cause__
    module = (cause.name or "").partition(".")[0] if isinstance(cause, ModuleNotFoundError) else ""
    return f"`pip install {module}`; fsspec says: {words}" if module else f"fsspec says: {words}"


def _translate(error: Exception, doing: str, name: str) -> RemoteError:
    """Return one sentence for any exception of fsspec or of the many libraries behind it."""
    kind = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return RemoteError(f"cannot {doing}: it does not exist", hint="check its URL: `mlx remote list`")
    if any(word in kind for word in ("Permission", "Credential", "Auth", "Forbidden")):
        hint = "check the credentials this machine uses for it: environment, profile or key"
        return RemoteError(f"cannot {doing}: permission denied or no credentials ({kind})", hint=hint)
    lines = str(error).strip().splitlines() or [kind]
    return RemoteError(f"cannot {doing}: {lines[0][:200]}", hint=f"`mlx doctor` tells how `{name}` answers")


class FsspecRemote:
    """A remote behind any URL that fsspec can open."""

    parallel = JOBS

    def __init__(self, name: str, url: str, filesystem: Any, path: str, protocol: str) -> None:
        self.name = name
        self.url = url
        self.label = f"remote `{name}`"
        self._files = filesystem
        self._path = path
        self._protocol = protocol
        self._made: set[str] = set()
        self._looked = False
        self._marked = False

    def missing(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of `digests` that are not here: by listing for many, by asking for few."""
        wanted = set(digests)
        with self._telling("look for objects in"):
            self._look()
            if len(wanted) > LIST_FROM and self._protocol not in _CANNOT_LIST:
                self._files.invalidate_cache()
                shards = sorted({digest[7:9] for digest in wanted})
                for present in map_bounded(self._list_shard, shards, JOBS):
                    wanted.difference_update(present)
                return wanted
            asked = sorted(wanted)
            return {
                digest for digest, found in zip(asked, map_bounded(self._has, asked, JOBS), strict=True) if not found
            }

    def read(self, digest: Digest, *, limit: int | None = TREE_LIMIT) -> bytes:
        """Return an object's bytes, verified; MissingObject, or CorruptObject, also for more than `limit` bytes."""
        with self.open(digest) as stream:
            data = stream.read(-1 if limit is None else limit + 1)
        if limit is not None and len(data) > limit:
            raise too_large(digest, limit)
        self._verify(digest, hash_bytes(data))
        return data

    def open(self, digest: Digest) -> BinaryIO:
        """Return a stream of an object's bytes, not verified; MissingObject."""
        path = self._object(digest)
        with self._telling("read from"):
            self._look()
        if digest == EMPTY:  # a range of no bytes cannot be asked for
            self._measure(path, digest)
            return io.BytesIO()
        ranges = _Ranges(partial(self._fetch, path, digest), partial(self._measure, path, digest))
        return cast("BinaryIO", io.BufferedReader(ranges, SMALL))

    def _fetch(self, path: str, digest: Digest, start: int, end: int) -> bytes:
        with self._telling("read from"):
            try:
                return bytes(self._files.cat_file(path, start=start, end=end))
            except FileNotFoundError:
                raise self._absent(digest) from None

    def _measure(self, path: str, digest: Digest) -> int:
        with self._telling("read from"):
            try:
                return int(self._files.info(path)["size"])
            except FileNotFoundError:
                raise self._absent(digest) from None

    def _absent(self, digest: Digest) -> AbsentObjects:
        return AbsentObjects([digest], self.label, hint="`mlx push` it from a clone that has it")

    def check(self, digest: Digest) -> None:
        """Read an object to its end; MissingObject or CorruptObject unless its bytes hash to `digest`."""
        with self.open(digest) as stream:
            found = hash_stream(stream)
        self._verify(digest, found)

    def list(self) -> Iterator[Digest]:
        """Yield every digest here, in no order; what is not named like an object is passed over."""
        with self._telling("list"):
            self._look()
            self._files.invalidate_cache()
            paths = self._files.find(f"{self._path}/objects")
        for path in paths:
            folder, _, rest = str(path).rpartition("/")
            with suppress(ValueError):
                yield parse_digest(f"blake3:{folder[-2:]}{rest}")

    def read_run(self, key: str) -> bytes | None:
        """Return the run record stored under a fingerprint, or None."""
        path = self._run(key)
        with self._telling("read a run record from"):
            self._look()
            try:
                data = bytes(self._files.cat_file(path, start=0, end=RUN_SIZE_LIMIT + 1))
            except FileNotFoundError:
                return None
        return data if len(data) <= RUN_SIZE_LIMIT else None

    def list_runs(self) -> Iterator[str]:
        """Yield the fingerprints that have a run record."""
        with self._telling("list"):
            self._look()
            self._files.invalidate_cache()
            names = self._names(f"{self._path}/runs")
        for name in names:
            if name.endswith(".yaml") and name[:-5].isalnum():
                yield name[:-5]

    def write(self, objects: Iterable[tuple[Digest, Opener]], *, reporter: Reporter = SILENT, jobs: int = 0) -> int:
        """Send objects, verified in flight; return the bytes sent. Each is whole and visible, or not there."""
        self._prepare()
        failures = Failures()
        total = told = 0

        def send(item: tuple[Digest, Opener]) -> int:
            try:
                return self._send(*item)
            except (MissingObject, CorruptObject) as error:
                failures.add(item[0], error)
                return 0

        try:
            for size in map_bounded(send, objects, jobs or self.parallel):
                total += size
                if total - told >= IN_MEMORY:
                    reporter.advance(total - told)
                    told = total
        finally:
            reporter.advance(total - told)
        failures.raise_any()
        return total

    def delete(self, digests: Iterable[Digest]) -> None:
        """Remove objects; those that are not here already are no error."""
        with self._telling("remove objects from"):
            for _ in map_bounded(self._remove, map(self._object, digests), JOBS):
                pass

    def write_run(self, key: str, data: bytes) -> None:
        """Store a run record under its fingerprint, replacing what was there."""
        path = self._run(key)
        self._prepare()
        with self._telling("write a run record to"):
            self._put(path, data)

    def _send(self, digest: Digest, opener: Opener) -> int:
        with opener() as stream:
            first = stream.read(IN_MEMORY)
            while len(first) < IN_MEMORY and (more := stream.read(IN_MEMORY - len(first))):
                first += more
            if len(first) == IN_MEMORY:
                return self._send_large(digest, first, stream)
        found = hash_bytes(first)
        if found != digest:
            raise damaged_in_flight(digest, found)
        with self._telling("write to"):
            self._put(self._object(digest), first)
        return len(first)

    def _send_large(self, digest: Digest, first: bytes, stream: BinaryIO) -> int:
        """Stream an object to where it is not visible yet, and make it visible once its digest is right."""
        committed = self._protocol in _COMMITTED
        path = self._object(digest)
        with self._telling("write to"):
            goal = path if committed else self._temporary()
            target = self._files.open(goal, "wb", autocommit=False) if committed else self._files.open(goal, "wb")
            try:
                size = _pour(digest, first, stream, target)
            except BaseException:
                with suppress(Exception):
                    target.close()
                with suppress(Exception):
                    target.discard() if committed else self._files.rm_file(goal)
                raise
            target.close()
            if committed:
                target.commit()
            else:
                self._move(goal, path)
        return size

    def _put(self, path: str, data: bytes) -> None:
        """Make a small file appear in one step."""
        if self._protocol in _ATOMIC_PUT:
            self._files.pipe_file(path, data)
            return
        temporary = self._temporary()
        try:
            self._files.pipe_file(temporary, data)
            self._move(temporary, path)
        except BaseException:
            with suppress(Exception):
                self._files.rm_file(temporary)
            raise

    def _move(self, temporary: str, path: str) -> None:
        self._make_folder(path.rpartition("/")[0])
        self._files.mv(temporary, path)

    def _temporary(self) -> str:
        folder = f"{self._path}/tmp"  # noqa: S108 - in the store, not the system's folder
        self._make_folder(folder)
        return f"{folder}/{os.urandom(16).hex()}"

    def _make_folder(self, folder: str) -> None:
        if folder not in self._made:
            self._files.makedirs(folder, exist_ok=True)
            self._made.add(folder)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._files.rm_file(path)

    def _object(self, digest: Digest) -> str:
        return f"{self._path}/objects/{digest[7:9]}/{digest[9:]}"

    def _run(self, key: str) -> str:
        if not key.isalnum() or not key.isascii():
            raise ValueError(f"`{key}` is not a fingerprint")
        return f"{self._path}/runs/{key}.yaml"

    def _has(self, digest: Digest) -> bool:
        try:
            self._files.info(self._object(digest))
        except FileNotFoundError:
            return False
        return True

    def _list_shard(self, shard: str) -> Sequence[str]:
        return [f"blake3:{shard}{name}" for name in self._names(f"{self._path}/objects/{shard}")]

    def _names(self, folder: str) -> Sequence[str]:
        try:
            paths = self._files.ls(folder, detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in paths]

    def _verify(self, digest: Digest, found: Digest) -> None:
        if found != digest:
            raise damaged_object(digest, found, self.label, self._object(digest))

    def _look(self) -> None:
        """Check, once, that this code understands the remote's layout; one that holds nothing yet passes."""
        if self._looked:
            return
        try:
            data = self._files.cat_file(f"{self._path}/{MARKER}", start=0, end=4096)
        except FileNotFoundError:
            self._looked = True
            return
        check_marker(data, self.name)
        self._looked = self._marked = True

    def _prepare(self) -> None:
        with self._telling("write to"):
            self._look()
            if not self._marked:
                self._put(f"{self._path}/{MARKER}", marker())
                self._marked = True

    @contextmanager
    def _telling(self, doing: str) -> Iterator[None]:
        """Turn whatever the libraries behind this remote raise into a RemoteError that names it."""
        try:
            yield
        except MlxError:
            raise
        except Exception as error:
            raise _translate(error, f"{doing} {self.label} (`{self.url}`)", self.name) from error


class _Ranges(io.RawIOBase):
    """An object read in ranges: a small one with one request, a large one in bounded memory."""

    def __init__(self, fetch: Callable[[int, int], bytes], measure: Callable[[], int]) -> None:
        super().__init__()
        self._fetch = fetch
        self._measure = measure
        self._position = 0
        self._size: int | None = None
        self._piece = memoryview(b"")
        self._advance()  # so that an object that is not there is found missing when it is opened

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._piece:
            self._advance()
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count

    def _advance(self) -> None:
        if self._size is not None and self._position >= self._size:
            return
        data = self._fetch(self._position, self._position + IN_MEMORY)
        self._piece = memoryview(data)
        self._position += len(data)
        if len(data) != IN_MEMORY:
            self._size = self._position  # the end, or a server that sends everything whatever the range
        elif self._size is None:
            self._size = self._measure()


def _pour(digest: Digest, first: bytes, stream: BinaryIO, target: Any) -> int:
    """Write a stream to an fsspec file; return its size, or raise CorruptObject when it is not `digest`."""
    hasher = Hasher()
    hasher.update(first)
    target.write(first)
    total = len(first)
    buffer = memoryview(bytearray(SMALL))
    while filled := fill(stream, buffer):
        hasher.update(buffer[:filled])
        target.write(bytes(buffer[:filled]))
        total += filled
    if hasher.digest() != digest:
        raise damaged_in_flight(digest, hasher.digest())
    return total
