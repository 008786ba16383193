"""Half-written files that a killed command left in the workspace.

They begin with `TEMPORARY_PREFIX` and the number of the process that was writing them. Scans pass over them; the next
command that holds the checkout takes them away, so that Git does not see them either.
"""

from __future__ import annotations

import os
from contextlib import suppress

from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.workspace import git
from mlops_cli.workspace.project import Project


def sweep(project: Project) -> tuple[str, ...]:
    """Remove the leftovers of processes that are gone; returns their paths. The checkout's lock must be held."""
    removed = []
    for path in git.untracked_files(project.root, f":(glob)**/{TEMPORARY_PREFIX}*"):
        if not is_alive(path.rpartition("/")[2].removeprefix(TEMPORARY_PREFIX).partition("-")[0]):
            with suppress(OSError):
                os.unlink(project.root / path)
                removed.append(path)
    return tuple(removed)


def is_alive(pid: str) -> bool:
    """Say whether a process of that number runs; this one does not count, whatever has its number is from before."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return int(pid) != os.getpid()
