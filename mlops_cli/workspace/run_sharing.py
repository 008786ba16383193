"""Sharing the run cache: which run records a push sends, and what a remote that has one already makes of it.

A record is of use where it can be restored from. So it goes to the one remote that its outputs belong to, and only when
that has them all: those that Git keeps, such as metrics, go with it. Of two results of the same inputs the first one
stays, so that everybody restores the same; another takes its place once an output of it is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from mlops_cli.errors import RecordError, UsageError
from mlops_cli.hashing import Digest, fingerprint
from mlops_cli.progress import Reporter
from mlops_cli.records.locks import Lock, OutputRecord, inputs_of, read_lock
from mlops_cli.records.stages import Stage
from mlops_cli.store.cache import Cache
from mlops_cli.store.parallel import map_bounded
from mlops_cli.store.remote import Remote
from mlops_cli.words import naming
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import reach
from mlops_cli.workspace.remotes import is_cache
from mlops_cli.workspace.run_records import outs_as_written, read_run_record
from mlops_cli.workspace.scan import is_stored
from mlops_cli.workspace.snapshot import Snapshot, Tracked, track
from mlops_cli.workspace.transfers import Runs

Pair = tuple[Tracked, str]
Item = TypeVar("Item")
Result = TypeVar("Result")


class SharedRun(NamedTuple):
    """A run that a remote may be told of: the lock that is its record, and its outputs as the stage declares them."""

    key: str
    stage: Stage
    lock: Lock
    outs: tuple[Tracked, ...]

    @property
    def mark(self) -> str:
        """What tells this result from another one of the same inputs."""
        return mark_of(self.lock.outs)

    @property
    def data(self) -> bytes:
        """The record."""
        return self.lock.to_bytes(self.stage.folder)

    @property
    def pairs(self) -> list[Pair]:
        """The outputs, as what is to be pushed."""
        return [(out, "") for out in self.outs]

    def needs(self, digests: set[Digest]) -> bool:
        """Say whether one of these objects is an output."""
        return not digests.isdisjoint(out.digest for out in self.outs)


def run_key(lock: Lock) -> str:
    """Return the fingerprint under which the run cache keeps what `lock` records."""
    return fingerprint(inputs_of(lock))


def mark_of(outs: Iterable[OutputRecord]) -> str:
    """Return what tells one result from another."""
    return fingerprint([[out.path, out.kind, out.digest, out.size, out.files, out.executable] for out in outs])


@dataclass(slots=True)
class RunsToShare:
    """Gathers the runs of the versions of a project that a push is about; with targets, of the stages of `chosen`."""

    project: Project
    which: Runs
    _found: dict[str, SharedRun] = field(default_factory=dict)
    _declared: dict[frozenset[str], dict[str, Stage]] = field(default_factory=dict)

    def visit(self, snapshot: Snapshot) -> None:
        """Take the runs that the locks of a version record."""
        for stage in snapshot.stages if self.which is not Runs.NONE else ():
            lock = snapshot.lock(stage)
            if lock is not None and (run := _as_shared(stage, lock)):
                self._found.setdefault(run.key, run)
            if self.which is Runs.ALL:
                below = f"{stage.folder}/" if stage.folder else ""
                outs = frozenset(out.path.removeprefix(below) for out in stage.outs)
                self._declared.setdefault(outs, {})[stage.address] = stage

    def divide(
        self, destinations: Destinations, asked: str | None, chosen: Iterable[Pair], *, named: bool
    ) -> Mapping[str, list[SharedRun]]:
        """Return the runs by the remote to which they go; where paths are `named`, those of the stages `chosen`."""
        stages = {entry.stage for entry, _ in chosen} if named else None
        runs = [run for run in self._found.values() if stages is None or run.stage.address in stages]
        if self.which is Runs.ALL:
            runs += self._earlier()
        shares: dict[str, list[SharedRun]] = {}
        for run in runs:
            name = _remote_of(self.project, destinations, run, asked)
            if name is not None and not is_cache(self.project, name):
                shares.setdefault(name, []).append(run)
        return shares

    def _earlier(self) -> Iterator[SharedRun]:
        """Yield the runs that the run cache remembers beside those, and some stage could be restored from."""
        cache = self.project.cache
        for key in sorted(key for key in cache.list_runs() if key.isascii() and key not in self._found):
            data, name = cache.read_run(key) or b"", f"runs/{key}.yaml"
            with suppress(RecordError):
                for stage in self._declared.get(outs_as_written(read_run_record(data, name)), {}).values():
                    run = _as_shared(stage, read_lock(data, name, stage.folder))
                    if run is not None and run.key == key:
                        yield run
                        break


def _as_shared(stage: Stage, lock: Lock) -> SharedRun | None:
    """Return the run that `lock` records; None for one that is not for others, or not of the stage as it is."""
    declared = {out.path: out for out in stage.outs}
    if (
        not stage.repeatable
        or lock.changed_during_run
        or lock.accepted
        or declared.keys() != {out.path for out in lock.outs}
    ):
        return None
    outs = []
    for out in lock.outs:
        own = declared[out.path]
        if not (own.push or own.git):
            return None
        outs.append(track(out.path, out)._replace(stage=stage.address, git=own.git, push=own.push))
    return SharedRun(run_key(lock), stage, lock, tuple(outs))


def _remote_of(project: Project, destinations: Destinations, run: SharedRun, asked: str | None) -> str | None:
    """Return the one remote to which all outputs of a run may go; None when there is none."""
    data = [(out, "") for out in run.outs if not out.git]
    try:
        division = destinations.divide(data, asked, sending=True)
        if len(division.shares) != 1 or division.left:
            return None
        (name,) = division.shares
        if project.config.remote_paths:  # what Git keeps goes along, unless it must lie elsewhere
            kept = [(out, "") for out in run.outs if out.git]
            others = {owner for owner in project.config.remote_paths if owner != name}
            if not others.isdisjoint(destinations.divide(kept, None, sending=True).shares):
                return None
    except UsageError:
        return None
    return name


def find_sendable(
    project: Project, destinations: Destinations, store: Remote, runs: Iterable[SharedRun], *, anew: bool
) -> list[SharedRun]:
    """Return the runs that `store` is not known to have, and that this clone can vouch for: it made them.

    What their records name beside the data of the workspace must be in the cache; `anew` believes no note. Where an
    output is gone from there, so may be the record.
    """
    runs = list(runs)
    absent = store.missing({out.digest for run in runs for out in run.outs})
    new = (run for run in runs if anew or run.needs(absent) or not store.run_notes.has(run.key, run.mark))
    return [run for run in new if _is_own(project.cache, run) and _may_go(project, destinations, store, run)]


def _is_own(cache: Cache, run: SharedRun) -> bool:
    """Say whether the run cache here has the run, and the cache its outputs; what it does not remember is not told."""
    own = _read(run, cache.read_run(run.key))
    return (
        own is not None and mark_of(own.outs) == run.mark and all(is_stored(cache, as_entry(out)) for out in run.outs)
    )


def _may_go(project: Project, destinations: Destinations, store: Remote, run: SharedRun) -> bool:
    """Say whether nothing in the outputs of a run belongs to another remote by its `paths`."""
    if project.config.remote_paths:
        try:
            destinations.refuse_split(project.cache, store.name, run.pairs, set(reach(project.cache, run.pairs).sizes))
        except UsageError:
            return False
    return True


def send_runs(store: Remote, runs: Iterable[SharedRun], jobs: int, reporter: Reporter) -> int:
    """Tell a remote of those of `runs` whose outputs it has; returns how many records it was sent.

    Each costs one request to see what is there, and one to send it, once. RemoteError.
    """
    runs = list(runs)
    absent = store.missing({out.digest for run in runs for out in run.outs})
    whole = [run for run in runs if not run.needs(absent)]
    jobs = jobs or store.bucket.parallel
    there = list(map(_read, whole, _each(lambda run: store.read_run(run.key), whole, jobs)))
    new: list[SharedRun] = []
    others: set[str] = set()
    for run, lock in zip(whole, there, strict=True):
        if lock is None or mark_of(lock.outs) == run.mark:
            new += [run] if lock is None else []
        elif _digests(lock) == _digests(run.lock) or store.missing(_digests(lock)):  # it lies, or is of no use any more
            new.append(run)
        else:
            others.add(run.stage.address)
    for _ in _each(lambda run: store.write_run(run.key, run.data), new, jobs):
        pass
    store.run_notes.add((run.key, run.mark) for run in whole)
    if others:
        names = sorted(others)
        reporter.note(
            f"{store.label} has another result of {naming(names)} for the same inputs, and keeps it: who runs "
            f"{'that' if len(names) == 1 else 'those'} with `--pull` gets the first result"
        )
    return len(new)


def _each(function: Callable[[Item], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """Yield what `function` returns for each of `items`: the first by itself, the others at once."""
    yield from map(function, items[:1])  # it may have to make the remote what it is
    yield from map_bounded(function, items[1:], jobs)


def _read(run: SharedRun, data: bytes | None) -> Lock | None:
    """Return a record that was found under the key of `run`, if it is one, and of the same inputs."""
    try:
        lock = read_lock(data or b"", f"runs/{run.key}.yaml", run.stage.folder)
    except RecordError:
        return None
    return lock if _spell(lock) == _spell(run.lock) and not (lock.changed_during_run or lock.accepted) else None


def _spell(lock: Lock) -> str:
    return json.dumps(inputs_of(lock), sort_keys=True)  # as text: 1, 1.0 and true differ


def _digests(lock: Lock) -> set[Digest]:
    return {out.digest for out in lock.outs}
