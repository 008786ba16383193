"""What to tell when a transfer cannot bring or send everything: which tracked paths lack what, and what helps."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RemoteError
from mlops_cli.hashing import Digest
from mlops_cli.store.download import REPAIR
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.remote import Remote
from mlops_cli.store.remote_checkup import Fault
from mlops_cli.words import NAMED, naming, so_for, word, words
from mlops_cli.workspace.cache_repair import cache_lost
from mlops_cli.workspace.reach import Reach, damaged_at
from mlops_cli.workspace.snapshot import Tracked

_AGAIN = "the same `mlx push` with `--repair` sends it again, from a clone that has it"

_IMPORT = "it is imported: the same `mlx import` without `--no-download` brings it"


Failed = Mapping[str, MlxError]
"""Tracked paths that could not be brought, and why not."""


def not_brought(failed: Failed, tracked: Iterable[Tracked]) -> MlxError:
    """Return what to raise when of all `tracked` paths these are not in the workspace, and the others are."""
    errors = list(failed.values())
    first = next((error for error in errors if isinstance(error, CorruptObject)), errors[0])
    kind = CorruptObject if isinstance(first, CorruptObject) else MissingObject
    others = any(not entry.git and entry.path not in failed for entry in tracked)
    if len(errors) == 1:
        return kind(f"{first.message}{'; all else was brought' if others else ''}", hint=first.marked_hint)
    named = f"{len(errors):,} tracked paths could not be brought, {naming(sorted(failed))}"
    return kind(f"{named}{'; all else was' if others else ''}: {first.message}", hint=first.marked_hint)


def refuse_gone(store: Remote) -> None:
    """Raise RemoteError when a remote lacks objects because it is itself not there."""
    if isinstance(error := store.absent([]), RemoteError):
        raise error


def untrue(store: Remote, needed: Reach, faults: Sequence[Fault]) -> MlxError:
    """Return what to raise when a remote has not what its index names."""
    named = _named(needed, (fault.digest for fault in faults))
    damaged = [fault for fault in faults if isinstance(fault.error, DamagedObjects)]
    first = (damaged or faults)[0].error.message
    count = f"{len(faults):,} object{'' if len(faults) == 1 else 's'}"
    kind = CorruptObject if damaged else MissingObject
    return kind(f"{store.label} has not what its index says, {count} of {named}: {first}", hint=_AGAIN)


def unfetchable(needed: Reach, label: str, error: AbsentObjects, *, is_cache: bool = False) -> MlxError:
    """Return what to raise when neither the cache nor a remote has objects that are wanted here.

    `is_cache` when that remote is the cache itself, behind a URL: then nothing can be pushed to it from elsewhere.
    """
    named = _named(needed, error.digests)
    count = len(error.digests)
    objects = f"{count:,} object{'' if count == 1 else 's'} of {named}"
    if is_cache and error.marked_hint == REPAIR:
        return cache_lost(sorted(set(needed.owners.values())), error)
    if is_cache:
        paths = sorted({needed.owners[digest] for digest in error.digests if digest in needed.owners})
        return MissingObject(
            f"the cache, {label}, lacks {objects}",
            hint=f"`mlx add {words(paths[:NAMED]) or 'PATH'}` in a clone that has the files stores them again; "
            "`mlx pull --remote NAME` brings them from another remote",
        )
    is_named = error.marked_hint == REPAIR  # by the index of the remote: a mere push would not send it
    push = "mlx push --repair" if is_named else "mlx push"
    return MissingObject(
        f"{label} lacks {objects}, as does the cache",
        hint=f"`{push}` from a clone that has it, with this commit checked out; what could be fetched is in the cache",
    )


def damaged_on_the_way(needed: Reach, error: DamagedObjects, hint: str = "") -> CorruptObject:
    """Return the store's error with the tracked path that needs what is damaged, and with `hint` about that path."""
    path = next((needed.owners[digest] for digest in error.digests if digest in needed.owners), None)
    return error if path is None else damaged_at(path, error, hint.format(path=word(path)))


def unreadable(needed: Reach, label: str, trees: set[Digest], imports: Collection[str]) -> MissingObject:
    """Return what to raise when nobody knows what is below `trees`, which are to be pushed."""
    path = min(needed.owners[digest] for digest in trees)
    return MissingObject(
        f"the cache does not hold `{path}`, nor does {label}, so it cannot be pushed",
        hint=_IMPORT
        if path in imports
        else f"`mlx fetch {word(path)}` from where it is, or `mlx add {word(path)}` again",
    )


def unpushable(
    needed: Reach,
    label: str,
    absent: set[Digest],
    stages: Mapping[str, str],
    imports: Collection[str],
    wanted: Iterable[Digest] = (),
) -> MissingObject:
    """Return what to raise when objects are to be pushed that the cache lacks.

    `stages` made some of the paths, and some are `imports`. All that was to be pushed is `wanted`.
    """
    paths = sorted({needed.owners[digest] for digest in absent})
    count = f"{len(absent):,} object{'' if len(absent) == 1 else 's'} of {naming(paths)}"
    stage, them = stages.get(paths[0], ""), "it" if len(absent) == 1 else "them"
    if paths[0] in imports:
        hint = _IMPORT
    elif stage:
        hint = f"`mlx run --force {shlex.quote(stage)}` makes {them} again"
    else:
        hint = f"`mlx add {word(paths[0])}` stores {them} again, or a clone that has {them} pushes {them}"
    others = sorted({needed.owners[digest] for digest in wanted} - {*paths})
    if others:
        hint += f"; `mlx push {words(others[:NAMED])}` sends what is here{so_for(others[NAMED:])}"
    return MissingObject(
        f"{count} {'is' if len(absent) == 1 else 'are'} neither in the cache nor on {label}", hint=hint
    )


def _named(needed: Reach, digests: Iterable[Digest]) -> str:
    paths = sorted({needed.owners[digest] for digest in digests if digest in needed.owners})
    return naming(paths or sorted(set(needed.owners.values())))  # no path, where only what is gone tells whose it is
