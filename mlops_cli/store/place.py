"""A place that is no remote: a file, or the files of a folder, behind any URL that buckets speak.

What is there now is looked at first (`look`): which files, and one text that stands for their version. Then the files
are brought, one by one or several at once, each whole or not at all. A place knows names and bytes; who may run a file,
links and empty folders it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mlops_cli.errors import RemoteError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, check_relative
from mlops_cli.hashing import fingerprint
from mlops_cli.progress import Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.objects import Durability
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.wire import Hints, WireBucket, safe_url

_HINTS = Hints("check its URL", "check its URL and the network", "run the same command again")
_UNQUOTED = frozenset({"http", "https", "ssh", "sftp", "webdav", "webdavs", "dav", "davs", "file", "local"})
_WEB = frozenset({"http", "https"})
_OWN = _UNQUOTED | {"s3", "s3a"}


class Item(NamedTuple):
    """One file: its path below the place (empty for a lone file), its key, and its bytes (-1: not told)."""

    path: str
    key: str
    size: int


class Contents(NamedTuple):
    """What a place has now; `version` is None where nothing tells one version from another."""

    items: tuple[Item, ...]
    is_folder: bool
    version: str | None

    @property
    def size(self) -> int | None:
        """Bytes in all, None where they are not told."""
        return None if any(item.size < 0 for item in self.items) else sum(item.size for item in self.items)


class Place:
    """What is behind a URL; nothing is contacted before the first verb."""

    def __init__(self, url: str, *, patience: float | None = None) -> None:
        protocol, _, rest = url.partition("://")
        protocol = protocol.lower()
        path = urlsplit(url).path if protocol in _UNQUOTED else rest.partition("?")[0] if protocol in _OWN else rest
        name = path.rstrip("/").rpartition("/")[2]
        if protocol in _UNQUOTED:
            name = unquote(name)
        self.url = safe_url(url)
        if "/" in name or name in (".", ".."):
            raise UsageError(f"`{self.url}` does not end in a name", hint="name a file or a folder")
        self.name = name
        self._must_be_folder = path.endswith("/")
        if "::" in url and protocol not in _OWN:
            raise UsageError(f"`{self.url}` is a chain of places", hint="name the one that has the data")
        if protocol in _WEB:
            from mlops_cli.store.web_bucket import WebBucket  # noqa: PLC0415 - loads what few commands need

            self.bucket: Bucket = WebBucket(self.url, url)
        else:
            if not name or "/" not in rest.rstrip("/"):
                raise UsageError(f"`{self.url}` names a whole store", hint="name a file or a folder in it")
            above = url[: len(url.rstrip("/")) - len(url.rstrip("/").rpartition("/")[2])]
            self.bucket = open_bucket(self.url, above.rstrip("/") or above, Path("/"), durability=Durability.NONE)
        self.bucket.label = "its source"
        if isinstance(self.bucket, WireBucket):
            self.bucket.hints = _HINTS
            if patience is not None:
                self.bucket.patience = patience

    def look(self) -> Contents:
        """Return what is there; RemoteError when nothing is, or when it cannot be a folder of files."""
        try:
            return self._look()
        except RemoteError as error:  # buckets take it for a remote of that name
            hint = _HINTS.no_place if "`mlx remote" in (error.marked_hint or "") else error.marked_hint
            raise RemoteError(error.message.replace("remote `", "`"), hint=hint) from error

    def _look(self) -> Contents:
        found = None if self._must_be_folder and self.bucket.lists else self.bucket.stat(self.name)
        if found is not None:
            return Contents((Item("", self.name, found.size),), False, version_of(found))
        listed = self.bucket.list(self.name) if self.bucket.lists else ()
        below = {item.key: item for item in listed if item.key.startswith(f"{self.name}/")}
        files = _without_markers([below[key] for key in sorted(below)])
        if not files:
            raise RemoteError(f"there is nothing at `{self.url}`", hint="check its spelling, and that you may read it")
        cut = len(self.name) + 1
        items = tuple(Item(self._checked(file.key[cut:]), file.key, file.size) for file in files)
        return Contents(items, True, _version_of_all([(file.key[cut:], file) for file in files]))

    def _checked(self, path: str) -> str:
        try:
            if any(part.startswith(TEMPORARY_PREFIX) for part in path.split("/")):
                raise ValueError(f"path `{path}` has a name for files that mlx is writing")
            return check_relative(path)
        except ValueError as error:
            raise RemoteError(f"`{self.url}` has a file whose name no folder can have: {error}") from error

    def bring(
        self, items: Sequence[Item], target: Callable[[Item], str], jobs: int, reporter: Reporter
    ) -> Iterator[tuple[Item, str]]:
        """Yield each of `items` with the new file `target` named for it, in order; the reporter advances by bytes.

        RemoteError for one that is gone, or of another size than it was.
        """
        fetch = partial(self._fetch, target=target)
        for item, path, size in map_bounded(fetch, items, jobs or self.bucket.parallel):
            reporter.advance(size)
            yield item, path

    def _fetch(self, item: Item, target: Callable[[Item], str]) -> tuple[Item, str, int]:
        path = target(item)
        what = f"`{self.url}{'/' * bool(item.path)}{item.path}`"
        try:
            size = self.bucket.get_file(item.key, path)
        except AbsentKey:
            raise RemoteError(f"{what} went away meanwhile", hint="run the same command again") from None
        if item.size not in (-1, size):
            raise RemoteError(
                f"{what} had {item.size:,} bytes, and {size:,} came: it changed meanwhile, or was cut short",
                hint="run the same command again",
            )
        return item, path, size


def version_of(stored: Stored) -> str | None:
    """Return what stands for a file's version: the name that its store has for it, else when it was written."""
    if stored.etag:
        return stored.etag
    if stored.modified is None:
        return None
    moment = datetime.fromtimestamp(stored.modified, UTC).isoformat().replace("+00:00", "Z")
    return f"{moment}/{stored.size}"


def _version_of_all(files: Sequence[tuple[str, Stored]]) -> str | None:
    versions = [(path, file.size, version_of(file)) for path, file in files]
    if any(version is None for _, _, version in versions):
        return None
    return f"listing:{fingerprint(versions)}"


def _without_markers(files: Sequence[Stored]) -> list[Stored]:
    """Return the files without the empty ones by which some tools mark a folder; RemoteError for a file that is one."""
    folders = {above for file in files for above in _folders(file.key)}
    kept = []
    for file in files:
        if file.key not in folders:
            kept.append(file)
        elif file.size:
            raise RemoteError(f"`{file.key}` is both a file and a folder there", hint="import what is in it by name")
    return kept


def _folders(key: str) -> Iterator[str]:
    at = key.find("/")
    while at >= 0:
        yield key[:at]
        at = key.find("/", at + 1)
