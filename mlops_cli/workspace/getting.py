"""`mlx get`: data of other places, put where one says, and nothing else: no project, no record, no cache.

Everything is made in a folder of its own beside the goal, and gets its name when it is whole.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mlops_cli.errors import UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.cache import Cache, Durability
from mlops_cli.store.links import LinkMode, rename_new
from mlops_cli.workspace.browse import write_copy
from mlops_cli.workspace.foreign_git import scratch_folder
from mlops_cli.workspace.origins import OpenedRepo, OpenedUrl, Origin


@dataclass(frozen=True, slots=True)
class Got:
    """What came: where it is now, where it is from, its version there, bytes and files."""

    path: str
    place: str
    version: str | None
    size: int
    files: int


def get_data(origin: Origin, goal: Path, *, jobs: int = 0, reporter: Reporter = SILENT) -> Got:
    """Put what `origin` has at `goal`, where nothing may be yet; UsageError when something is."""
    if os.path.lexists(goal):
        raise UsageError(f"`{goal}` exists already", hint="`-o` names another path, or move it away")
    if not goal.parent.is_dir():
        raise UsageError(f"there is no folder `{goal.parent}`", hint="make it first, or name another path with `-o`")
    try:
        with scratch_folder(goal.parent) as scratch, origin.open(scratch) as opened:
            whole = scratch / "whole"
            if isinstance(opened, OpenedUrl):
                size, files = _download(opened, whole, jobs, reporter)
            else:
                size, files = _copy(opened, scratch, whole, jobs, reporter)
            _name(whole, goal)
    except OSError as error:
        raise translate_os_error(error, f"write `{goal}`") from error
    return Got(str(goal), origin.place, opened.version, size, files)


def _download(opened: OpenedUrl, whole: Path, jobs: int, reporter: Reporter) -> tuple[int, int]:
    """Download what a place has to the path `whole`; return bytes and files."""
    items = opened.contents.items
    reporter.start("downloading", opened.size, "bytes")
    for folder in {(whole / item.path).parent for item in items}:
        folder.mkdir(parents=True, exist_ok=True)
    size = 0
    for _, path in opened.place.bring(items, lambda item: str(whole / item.path), jobs, reporter):
        os.chmod(path, 0o666 & ~_umask())
        size += os.path.getsize(path)
    return size, len(items)


def _copy(opened: OpenedRepo, scratch: Path, whole: Path, jobs: int, reporter: Reporter) -> tuple[int, int]:
    """Bring what another project tracks into a cache that goes again, and write it to the path `whole`."""
    cache = Cache(scratch / "cache", link=LinkMode.REFLINK, durability=Durability.NONE)
    entry = opened.fetch(cache, jobs, reporter)
    write_copy(cache, entry, whole)
    return entry.size, entry.files


def _name(whole: Path, goal: Path) -> None:
    try:
        rename_new(str(whole), str(goal))
    except FileExistsError:
        raise UsageError(f"`{goal}` came to be meanwhile", hint="`-o` names another path") from None


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
