"""Where imports come from, one face over both kinds: a URL, and a path of another Git repository.

An origin is what somebody names. Opened, it has a version, says what there is, and fetches it into a cache; what came
is then a `Source` in a record. Telling the two kinds apart is done by what the words look like, and Git is asked only
where a URL may be either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from mlops_cli.errors import UsageError
from mlops_cli.files import check_relative
from mlops_cli.hashing import Digest
from mlops_cli.progress import Reporter
from mlops_cli.records.sources import (
    RepoSource,
    Source,
    UrlSource,
    check_remote,
    check_repo,
    check_rev,
    check_url,
    holds_password,
    holds_secret,
)
from mlops_cli.store.batch import Batch
from mlops_cli.store.batches import open_batch
from mlops_cli.store.cache import Cache
from mlops_cli.store.judgement import safe_url
from mlops_cli.store.place import Contents, Place
from mlops_cli.store.trees import Entry, Kind, write_tree
from mlops_cli.workspace.bringing import fetch_objects
from mlops_cli.workspace.foreign import ForeignStore, Wanted, entry_of, find_wanted, named, open_store
from mlops_cli.workspace.foreign_git import Clone, find_commit, is_repository, scratch_folder
from mlops_cli.workspace.git import is_bare
from mlops_cli.workspace.snapshot import Tracked

# --- a URL ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UrlOrigin:
    """The file or folder at `url`."""

    url: str

    @property
    def name(self) -> str:
        """What it is called there."""
        return Place(self.url).name

    @property
    def place(self) -> str:
        """What people call it."""
        return safe_url(self.url)

    def is_source(self, source: Source | None) -> bool:
        """Say whether a record speaks of this URL."""
        return isinstance(source, UrlSource) and source.url == self.url

    def version(self) -> str | None:
        """Return the version that is there now; None where the place tells none."""
        return Place(self.url).look().version

    @contextmanager
    def open(self, local: Path) -> Iterator[OpenedUrl]:  # noqa: ARG002 - what comes goes to the cache at once
        """Yield what is there now."""
        place = Place(self.url)
        yield OpenedUrl(self.url, place, place.look())


class OpenedUrl:
    """What a place has."""

    def __init__(self, url: str, place: Place, contents: Contents) -> None:
        self.place = place
        self.contents = contents
        self.version = contents.version
        self.size = contents.size
        self.files: int | None = len(contents.items)
        self._url = url

    def pinned(self) -> Entry | None:
        """Return None: what bytes hash to is known when they have come."""
        return None

    def fetch(self, cache: Cache, jobs: int, reporter: Reporter) -> Entry:
        """Bring everything into `cache`."""
        with open_batch(cache) as batch:
            return self.fetch_into(batch, jobs, reporter)

    def fetch_into(self, batch: Batch, jobs: int, reporter: Reporter) -> Entry:
        """Bring everything into a batch."""
        reporter.start("importing", self.size, "bytes")
        entries: dict[str, Entry] = {}
        for item, path in self.place.bring(self.contents.items, lambda _: batch.reserve(), jobs, reporter):
            digest, size = batch.take(path)
            entries[item.path] = Entry(os.fsencode(item.path.rpartition("/")[2]), Kind.FILE, size, 1, digest)
        return _as_tree(batch, entries) if self.contents.is_folder else entries[""]

    def source(self, fetched: Digest) -> UrlSource:
        """Return what a record says of it."""
        return UrlSource(self._url, self.version, fetched)


def _as_tree(batch: Batch, entries: dict[str, Entry]) -> Entry:
    """Store the folders that hold files at these paths, the deepest first; return the topmost."""
    folders: dict[str, list[Entry]] = {"": []}
    for path, entry in entries.items():
        above = path.rpartition("/")[0]
        folders.setdefault(above, []).append(entry)
        while above and (above := above.rpartition("/")[0]) not in folders:
            folders[above] = []
    for folder in sorted(folders, key=lambda path: path.count("/") if path else -1, reverse=True):
        listing = sorted(folders[folder], key=lambda entry: entry.name)
        tree = write_tree(batch, listing, os.fsencode(folder.rpartition("/")[2]))
        if not folder:
            return tree
        folders[folder.rpartition("/")[0]].append(tree)
    raise AssertionError


# --- another repository ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RepoOrigin:
    """What `path` is in the Git repository `repo` at `rev` (None: its default branch); `remote` has its objects."""

    repo: str
    path: str
    rev: str | None = None
    remote: str | None = None

    @property
    def name(self) -> str:
        """What it is called there."""
        return self.path.rpartition("/")[2]

    @property
    def place(self) -> str:
        """What people call it."""
        return f"{self.repo} {self.path}"

    def is_source(self, source: Source | None) -> bool:
        """Say whether a record speaks of this path of this repository."""
        return isinstance(source, RepoSource) and (source.repo, source.path) == (self.repo, self.path)

    def version(self) -> str | None:
        """Return the commit that the revision is now; None when only a fetch can tell."""
        return find_commit(self.repo, self.rev)

    @contextmanager
    def open(self, local: Path) -> Iterator[OpenedRepo]:
        """Yield what is there now."""
        with scratch_folder(local / "tmp") as folder:
            with named(self.repo):  # what the caller does then is about this project again
                clone = Clone(self.repo, self.rev, folder / "clone")
                wanted = find_wanted(clone, self.repo, self.path)
                store = open_store(clone, self.repo, wanted.prefix, self.remote, local / "remotes")
                opened = OpenedRepo(self, clone, wanted, store, folder)
            yield opened


class OpenedRepo:
    """A path of another repository at a commit."""

    def __init__(self, origin: RepoOrigin, clone: Clone, wanted: Wanted, store: ForeignStore, folder: Path) -> None:
        self.version: str | None = clone.commit
        self._origin = origin
        self._clone = clone
        self._wanted = wanted
        self._store = store
        self._folder = folder
        self._entry = None if wanted.tracked is None else entry_of(store, wanted)
        self.size = None if self._entry is None else self._entry.size
        self.files: int | None = 1 if self._entry is None else self._entry.files

    def pinned(self) -> Entry | None:
        """Return what the project's records say is there; None for a file that Git has."""
        return self._entry

    def fetch(self, cache: Cache, jobs: int, reporter: Reporter) -> Entry:
        """Bring everything into `cache`."""
        if self._wanted.in_git is not None:
            return self._fetch_from_git(cache)
        assert self._wanted.tracked is not None
        assert self._entry is not None
        tracked: Tracked = self._wanted.tracked
        with named(self._origin.repo):
            fetch_objects(
                cache, self._store, [(tracked, self._wanted.part)], jobs=jobs, reporter=reporter, label="importing"
            )
        return self._entry

    def _fetch_from_git(self, cache: Cache) -> Entry:
        assert self._wanted.in_git is not None
        blob, executable = self._wanted.in_git
        path = self._folder / "file"
        self._clone.write(blob, path)
        with open_batch(cache) as batch:
            size = path.stat().st_size
            digest = batch.add_file(str(path), size, copied=True)
        return Entry(b"", Kind.EXECUTABLE if executable else Kind.FILE, size, 1, digest)

    def source(self, fetched: Digest) -> RepoSource:
        """Return what a record says of it."""
        origin = self._origin
        return RepoSource(origin.repo, origin.path, origin.rev, self._clone.commit, origin.remote, fetched)


# --- which is meant -------------------------------------------------------------------------------------------------


Origin = UrlOrigin | RepoOrigin
Opened = OpenedUrl | OpenedRepo


class Named(NamedTuple):
    """What the words of a command mean: an origin, and the path that they name here, if they do."""

    origin: Origin
    target: str | None


def read_words(
    words: tuple[str, ...],
    cwd: Path,
    *,
    rev: str | None = None,
    remote: str | None = None,
    ask: Callable[[str], bool] = is_repository,
) -> Named:
    """Return what `SOURCE [PATH [OUT]]` means; UsageError for what is no source.

    Three words, a revision or a remote are about a repository. So are two, when the first is a local repository, or is
    spelled as only Git does; of an `https://` or `ssh://` URL, `ask` tells. Otherwise the second word is a path here.
    """
    first = words[0]
    repo = rev is not None or remote is not None or len(words) > 2
    if repo and len(words) < 2:
        raise UsageError(f"`{safe_url(first)}` alone is a URL", hint="of a repository, name a path too")
    if len(words) > 1 and (repo or _is_repository(first, cwd, ask)):
        origin = make_repo_origin(first, words[1], rev, remote, cwd)
        return Named(origin, words[2] if len(words) > 2 else None)
    return Named(make_url_origin(first, cwd), words[1] if len(words) > 1 else None)


def _is_repository(text: str, cwd: Path, ask: Callable[[str], bool]) -> bool:
    protocol, separator, _ = text.partition("://")
    if not separator or protocol in ("file", "git"):
        place = _local(text, cwd)
        return protocol == "git" or (is_local_repository(place) if place.exists() else not separator and ":" in text)
    if protocol not in ("http", "https", "ssh"):
        return False
    return text.rstrip("/").endswith(".git") or ask(text)


def is_local_repository(place: Path) -> bool:
    """Say whether a folder is the top of a Git repository."""
    return os.path.lexists(place / ".git") or (is_bare(place) and (place / "HEAD").is_file())


def _local(text: str, cwd: Path) -> Path:
    try:
        path = unquote(urlsplit(text).path, errors="surrogateescape") if text.startswith("file://") else text
    except ValueError as error:
        raise UsageError(f"`{text}` is no URL", hint="as in `file:///folder/data`") from error
    return Path(os.path.normpath(cwd / Path(path).expanduser()))


def make_repo_origin(text: str, path: str, rev: str | None, remote: str | None, cwd: Path) -> RepoOrigin:
    """Return the origin that the words name; a folder as its `file://` URL."""
    place = _local(text, cwd)
    if "://" not in text and place.exists():
        text = place.as_uri()
    if remote is not None and "://" not in remote:
        remote = _local(remote, cwd).as_uri()
    try:
        check_relative(path.rstrip("/"))
        if rev is not None:
            check_rev(rev)
        if remote is not None:
            check_remote(remote)
        return RepoOrigin(check_repo(text), path.rstrip("/"), rev, remote)
    except ValueError as error:
        raise _refusal(text, error) from error


def make_url_origin(text: str, cwd: Path) -> UrlOrigin:
    """Return the origin that a URL, or a path of this machine, names."""
    if "://" not in text:
        place = _local(text, cwd)
        if not place.exists():
            raise UsageError(f"`{text}` does not exist, and is no URL", hint=f"a URL is {_SHAPE}")
        if is_local_repository(place):
            raise UsageError(f"`{text}` is a Git repository", hint="name a path in it too")
        text = place.as_uri() + "/" * place.is_dir()
    return UrlOrigin(text)


_SHAPE = "`https://host/data.csv`, `s3://bucket/folder` or the like"


def refuse_secret(origin: Origin) -> None:
    """Raise UsageError for an origin that a record must not name, because it holds a secret or is no URL at all."""
    urls = (origin.url,) if isinstance(origin, UrlOrigin) else (origin.repo, origin.remote or "")
    if (url := next(filter(holds_secret, urls), None)) is not None:
        hint = "`mlx get` it, then `mlx add` what came"
        raise UsageError(f"`{safe_url(url)}` has a signature or token, which must not be written down here", hint=hint)
    if not isinstance(origin, UrlOrigin):
        return
    try:
        check_url(origin.url)
    except ValueError as error:
        raise _refusal(origin.url, error) from error


def _refusal(text: str, error: ValueError) -> UsageError:
    if not holds_password(text):
        return UsageError(str(error))
    hint = "leave it out: credentials come from `~/.netrc`, `aws configure` and the like, or from Git's own helpers"
    return UsageError(f"`{safe_url(text)}` has a password, which must not be written down here", hint=hint)


def origin_of(source: Source, rev: str | None = None) -> Origin:
    """Return the origin that a record names; of a repository at another revision, when one is given."""
    if isinstance(source, UrlSource):
        return UrlOrigin(source.url)
    return RepoOrigin(source.repo, source.path, rev or source.rev, source.remote)
