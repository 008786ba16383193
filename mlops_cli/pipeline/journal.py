"""What to put back when a run is cut short.

Before a stage's old outputs are taken away, a journal entry says which objects they were; it goes when the stage's lock
is written. An entry found at the start of a command was left by a killed run: its command is stopped if it still runs,
what it wrote is set aside, and the old outputs come back. Only when the lock had been written does the run count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mlops_cli.errors import MissingObject, MlxError, OutsideError
from mlops_cli.files import write_atomic
from mlops_cli.hashing import Digest, hash_bytes, parse_digest
from mlops_cli.pipeline.executor import Group, is_running, stop_group
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.trees import Entry, Kind
from mlops_cli.workspace.checkout import restore
from mlops_cli.workspace.litter import sweep
from mlops_cli.workspace.project import Project, file_name
from mlops_cli.workspace.scan import Scanner, open_scanner


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A stage that is being run.

    `outs` are its outputs as they were (None: there was nothing), `group` is the command's process group, `lock` the
    path and the digest of the lock that is about to be written, `aside` whether outputs are being set aside.
    """

    stage: str
    outs: Mapping[str, Entry | None]
    group: Group | None = None
    lock: tuple[str, Digest] | None = None
    aside: bool = False

    def to_bytes(self) -> bytes:
        """Return the entry as JSON."""
        outs = {
            path: None if entry is None else [int(entry.kind), entry.size, entry.files, entry.digest]
            for path, entry in self.outs.items()
        }
        group = [self.group.number, self.group.started] if self.group else None
        value = {"stage": self.stage, "outs": outs, "group": group, "lock": self.lock, "aside": self.aside}
        return json.dumps(value).encode()


def read_unfinished(data: bytes) -> Unfinished:
    """Return the entry that `to_bytes` wrote; ValueError when it is something else."""
    try:
        value = json.loads(data)
        outs = {
            path: None
            if entry is None
            else Entry(os.fsencode(path.rpartition("/")[2]), Kind(entry[0]), entry[1], entry[2], parse_digest(entry[3]))
            for path, entry in value["outs"].items()
        }
        group = Group(int(value["group"][0]), str(value["group"][1])) if value["group"] else None
        lock = (str(value["lock"][0]), parse_digest(value["lock"][1])) if value["lock"] else None
        return Unfinished(str(value["stage"]), outs, group, lock, bool(value["aside"]))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not a journal entry: {error}") from error


def begin(project: Project, unfinished: Unfinished) -> None:
    """Write the entry, durably, before anything is taken away."""
    write_atomic(_path(project, unfinished.stage), unfinished.to_bytes())


def update(project: Project, unfinished: Unfinished) -> Unfinished:
    """Write the entry again, as durably as at first, and return it: it is the only list of the old outputs."""
    write_atomic(_path(project, unfinished.stage), unfinished.to_bytes())
    return unfinished


def finish(project: Project, stage: str) -> None:
    """Remove the entry: the stage is done, or its old outputs are back."""
    _path(project, stage).unlink(missing_ok=True)


def put_right(project: Project, unfinished: Unfinished, reporter: Reporter = SILENT) -> Path | None:
    """Bring the old outputs back and set aside what differs from them, unless the new lock is there already.

    Returns where the latter is, if there was any. Whatever interrupts this, doing it again ends in the same state.
    """
    aside = None
    if not _is_recorded(project, unfinished):
        with open_scanner(project, reporter=reporter) as scanner:
            written = [path for path, entry in unfinished.outs.items() if _differs(project, scanner, path, entry)]
            if written:
                aside = _set_aside(project, unfinished, written)
            for path, entry in unfinished.outs.items():
                if entry is not None:
                    restore(project, scanner, path, entry)
    finish(project, unfinished.stage)
    return aside


def _is_recorded(project: Project, unfinished: Unfinished) -> bool:
    """Say whether the lock that the run was about to write is there: then its outputs are whole, and they stay."""
    if unfinished.lock is None:
        return False
    path, digest = unfinished.lock
    try:
        return hash_bytes((project.root / path).read_bytes()) == digest
    except OSError:
        return False


def _differs(project: Project, scanner: Scanner, path: str, entry: Entry | None) -> bool:
    """Say whether something else than the old output is at `path`."""
    if not os.path.lexists(project.root / path):
        return False
    try:
        present = scanner.look(path)
    except MlxError:
        return True  # a FIFO, say
    return present is None or entry is None or (present.kind, present.digest) != (entry.kind, entry.digest)


def _set_aside(project: Project, unfinished: Unfinished, paths: list[str]) -> Path:
    aside = project.local / "failed" / project.checkout_key / file_name(unfinished.stage)
    if not unfinished.aside:
        shutil.rmtree(aside, ignore_errors=True)
        update(project, replace(unfinished, aside=True))
    for path in paths:
        target = aside / path
        if os.path.lexists(target):
            continue  # it was moved before we were cut short: what is here now are old outputs, half restored
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(project.root / path, target)
    return aside


def recover(project: Project, reporter: Reporter = SILENT) -> tuple[str, ...]:
    """Put right what killed runs of this checkout left and return their stages. The checkout's lock must be held."""
    folder = _folder(project)
    if not folder.is_dir():
        return ()
    stages = []
    for path in sorted(folder.iterdir()):
        try:
            unfinished = read_unfinished(path.read_bytes())
        except ValueError:
            path.unlink()  # not ours, or torn: an entry is only there once it is whole
            continue
        if path != _path(project, unfinished.stage):
            path.unlink()  # it was about to replace the entry
            continue
        if unfinished.group is not None and is_running(unfinished.group):
            stop_group(unfinished.group.number)
        _recover_one(project, unfinished, reporter)
        stages.append(unfinished.stage)
    return tuple(stages)


def _recover_one(project: Project, unfinished: Unfinished, reporter: Reporter) -> None:
    stage = unfinished.stage
    done = _is_recorded(project, unfinished)
    try:
        aside = put_right(project, unfinished, reporter)
    except (OutsideError, MissingObject, OSError) as error:  # a disk that is full or away: the next command tries again
        said = error.message if isinstance(error, MlxError) else str(error)
        reporter.note(f"stage `{stage}` was cut short, and its old outputs cannot be brought back yet: {said}")
        return
    except MlxError as error:
        finish(project, stage)  # trying again would end in the same way
        names = ", ".join(f"`{path}` was `{entry.digest}`" for path, entry in unfinished.outs.items() if entry)
        reporter.note(f"stage `{stage}` was cut short, and its old outputs cannot be brought back: {error.message}")
        reporter.note(f"what they were: {names or 'there were none'}")
        return
    if done:
        reporter.note(f"stage `{stage}` was cut short after it was done: its result stands")
    else:
        kept = f"; what it had written is in `{aside}`" if aside else ""
        reporter.note(f"stage `{stage}` was cut short: its old outputs are back{kept}")


@contextmanager
def exclusive(project: Project, doing: str, reporter: Reporter = SILENT) -> Iterator[None]:
    """Hold the checkout against other mlx commands that write it, with everything put right that a killed one left."""
    with project.lock(doing) as cut_short:
        if cut_short:
            with suppress(MlxError):
                sweep(project)
        recover(project, reporter)
        yield


def _folder(project: Project) -> Path:
    return project.local / "journal" / project.checkout_key


def _path(project: Project, stage: str) -> Path:
    return _folder(project) / f"{file_name(stage)}.json"
