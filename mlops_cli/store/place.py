"""A place that is no remote: a file, or the files of a folder, behind any URL that buckets speak.

What is there now is looked at first (`look`): which files, and one text that stands for their version. Then the files
are brought, one by one or several at once, each whole or not at all. A place knows names and bytes; who may run a file,
links and empty folders it does not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mlops_cli.errors import RemoteError, UsageError
from mlops_cli.files import TEMPORARY_PREFIX, check_relative
from mlops_cli.hashing import fingerprint
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.bucket import AbsentKey, Bucket, Stored
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.judgement import safe_url
from mlops_cli.store.objects import Durability
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.wire import SILENCE, Hints, WireBucket

_HINTS = Hints("check its URL", "check its URL and the network", "run the same command again")
_UNQUOTED = frozenset({"http", "https", "ssh", "sftp", "webdav", "webdavs", "dav", "davs", "file", "local"})
_WEB = frozenset({"http", "https"})
_OWN = _UNQUOTED | {"s3", "s3a"}
_LONGEST = 256  # characters of a version that is written down as it is


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
    """What is behind a URL; nothing is contacted before the first verb. A web server may be silent for `silence` s."""

    def __init__(self, url: str, *, patience: float | None = None, silence: float = SILENCE) -> None:
        protocol, _, rest = url.partition("://")
        protocol = protocol.lower()
        self.url = safe_url(url)
        path = (
            _path_of(self.url, url) if protocol in _UNQUOTED else rest.partition("?")[0] if protocol in _OWN else rest
        )
        name = path.rstrip("/").rpartition("/")[2]
        if protocol in _UNQUOTED:
            name = unquote(name, errors="surrogateescape")
        if "/" in name or name in (".", ".."):
            raise UsageError(f"`{self.url}` does not end in a name", hint="name a file or a folder")
        self.name = name
        self._must_be_folder = path.endswith("/")
        if "::" in url and protocol not in _OWN:
            raise UsageError(f"`{self.url}` is a chain of places", hint="name the one that has the data")
        if protocol in _WEB:
            from mlops_cli.store.web_bucket import WebBucket  # noqa: PLC0415 - loads what few commands need

            self.bucket: Bucket = WebBucket(self.url, url, silence=silence)
        else:
            if not name or "/" not in rest.rstrip("/"):
                raise UsageError(f"`{self.url}` names a whole store", hint="name a file or a folder in it")
            above = url[: len(url.rstrip("/")) - len(url.rstrip("/").rpartition("/")[2])]
            if not above.endswith(":///"):  # as of a folder at the very top of this machine
                above = above.rstrip("/")
            self.bucket = open_bucket(self.url, above, Path("/"), durability=Durability.NONE)
        self.bucket.label = "its source"
        if isinstance(self.bucket, WireBucket):
            self.bucket.hints = _HINTS
            if patience is not None:
                self.bucket.patience = patience

    def look(self) -> Contents:
        """Return what is there; RemoteError when nothing is, or when it cannot be a folder of files."""
        with _no_remote():
            return self._look()

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

        It does so while a lone file comes. RemoteError for one that is gone, or of another size than it was.
        """
        coming = _Coming(self.url, reporter if len(items) == 1 else SILENT)
        self.bucket.traffic.watcher = coming.watch
        self.bucket.traffic.listener = reporter.note
        fetch = partial(self._fetch, target=target, coming=coming)
        for item, path, size in map_bounded(fetch, items, min(jobs or self.bucket.parallel, len(items))):
            reporter.advance(max(size - coming.told, 0))
            yield item, path

    def _fetch(self, item: Item, target: Callable[[Item], str], coming: _Coming) -> tuple[Item, str, int]:
        path = target(item)
        coming.items[path] = item
        try:
            with _no_remote():
                size = self.bucket.get_file(item.key, path)
        except AbsentKey:
            what = coming.name_of(item)
            raise RemoteError(f"{what} went away meanwhile", hint="run the same command again") from None
        finally:
            del coming.items[path]
        if item.size not in (-1, size):
            raise RemoteError(
                f"{coming.name_of(item)} had {item.size:,} bytes, and {size:,} came: "
                "it changed meanwhile, or was cut short",
                hint="run the same command again",
            )
        return item, path, size


@contextmanager
def _no_remote() -> Iterator[None]:
    """Say of errors what they are: buckets take every place for a remote."""
    try:
        yield
    except RemoteError as error:
        hint = _HINTS.no_place if "`mlx " in (error.marked_hint or "") else error.marked_hint
        raise RemoteError(error.message.replace("remote `", "`"), hint=hint) from error


class _Coming:
    """The files that are under way: none gets more bytes than it had, and the reporter hears of each piece."""

    def __init__(self, url: str, reporter: Reporter) -> None:
        self.items: dict[str, Item] = {}
        self.told = 0
        self._url = url
        self._reporter = reporter

    def name_of(self, item: Item) -> str:
        """Return what people call a file."""
        return f"`{self._url}{'/' * bool(item.path)}{item.path}`"

    def watch(self, path: str, size: int) -> None:
        """See that the file at `path` has `size` bytes now; RemoteError when these are more than it had."""
        item = self.items[path]
        if 0 <= item.size < size:
            message = f"{self.name_of(item)} had {item.size:,} bytes, and more came: it changed meanwhile"
            raise RemoteError(message, hint="run the same command again")
        if self._reporter is not SILENT and size > self.told:  # from the start again, it tells nothing twice
            self._reporter.advance(size - self.told)
            self.told = size


def version_of(stored: Stored) -> str | None:
    """Return what stands for a file's version: the name that its store has for it, else when it was written."""
    if stored.etag:
        return stored.etag if len(stored.etag) <= _LONGEST else f"long:{fingerprint(stored.etag)}"
    if stored.modified is None:
        return None
    try:
        moment = datetime.fromtimestamp(stored.modified, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # in no year that calendars know
        moment = f"{stored.modified:.6f}"
    return f"{moment}/{stored.size}"


def _path_of(name: str, url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError as error:
        raise UsageError(f"`{name}` is no URL: {str(error).lower()}", hint="as in `https://host/data.csv`") from error


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
