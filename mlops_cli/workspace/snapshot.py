"""The project's records as they are in the workspace, or as they were at a revision.

Both are a `Snapshot`: a list of paths and a way to read one. Everything that asks "what does the project say" (status,
plans, metrics, lineage) takes a snapshot, so it works on any commit, in a clone that holds no data.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from mlops_cli.documents import nearest
from mlops_cli.errors import MlxError, RecordError, UsageError
from mlops_cli.files import folders_above, translate_os_error
from mlops_cli.hashing import Digest
from mlops_cli.records.locks import Lock, OutputRecord, read_lock
from mlops_cli.records.names import Parsed
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.pointers import ObjectKind, Pointer, is_meant, read_pointer
from mlops_cli.records.sources import Source
from mlops_cli.records.stages import Pipeline, Stage
from mlops_cli.words import word
from mlops_cli.workspace import git
from mlops_cli.workspace.ignore import NAME, IgnoreRules
from mlops_cli.workspace.project import CONFIG, Project, resolve_targets

_PIPELINE = "mlx.yaml"
_PATTERNS = tuple(f":(glob)**/{pattern}" for pattern in ("*.mlx", _PIPELINE, "mlx.lock/*.yaml", CONFIG, NAME))


class Files(Protocol):
    """A set of files: the workspace's, or a commit's."""

    def paths(self) -> Sequence[str]:
        """Return the record files and `.mlxignore` files (a commit may return every file), project paths, sorted."""

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes, or None when it is not there."""


class WorkspaceFiles(NamedTuple):
    """The files on disk."""

    root: Path

    def paths(self) -> Sequence[str]:
        """Return the record files that Git tracks or would track, and that are there.

        Whatever is called `mlx.yaml` counts, were it a link that leads nowhere: Git would not list a folder.
        """
        root = f"{self.root}/"
        found = [
            path
            for path in git.list_files(self.root, _PATTERNS)
            if os.path.isfile(root + path) or (_is_pipeline(path) and os.path.lexists(root + path))
        ]
        return sorted({*found, _PIPELINE}) if os.path.isdir(root + _PIPELINE) else found

    def read(self, path: str) -> bytes | None:
        """Return the bytes of `path`; of a file far too large for a record only the start."""
        try:
            descriptor = os.open(self.root / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            with open(descriptor, "rb", closefd=False) as stream:
                return stream.read(git.READ_AT_MOST)
        finally:
            os.close(descriptor)


class Tracked(NamedTuple):
    """A path whose bytes the stores hold, by a pointer or as a stage's output (`stage` is its address then).

    `source` is where it was imported from, if it was.
    """

    path: str
    kind: ObjectKind
    digest: Digest
    size: int
    files: int
    executable: bool = False
    stage: str = ""
    git: bool = False
    push: bool = True
    source: Source | None = None


def track(path: str, record: Pointer | OutputRecord) -> Tracked:
    """Return the project path `path` with what a record says of its bytes."""
    files = 1 if record.files is None else record.files
    found = Tracked(path, record.kind, record.digest, record.size, files, record.executable)
    return found._replace(source=record.source) if isinstance(record, Pointer) else found


class Snapshot:
    """The records of one set of files, each read at most once and only when asked for.

    With `revision`, that is where the files are from, and every RecordError about them says so.
    """

    def __init__(self, files: Files, revision: str | None = None) -> None:
        self.files = files
        self.revision = revision
        self._pointers: dict[str, Pointer] = {}
        self._locks: dict[str, Lock | None] = {}
        self._known: dict[str, Pipeline] = {}
        self._values: Parsed = {}

    def forget(self) -> None:
        """Read pointers and locks again when next asked for; what stages are declared stays."""
        self._pointers.clear()
        self._locks.clear()

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every record file, without those of projects nested inside this one."""
        paths = self.files.paths()
        nested = [path.removesuffix(CONFIG) for path in paths if path.endswith("/" + CONFIG)]
        return tuple(path for path in paths if not path.startswith(tuple(nested)))

    @cached_property
    def pointer_paths(self) -> tuple[str, ...]:
        """The tracked paths that have a pointer (the pointer's own path without `.mlx`).

        What a `.mlxignore` names counts only if it is meant as a pointer: `*.mlx` there never hides tracked data.
        """
        ignored = _Ignored(self)
        named = (path for path in self.paths if _is_pointer(path))
        meant = (path for path in named if not ignored.hides(path) or is_meant(self.files.read(path) or b""))
        return tuple(path.removesuffix(".mlx") for path in meant)

    def pointer(self, path: str) -> Pointer | None:
        """Return the pointer of the tracked path `path`."""
        if path not in self._pointers:
            name = f"{path}.mlx"
            data = self.files.read(name)
            if data is None:
                return None
            with self.reading():
                self._pointers[path] = read_pointer(data, name)
        return self._pointers[path]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Name the revision, if there is one, in a RecordError about what is read inside."""
        try:
            yield
        except RecordError as error:
            if self.revision is None:
                raise
            raise RecordError(f"at revision `{self.revision}`: {error.message}", hint=error.marked_hint) from error

    @cached_property
    def pipeline_files(self) -> tuple[str, ...]:
        """Every `mlx.yaml`."""
        return tuple(filter(_is_pipeline, self.paths))

    @cached_property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """Every `mlx.yaml`, the root's first."""
        return self._pipelines(self.paths)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Every stage of every pipeline, in the order of the files."""
        return tuple(stage for pipeline in self.pipelines for stage in pipeline.stages)

    def stages_outside(self, folders: Iterable[str]) -> tuple[Stage, ...]:
        """Return every stage that is not declared below `folders`, where a `mlx.yaml` may be anything."""
        inside = tuple(f"{folder}/" for folder in folders)
        outside = [path for path in self.paths if not path.startswith(inside)]
        return tuple(stage for pipeline in self._pipelines(outside) for stage in pipeline.stages)

    def _pipelines(self, paths: Iterable[str]) -> tuple[Pipeline, ...]:
        found = map(self.pipeline, filter(_is_pipeline, paths))
        return tuple(sorted(found, key=lambda pipeline: pipeline.file.count("/")))

    def pipeline(self, path: str) -> Pipeline:
        """Return the pipeline that the `mlx.yaml` at `path` declares; RecordError."""
        if path not in self._known:
            with self.reading():
                data = self.files.read(path)
                if data is None:
                    hint = "stages are declared in a file of this name: move what is there away, or mend the link"
                    raise RecordError(f"`{path}` is not a file", hint=hint)
                folder = path.rpartition("/")[0]
                self._known[path] = read_pipeline(
                    data, path, folder=folder, read_file=self.files.read, parsed=self._values
                )
        return self._known[path]

    def lock(self, stage: Stage) -> Lock | None:
        """Return the lock of a stage, or None when it never ran."""
        if stage.address not in self._locks:
            name = lock_path(stage)
            data = self.files.read(name)
            with self.reading():
                self._locks[stage.address] = None if data is None else read_lock(data, name, stage.folder)
        return self._locks[stage.address]

    def tracked(self, *, outputs: bool = True) -> tuple[Tracked, ...]:
        """Return every path whose bytes a store holds, sorted; with `outputs`, those that stages' locks name too."""
        found = [track(path, pointer) for path in self.pointer_paths if (pointer := self.pointer(path))]
        if outputs:
            found.extend(entry for stage in self.stages for entry in self.outputs(stage))
        return tuple(sorted(found, key=lambda entry: entry.path))

    def readable(
        self, *, outputs: bool = True, paths: Sequence[str] | None = None
    ) -> tuple[tuple[Tracked, ...], tuple[MlxError, ...]]:
        """Return what `tracked` does, as far as the records can be read, and what is wrong with the others.

        Of the pointers, only those of `paths` count; None is all.
        """
        found: list[Tracked] = []
        wrong: list[MlxError] = []

        @contextmanager
        def gathered(path: str) -> Iterator[None]:
            try:
                yield
            except RecordError as error:
                wrong.append(error)
            except OSError as error:
                wrong.append(translate_os_error(error, f"read `{path}`"))

        for path in self.pointer_paths if paths is None else paths:
            with gathered(f"{path}.mlx"):
                pointer = self.pointer(path)
                found += [track(path, pointer)] if pointer else []
        for file in filter(_is_pipeline, self.paths if outputs else ()):
            with gathered(file):
                for stage in (stage for pipeline in self._pipelines([file]) for stage in pipeline.stages):
                    with gathered(lock_path(stage)):
                        found += self.outputs(stage)
        return tuple(sorted(found, key=lambda entry: entry.path)), tuple(wrong)

    def outputs(self, stage: Stage) -> tuple[Tracked, ...]:
        """Return the outputs that the lock of `stage` records and the stage still declares."""
        lock = self.lock(stage)
        declared = {out.path: out for out in stage.outs}
        return tuple(
            track(out.path, out)._replace(stage=stage.address, git=own.git, push=own.push)
            for out in (lock.outs if lock else ())
            if (own := declared.get(out.path)) is not None
        )


class _Ignored:
    """Which files the `.mlxignore` files of a snapshot leave out; each is read at most once."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._read = snapshot.files.read
        self._files = frozenset(path for path in snapshot.paths if path.rpartition("/")[2] == NAME)
        self._known: dict[str, tuple[IgnoreRules, bool]] = {}

    def hides(self, path: str) -> bool:
        """Say whether the file `path`, or a folder on the way to it, is left out."""
        if not self._files:
            return False
        rules, hidden = self._inside(path.rpartition("/")[0])
        return hidden or rules.hides(path, is_folder=False)

    def _inside(self, folder: str) -> tuple[IgnoreRules, bool]:
        """Return the rules in force in `folder`, and whether it is left out as a whole."""
        if folder not in self._known:
            rules, hidden = self._inside(folder.rpartition("/")[0]) if folder else (IgnoreRules(), False)
            hidden = hidden or (folder != "" and rules.hides(folder, is_folder=True))
            name = f"{folder}/{NAME}" if folder else NAME
            data = self._read(name) if name in self._files else None
            self._known[folder] = (rules if data is None else rules.add(folder, data), hidden)
        return self._known[folder]


def _is_pipeline(path: str) -> bool:
    return path.rpartition("/")[2] == _PIPELINE


def _is_pointer(path: str) -> bool:
    return path.endswith(".mlx") and ".mlx" not in path.split("/")


def lock_path(stage: Stage) -> str:
    """Return where the lock fragment of `stage` is, relative to the project."""
    return f"{stage.folder}/mlx.lock/{stage.name}.yaml" if stage.folder else f"mlx.lock/{stage.name}.yaml"


def workspace_snapshot(project: Project) -> Snapshot:
    """Return the records as they are on disk now."""
    return Snapshot(WorkspaceFiles(project.root))


@contextmanager
def open_snapshot(project: Project, revision: str | None) -> Iterator[Snapshot]:
    """Yield the records at `revision`, or those of the workspace when it is None."""
    if revision is None:
        yield workspace_snapshot(project)
        return
    with git.open_commit(project.git.top, revision, project.prefix) as commit:
        yield Snapshot(commit, revision)


def split_revisions(
    project: Project, cwd: Path, arguments: Sequence[str]
) -> tuple[tuple[str, str | None], tuple[str, ...]]:
    """Return what `[OLD [NEW]] [PATH]...` means: the two revisions (`HEAD` and the workspace by default), the paths.

    As in Git, the first argument that is a path here ends the revisions.
    """
    revisions: list[str] = []
    for argument in arguments[:2]:
        if _is_path(project, cwd, argument):
            break
        revisions.append(argument)
    paths = tuple(arguments[len(revisions) :])
    return (revisions[0] if revisions else "HEAD", revisions[1] if len(revisions) > 1 else None), paths


def _is_path(project: Project, cwd: Path, argument: str) -> bool:
    """Say whether something is at a path, or a record names it or a folder above it (it may have been deleted)."""
    if os.path.lexists(cwd / argument):
        return True
    try:
        (path,) = resolve_targets(project, cwd, [argument])
    except UsageError:
        return False
    places = {*folders_above(path), path}
    if any((project.root / f"{place}.mlx").is_file() for place in places):
        return True
    snapshot = workspace_snapshot(project)
    if any(owner.startswith(path + "/") for owner in snapshot.pointer_paths):
        return True
    with suppress(RecordError):
        outs = [out.path for stage in snapshot.stages for out in stage.outs]
        return any(out in places or out.startswith(path + "/") for out in outs)
    return False


def select(tracked: Iterable[Tracked], targets: Sequence[str]) -> tuple[tuple[Tracked, str], ...]:
    """Return the tracked paths that `targets` name, each with the part below it that is meant (empty: all of it).

    A target may be a tracked path, a pointer file, a folder that holds tracked paths, or a path inside a tracked
    folder. No targets means everything. UsageError names the target that nothing tracks.
    """
    everything = sorted(tracked, key=lambda entry: entry.path)
    if not targets:
        return tuple((entry, "") for entry in everything)
    chosen: dict[tuple[str, str], Tracked] = {}
    for target in (target.removesuffix(".mlx") for target in targets):
        found = [(entry, part) for entry in everything if (part := _part(entry, target)) is not None]
        if not found:
            raise UsageError(f"nothing tracks `{target}`", hint=_tracking_hint(target, everything))
        chosen.update({(entry.path, part): entry for entry, part in found})
    return tuple((entry, part) for (path, part), entry in sorted(chosen.items()) if not _is_covered(path, part, chosen))


def _is_covered(path: str, part: str, chosen: Container[tuple[str, str]]) -> bool:
    """Say whether a part lies inside another that is chosen too."""
    return part != "" and any((path, above) in chosen for above in ("", *folders_above(part)))


def _part(entry: Tracked, target: str) -> str | None:
    if target in ("", entry.path) or entry.path.startswith(target + "/"):
        return ""
    if entry.kind is ObjectKind.TREE and target.startswith(entry.path + "/"):
        return target[len(entry.path) + 1 :]
    return None


def _tracking_hint(target: str, tracked: Sequence[Tracked]) -> str:
    near = nearest(target, [entry.path for entry in tracked])
    if near:
        return f"did you mean `{word(near)}`?"
    return f"`mlx ls` lists what is tracked; `mlx add {word(target)}` tracks it"
