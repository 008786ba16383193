"""Outputs that a command goes on from: kept in place for it, instead of being taken away before it runs.

What they are is stored and in the journal by then, like all outputs there are before a run; so the way back after a
failure is the same. The command writes to files of its own, never to the cache's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mlops_cli.pipeline.journal import Unfinished
from mlops_cli.records.locks import Lock, OutputRecord
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.stages import Output, Stage
from mlops_cli.store.trees import Entry, Kind
from mlops_cli.words import word
from mlops_cli.workspace.owning import own_files
from mlops_cli.workspace.project import Project


class Start(NamedTuple):
    """Where a command starts: the outputs that it finds, as records, and those to be taken away before."""

    found: tuple[OutputRecord, ...]
    cleared: tuple[str, ...]


def start_of(stage: Stage, kept: Mapping[str, Entry | None], unfinished: Unfinished) -> Start:
    """Return where the command of `stage` starts when its outputs are as `kept`.

    What is there only in part, for the journal still waits to bring back all of it, is nothing to go on from.
    """
    found = []
    for out in stage.outs:
        entry, old = kept[out.path], unfinished.outs.get(out.path)
        is_whole = entry is not None and old is not None and (entry.kind, entry.digest) == (old.kind, old.digest)
        if out.persist and is_whole and entry is not None and entry.kind != Kind.SYMLINK:
            found.append(record_of(Output(out.path), entry))
    paths = {each.path for each in found}
    return Start(tuple(found), tuple(path for path in kept if path not in paths))


def keep_in_place(project: Project, start: Start) -> None:
    """Make what the command finds its own to write to."""
    own_files(project, [each.path for each in start.found])


def tell_start(stage: Stage, kept: Mapping[str, Entry | None], lock: Lock | None) -> str | None:
    """Return the note that a command starts from nothing, where its lock knows what it could go on from."""
    recorded = {out.path for out in lock.outs} if lock else set()
    gone = next((out.path for out in stage.outs if out.persist and kept[out.path] is None and out.path in recorded), "")
    if not gone:
        return None
    return (
        f"`{gone}` is not here: stage `{stage.address}` starts from nothing "
        f"(`mlx checkout {word(gone)}` before a run brings what its lock records)"
    )


def record_of(out: Output, entry: Entry) -> OutputRecord:
    """Return the record of an output that is `entry`."""
    is_folder = entry.kind == Kind.FOLDER
    return OutputRecord(
        path=out.path,
        kind=ObjectKind.TREE if is_folder else ObjectKind.BLOB,
        digest=entry.digest,
        size=entry.size,
        files=entry.files if is_folder else None,
        executable=entry.kind == Kind.EXECUTABLE,
        git=out.git,
        push=out.push,
    )
