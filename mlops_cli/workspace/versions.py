"""Which versions of the data a transfer is about: the workspace's, or those of revisions, branches and tags."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from mlops_cli.errors import UsageError
from mlops_cli.records import config as settings
from mlops_cli.workspace import git
from mlops_cli.workspace.project import CONFIG, Project
from mlops_cli.workspace.snapshot import Snapshot, Tracked, open_snapshot, select


class Versions(NamedTuple):
    """Revisions that are named one by one, and whether every branch and every tag counts; none: the workspace."""

    revisions: Sequence[str] = ()
    branches: bool = False
    tags: bool = False


THE_WORKSPACE = Versions()


def select_versions(
    project: Project,
    targets: Sequence[str],
    versions: Versions,
    visit: Callable[[Snapshot], object] = lambda _: None,
) -> list[tuple[Tracked, str]]:
    """Return what `targets` name in each version, each thing once; `visit` sees the records of each version.

    UsageError for a target that no version tracks, a revision that is none, and when no branch or tag is there.
    """
    revisions: list[str | None] = list(_revisions(project, versions)) or [None]
    found: dict[tuple[str, str, str], tuple[Tracked, str]] = {}
    unknown: dict[str, UsageError] = {}
    known: set[str] = set()
    for revision in dict.fromkeys(revisions):
        with open_snapshot(project, revision) as snapshot:
            tracked = list(snapshot.tracked())
            visit(snapshot)
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


def select_rules(project: Project, versions: Versions) -> dict[str, Mapping[str, Sequence[str]]]:
    """Return the patterns of remotes that the settings of each version have, where they are not the workspace's.

    RecordError for settings that cannot be read: they may keep something from where it would go.
    """
    found: dict[str, Mapping[str, Sequence[str]]] = {}
    for revision in dict.fromkeys(_revisions(project, versions)):
        with open_snapshot(project, revision) as snapshot:
            data = snapshot.files.read(CONFIG)
            with snapshot.reading():
                values = {} if data is None else settings.read_config(data, CONFIG)
        patterns = settings.resolve([settings.Layer(revision, values)]).remote_paths
        if patterns and patterns != project.config.remote_paths and patterns not in found.values():
            found[revision] = patterns
    return found


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
