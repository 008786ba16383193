"""Which `mlx.yaml` files a selection needs; the others are not read, and may be wrong.

A stage writes at or below the folder of its file, and nowhere else. So what a stage reads is made by a file in a folder
above it, or inside it when it is a folder or a pattern; and whose outputs could overlap with its own lies there too.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import translate
from typing import NamedTuple

from mlops_cli.errors import RecordError
from mlops_cli.files import folders_above
from mlops_cli.pipeline.globs import can_descend
from mlops_cli.pipeline.graph import Graph, makers_of
from mlops_cli.pipeline.selection import Reach, choose, meant_paths
from mlops_cli.records.conduct_reading import merged
from mlops_cli.records.stages import Pipeline, Stage, has_magic
from mlops_cli.workspace.git import READ_AT_MOST
from mlops_cli.workspace.snapshot import Snapshot

# What a file that cannot be read might still say: words of its text, a name spelled by escapes, `resources` at the top.
_WORD = re.compile(rb"[^\s,:\[\]{}'\"]*\$\{[^}]*\}[^\s,\[\]'\"]*")
_ESCAPE = re.compile(rb"\\[xuU]")
_RESOURCES = re.compile(rb"^(?:\{|[\"']?resources\b)", re.MULTILINE)


class Needed(NamedTuple):
    """The stages of the files that were read, and what all files say there is of each resource that matters."""

    stages: tuple[Stage, ...]
    resources: Mapping[str, float]


def read_needed(snapshot: Snapshot, targets: Sequence[str], reach: Reach, note: Callable[[str], None]) -> Needed:
    """Return the stages that `targets` and what they need may be among; all when a selection goes down, or is of all.

    RecordError for a file that is needed and cannot be read; one that is in the way and not needed is told.
    """
    words = (*targets, *reach.until)
    files = snapshot.pipeline_files
    if not words or reach.downstream or reach.begin or len(files) < 2:
        resources: dict[str, float] = {}
        for pipeline in snapshot.pipelines:
            resources = merged(resources, pipeline.resources)
        return Needed(snapshot.stages, resources)
    reading = _Reading(snapshot, note)
    for folder in sorted({folder for word in words for folder in _may_declare(word, reach.folder, reading.folders)}):
        reading.read(folder)
    needed = reading.close(choose(reading.graph, words, reach.folder))
    return Needed(tuple(reading.stages.values()), reading.resources(needed))


def _may_declare(target: str, here: str, folders: Sequence[str]) -> set[str]:
    """Return the folders whose files must be read to tell what a target means that is typed in the folder `here`."""
    place, colon, _ = target.rpartition(":")
    if colon:
        matches = re.compile(translate(place)).match if has_magic(place) else {place, f"{here}/{place}"}.__contains__
        if found := {folder for folder in folders if matches(folder) or folder in meant_paths(place, here)}:
            return found
    found = {"", here}
    for path in meant_paths(target, here):
        found.update((path, *folders_above(path)))
        found.update(folder for folder in folders if not path or folder.startswith(f"{path}/"))
    return found & set(folders)


class _Reading:
    """The files that have been read so far, and those that cannot be."""

    def __init__(self, snapshot: Snapshot, note: Callable[[str], None]) -> None:
        self.stages: dict[str, Stage] = {}
        self._snapshot = snapshot
        self._note = note
        self._files = {file.rpartition("/")[0]: file for file in snapshot.pipeline_files}
        self.folders = sorted(self._files)
        self._pointers = frozenset(snapshot.pointer_paths)
        self._read: dict[str, Pipeline] = {}
        self._broken: dict[str, RecordError] = {}
        self._maker: dict[str, str] = {}
        self._outs: list[str] = []

    @property
    def graph(self) -> Graph:
        """The stages that were read, of which nobody has asked yet what they need."""
        return Graph(self.stages, {}, self._maker)

    def read(self, folder: str) -> None:
        """Read the file in a folder; RecordError."""
        if folder in self._broken:
            raise self._broken[folder]
        if folder not in self._read:
            self._read[folder] = self._snapshot.pipeline(self._files[folder])
            for stage in self._read[folder].stages:
                self.stages.setdefault(stage.address, stage)
                self._maker.update((out.path, stage.address) for out in stage.outs)
            self._outs = sorted(self._maker)

    def close(self, addresses: Iterable[str]) -> list[Stage]:
        """Read whatever may make what these stages need, and return them with all that they need."""
        found: dict[str, Stage] = {}
        pending = list(addresses)
        while pending:
            address = pending.pop()
            if address in found:
                continue
            found[address] = stage = self.stages[address]
            if stage.is_off or stage.frozen:
                continue
            for path in (*stage.reads, *(out.path for out in stage.outs)):
                self._read_around(path, stage)
            pending.extend(maker for path in stage.reads for maker in makers_of(path, self._maker, self._outs))
        return list(found.values())

    def resources(self, stages: Iterable[Stage]) -> dict[str, float]:
        """Return what the pipelines say there is, were it in a file that nothing else is wanted of."""
        found: dict[str, float] = {}
        if any(stage.conduct.resources for stage in stages):
            for folder, file in self._files.items():
                if folder not in self._read and _RESOURCES.search(self._snapshot.files.read(file) or b""):
                    self._try(folder)
        for pipeline in self._read.values():
            found = merged(found, pipeline.resources)
        return found

    def _read_around(self, path: str, stage: Stage) -> None:
        """Read the files that may make what is at `path`, or inside it; RecordError for one that `stage` then needs."""
        for folder in self._around(path):
            if not self._try(folder) and self._may_make(folder, path, stage):
                raise self._broken[folder]

    def _try(self, folder: str) -> bool:
        """Read the file in a folder, and say whether that can be done; when it cannot, that is told once."""
        if folder not in self._broken:
            try:
                self.read(folder)
            except RecordError as error:
                self._broken[folder] = error
                self._note(f"{error.message}; nothing here needs that file")
        return folder not in self._broken

    def _around(self, path: str) -> Iterator[str]:
        names = path.split("/")
        plain = next((number for number, name in enumerate(names) if has_magic(name)), len(names))
        start = "/".join(names[:plain])
        yield from (folder for folder in ("", *folders_above(start), start) if folder in self._files)
        below = f"{start}/" if start else ""
        for folder in self.folders[bisect_left(self.folders, below) :]:
            if not folder.startswith(below):
                return
            if folder and (plain == len(names) or can_descend(names, folder.split("/"))):
                yield folder

    def _may_make(self, folder: str, path: str, stage: Stage) -> bool:
        """Say whether a file that cannot be read might declare an output at `path`, around it or inside it.

        That is taken for granted of one that a stage reaches into from outside. The text of one above the stage would
        have the first name on the way from its folder, unless that is filled in or escaped.
        """
        if any(place in self._pointers for place in (*folders_above(path), path)):
            return False
        data = self._snapshot.files.read(self._files[folder])
        name = path[len(folder) + 1 if folder else 0 :].partition("/")[0]
        if data is None or len(data) >= READ_AT_MOST or not name or has_magic(name) or folder == path:
            return True
        if not all(place.startswith(f"{folder}/" if folder else "") for place in (path, f"{stage.folder}/")):
            return True
        filled = any(b"${" in word.partition(b"/")[0] for word in _WORD.findall(data))
        spelled = rb"(?<![\w.-])" + re.escape(os.fsencode(name)) + rb"(?![\w.-])"
        return filled or any(re.search(pattern, data) for pattern in (spelled, _ESCAPE))
