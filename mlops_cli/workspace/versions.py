"""Which versions of the data a transfer is about: the workspace's, or those of revisions, branches and tags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlops_cli.errors import UsageError
from mlops_cli.workspace import git
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Tracked, open_snapshot, select


class Versions(NamedTuple):
    """Revisions that are named one by one, and whether every branch and every tag counts; none: the workspace."""

    revisions: Sequence[str] = ()
    branches: bool = False
    tags: bool = False


THE_WORKSPACE = Versions()


def select_versions(project: Project, targets: Sequence[str], versions: Versions) -> list[tuple[Tracked, str]]:
    """Return what `targets` name in each version, each thing once.

    UsageError for a target that no version tracks, a revision that is none, and when no branch or tag is there.
    """
    revisions: list[str | None] = list(_revisions(project, versions)) or [None]
    found: dict[tuple[str, str, str], tuple[Tracked, str]] = {}
    unknown: dict[str, UsageError] = {}
    known: set[str] = set()
    for revision in dict.fromkeys(revisions):
        with open_snapshot(project, revision) as snapshot:
            tracked = list(snapshot.tracked())
        for wanted in [[target] for target in targets] or [[]]:
            try:
                chosen = select(tracked, wanted)
            except UsageError as error:
                unknown.setdefault(wanted[0], error)
                continue
            known.update(wanted)
            found.update({(entry.path, part, entry.digest): (entry, part) for entry, part in chosen})
    for target in unknown.keys() - known:
        raise unknown[target]
    return list(found.values())


def _revisions(project: Project, versions: Versions) -> list[str]:
    refs = [
        name
        for wanted, kind in ((versions.branches, "refs/heads"), (versions.tags, "refs/tags"))
        if wanted
        for name in git.list_refs(project.root, kind)
    ]
    if (versions.branches or versions.tags) and not (refs or versions.revisions):
        what, how = ("branch", "git commit") if versions.branches else ("tag", "git tag NAME")
        raise UsageError(f"there is no {what} yet", hint=f"`{how}` makes the first")
    return [*versions.revisions, *refs]
