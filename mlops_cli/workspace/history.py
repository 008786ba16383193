"""What this clone's commits have recorded: every version of every tracked path, without checking anything out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from mlops_cli.errors import RecordError
from mlops_cli.records.locks import read_lock
from mlops_cli.records.pointers import SUFFIX, read_pointer
from mlops_cli.workspace import git
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Tracked, track

_RECORDS = (f":(glob)**/*{SUFFIX}", ":(glob)**/mlx.lock/*.yaml")
_SHORT = 12


def recorded(project: Project) -> Iterator[tuple[str, Tracked]]:
    """Yield (commit, tracked path) for all that a commit of any ref, stash or reflog recorded, newest first.

    A version comes again for each commit that recorded it. What cannot be read as a record is passed over.
    """
    for commit, path, data in git.record_history(project.root, _RECORDS):
        with suppress(RecordError, ValueError):
            if path.endswith(SUFFIX):
                yield commit[:_SHORT], track(path.removesuffix(SUFFIX), read_pointer(data, path))
                continue
            folder, _, name = path.rpartition("mlx.lock/")
            folder, stage = folder.rstrip("/"), name.removesuffix(".yaml")
            for out in read_lock(data, path, folder).outs:
                yield commit[:_SHORT], track(out.path, out)._replace(stage=f"{folder}:{stage}" if folder else stage)
