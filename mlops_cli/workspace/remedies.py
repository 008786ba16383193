"""What to do about what `mlx fsck` found: commands that work in the state that it left.

Pure of any change: it only looks at what is in the workspace where a damaged object belongs. A file that was edited
through a link has its edit in the workspace (a hard link shares the bytes that were put away) or, where the link is a
symbolic one, in the quarantine alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlops_cli.hashing import Digest
from mlops_cli.store.links import object_at
from mlops_cli.store.quarantine import find_quarantined
from mlops_cli.words import NAMED, quoted, so_for, word, words
from mlops_cli.workspace.git import open_commit
from mlops_cli.workspace.integrity import Examination, Fault
from mlops_cli.workspace.project import Project


def remedies(project: Project, found: Examination) -> Iterator[str]:
    """Yield what brings back or keeps what was found damaged or absent, most useful first; paths are marked."""
    faults = [fault for fault in (*found.damaged, *found.absent) if fault.path]
    lost = [fault for fault in faults if not (fault.mended or fault.source)]
    now = [fault for fault in lost if fault.revision is None]
    older = next((fault for fault in lost if fault.revision is not None), None)
    data = [fault for fault in now if not fault.stage]
    in_trash = any(fault.in_trash for fault in now)
    if now and not found.repairing and (in_trash or project.config.remotes):
        places = [*["the trash"] * in_trash, *["a remote"] * bool(project.config.remotes)]
        yield f"`mlx fsck --repair` brings good copies from {' or '.join(places)}"
    else:
        if stages := list(dict.fromkeys(fault.stage for fault in now if fault.stage)):
            them = "it" if len(stages) == 1 else "them"
            yield f"`mlx run --force {' '.join(map(quoted, stages))}` makes {them} again"
        if there := [path for fault in data for path in fault.files or fault.paths if _is_there(project.root / path)]:
            stored = "what is in the workspace, as a new version if it was edited"
            yield f"`mlx add {words(there[:NAMED])}` stores {stored}{so_for(there[NAMED:])}"
        if data:
            paths = words(dict.fromkeys(fault.path for fault in data))
            same = ", with the same commit checked out"
            yield _from_elsewhere(project, f"push --repair {paths}", f"push {paths}", same, "mlx fsck --repair")
    if older:
        yield _bringing_older(project, older)
    if not lost:
        yield from (error.marked_hint for error in found.false[:1] if error.marked_hint)
    yield from _keeping(project, [fault for fault in faults if fault.revision is None and not fault.stage])


def _from_elsewhere(project: Project, again: str, push: str, state: str, bring: str) -> str:
    """Word how another clone's bytes come here; `again` is the push to a remote whose index may name what it lacks."""
    if project.config.remotes:
        return f"in a clone that has good bytes{state}, `mlx {again}`; then `{bring}` here"
    make = "`mlx remote add storage URL` here and in a clone that has good bytes"
    return f"{make}, there `mlx {push}`{state}; then `{bring}` here"


def _bringing_older(project: Project, fault: Fault) -> str:
    commit = fault.revision or ""
    if commit == "HEAD":  # another one in every clone
        with open_commit(project.git.top, commit, "") as head:
            commit = head.id[:12]
    version = f"--rev {commit} {word(fault.path)}"
    fetch = f"mlx fetch {version}"
    elsewhere = _from_elsewhere(project, f"push --repair {version}", f"push {version}", "", fetch)
    return f"`{fetch}` brings a good copy; or {elsewhere}" if project.config.remotes else elsewhere


def _keeping(project: Project, faults: Sequence[Fault]) -> Iterator[str]:
    """Yield how an edit that was made through a symbolic link comes back from where it was put away."""
    edits: list[tuple[str, str]] = []
    for fault in faults:
        put_away = find_quarantined(project.cache, fault.digest)
        for path in fault.files or fault.paths if put_away else ():
            place = project.root / path
            if _linked(place) == fault.digest and (fault.mended or not place.exists()):
                edits.append((path, put_away or ""))
    if edits:
        path, source = edits[0]
        copy = f"`rm {word(path)} && cp {quoted(source)} {word(path)} && mlx add {word(path)}`"
        yield f"{copy} keeps, as a new version, what was written through the link `{path}`{so_for(edits[1:])}"


def _is_there(place: Path) -> bool:
    return place.exists() or (os.path.lexists(place) and _linked(place) is None)


def _linked(place: Path) -> Digest | None:
    try:
        return object_at(os.readlink(os.fsencode(place))) if stat.S_ISLNK(place.lstat().st_mode) else None
    except OSError:
        return None
