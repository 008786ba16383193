"""Which repositories use a remote, as the notes say that each has left there with its first push (`remote_note`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.errors import Inconclusive, UsageError
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.workspace import repository
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.remote_note import FOLDER, leave_note

_NAME = re.compile(rf"{FOLDER}/([0-9a-f]{{32}})\.json")
_LARGEST = 1 << 16


class RemoteProject(NamedTuple):
    """A repository that has pushed to a remote: its note's name, its first commits, and where Git has it."""

    id: str
    first: tuple[str, ...]
    git: str


def announce(project: Project, bucket: Bucket, url: str) -> None:
    """Leave this repository's note on a remote, unless this clone has done so; one that is shallow cannot tell."""
    leave_note(project.git, project.local, bucket, url)


def list_projects(bucket: Bucket) -> list[RemoteProject]:
    """Return every repository that has noted itself; Inconclusive for a note that cannot be read."""
    found = []
    for stored in bucket.list(FOLDER):
        match = _NAME.fullmatch(stored.key)
        if match is None:
            continue
        try:
            value = json.loads(bucket.get(stored.key, 0, _LARGEST))
            found.append(RemoteProject(match[1], tuple(map(str, value["first"])), str(value["git"])[:500]))
        except AbsentKey:
            continue
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Inconclusive(
                f"`{stored.key}` in {bucket.label} says which repository uses it, and cannot be read",
                hint=f"`mlx remote gc --forget {match[1]}` if nobody does",
            ) from error
    return sorted(found)


def refuse_others(project: Project, bucket: Bucket, forgotten: str | None = None) -> tuple[str, ...]:
    """Return where the repositories are that use a remote; Inconclusive when one of them is another than this.

    The one that is about to be `forgotten` does not count.
    """
    if repository.find_incomplete(project.git.common_dir):
        return ()  # it does not know its first commits, and is refused by who looks for records in it
    mine = set(repository.list_first_commits(project.git.git_dir, everywhere=True))
    found = [other for other in list_projects(bucket) if other.id != forgotten]
    for other in found:
        if mine.isdisjoint(other.first):
            where = f"`{other.git}`" if other.git else "that has no Git remote"
            raise Inconclusive(
                f"another repository ({where}) has pushed to {bucket.label}, too: what it needs is unknown here",
                hint="give each repository a URL of its own; if that one uses this remote no more, "
                f"`mlx remote gc {bucket.name} --forget {other.id}`",
            )
    return tuple(other.git for other in found)


def forget_project(bucket: Bucket, name: str, *, dry_run: bool) -> None:
    """Remove the note of a repository; UsageError when there is none of that name."""
    key = f"{FOLDER}/{name}.json"
    if not _NAME.fullmatch(key) or bucket.size(key) is None:
        known = ", ".join(f"`{other.id}` ({other.git})" for other in _readable(bucket)) or "none"
        raise UsageError(f"{bucket.label} has no note `{name}` of a repository", hint=f"there is: {known}")
    if not dry_run:
        bucket.delete([key])


def _readable(bucket: Bucket) -> Iterable[RemoteProject]:
    with suppress(Inconclusive):
        return list_projects(bucket)
    return ()
