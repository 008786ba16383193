"""What to put back when a run is cut short.

Before a stage's old outputs are taken away, a journal entry says which objects they were; it goes when the stage's lock
is written. An entry found at the start of a command was left by a killed run: its command is stopped if it still runs,
what it wrote is set aside, and the old outputs come back. Only when the lock had been written does the run count.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Protocol

from mlops_cli.errors import MissingObject, MlxError, OutsideError
from mlops_cli.files import TEMPORARY_PREFIX, translate_os_error, write_atomic
from mlops_cli.hashing import Digest, hash_bytes, parse_digest
from mlops_cli.pipeline.aside import empty_folder, set_aside, unused
from mlops_cli.pipeline.processes import Group, is_running, stop_group
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.trees import Entry, Kind
from mlops_cli.words import word
from mlops_cli.workspace.checkout import is_part, restore
from mlops_cli.workspace.hazards import Edited
from mlops_cli.workspace.litter import is_left
from mlops_cli.workspace.project import Project, file_name
from mlops_cli.workspace.reservations import find_reservations
from mlops_cli.workspace.scan import Scanner, is_stored, open_scanner
from mlops_cli.workspace.snapshot import workspace_snapshot


class Noting(Protocol):
    """Is told what the user should know."""

    def note(self, message: str) -> None:
        """Something that stops nothing."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A stage that is being run.

    `outs` are its outputs as they were (None: there was nothing), `group` is the command's process group, `lock` the
    path of its lock, `before` the digest of that file as it was (None: none), `after` that of what is about to be
    written. `waiting` says that what the command wrote was set aside and only the old outputs are still to come back:
    what else is at their paths by then is the user's.
    """

    stage: str
    outs: Mapping[str, Entry | None]
    lock: str
    before: Digest | None
    after: Digest | None = None
    group: Group | None = None
    waiting: bool = False

    def to_bytes(self) -> bytes:
        """Return the entry as JSON."""
        outs = {
            path: None if entry is None else [int(entry.kind), entry.size, entry.files, entry.digest]
            for path, entry in self.outs.items()
        }
        value = {
            "stage": self.stage,
            "outs": outs,
            "lock": self.lock,
            "before": self.before,
            "after": self.after,
            "group": [self.group.number, self.group.started] if self.group else None,
            "waiting": self.waiting,
        }
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
        before, after = (parse_digest(value[key]) if value[key] else None for key in ("before", "after"))
        group = Group(int(value["group"][0]), str(value["group"][1])) if value["group"] else None
        return Unfinished(str(value["stage"]), outs, str(value["lock"]), before, after, group, bool(value["waiting"]))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not a journal entry: {error}") from error


def begin(project: Project, unfinished: Unfinished) -> Unfinished:
    """Write the entry, durably, before anything is taken away, and return it.

    An entry that is there already waits for old outputs that could not be brought back: where nothing has come to
    their paths since, they stay the ones to bring back.
    """
    with suppress(OSError, ValueError):
        waiting = read_unfinished(_path(project, unfinished.stage).read_bytes())
        outs = dict(unfinished.outs)
        for path, old in waiting.outs.items():
            if path in outs and is_part(project.cache, outs[path], old):
                outs[path] = old
        unfinished = replace(unfinished, outs=outs)
    return update(project, unfinished)


def update(project: Project, unfinished: Unfinished) -> Unfinished:
    """Write the entry again, as durably as at first, and return it: it is the only list of the old outputs."""
    write_atomic(_path(project, unfinished.stage), unfinished.to_bytes())
    return unfinished


def without_edited(project: Project, unfinished: Unfinished, edited: Edited) -> Unfinished:
    """Write the entry again without the output that somebody has edited, and return it: that one stays as it is."""
    outs = {path: old for path, old in unfinished.outs.items() if not f"{edited.path}/".startswith(f"{path}/")}
    return update(project, replace(unfinished, outs=outs))


def finish(project: Project, stage: str) -> None:
    """Remove the entry: the stage is done, or its old outputs are back."""
    _path(project, stage).unlink(missing_ok=True)


class Fate(Enum):
    """What became of a run that was cut short."""

    RECORDED = "its lock was there: the result stands"
    BACK = "the old outputs are back"
    SUPERSEDED = "another lock is there by now: whatever the outputs are, they are somebody else's"
    WAITING = "the old outputs cannot be brought back yet"
    GIVEN_UP = "the old outputs cannot be brought back"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a run that was cut short, and where what it had written is, if it had written anything."""

    fate: Fate
    aside: Path | None = None


def put_right(project: Project, unfinished: Unfinished, reporter: Noting = SILENT, *, killed: bool = False) -> Outcome:
    """Bring the old outputs back and set aside what the command wrote, unless the stage's lock is another one by now.

    Whatever interrupts this, doing it again ends in the same state. Nothing is raised for what stands in the way; it is
    told, and old outputs that may come back later (the disk is full or away, the cache lacks them) stay in the journal.
    With `killed`, someone may have written to the outputs since: nothing ever replaces what is set aside.
    """
    now = _digest(project.root / unfinished.lock)
    if now is not None and now == unfinished.after:
        finish(project, unfinished.stage)
        return Outcome(Fate.RECORDED)
    if now != unfinished.before:
        finish(project, unfinished.stage)
        _tell_old(unfinished, "its lock is another one by now, so its outputs stay as they are", reporter)
        return Outcome(Fate.SUPERSEDED)
    aside = None
    try:
        with open_scanner(project) as scanner:
            others = [path for path, entry in unfinished.outs.items() if _is_other(project, scanner, path, entry)]
            if unfinished.waiting:
                for path in others:
                    reporter.note(f"`{path}` is not what stage `{unfinished.stage}` had before, and stays as it is")
            else:
                if others:
                    aside = empty_folder(project, unfinished.stage, killed=killed)
                    set_aside(project, others, aside)
                unfinished = update(project, replace(unfinished, waiting=True, group=None))
                others = []
            wanted = {path: entry for path, entry in unfinished.outs.items() if entry and path not in others}
            _refuse_absent(project, wanted)
            restore(project, scanner, wanted, kept=wanted)
    except (MlxError, OSError) as error:
        unable = error if isinstance(error, MlxError) else _translate(error)
        moved = aside if aside and aside.exists() else None
        return Outcome(_tell_unable(project, unfinished, unable, reporter), moved)
    finish(project, unfinished.stage)
    return Outcome(Fate.BACK, aside)


def _translate(error: OSError) -> MlxError:
    return translate_os_error(error, f"use `{os.fsdecode(error.filename or '')}`")


def _digest(path: Path) -> Digest | None:
    try:
        return hash_bytes(path.read_bytes())
    except OSError:
        return None


def _refuse_absent(project: Project, wanted: Mapping[str, Entry]) -> None:
    """Raise MissingObject, before anything is touched, unless the cache has everything of the old outputs."""
    for path, entry in wanted.items():
        if not is_stored(project.cache, entry):
            raise MissingObject(f"the cache lacks objects of `{path}`", hint=f"`mlx pull {word(path)}` may bring them")


def _tell_unable(project: Project, unfinished: Unfinished, unable: MlxError, reporter: Noting) -> Fate:
    if isinstance(unable, OutsideError | MissingObject):  # the next command tries again
        reporter.note(
            f"stage `{unfinished.stage}` was cut short, and its old outputs cannot be brought back yet: "
            f"{unable.message} (`mlx run {shlex.quote(unfinished.stage)}` makes them anew)"
        )
        return Fate.WAITING
    finish(project, unfinished.stage)  # trying again would end in the same way
    _tell_old(unfinished, f"its old outputs cannot be brought back: {unable.message}", reporter)
    return Fate.GIVEN_UP


def _tell_old(unfinished: Unfinished, why: str, reporter: Noting) -> None:
    names = ", ".join(f"`{path}` was `{entry.digest}`" for path, entry in unfinished.outs.items() if entry)
    reporter.note(f"stage `{unfinished.stage}` was cut short; {why}")
    reporter.note(f"what they were: {names or 'there were none'}")


def _is_other(project: Project, scanner: Scanner, path: str, old: Entry | None) -> bool:
    """Say whether something is at `path` other than the old output or a part of it."""
    if not os.path.lexists(project.root / path):
        return False
    try:
        present = scanner.look(path)
        return present is None or not is_part(scanner, present, old)
    except (MlxError, OSError):
        return True  # a FIFO, say, or what nobody may read


def recover(project: Project, reporter: Reporter = SILENT, waiting: set[str] | None = None) -> tuple[str, ...]:
    """Put right what killed runs of this checkout left, and return their stages. The checkout's lock must be held.

    What stages that are being run have noted is theirs. With `waiting`, the stages in it are not tried once more, and
    those whose old outputs cannot be brought back yet are added to it.
    """
    folder = _folder(project)
    if not folder.is_dir():
        return ()
    running = {each.stage for each in find_reservations(project)}
    stages = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(TEMPORARY_PREFIX):
            if is_left(path.name):
                path.unlink()  # it was about to replace an entry
            continue
        try:
            unfinished = read_unfinished(path.read_bytes())
        except ValueError as error:
            _keep_unreadable(project, path, error, reporter)
            continue
        if unfinished.stage in running or (waiting is not None and unfinished.stage in waiting):
            continue
        if unfinished.group is not None and is_running(unfinished.group):
            stop_group(unfinished.group.number)
        if _recover_one(project, unfinished, reporter):
            stages.append(unfinished.stage)
        elif waiting is not None:
            waiting.add(unfinished.stage)
    return tuple(stages)


def _keep_unreadable(project: Project, path: Path, error: ValueError, reporter: Reporter) -> None:
    """Put away an entry that a damaged disk or another version of mlx left: mlx cannot read it, somebody may."""
    kept = unused(project.local / "failed" / project.checkout_key / path.name)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, kept)
    reporter.note(
        f"a run was cut short, and the note on its old outputs cannot be read ({error}); it is kept as `{kept}`, and "
        "`mlx status` tells which outputs are missing"
    )


def _recover_one(project: Project, unfinished: Unfinished, reporter: Reporter) -> bool:
    """Put one stage right and tell what became of it; returns whether that is done."""
    stage = unfinished.stage
    declared = _declared(project, stage)
    if declared is not None:
        outs = {path: entry for path, entry in unfinished.outs.items() if path in declared}
        for path in sorted(unfinished.outs.keys() - declared):
            old = unfinished.outs[path]
            was = f"; before the run that was cut short it was `{old.digest}`" if old else ""
            reporter.note(f"`{path}` is no longer an output of stage `{stage}`, and stays as it is{was}")
        if not outs:
            finish(project, stage)
            return True
        unfinished = replace(unfinished, outs=outs)
    outcome = put_right(project, unfinished, reporter, killed=True)
    kept = f"what it had written is in `{outcome.aside}`" if outcome.aside else ""
    if outcome.fate is Fate.RECORDED:
        reporter.note(f"stage `{stage}` was cut short after it was done: its result stands")
    elif outcome.fate is Fate.BACK:
        reporter.note(f"stage `{stage}` was cut short: its old outputs are back{'; ' if kept else ''}{kept}")
    elif kept:
        reporter.note(kept)
    return outcome.fate is not Fate.WAITING


def _declared(project: Project, address: str) -> set[str] | None:
    """Return the outputs that a stage declares now; None when `mlx.yaml` cannot be read."""
    try:
        stages = workspace_snapshot(project).stages
    except MlxError:
        return None
    return {out.path for stage in stages if stage.address == address for out in stage.outs}


def _folder(project: Project) -> Path:
    return project.journal


def _path(project: Project, stage: str) -> Path:
    return _folder(project) / f"{file_name(stage)}.json"
