"""The mlx project of another Git repository, as it was at a commit: what it tracks, and where the bytes are.

Its records are read as ours are, and believed as little: what they name is verified by its digest when it comes. Its
settings may name places of this machine; those are looked into only when its repository is on this machine itself.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import MissingObject, MlxError, UsageError
from mlops_cli.hashing import Digest, fingerprint
from mlops_cli.progress import Reporter
from mlops_cli.records import config as settings
from mlops_cli.records.sources import check_remote, is_remote, is_remote_repository
from mlops_cli.store.buckets import folder_of, open_bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import AbsentObjects, Durability
from mlops_cli.store.remote import Remote, Transferred
from mlops_cli.store.trees import Entry
from mlops_cli.words import spelled
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.foreign_git import Clone, InGit
from mlops_cli.workspace.git import find_checkout
from mlops_cli.workspace.ignore import NAME as IGNORE
from mlops_cli.workspace.project import CONFIG, load_project
from mlops_cli.workspace.reach import find_part
from mlops_cli.workspace.snapshot import Snapshot, Tracked, select

_RECORD = re.compile(rf"(?:.*/)?(?:[^/]*\.mlx|mlx\.yaml|mlx\.lock/[^/]*\.yaml|{re.escape(CONFIG)}|{re.escape(IGNORE)})")


class ForeignFiles(NamedTuple):
    """The files of a clone below `prefix`."""

    clone: Clone
    prefix: str

    def paths(self) -> Sequence[str]:
        """Return every file's path, relative to the project, sorted."""
        cut = len(self.prefix)
        return sorted(path[cut:] for path in self.clone.files if path.startswith(self.prefix))

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None when it is not there."""
        found = self.clone.files.get(self.prefix + path)
        return None if found is None else self.clone.read(found.blob)


class Wanted(NamedTuple):
    """What a path of another repository is: something its project tracks (or a part of it), or a file in its Git."""

    tracked: Tracked | None
    part: str
    in_git: InGit | None
    prefix: str


def find_wanted(clone: Clone, repo: str, path: str) -> Wanted:
    """Return what `path` (from the repository's top) is; UsageError when it is nothing that can be imported."""
    prefix = _prefix_of(clone, path)
    if prefix is not None:
        wanted = path.removesuffix(".mlx")[len(prefix) :]
        tracked, wrong = _read_records(clone, prefix)
        chosen: Sequence[tuple[Tracked, str]] = ()
        with suppress(UsageError):  # nothing tracks it: it may still be a file in Git
            chosen = [pair for pair in select(tracked, [wanted]) if not pair[0].git]
        if len(chosen) == 1 and not chosen[0][0].path.startswith(f"{wanted}/"):
            return Wanted(*chosen[0], None, prefix)
        if chosen:
            held = ", ".join(f"`{prefix}{entry.path}`" for entry, _ in chosen[:3])
            message = f"`{path}` of `{repo}` is not tracked itself, only what it holds: {held}"
            raise UsageError(message, hint="import what it holds by name")
        if wrong and path not in clone.files:
            own = f"{wanted}.mlx:"
            error = next((error for error in wrong if f"{error.message}:".startswith(own)), wrong[0])
            raise UsageError(f"in `{repo}`: {error.message}", hint="it cannot be read: tell whom it belongs to")
    if path in clone.files:
        return Wanted(None, "", clone.files[path], prefix or "")
    what = "is a folder in Git, and nothing tracks it" if _is_folder(clone, path) else "is not there"
    hint = "import single files of Git, or what its mlx project tracks"
    raise UsageError(f"`{path}` of `{repo}` at {clone.commit[:10]} {what}", hint=hint)


def _read_records(clone: Clone, prefix: str) -> tuple[Sequence[Tracked], Sequence[MlxError]]:
    """Return what the project at `prefix` tracks, and what is wrong with records of it; they come in one fetch."""
    names = [name for name in clone.files if name.startswith(prefix) and _RECORD.fullmatch(name)]
    clone.read_ahead([clone.files[name].blob for name in names])
    return Snapshot(ForeignFiles(clone, prefix)).readable()


def _prefix_of(clone: Clone, path: str) -> str | None:
    """Return the folder (empty, or with a slash) of the innermost project that holds `path`; None without one."""
    roots = [name.removesuffix(CONFIG) for name in clone.files if name == CONFIG or name.endswith(f"/{CONFIG}")]
    return max((root for root in roots if path.startswith(root)), key=len, default=None)


def _is_folder(clone: Clone, path: str) -> bool:
    return any(name.startswith(f"{path}/") for name in clone.files)


class ForeignStore:
    """Where the objects of another project are: its cache, when that is here, then its remote, when it has one."""

    def __init__(self, repo: str, cache: Cache | None, remote: Remote | None, trouble: MlxError | None) -> None:
        self._repo = repo
        self._cache = cache
        self._remote = remote
        self._trouble = trouble

    def bring(self, cache: Cache, digests: Collection[Digest], *, jobs: int = 0, reporter: Reporter) -> Transferred:
        """Bring those of `digests` that `cache` lacks into it, verified; MissingObject, CorruptObject, RemoteError."""
        lacking = cache.missing(digests)
        objects = size = 0
        if self._cache is not None and lacking:
            here = lacking - self._cache.missing(lacking)
            size = cache.write(((digest, partial(self._cache.open, digest)) for digest in here), reporter=reporter)
            objects, lacking = len(here), lacking - here
        if not lacking:
            return Transferred(objects, size)
        if self._remote is None:
            raise self._absent()
        self._remote.bucket.traffic.listener = reporter.note
        try:
            more = self._remote.bring(cache, lacking, jobs=jobs, reporter=reporter)
        except AbsentObjects as error:
            raise self._absent() from error
        return Transferred(objects + more.objects, size + more.bytes)

    def read(self, digest: Digest) -> bytes:
        """Return a tree, verified."""
        if self._cache is not None and not self._cache.missing([digest]):
            return self._cache.read(digest)
        if self._remote is None:
            raise self._absent()
        try:
            return self._remote.read(digest)
        except AbsentObjects as error:
            raise self._absent() from error

    def _absent(self) -> MlxError:
        if self._trouble is not None:
            return self._trouble
        where = self._remote.label if self._remote is not None else "its cache"
        hint = "`mlx push` there, at that commit, or name another place with `--remote URL`"
        return MissingObject(f"{where} has not all of what `{self._repo}` records", hint=hint)


def open_store(clone: Clone, repo: str, prefix: str, remote: str | None, kept: Path) -> ForeignStore:
    """Return where the objects of the project at `prefix` are; `remote` is the URL that the user says, if any.

    `kept` is a folder for what need not be asked twice.
    """
    if remote is not None:
        return ForeignStore(repo, None, _open_remote(repo, remote, Path("/"), kept), None)
    files = ForeignFiles(clone, prefix)
    values = settings.read_config(files.read(CONFIG) or b"mlx: 1\n", f"{repo}: {prefix}{CONFIG}")
    config = settings.resolve([settings.Layer(repo, values)])
    name = config.core_remote or next(iter(config.remotes), None)
    url = config.remotes[name].url if name is not None and name in config.remotes else None
    top = None if is_remote_repository(repo) else folder_of(repo, Path("/"))
    cache = None if top is None else _find_cache(top, prefix)
    if url is None:
        hint = "`mlx remote add` there, or name a place with `--remote URL`"
        trouble = UsageError(f"the project of `{repo}` has no remote", hint=hint)
        return ForeignStore(repo, cache, None, trouble)
    if is_remote(url):
        try:
            check_remote(url)
        except ValueError as error:
            raise UsageError(f"the remote of `{repo}`: {error}", hint="tell whom it belongs to") from error
    elif top is None or (_is_bare(top) and not _is_absolute(url)):
        hint = "`--remote URL` says where that is, seen from here"
        trouble = UsageError(f"the remote of `{repo}` is `{url}`, a folder where that project is", hint=hint)
        return ForeignStore(repo, cache, None, trouble)
    return ForeignStore(repo, cache, _open_remote(repo, url, (top or Path("/")) / prefix, kept), None)


def _is_absolute(url: str) -> bool:
    return "://" in url or Path(url).expanduser().is_absolute()


def _is_bare(top: Path) -> bool:
    return find_checkout(top) is None


def _open_remote(repo: str, url: str, root: Path, kept: Path) -> Remote:
    bucket = open_bucket(f"of {repo}", url, root, durability=Durability.NONE)
    bucket.label = f"the remote of `{repo}`"
    return Remote(bucket, str(kept / fingerprint(str(root) + url)))


def _find_cache(top: Path, prefix: str) -> Cache | None:
    """Return the cache of a repository of this machine, as its settings say now; None when there is none."""
    checkout = find_checkout(top)
    if checkout is None:
        place = top / "mlx" / "cache"
    else:
        place = checkout.common_dir / "mlx" / "cache"
        with suppress(MlxError):
            place = load_project(top / prefix, checkout, {"HOME": str(Path.home())}).cache.root
    return Cache(place, link=LinkMode.COPY, durability=Durability.NONE) if place.is_dir() else None


def entry_of(store: ForeignStore, wanted: Wanted) -> Entry:
    """Return the entry that is wanted, of a part after reading what is above; UsageError when it is not there."""
    assert wanted.tracked is not None
    return find_part(store, wanted.tracked, wanted.part) if wanted.part else as_entry(wanted.tracked)


@contextmanager
def named(repo: str) -> Iterator[None]:
    """Say in errors about another project's records whose they are."""
    try:
        yield
    except UsageError as error:
        if repo in error.message:
            raise
        hint = error.marked_hint and spelled(error.marked_hint)  # its paths are not of the project that is told
        hint = f"there, {hint}" if hint and hint.startswith("`mlx ") else hint
        raise type(error)(f"in `{repo}`: {error.message}", hint=hint) from error
