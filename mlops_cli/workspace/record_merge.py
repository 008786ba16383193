"""Two versions of one file of mlx's made into one, whatever file it is: a pointer, a lock, or a `.gitignore`.

The merge driver and `mlx resolve` both ask this, so with the driver or without it a merge comes to the same.
"""

from __future__ import annotations

from mlops_cli.errors import RecordError
from mlops_cli.records.paths import is_record
from mlops_cli.records.pointers import SUFFIX, Pointer, is_meant, read_pointer
from mlops_cli.workspace.gitignore import merge_ignored
from mlops_cli.workspace.lock_merge import choose_lock
from mlops_cli.workspace.pointer_merge import Draft, clash_of_deletion, merge_pointers
from mlops_cli.workspace.run_records import read_run_record
from mlops_cli.workspace.sides import Clash, Outcome, Side, Sides

PATTERNS = ("*.mlx", "**/mlx.lock/*.yaml", ".gitignore")
_STANDS = "{} stands, with the inputs that both sides come to"
_STALE = "{} stands, and its inputs are not what both sides come to: `mlx run` does what is to be done"


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
    locks = Sides(*(read_run_record(data, _version(path, n)) if data else None for n, data in enumerate(sides)))
    side, fits = choose_lock(locks)
    return Outcome(sides.of(side), side, note=(_STANDS if fits else _STALE).format(side))


def _merge_pointers(path: str, sides: Sides[bytes], trees: Draft, choice: Side | None) -> Outcome:
    try:
        pointers: Sides[Pointer] = Sides(
            *(read_pointer(data, _version(path, n)) if data else None for n, data in enumerate(sides))
        )
    except RecordError:
        if choice is None:
            raise
        return Outcome(sides.of(choice), choice)
    return merge_pointers(_subject(path), pointers, trees, choice)


def _version(path: str, number: int) -> str:
    """Return what one of three versions of a file is called in messages; not by its name, which it need not fit."""
    return f"{path} ({('base', *Side)[number]})"


__all__ = ["PATTERNS", "Clash", "is_merged_here", "merge_file"]
