"""`mlx doctor`: is everything here in order, and what to say in a bug report.

Each check is a function that yields findings; none changes anything but a probe file in the cache, which it removes.
Settings that cannot be read are a finding too: the other checks then go by those that can.
"""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mlops_cli import __version__
from mlops_cli.documents import parse_yaml
from mlops_cli.documents.schemas import find_violations
from mlops_cli.errors import MlxError
from mlops_cli.pipeline.inputs import stage_graph
from mlops_cli.records import config
from mlops_cli.records.locks import read_lock
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.pointers import read_pointer
from mlops_cli.store.links import supported_modes
from mlops_cli.words import word
from mlops_cli.workspace import git
from mlops_cli.workspace.mending import how_to_mend
from mlops_cli.workspace.merge_setup import ATTRIBUTES, is_installed
from mlops_cli.workspace.project import CONFIG, Project, config_files, find_project, find_root
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.remotes import list_remotes
from mlops_cli.workspace.snapshot import Snapshot, lock_path, workspace_snapshot

_LITTLE_ROOM = 1_000_000_000  # bytes


class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked; `hint` says what to do when it is not in order."""

    name: str
    health: Health
    detail: str
    hint: str = ""


def examine(start: Path, environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """Return what every check of the project that holds `start` found, in a fixed order; UsageError outside of one."""
    project, faults = _open(start, environ)
    snapshot = workspace_snapshot(project)
    records = tuple(_records(snapshot, start, without_config=bool(faults)))
    return (
        *_versions(project),
        *_merges(project),
        *faults,
        *_settings(project),
        *_places(project),
        *_state(project),
        *_remotes(project),
        *records,
        *_pipelines(snapshot, start, {finding.detail for finding in records}),
    )


def _open(start: Path, environ: Mapping[str, str]) -> tuple[Project, tuple[Finding, ...]]:
    """Return the project with the settings that can be read, and a finding for each level that cannot."""
    try:
        return find_project(start, environ), ()
    except MlxError:
        checkout = git.find_checkout(start)
        root = find_root(start, checkout) if checkout else None
        if checkout is None or root is None:
            raise
    layers: list[config.Layer] = []
    faults: list[Finding] = []
    try:
        layers.append(config.environment_layer(environ))
    except MlxError as error:
        faults.append(Finding("settings", Health.FAILED, error.message, error.marked_hint or "unset it"))
    for level, path in config_files(root, checkout, environ).items():
        name = CONFIG if level == "project" else str(path)
        try:
            values = config.read_config(path.read_bytes(), name) if path.is_file() else {}
        except MlxError as error:
            hint = how_to_mend(error, start) or f"edit `{name}`"
            faults.append(Finding("settings", Health.FAILED, error.message, hint))
            continue
        layers.append(config.Layer(f"{level} ({name})", values))
    return Project(root, checkout, tuple(layers), config.resolve(layers)), tuple(faults)


def _settings(project: Project) -> Iterator[Finding]:
    name = project.config.core_remote
    if name is not None and name not in project.config.remotes:
        origin = next(layer.origin for layer in project.layers if "core.remote" in layer.values)
        hint = f"`mlx remote add {name} URL`, or `mlx remote default NAME`"
        yield Finding(
            "settings", Health.FAILED, f"`core.remote` is `{name}` ({origin}), and no remote is called so", hint
        )


def _versions(project: Project) -> Iterator[Finding]:
    yield Finding("mlx", Health.OK, __version__)
    yield Finding("python", Health.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    found = git.version(project.root)
    old = tuple(int(part) for part in found.split(".")[:2]) < (2, 25)
    hint = "mlx is tested with Git 2.25 and newer" if old else ""
    yield Finding("git", Health.WARNING if old else Health.OK, found, hint)


def _merges(project: Project) -> Iterator[Finding]:
    try:
        installed = is_installed(project)
    except MlxError as error:
        yield Finding("merges", Health.WARNING, error.message, error.marked_hint or "mend it")
        return
    if installed:
        yield Finding("merges", Health.OK, "Git merges pointers and locks with mlx")
    elif installed is not None:
        detail = f"`{ATTRIBUTES}` has pointers and locks merged by mlx, and this clone does not know how"
        yield Finding("merges", Health.WARNING, detail, "`mlx install`")


def _places(project: Project) -> Iterator[Finding]:
    yield Finding("project", Health.OK, str(project.root))
    root = Path(project.cache.root)
    if project.cache.url is not None:
        detail = f"{project.cache.url} (listings of folders in {root}); `mlx remote check cache` tries it"
        yield Finding("cache", Health.OK, detail)
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        modes = supported_modes(root, project.root)
    except OSError as error:
        if root.is_dir() and os.access(root, os.R_OK | os.X_OK):
            detail = f"{root} can be read, and not written to: what needs nothing stored works"
            yield Finding("cache", Health.WARNING, detail, "to store something, make it writable, or set `cache.dir`")
            return
        yield Finding("cache", Health.FAILED, f"{root}: {error.strerror}", "make it writable, or set `cache.dir`")
        return
    yield Finding("cache", Health.OK, str(root))
    yield from _quarantine(root / "quarantine")
    wanted = project.config.cache_link
    fits = wanted in modes or wanted == "reflink"
    copied = "" if wanted in modes else ", which cannot be done here: files are copied"
    linking = f"{wanted}{copied} (possible here: {', '.join(modes)})"
    hint = "" if fits else "`mlx config set cache.link copy`, or a cache on the same file system"
    yield Finding("links", Health.OK if fits else Health.WARNING, linking, hint)
    free = shutil.disk_usage(root).free
    hint = "free some space: adding data needs room for it once more" if free < _LITTLE_ROOM else ""
    yield Finding("disk", Health.WARNING if hint else Health.OK, f"{free / 1e9:.1f} GB free", hint)


def _quarantine(folder: Path) -> Iterator[Finding]:
    number = len(list(folder.iterdir())) if folder.is_dir() else 0
    if number:
        hint = f"`mlx fsck` tells what is lost and what to do; delete `{folder}` when nothing in it is wanted any more"
        objects = "1 damaged object" if number == 1 else f"{number:,} damaged objects"
        yield Finding("quarantine", Health.WARNING, f"{objects} in `{folder}`", hint)


def _state(project: Project) -> Iterator[Finding]:
    path = project.local / "state.db"
    if not path.exists():
        yield Finding("state index", Health.OK, "none yet")
        return
    try:
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        verdict = database.execute("PRAGMA quick_check").fetchone()[0]
        rows = database.execute("SELECT count(*) FROM folder").fetchone()[0]
        database.close()
    except sqlite3.DatabaseError as error:
        verdict, rows = str(error), 0
    health = Health.OK if verdict == "ok" else Health.WARNING
    hint = "" if verdict == "ok" else f"delete `{path}`: it is a cache, and is made anew"
    yield Finding(
        "state index", health, f"{rows:,} folder{'' if rows == 1 else 's'} known" if verdict == "ok" else verdict, hint
    )


def _remotes(project: Project) -> Iterator[Finding]:
    for remote in list_remotes(project):
        default = ", the default" if remote.default else ""
        try:
            _, store = open_project_remote(project, remote.name)
            if store.is_new():
                default += ": nothing was pushed yet"
        except MlxError as error:
            yield Finding(f"remote {remote.name}", Health.WARNING, error.message, error.marked_hint or "")
            continue
        yield Finding(f"remote {remote.name}", Health.OK, f"{remote.url}{default}")


def _records(snapshot: Snapshot, start: Path, *, without_config: bool) -> Iterator[Finding]:
    """Read every record as the commands do, and what they take hold against its schema."""
    checked, faults = 0, 0
    for path in snapshot.paths:
        kind, data = _kind(path), snapshot.files.read(path)
        foreign = kind == "pointer" and path.removesuffix(".mlx") not in snapshot.pointer_paths
        if kind is None or data is None or foreign or (without_config and path == CONFIG):
            continue
        checked += 1
        try:
            _read(snapshot, kind, path, data)
            violations = find_violations(parse_yaml(data, path).value, kind)
        except MlxError as error:
            faults += 1
            yield Finding("records", Health.FAILED, error.message, how_to_mend(error, start) or "")
            continue
        for violation in violations:
            faults += 1
            yield Finding("records", Health.FAILED, f"{path}: {violation}", f"edit `{path}`")
    if not faults:
        yield Finding("records", Health.OK, f"{checked} valid")


def _read(snapshot: Snapshot, kind: str, path: str, data: bytes) -> None:
    """Read a record, whatever it says; RecordError when no command could."""
    folder = path.rpartition("/")[0]
    if kind == "pointer":
        read_pointer(data, path)
    elif kind == "lock":
        read_lock(data, path, folder.rpartition("mlx.lock")[0].rstrip("/"))
    elif kind == "pipeline":
        read_pipeline(data, path, folder=folder, read_file=snapshot.files.read)
    else:
        config.read_config(data, path)


def _kind(path: str) -> str | None:
    folder, _, name = path.rpartition("/")
    if name == "mlx.yaml":
        return "pipeline"
    if path == CONFIG:
        return "config"
    if name.endswith(".mlx"):
        return "pointer"
    return "lock" if folder.rpartition("/")[2] == "mlx.lock" else None


def _pipelines(snapshot: Snapshot, start: Path, told: Container[str]) -> Iterator[Finding]:
    """Look at the stages of all files together; what is `told` of a file is not said again."""
    try:
        graph = stage_graph(snapshot)
    except MlxError as error:
        if error.message not in told:
            yield Finding("stages", Health.FAILED, error.message, how_to_mend(error, start) or "")
        return
    yield Finding("stages", Health.OK, f"{len(graph.stages)} declared")
    known = {lock_path(stage) for stage in graph.stages.values()}
    for path in snapshot.paths:
        if _kind(path) == "lock" and path not in known and snapshot.files.read(path) is not None:
            hint = f"`git rm {word(path)}` if the stage is gone for good"
            yield Finding("locks", Health.WARNING, f"`{path}` belongs to no stage", hint)
