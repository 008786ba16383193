"""What must stay in a cache: every object that some project which uses it names, wherever it names it.

A root is a digest in a record. Records are looked for in all that Git can still reach (refs, reflogs, stashes, indices,
merges in progress), in the files of every worktree, in the journals of runs, and in the run cache while an entry is
young; what they name, `record_marks` knows. What cannot be read might name anything, so it is an error, never a gap:
only `salvage` passes over it. Symlinks to objects count too, wherever a worktree has one: they are files.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from mlops_cli.errors import Inconclusive, OutsideError, RecordError
from mlops_cli.files import POLL_SECONDS, TEMPORARY_PREFIX, translate_os_error
from mlops_cli.hashing import Digest, parse_digest, raw_digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.paths import is_record
from mlops_cli.records.pointers import SUFFIX
from mlops_cli.store.cache import Cache
from mlops_cli.store.contents import Run
from mlops_cli.store.links import LinkMode
from mlops_cli.store.trees import Kind
from mlops_cli.workspace import repository
from mlops_cli.workspace.clients import find_owner, is_there, list_registered
from mlops_cli.workspace.git import READ_AT_MOST, Checkout, find_checkout
from mlops_cli.workspace.marks import Doubts, Marks
from mlops_cli.workspace.record_marks import RecordMarks, Source
from mlops_cli.workspace.snapshot import WorkspaceFiles
from mlops_cli.workspace.symlinks import linked_objects

_GIT_WRITES_SECONDS = 5.0  # that long a record may be half written while Git checks another commit out


class Marker:
    """Finds what must stay in `cache`, and again, later, what has come since: what was read once is not read twice.

    `checkout` is the one that asks.
    """

    def __init__(
        self,
        cache: Cache,
        checkout: Checkout,
        *,
        allow_shallow: bool = False,
        salvage: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        self._doubts = Doubts(reporter, salvage=salvage)
        self._marks = Marks(cache, self._doubts, reporter)
        self._records = RecordMarks(self._marks, self._doubts)
        self.needed = self._records.needed
        self.projects: tuple[str, ...] = ()
        self._cache = cache
        self._checkout = checkout
        self._allow_shallow = allow_shallow
        self._tips: dict[Path, set[str]] = {}
        self._blobs: set[tuple[str, bool]] = set()  # and whether it is a lock

    def look(self) -> None:
        """Add what the projects need now; Inconclusive, OutsideError, RecordError or CorruptObject if not all is known.

        An object that is not here is no error, for it may be on a remote; a tree that was damaged is one.
        """
        self._marks.retry()
        clones: dict[Path, list[Checkout]] = {}
        for checkout in self._list_checkouts():
            clones.setdefault(Path(os.path.realpath(checkout.common_dir)), []).append(checkout)
        for common_dir, checkouts in clones.items():
            self._look_at_clone(common_dir, checkouts)
        self._marks.refuse_lost()

    def look_at(self, tips: Iterable[str], trees: Iterable[str]) -> None:
        """Add what commits and trees of the asking clone need that may have no name here."""
        git_dir = self._checkout.git_dir
        known = self._tips.setdefault(Path(os.path.realpath(self._checkout.common_dir)), set())
        new = set(tips) - known
        if new:
            self._take_blobs(Source.HISTORY, self._checkout.common_dir, repository.in_commits(git_dir, new, known))
        for tree in set(trees) - known:
            self._take_blobs(Source.HISTORY, self._checkout.common_dir, repository.in_tree(git_dir, tree))
        known.update(new, trees)

    def absent(self, *, promised: bool = False) -> dict[Digest, str]:
        """Return the trees that are needed and not here, and who needs each; `promised`: that remotes are to have."""
        return self._marks.absent(promised=promised)

    def look_below(self) -> None:
        """Add what trees need that were not here before, and have come."""
        self._marks.retry()

    def look_beside(self, is_left: Callable[[str], bool], passed: Collection[str]) -> None:
        """Add what is needed now besides some records of this checkout, as `look` does.

        That is all that other clones need, and what the worktrees of this one have in their files, index and HEAD: what
        older commits name does not count. Of this checkout, record files (from its top) that `is_left` says are left
        out, and links at or below the places `passed`.
        """
        self._marks.retry()
        common_dir = self._checkout.common_dir
        own = os.path.realpath(common_dir)
        for checkout in self._list_checkouts():
            if os.path.realpath(checkout.common_dir) != own:
                self._look_at_clone(Path(os.path.realpath(checkout.common_dir)), [checkout])
        for worktree in repository.list_worktrees(common_dir):
            mine = os.path.realpath(worktree.git_dir) == os.path.realpath(self._checkout.git_dir)
            places = [*repository.in_index(worktree.git_dir)]
            if repository.list_tips(worktree.git_dir):
                places += repository.in_tree(worktree.git_dir, "HEAD")
            counting = (place for place in places if not (mine and is_left(place.path)))
            self._take_blobs(Source.INDEX, common_dir, counting)
            if worktree.top is not None:
                self._look_at_files(worktree.git_dir, worktree.top, is_left if mine else None, passed if mine else ())
        self._look_at_journal(common_dir / "mlx" / "journal")
        self._look_at_failed(common_dir / "mlx" / "failed")
        self._marks.refuse_lost()

    def _list_checkouts(self) -> Iterator[Checkout]:
        """Yield the checkouts that are known of here; their clones may have more."""
        yield self._checkout
        registered = list_registered(self._cache)
        self.projects = tuple(sorted({project.root for project in registered}))
        for project in registered:
            if not is_there(project):
                raise Inconclusive(
                    f"the project `{project.root}` uses this cache, and is gone from disk: what it needs is unknown",
                    hint=f"bring it back, or, if it is gone for good, `mlx gc --forget {shlex.quote(project.root)}`",
                )
            common_dir = Path(project.git_dir)
            found = find_checkout(Path(project.root))
            known = found is not None and os.path.realpath(found.common_dir) == os.path.realpath(common_dir)
            yield found if found is not None and known else Checkout(common_dir, common_dir, common_dir)
        owner = find_owner(self._cache)
        if owner is not None:
            yield Checkout(owner, owner, owner)

    def keep_runs(self, runs: Iterable[Run], before: float) -> set[str]:
        """Add what run records need that are younger than `before` (s), or equal a lock; return their keys."""
        kept = set()
        for run in runs:
            data = self._cache.read_run(run.key)
            if data is None or not (run.time >= before or self._records.is_lock(data)):
                continue
            kept.add(run.key)
            self._records.take(Source.RUNS, f"run cache entry {run.key}", data, is_lock=True)
        return kept

    # Where records are -----------------------------------------------------------------------------------------------

    def _look_at_clone(self, common_dir: Path, checkouts: Sequence[Checkout]) -> None:
        """Look at a clone, in which `checkouts` are known of; a Git directory stands for one without files."""
        incomplete = repository.find_incomplete(common_dir)
        if incomplete and not self._allow_shallow:
            more = "`git fetch --unshallow` gets the rest, or " if incomplete == "shallow" else ""
            raise Inconclusive(
                f"the clone `{common_dir}` is {incomplete}: it does not know all records that need this cache",
                hint=f"{more}`--allow-shallow` goes by what is here",
            )
        worktrees = repository.list_worktrees(common_dir)
        self._look_at_git(common_dir, worktrees)
        places = {checkout.top: checkout.git_dir for checkout in checkouts if checkout.top != checkout.git_dir}
        for worktree in worktrees:
            if worktree.top is not None:
                places.setdefault(worktree.top, worktree.git_dir)
            elif worktree.missed:
                self._doubts.pass_over(
                    Inconclusive(
                        f"{worktree.missed}, and its files are not here: what they need is unknown",
                        hint="bring its disk back; `git worktree remove` it, or `--salvage` goes on without it",
                    )
                )
            elif worktree.git_dir != common_dir and worktree.git_dir not in places.values():
                self._doubts.note(
                    f"the worktree `{worktree.git_dir.name}` is gone from disk: its commits and index count"
                )
        for top, git_dir in places.items():
            self._look_at_files(git_dir, top)
        # Git asks nobody: what was only in files just now may have become a commit and left the workspace meanwhile.
        self._look_at_git(common_dir, worktrees)
        self._look_at_journal(common_dir / "mlx" / "journal")
        self._look_at_failed(common_dir / "mlx" / "failed")

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

    def _look_at_files(
        self,
        git_dir: Path,
        top: Path,
        is_left: Callable[[str], bool] | None = None,
        passed: Collection[str] = (),
    ) -> None:
        files = WorkspaceFiles(top)
        for path in filter(is_record, repository.in_files(git_dir, top)):
            if is_left is not None and is_left(path):
                continue
            try:
                self._take_file(files, top, path)
            except OSError as error:
                raise translate_os_error(error, f"read `{top / path}`, a record") from error
        self._look_at_links(top, passed)

    def _take_file(self, files: WorkspaceFiles, top: Path, path: str) -> None:
        """Keep what a record in a workspace names: one that Git has yet to finish writing once it has."""
        name = f"{top / path} (in the workspace)"
        deadline = time.monotonic() + _GIT_WRITES_SECONDS
        while (data := files.read(path)) is not None:
            try:
                self._records.take(Source.WORKSPACE, name, data, is_lock=not path.endswith(SUFFIX))
                return
            except RecordError:
                writing = _is_git_writing(top)
                if time.monotonic() > deadline or not (writing or files.read(path) != data):
                    raise
                if writing:
                    time.sleep(POLL_SECONDS)

    def _look_at_journal(self, folder: Path) -> None:
        for path in _below(folder):
            data = _bytes_of(path)
            if data is None:
                continue
            try:
                found = [entry for entry in json.loads(data)["outs"].values() if entry]
                roots = [(parse_digest(entry[3]), Kind(entry[0]) == Kind.FOLDER) for entry in found]
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                self._doubts.pass_over(
                    OutsideError(
                        f"`{path}` says what a run that was cut short needs, and cannot be read",
                        hint="`mlx run` puts it away and tells what is missing; `--salvage` goes on without it",
                    ),
                    error,
                )
                self._records.take_spelled(data, str(path))
                continue
            self._records.take_journal(roots, str(path), data)

    def _look_at_failed(self, folder: Path) -> None:
        """Keep what is spelled in journals that could not be read and were put away, and what links there lead to."""
        for path in _below(folder):
            if path.name.endswith(".json") and (data := _bytes_of(path)) is not None:
                self._records.take_spelled(data, str(path))
        self._look_at_links(folder)

    def _look_at_links(self, folder: Path, passed: Collection[str] = ()) -> None:
        """Keep the objects that symlinks below `folder` lead to, whatever `cache.link` is now: they are files.

        Places (absolute paths) that are `passed` over do not count.
        """

        def tell(place: str) -> None:
            refused = Inconclusive(
                f"nobody may look into `{place}`, which may hold links to objects",
                hint="let it be read, or `--salvage` goes on without it",
            )
            if self._cache.link is LinkMode.SYMLINK:
                self._doubts.pass_over(refused)
            self._doubts.note(f"{refused.message}: they do not count")

        self.needed.objects.update(map(raw_digest, linked_objects(folder, tell, passed)))

    def _take_blobs(self, source: Source, common_dir: Path, places: Iterable[repository.Place]) -> None:
        new: dict[tuple[str, bool], str] = {}
        for place in places:
            key = (place.blob, not place.path.endswith(SUFFIX))
            if key not in self._blobs and is_record(place.path):
                new.setdefault(key, place.path)
        data_of = repository.read_blobs(common_dir, [blob for blob, _ in new])
        for (key, path), data in zip(new.items(), data_of, strict=True):
            blob, is_lock = key
            self._blobs.add(key)
            name = f"{path} (blob {blob[:12]} of `{common_dir}`)"
            if data is not None:
                self._records.take(source, name, data, is_lock=is_lock)
            elif is_lock:
                raise RecordError(f"`{name}` is too large for a lock", hint="`git log` tells who wrote it")


def _is_git_writing(top: Path) -> bool:
    checkout = find_checkout(top)
    return checkout is not None and os.path.lexists(checkout.git_dir / "index.lock")


def _below(folder: Path) -> Iterator[Path]:
    """Yield the files two levels below a folder that are not in the making; OSError for what nobody may look into."""
    for inner in _listed(folder):
        for path in _listed(inner):
            if not path.name.startswith(TEMPORARY_PREFIX):
                yield path


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _bytes_of(path: Path) -> bytes | None:
    """Return the bytes of a regular file; None for what is none, or gone, or larger than any record."""
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= READ_AT_MOST else None
    except FileNotFoundError:
        return None
