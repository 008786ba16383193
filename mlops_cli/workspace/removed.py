"""What is left of stages that nobody declares any more: their locks, and the `.gitignore` lines of their outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import RecordError
from mlops_cli.records.locks import read_lock
from mlops_cli.words import word
from mlops_cli.workspace.gitignore import find_hidden
from mlops_cli.workspace.snapshot import Snapshot, lock_path

_LOCKS = "mlx.lock/"


class LeftLine(NamedTuple):
    """A line of the file `gitignore` that hides `path`, of which only the `lock` of a removed stage speaks."""

    gitignore: str
    path: str
    lock: str


def find_left_lines(root: Path, snapshot: Snapshot) -> tuple[LeftLine, ...]:
    """Return the `.gitignore` lines that outputs of removed stages have left, as far as their locks are there."""
    outs = dict(_left_outputs(snapshot))
    return tuple(LeftLine(file, path, outs[path]) for path, file in find_hidden(root, outs))


def tell_left_lines(root: Path, lines: tuple[LeftLine, ...]) -> str:
    """Word what to do about such lines, of which there are some."""
    first = lines[0]
    more = f" ({len(lines) - 1:,} more like it)" if len(lines) > 1 else ""
    keep = f", or `mlx add {word(first.path)}` keeps it as data" if (root / first.path).exists() else ""
    return (
        f"`{first.gitignore}` still hides `{first.path}`, which no stage makes any more{more}: take the line out and "
        f"delete `{first.lock}`{keep}"
    )


def _left_outputs(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    """Yield each output that only the lock of a removed stage names, with that lock."""
    names = [path for path in snapshot.paths if path.rpartition("/")[0].rpartition("/")[2] == _LOCKS[:-1]]
    stages = snapshot.stages if names else ()
    removed = sorted(set(names) - {lock_path(stage) for stage in stages})
    known = {*snapshot.pointer_paths, *(out.path for stage in stages for out in stage.outs)} if removed else set()
    for name in removed:
        with suppress(RecordError):  # nobody needs it any more
            lock = read_lock(snapshot.files.read(name) or b"", name, name.rpartition(_LOCKS)[0].rstrip("/"))
            yield from ((out.path, name) for out in lock.outs if not out.git and out.path not in known)
