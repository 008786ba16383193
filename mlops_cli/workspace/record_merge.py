"""Two versions of one file of mlx's made into one, whatever file it is: a pointer, a lock, or a `.gitignore`.

The merge driver and `mlx resolve` both ask this, so with the driver or without it a merge comes to the same.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from mlops_cli.errors import RecordError
from mlops_cli.records.paths import is_record
from mlops_cli.records.pointers import SUFFIX, is_meant, read_pointer
from mlops_cli.words import word
from mlops_cli.workspace.gitignore import merge_ignored
from mlops_cli.workspace.lock_merge import choose_lock
from mlops_cli.workspace.pointer_merge import Draft, clash_of_deletion, merge_pointers
from mlops_cli.workspace.run_records import read_run_record
from mlops_cli.workspace.sides import Clash, Outcome, Side, Sides

T = TypeVar("T")

PATTERNS = ("*.mlx", "**/mlx.lock/*.yaml", ".gitignore")
_KEPT = "{} is kept, which ran with the inputs of the merge"
_STALE = "{} is kept; nobody ran it with the inputs of the merge yet: `mlx run` does"


def is_merged_here(path: str, sides: Sides[bytes]) -> bool:
    """Say whether a file is one of mlx's own, as far as its name and its versions tell."""
    if path.endswith(SUFFIX):
        return is_record(path) and all(is_meant(data) for data in (sides.ours, sides.theirs) if data)
    return is_record(path) or path.rpartition("/")[2] == ".gitignore"


def merge_file(path: str, sides: Sides[bytes], trees: Draft, choice: Side | None = None) -> Outcome | None:
    """Return what two versions of the file `path` (of the project) come to; None: people must look at its lines.

    `choice` decides what both sides changed differently. RecordError for a version that cannot be read; MissingObject
    for a listing that is not among `trees`.
    """
    side = sides.settled()
    if side is not None:
        return Outcome(sides.of(side), side)
    if sides.ours is None or sides.theirs is None:
        if choice is not None:
            return Outcome(sides.of(choice), choice)
        return Outcome(None, clashes=(clash_of_deletion(_subject(path), sides),))
    if path.rpartition("/")[2] == ".gitignore":
        merged = merge_ignored(sides.base or b"", sides.ours, sides.theirs)
        return None if merged is None else Outcome(merged)
    return _merge_locks(path, sides, choice) if path.endswith(".yaml") else _merge_pointers(path, sides, trees, choice)


def _subject(path: str) -> str:
    return path.removesuffix(SUFFIX)


def _merge_locks(path: str, sides: Sides[bytes], choice: Side | None) -> Outcome:
    if choice is not None:
        return Outcome(sides.of(choice), choice)
    side, fits = choose_lock(_read(path, sides, read_run_record)[0])
    return Outcome(sides.of(side), side, note=(_KEPT if fits else _STALE).format(side))


def _merge_pointers(path: str, sides: Sides[bytes], trees: Draft, choice: Side | None) -> Outcome:
    try:
        pointers, knows_base = _read(path, sides, read_pointer)
    except RecordError:
        if choice is None:
            raise
        return Outcome(sides.of(choice), choice)
    if knows_base:
        return merge_pointers(_subject(path), pointers, trees, choice)
    if choice is not None:
        return Outcome(sides.of(choice), choice)
    return Outcome(None, clashes=(Clash(_subject(path), "changed on both sides, and what it was cannot be read"),))


def _read(path: str, sides: Sides[bytes], read: Callable[[bytes, str], T]) -> tuple[Sides[T], bool]:
    """Return the records that both sides are, and whether the base is what it is said to be.

    Where branches were merged both ways before, the base is a merge too, which may have come to nothing but a conflict.
    """
    base = None
    with suppress(RecordError):
        base = read(sides.base, _version(path, "base")) if sides.base else None
    found = {side: sides.of(side) for side in Side}
    both = [None if data is None else _read_side(path, side, data, read) for side, data in found.items()]
    return Sides(base, *both), base is not None or not sides.base


def _read_side(path: str, side: Side, data: bytes, read: Callable[[bytes, str], T]) -> T:
    try:
        return read(data, _version(path, side))
    except RecordError as error:
        hint = f"`git checkout --ours {word(path)}`, or `--theirs`, takes one side as it is"
        raise RecordError(error.message, hint=hint) from error


def _version(path: str, which: str) -> str:
    """Return what a version of a file is called in messages; not by its name, which it need not fit."""
    return f"{path} ({which})"
