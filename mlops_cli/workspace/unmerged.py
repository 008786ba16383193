"""What Git could not merge: the versions that its index has of each file, and whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mlops_cli.workspace import git
from mlops_cli.workspace.project import Project, find_root
from mlops_cli.workspace.repository import read_blobs
from mlops_cli.workspace.sides import Sides

_REGULAR = "100"


class Doing(NamedTuple):
    """What Git is in the middle of: whose `ours` and `theirs` are, and the command that goes on with it."""

    name: str
    ours: str
    theirs: str
    go_on: str


_REBASE = Doing("rebase", "what you rebase onto", "your own commit", "git rebase --continue")
_OTHERS: Mapping[str, Doing] = {
    "CHERRY_PICK_HEAD": Doing("cherry-pick", "`HEAD`", "the commit that you pick", "git cherry-pick --continue"),
    "REVERT_HEAD": Doing("revert", "`HEAD`", "what was before the commit that you revert", "git revert --continue"),
    "MERGE_HEAD": Doing("merge", "`HEAD`", "the branch that you merge", "git commit"),
}
_UNKNOWN = Doing("", "what was here", "what Git was to bring", "git status")  # `git stash pop`, say


def find_doing(git_dir: Path) -> Doing:
    """Return what Git is in the middle of in a worktree, whose Git directory that is."""
    if any((git_dir / name).is_dir() for name in ("rebase-merge", "rebase-apply")):
        return _REBASE
    return next((doing for name, doing in _OTHERS.items() if (git_dir / name).exists()), _UNKNOWN)


class Versions(NamedTuple):
    """The names in Git of the versions of one file; `plain` says that all of them are files."""

    blobs: Sides[str]
    plain: bool


def find_unmerged(project: Project) -> dict[str, Versions]:
    """Return the versions of each file of the project, not of one inside it, that Git could not merge."""
    stages: dict[str, dict[int, git.Unmerged]] = {}
    for found in git.unmerged_files(project.root):
        stages.setdefault(found.path, {})[found.stage] = found
    return {
        path: Versions(
            Sides(*(versions[stage].blob if stage in versions else None for stage in (1, 2, 3))),
            all(version.mode.startswith(_REGULAR) for version in versions.values()),
        )
        for path, versions in sorted(stages.items())
        if find_root((project.root / path).parent, project.git) == project.root
    }


def read_versions(project: Project, versions: Mapping[str, Versions]) -> dict[str, Sides[bytes]]:
    """Return the bytes of each version, but for files of which one is larger than any record."""
    names = list(dict.fromkeys(blob for found in versions.values() for blob in found.blobs if blob))
    data = dict(zip(names, read_blobs(project.git.git_dir, names), strict=True))
    small = {
        path: found for path, found in versions.items() if all(data[blob] is not None for blob in found.blobs if blob)
    }
    return {path: Sides(*(data[blob] if blob else None for blob in found.blobs)) for path, found in small.items()}
