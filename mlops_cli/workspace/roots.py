"""What must stay in a cache: every object that some project which uses it names, wherever it names it.

A root is a digest in a record. Records are looked for in all that Git can still reach (refs, reflogs, stashes, indices,
merges in progress), in the files of every worktree, in the journals of runs, and in the run cache while an entry is
young. What cannot be read might name anything, so it is an error, never a gap: only `salvage` passes over it, and keeps
every digest that its bytes spell.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mlops_cli.errors import CorruptObject, Inconclusive, MissingObject, OutsideError, RecordError
from mlops_cli.files import POLL_SECONDS, TEMPORARY_PREFIX, translate_os_error
from mlops_cli.hashing import Digest, hash_bytes, parse_digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.locks import Input, OutputRecord, read_lock
from mlops_cli.records.pointers import SUFFIX, ObjectKind, is_meant, read_pointer
from mlops_cli.store.cache import Cache
from mlops_cli.store.contents import Run
from mlops_cli.store.links import object_at
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.store.trees import Kind
from mlops_cli.workspace import git, repository
from mlops_cli.workspace.clients import has_links, is_there, list_registered
from mlops_cli.workspace.reach import children
from mlops_cli.workspace.snapshot import WorkspaceFiles

_DIGEST = re.compile(rb"blake3:[0-9a-f]{64}(?![0-9a-f])")
_CONFLICT = re.compile(rb"^<{7} ", re.MULTILINE)
# Outputs of a run record may lie above the folder of its stage, which it does not name: any deep one will do.
_DEEP = "/".join(["x"] * 64)
_GIT_WRITES_SECONDS = 5.0  # that long a record may be half written while Git checks another commit out


class Source(StrEnum):
    """Where a record was found."""

    HISTORY = "history"
    INDEX = "index"
    WORKSPACE = "workspace"
    JOURNAL = "journal"
    RUNS = "runs"


@dataclass(slots=True)
class Needed:
    """The objects that must stay, as 32-byte digests; `records` counts, per source, the records that were read.

    `locks` are digests of whole lock records, to recognise run records.
    """

    objects: set[bytes] = field(default_factory=set)
    records: Counter[Source] = field(default_factory=Counter)
    locks: set[bytes] = field(default_factory=set)


class Marker:
    """Finds what must stay in `cache`, and again, later, what has come since: what was read once is not read twice.

    `common_dir` is the Git directory of the clone that asks, and `top` the checkout.
    """

    def __init__(
        self,
        cache: Cache,
        common_dir: Path,
        top: Path,
        *,
        allow_shallow: bool = False,
        salvage: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        self.needed = Needed()
        self.projects: tuple[str, ...] = ()
        self._cache = cache
        self._common_dir = common_dir
        self._top = top
        self._allow_shallow = allow_shallow
        self._salvage = salvage
        self._reporter = reporter
        self._tips: dict[Path, set[str]] = {}
        self._blobs: set[tuple[str, bool]] = set()  # and whether it is a lock
        self._read: set[tuple[str, bytes]] = set()
        self._entered: set[bytes] = set()  # trees
        self._absent: dict[Digest, str] = {}  # trees that are not here, and the record that needs each
        self._noted: set[str] = set()

    def look(self) -> None:
        """Add what the projects need now; Inconclusive, OutsideError, RecordError or CorruptObject if not all is known.

        An object that is not here is no error: it may be on a remote.
        """
        waiting, self._absent = self._absent, {}
        for digest, name in waiting.items():
            self._mark_all([(digest, True)], name)
        clones = [self._common_dir]
        registered = list_registered(self._cache)
        for project in registered:
            if not is_there(project):
                raise Inconclusive(
                    f"the project `{project.root}` uses this cache, and is gone from disk: what it needs is unknown",
                    hint=f"bring it back, or, if it is gone for good, `mlx gc --forget {project.root}`",
                )
            clones.append(Path(project.git_dir))
        self.projects = tuple(sorted({project.root for project in registered}))
        for common_dir in dict.fromkeys(clones):
            self._look_at_clone(common_dir)

    def keep_runs(self, runs: Iterable[Run], before: float) -> set[str]:
        """Add what run records need that are younger than `before` (s), or equal a lock; return their keys."""
        kept = set()
        for run in runs:
            data = self._cache.read_run(run.key)
            if data is None or not (run.time >= before or _mark(data) in self.needed.locks):
                continue
            kept.add(run.key)
            self._take(Source.RUNS, f"run cache entry {run.key}", data, is_lock=True, salvage=True)
        return kept

    # Where records are -----------------------------------------------------------------------------------------------

    def _look_at_clone(self, common_dir: Path) -> None:
        incomplete = repository.find_incomplete(common_dir)
        if incomplete and not self._allow_shallow:
            raise Inconclusive(
                f"the clone `{common_dir}` is {incomplete}: it does not know all records that need this cache",
                hint="`git fetch --unshallow` gets the rest, or `--allow-shallow` goes by what is here",
            )
        worktrees = repository.list_worktrees(common_dir)
        self._look_at_git(common_dir, worktrees)
        if common_dir == self._common_dir and self._top not in {worktree.top for worktree in worktrees}:
            self._look_at_files(self._top)
        for worktree in worktrees:
            if worktree.top is not None and worktree.top.is_dir():
                self._look_at_files(worktree.top)
            elif worktree.locked:
                raise Inconclusive(
                    f"the worktree `{worktree.git_dir.name}` of `{common_dir}` is locked, and its files are not here",
                    hint="bring its disk back, or `git worktree remove` it",
                )
            elif worktree.git_dir != common_dir:
                self._note(f"the worktree `{worktree.git_dir.name}` is gone from disk: its commits and index count")
        # Git asks nobody: what was only in files just now may have become a commit and left the workspace meanwhile.
        self._look_at_git(common_dir, worktrees)
        self._look_at_journal(common_dir / "mlx" / "journal")
        if has_links(self._cache):
            self._look_at_links(common_dir / "mlx" / "failed")

    def _look_at_git(self, common_dir: Path, worktrees: Iterable[repository.Worktree]) -> None:
        for worktree in worktrees:
            self._look_at_history(common_dir, worktree.git_dir)
            self._take_blobs(Source.INDEX, common_dir, repository.in_index(worktree.git_dir))

    def _look_at_history(self, common_dir: Path, git_dir: Path) -> None:
        known = self._tips.setdefault(common_dir, set())
        tips = repository.list_tips(git_dir)
        if tips - known:
            self._take_blobs(Source.HISTORY, common_dir, repository.in_commits(git_dir, tips - known, known))
            known |= tips
        for tree in repository.list_trees(git_dir):
            if tree not in known:
                self._take_blobs(Source.HISTORY, common_dir, repository.in_tree(git_dir, tree))
                known.add(tree)

    def _look_at_files(self, top: Path) -> None:
        files = WorkspaceFiles(top)
        for path in git.list_files(top, repository.PATTERNS):
            if not _is_record(path):
                continue
            try:
                self._take_file(files, top, path)
            except OSError as error:
                raise translate_os_error(error, f"read `{top / path}`, a record") from error
        if has_links(self._cache):
            self._look_at_links(top)

    def _take_file(self, files: WorkspaceFiles, top: Path, path: str) -> None:
        """Keep what a record in a workspace names: one that Git has yet to finish writing once it has."""
        name = f"{top / path} (in the workspace)"
        deadline = time.monotonic() + _GIT_WRITES_SECONDS
        while (data := files.read(path)) is not None:
            try:
                self._take(Source.WORKSPACE, name, data, is_lock=not path.endswith(SUFFIX))
                return
            except RecordError:
                writing = _is_git_writing(top)
                if time.monotonic() > deadline or not (writing or files.read(path) != data):
                    raise
                if writing:
                    time.sleep(POLL_SECONDS)

    def _look_at_journal(self, folder: Path) -> None:
        for path in sorted(folder.glob("*/*")):
            if path.name.startswith(TEMPORARY_PREFIX):
                continue
            try:
                data = path.read_bytes()
                found = [entry for entry in json.loads(data)["outs"].values() if entry]
                roots = [(parse_digest(entry[3]), Kind(entry[0]) == Kind.FOLDER) for entry in found]
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                if not self._salvage:
                    raise OutsideError(
                        f"`{path}` says what a run that was cut short needs, and cannot be read",
                        hint="`mlx run` puts it away and tells what is missing; `--salvage` goes on without it",
                    ) from error
                self._keep_spelled(data, str(path))
                continue
            self.needed.records[Source.JOURNAL] += self._is_new("journal", data)
            self._mark_all(roots, str(path))

    def _look_at_links(self, folder: Path) -> None:
        """Keep the objects that symlinks below `folder` lead to: they are the user's files."""
        for place, _, names in os.walk(folder):
            for name in names:
                path = os.path.join(place, name)
                if os.path.islink(path) and (digest := object_at(os.fsencode(os.readlink(path)))) is not None:
                    self.needed.objects.add(raw_digest(digest))

    # What is in them -------------------------------------------------------------------------------------------------

    def _take_blobs(self, source: Source, common_dir: Path, places: Iterable[repository.Place]) -> None:
        new: dict[tuple[str, bool], str] = {}
        for place in places:
            key = (place.blob, not place.path.endswith(SUFFIX))
            if key not in self._blobs and _is_record(place.path):
                new.setdefault(key, place.path)
        data_of = repository.read_blobs(common_dir, [blob for blob, _ in new])
        for (key, path), data in zip(new.items(), data_of, strict=True):
            blob, is_lock = key
            self._blobs.add(key)
            name = f"{path} (blob {blob[:12]} of `{common_dir}`)"
            if data is not None:
                self._take(source, name, data, is_lock=is_lock)
            elif is_lock:
                raise RecordError(f"`{name}` is too large for a lock", hint="`git log` tells who wrote it")

    def _take(self, source: Source, name: str, data: bytes, *, is_lock: bool, salvage: bool = False) -> None:
        """Keep what one record names; `name` is for messages, and not that of a file, which need not fit it here."""
        kind = "lock" if is_lock else "pointer"
        if not self._is_new(kind, data):
            return
        if is_lock:
            self.needed.locks.add(_mark(data))
        elif not is_meant(data) and not _DIGEST.search(data) and (data or source is Source.HISTORY):
            return  # another program's file
        self.needed.records[source] += 1
        try:
            roots = _in_lock(data, name) if is_lock else _in_pointer(data, name)
        except RecordError as error:
            if not (salvage or self._salvage or _CONFLICT.search(data)):
                self._read.discard((kind, _mark(data)))  # so that it is an error the next time, too
                raise RecordError(
                    f"nobody can tell what a record needs: {error.message}",
                    hint="nothing was collected; mend it, or `--salvage` keeps what it spells and goes on",
                ) from error
            self._keep_spelled(data, name)
            return
        self._mark_all(roots, name)

    def _keep_spelled(self, data: bytes, name: str) -> None:
        self._mark_all([(parse_digest(found.decode()), None) for found in _DIGEST.findall(data)], name)

    def _is_new(self, kind: str, data: bytes) -> bool:
        key = (kind, _mark(data))
        if key in self._read:
            return False
        self._read.add(key)
        return True

    # What they need --------------------------------------------------------------------------------------------------

    def _mark_all(self, roots: Iterable[tuple[Digest, bool | None]], name: str) -> None:
        """Mark each root, and of a tree all below it; a root of None may be either."""
        objects = self.needed.objects
        trees: list[Digest] = []
        for digest, is_tree in roots:
            raw = raw_digest(digest)
            if is_tree is False:
                objects.add(raw)
            elif raw not in self._entered:
                if is_tree is None and not self._is_tree(digest):
                    objects.add(raw)
                else:
                    trees.append(digest)
        while trees:
            digest = trees.pop()
            raw = raw_digest(digest)
            if raw in self._entered:
                continue
            self._entered.add(raw)
            objects.add(raw)
            try:
                inner, blobs = children(self._cache.read(digest), digest)
            except MissingObject:
                self._absent[digest] = name
                self._entered.discard(raw)  # it may have come by the next look
                continue
            except CorruptObject as error:
                raise CorruptObject(
                    f"nobody can tell what `{name}` needs: {error.message}",
                    hint=f"nothing was collected; {error.hint or '`mlx pull` may bring a good one'}",
                ) from error
            trees.extend(inner)
            objects.update(map(raw_digest, blobs))
            self._reporter.advance(len(blobs))

    def _is_tree(self, digest: Digest) -> bool:
        try:
            children(self._cache.read(digest), digest)
        except MissingObject:
            return False
        except DamagedObjects:
            raise
        except CorruptObject:
            return False
        return True

    def _note(self, message: str) -> None:
        if message not in self._noted:
            self._noted.add(message)
            self._reporter.note(message)


def _is_git_writing(top: Path) -> bool:
    checkout = git.find_checkout(top)
    return checkout is not None and os.path.lexists(checkout.git_dir / "index.lock")


def _is_record(path: str) -> bool:
    parts = path.split("/")
    if path.endswith(SUFFIX):
        return SUFFIX not in parts
    return len(parts) > 1 and parts[-2] == "mlx.lock" and path.endswith(".yaml")


def _in_pointer(data: bytes, name: str) -> list[tuple[Digest, bool | None]]:
    pointer = read_pointer(data, name)
    return [(pointer.digest, pointer.kind is ObjectKind.TREE)]


def _in_lock(data: bytes, name: str) -> list[tuple[Digest, bool | None]]:
    lock = read_lock(data, name, _DEEP)
    entries: list[Input | OutputRecord] = [*lock.deps, *lock.outs]
    return [(entry.digest, entry.kind is ObjectKind.TREE) for entry in entries]


def _mark(data: bytes) -> bytes:
    return raw_digest(hash_bytes(data))
