"""`mlx resolve`: what Git left in conflict is merged as the merge driver would have done it.

The versions in Git's index are what is merged; what the file in the workspace holds is only looked at so that nothing
that somebody wrote there by hand is lost. What comes out is written, and put into the index.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from mlops_cli.documents import has_conflict
from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RecordError, UsageError
from mlops_cli.files import write_atomic
from mlops_cli.hashing import Digest, hash_bytes
from mlops_cli.records.locks import read_lock
from mlops_cli.records.paths import is_record
from mlops_cli.records.pointers import SUFFIX
from mlops_cli.store.batches import open_batch
from mlops_cli.store.trees import TreeSource
from mlops_cli.words import word
from mlops_cli.workspace.git import stage_files
from mlops_cli.workspace.gitignore import hide_from_git
from mlops_cli.workspace.pointer_merge import Draft
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.record_merge import is_merged_here, merge_file
from mlops_cli.workspace.reservations import refuse_in_use
from mlops_cli.workspace.sides import Clash, Outcome, Side, Sides
from mlops_cli.workspace.snapshot import WorkspaceFiles
from mlops_cli.workspace.unmerged import Doing, Versions, find_doing, find_unmerged, read_versions

_AS_LOCKED = "as `{}` has it"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A file that is no longer in conflict: whose version it has (None: it is made of both), or that it is gone."""

    path: str
    side: Side | None
    deleted: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Stuck:
    """A file that stays in conflict: the paths that both sides changed, or the error that says why not."""

    path: str
    clashes: tuple[Clash, ...] = ()
    error: MlxError | None = None


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of the files in conflict; `others` are those that are not mlx's to mend."""

    resolved: tuple[Resolved, ...]
    stuck: tuple[Stuck, ...]
    others: tuple[str, ...]
    doing: Doing


def resolve(
    project: Project,
    targets: Sequence[str],
    *,
    choice: Side | None = None,
    remote: TreeSource | None = None,
    dry_run: bool = False,
) -> Resolution:
    """Merge what of `targets` (none: all of the project) is in conflict; the caller holds the checkout.

    `choice` decides what both sides changed differently; listings that are not here come from `remote`, if it is given.
    UsageError for a target that is not in conflict.
    """
    unmerged = find_unmerged(project)
    chosen = {path: found for path, found in unmerged.items() if _is_meant(path, targets)}
    _refuse_others(project, targets, chosen)
    versions = read_versions(project, {path: found for path, found in chosen.items() if found.plain})
    mine = {path: sides for path, sides in versions.items() if is_merged_here(path, sides)}
    merging = _Merging(project, choice, remote, frozenset(unmerged))
    for path, sides in mine.items():
        merging.take(path, sides)
    merging.take_results(unmerged, {path: sides for path, sides in versions.items() if path not in mine})
    if not dry_run:
        merging.write()
    done = {*merging.outcomes, *(stuck.path for stuck in merging.stuck)}
    others = tuple(path for path in chosen if path not in done)
    resolved = tuple(
        Resolved(path, outcome.side, outcome.data is None, outcome.note)
        for path, outcome in sorted(merging.outcomes.items())
    )
    return Resolution(resolved, tuple(merging.stuck), others, find_doing(project.git.git_dir))


def _is_meant(path: str, targets: Sequence[str]) -> bool:
    names = {path, path.removesuffix(SUFFIX)}
    return not targets or any(target in ("", *names) or path.startswith(f"{target}/") for target in targets)


def _refuse_others(project: Project, targets: Sequence[str], chosen: Mapping[str, Versions]) -> None:
    """Raise UsageError for the first target that Git does not have in conflict."""
    for target in targets:
        if any(_is_meant(path, [target]) for path in chosen):
            continue
        path = next((path for path in (target, target + SUFFIX) if (project.root / path).is_file()), target)
        data = WorkspaceFiles(project.root).read(path) if is_record(path) else None
        if data is not None and has_conflict(data):
            raise UsageError(
                f"`{path}` has conflict markers, but Git's index has no versions of it to merge",
                hint=f"`git checkout --merge {word(path)}` brings them back while the merge is on; after it, "
                f"`git log {word(path)}` tells which commit to `git restore --source` it from",
            )
        raise UsageError(f"`{target}` is not in conflict", hint="`git status` lists what is")


class _Merging:
    """The outcomes of one command, before anything is written."""

    def __init__(
        self, project: Project, choice: Side | None, remote: TreeSource | None, unmerged: frozenset[str]
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.stuck: list[Stuck] = []
        self._unmerged = unmerged
        self._project = project
        self._choice = choice
        self._files = WorkspaceFiles(project.root)
        self._trees = Draft(project.cache, remote)

    def take(self, path: str, sides: Sides[bytes]) -> None:
        """Merge the versions of one file."""
        try:
            outcome = merge_file(path, sides, self._trees, self._choice)
        except (RecordError, MissingObject, CorruptObject) as error:
            self.stuck.append(Stuck(path, error=error))
            return
        if outcome is not None:
            self._settle(path, sides, outcome)

    def _settle(self, path: str, sides: Sides[bytes], outcome: Outcome) -> None:
        if outcome.clashes:
            self.stuck.append(Stuck(path, outcome.clashes))
            return
        present = self._files.read(path)
        # As Git may have written it, where it turns line ends.
        plain = present if present is None else present.replace(b"\r\n", b"\n")
        if plain is None or plain in (*sides, outcome.data) or has_conflict(plain):
            self.outcomes[path] = outcome
            return
        error = UsageError(
            f"`{path}` was edited after the merge",
            hint=f"`git add {word(path)}` if it is right; `git checkout --merge {word(path)}` brings the conflict back",
        )
        self.stuck.append(Stuck(path, error=error))

    def take_results(self, unmerged: Mapping[str, Versions], versions: Mapping[str, Sides[bytes]]) -> None:
        """Settle what stages make and Git keeps: of the versions of such a file, the one that the stage's lock names.

        Where a lock stays in conflict, so does what its stage made.
        """
        if not versions:
            return
        made = self._made(unmerged)
        for path, sides in versions.items():
            if path not in made:
                continue
            lock, digest = made[path]
            for side in Side:
                data = sides.of(side)
                if data is not None and hash_bytes(data) == digest:
                    self._settle(path, sides, Outcome(data, side, note=_AS_LOCKED.format(lock)))
                    break

    def _made(self, unmerged: Mapping[str, Versions]) -> dict[str, tuple[str, Digest]]:
        """Return each file that a stage made and Git keeps, with the lock that says so, and its digest."""
        found: dict[str, tuple[str, Digest]] = {}
        for path in chain(self._files.paths(), self.outcomes):
            if not is_record(path) or path.endswith(SUFFIX) or (path in unmerged and path not in self.outcomes):
                continue
            data = self.outcomes[path].data if path in self.outcomes else self._files.read(path)
            folder = path.removesuffix(path[path.rindex("mlx.lock/") :])
            try:
                lock = read_lock(data or b"", path, folder.removesuffix("/"))
            except RecordError:
                continue
            found.update({out.path: (path, out.digest) for out in lock.outs if out.git})
        return found

    def write(self) -> None:
        """Store new listings, write the files, and put them into Git's index.

        LockedError, before anything is written, when a stage that is being run uses one of them.
        """
        refuse_in_use(self._project, [path for path in self.outcomes if not is_record(path)])
        if self._trees.new:
            with open_batch(self._project.cache) as batch:
                for data in self._trees.new.values():
                    batch.add_bytes(data)
        for path, outcome in self.outcomes.items():
            place = self._project.root / path
            if outcome.data is None:
                place.unlink(missing_ok=True)
            elif self._files.read(path) != outcome.data:
                write_atomic(place, outcome.data)
        if self.outcomes:
            stage_files(self._project.root, [*self.outcomes, *self._hide()])

    def _hide(self) -> Iterator[str]:
        """Hide the data of pointers that stay, which the other side's `.gitignore` shows; yield what Git is to take."""
        kept = [path for path, outcome in self.outcomes.items() if path.endswith(SUFFIX) and outcome.data is not None]
        for path in hide_from_git(self._project.root, [path.removesuffix(SUFFIX) for path in kept]):
            if path in self.outcomes or path not in self._unmerged:
                yield path
