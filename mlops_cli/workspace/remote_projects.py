"""Which repositories use a remote, as the notes say that each has left there with its first push (`remote_note`)."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import NamedTuple

from mlops_cli.errors import Inconclusive, RemoteError, UsageError
from mlops_cli.store.bucket import AbsentKey, Bucket
from mlops_cli.workspace import repository
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.remote_note import FOLDER, leave_note

_NAME = re.compile(rf"{FOLDER}/([0-9a-f]{{32}})\.json")
_VERSION = 1
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
    """Return every repository that has noted itself; Inconclusive for a note that cannot be read.

    RemoteError for one of a later version.
    """
    return sorted(note for stored in bucket.list(FOLDER) if (note := _note(bucket, stored.key)))


def _note(bucket: Bucket, key: str) -> RemoteProject | None:
    """Return what a note says; None where there is none."""
    match = _NAME.fullmatch(key)
    if match is None:
        return None
    try:
        value = json.loads(bucket.get(key, 0, _LARGEST))
        if type(value["mlx"]) is int and value["mlx"] > _VERSION:
            raise RemoteError(
                f"`{key}` in {bucket.label} is of version {value['mlx']}, and this mlx understands {_VERSION}",
                hint="upgrade mlx: `pip install --upgrade mlops-cli`",
            )
        return RemoteProject(match[1], tuple(map(str, value["first"])), str(value["git"])[:500])
    except AbsentKey:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Inconclusive(
            f"`{key}` in {bucket.label} says which repository uses it, and cannot be read",
            hint=f"`mlx remote gc {bucket.name} --forget {match[1]}` if nobody does",
        ) from error


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


def forget_project(project: Project, bucket: Bucket, name: str, *, dry_run: bool) -> None:
    """Remove the note of another repository; UsageError when there is none of that name, or it is this one's."""
    key = f"{FOLDER}/{name}.json"
    mine = set(repository.list_first_commits(project.git.git_dir, everywhere=True))
    own = {other.id for other in _readable(bucket) if not mine.isdisjoint(other.first)}
    if name in own:
        raise UsageError(
            f"`{name}` is this repository's own note on {bucket.label}: it keeps others from removing its data",
            hint="leave `--forget` out",
        )
    if not _NAME.fullmatch(key) or bucket.size(key) is None:
        known = ", ".join(f"`{other.id}` ({other.git})" for other in _readable(bucket) if other.id not in own) or "none"
        raise UsageError(f"{bucket.label} has no note `{name}` of a repository", hint=f"there is: {known}")
    if not dry_run:
        bucket.delete([key])


def _readable(bucket: Bucket) -> list[RemoteProject]:
    """Return the notes that can be read; the others are no less there."""
    found = []
    for stored in bucket.list(FOLDER):
        with suppress(Inconclusive, RemoteError):
            found += [note] if (note := _note(bucket, stored.key)) else []
    return sorted(found)
