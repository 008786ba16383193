"""Decide which stages must run, and why.

A decision compares what a stage wants now (command, parameters, environment, digests of its inputs) with what its lock
recorded, and what its outputs are with what the lock says they were. It is pure: it reads no file, starts no process.
`mlx status`, `mlx why`, `mlx run --dry-run` and `mlx run` all print or carry out the same `Decision`, so they cannot
disagree.

    lock equals wanted inputs, outputs as recorded             skip
    lock or run cache has the wanted inputs, bytes are stored  restore
    anything else                                              run

A stage that is `always` is run whatever there is; of one that is `frozen`, its lock says what its outputs are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from mlops_cli.documents import flatten
from mlops_cli.errors import RecordError
from mlops_cli.hashing import Digest, fingerprint
from mlops_cli.records.environment import NOTHING, EnvironmentRecord, differences
from mlops_cli.records.locks import Input, Lock, OutputRecord, inputs_of
from mlops_cli.records.normalizers import Normalizer
from mlops_cli.records.pointers import ObjectKind, SomeObject
from mlops_cli.records.stages import Stage, glob_pattern, has_magic
from mlops_cli.records.urls import UrlInput
from mlops_cli.words import naming, quoted

Describe = Callable[[SomeObject, SomeObject], str]

CACHE_HAS_IT = "the cache has what the last run made"
FROZEN = "frozen"


class Action(StrEnum):
    """What is to be done with a stage."""

    RUN = "run"
    RESTORE = "restore"
    SKIP = "skip"


class Normalized(NamedTuple):
    """What passes over edits of a dependency, and the `fault` for which the bytes of it, or of a file in it, count."""

    by: Normalizer
    fault: str = ""


class Wanted(NamedTuple):
    """A stage's inputs as they are now.

    `waiting` maps a dependency whose bytes cannot be known yet to the stage that will make it. `absent` are recorded
    paths that are not in the workspace: what the record says counts. `lost` are dependencies that nothing knows, and
    `unread` recorded folders whose listing is in no store here, so that nobody can say what is in them. `without` are
    optional dependencies that are not there. `off` maps those of `lost` that a stage would make to that stage, which is
    off. `urls` are what their places told; of those that are `unasked` it is what the lock recorded, if it did.
    `normalized` are the dependencies of which not every byte counts.
    """

    deps: tuple[Input, ...]
    params: Mapping[str, Mapping[str, object]]
    globs: tuple[str, ...] = ()
    waiting: Mapping[str, str] = MappingProxyType({})
    absent: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    off: Mapping[str, str] = MappingProxyType({})
    urls: tuple[UrlInput, ...] = ()
    unasked: tuple[str, ...] = ()
    environment: EnvironmentRecord = NOTHING
    normalized: Mapping[str, Normalized] = MappingProxyType({})


class Present(NamedTuple):
    """An output as it is in the workspace."""

    kind: ObjectKind
    digest: Digest
    size: int
    executable: bool = False


class Decision(NamedTuple):
    """What is to be done with a stage, every reason for it, and what is known of its result.

    `outs` are the outputs there will be afterwards, None when only running can tell; `source` is the lock they come
    from when they are restored; `missing` are outputs that a record names and no local store holds.
    """

    stage: Stage
    action: Action
    reasons: tuple[str, ...]
    wanted: Wanted
    key: str | None
    outs: tuple[OutputRecord, ...] | None
    source: Lock | None = None
    missing: tuple[str, ...] = ()


class Evidence(NamedTuple):
    """What a decision is made from, beside the stage and its wanted inputs.

    `recall` returns the run cache's entry for a key; `holds` says whether the cache has an output's bytes; `describe`
    words how one object became another. `may_stay_away` says whether a recorded output that is not in the workspace
    need not be.
    """

    lock: Lock | None
    present: Mapping[str, Present | None]
    recall: Callable[[str], Lock | None]
    holds: Callable[[OutputRecord], bool]
    describe: Describe
    may_stay_away: Callable[[OutputRecord], bool] = lambda _: False


def inputs_key(stage: Stage, wanted: Wanted) -> str | None:
    """Return the fingerprint (xxh3-128, hex) under which the run cache keeps a run with these inputs.

    None when they are not all known yet, or when the run cache is not to know this stage.
    """
    if wanted.waiting or wanted.lost or wanted.unread or not stage.repeatable or _is_unversioned(stage, wanted):
        return None
    return fingerprint(_inputs(draft_lock(stage, wanted), stage))


def draft_lock(stage: Stage, wanted: Wanted) -> Lock:
    """Return the lock that a run with these inputs will write, still without outputs and metrics."""
    return Lock(
        cmd=stage.cmd,
        deps=tuple(sorted(wanted.deps, key=lambda dep: dep.path)),
        globs=wanted.globs,
        params=wanted.params,
        env=dict(stage.env),
        wdir=stage.wdir,
        outs=(),
        metrics={},
        without=wanted.without,
        urls=wanted.urls,
        environment=wanted.environment,
    )


def _inputs(lock: Lock, stage: Stage | None = None) -> dict[str, object]:
    return {**inputs_of(lock), "outs": sorted(out.path for out in (stage or lock).outs)}


def decide(
    stage: Stage,
    wanted: Wanted,
    evidence: Evidence,
    *,
    force: bool = False,
    flag: str = "--force",
    judging: bool = False,
) -> Decision:
    """Return what is to be done with `stage`; with `force`, because `flag` asks for it, it runs.

    With `judging`, one that is `always` is judged like any other.
    """
    key = inputs_key(stage, wanted)
    lock = evidence.lock
    changes = (*input_changes(stage, wanted, lock, evidence.describe),)
    fresh = lock is not None and not changes
    if stage.frozen:
        return _decide_frozen(stage, wanted, evidence, changes, flag if force else "")
    damage = output_changes(lock, evidence.present, evidence.describe) if fresh and lock else ()
    if force:
        return Decision(stage, Action.RUN, (f"asked for with `{flag}`", *changes, *damage), wanted, key, None)
    if stage.always and not judging:
        return Decision(stage, Action.RUN, (*changes, *damage, "`always`"), wanted, key, None)
    if fresh and lock is not None:
        if not damage:
            always = ["`always`: `mlx run` runs it"] if stage.always else []
            reasons = ("nothing changed", *_passed_over(wanted, lock), *_accepted(lock), *always)
            return Decision(stage, Action.SKIP, reasons, wanted, key, lock.outs, lock)
        if away := _away(lock, evidence):
            reasons = (f"nothing changed; not here: {naming(away)}", *_accepted(lock))
            return Decision(stage, Action.SKIP, reasons, wanted, key, lock.outs, lock)
        lost = tuple(out.path for out in lock.outs if not evidence.holds(out) and not _as_recorded(out, evidence))
        if not lost:
            reasons = (*damage, CACHE_HAS_IT)
            return Decision(stage, Action.RESTORE, reasons, wanted, key, lock.outs, lock)
        reasons = (*damage, *(f"output `{path}` is not in the cache either" for path in lost))
        return Decision(stage, Action.RUN, reasons, wanted, key, None, missing=lost)
    if key is not None:
        earlier = evidence.recall(key)
        if earlier is not None and same_inputs(stage, wanted, earlier) and all(map(evidence.holds, earlier.outs)):
            reasons = (*changes, "an earlier run had the same inputs")
            return Decision(stage, Action.RESTORE, reasons, wanted, key, earlier.outs, earlier)
    return Decision(stage, Action.RUN, changes, wanted, key, None)


def _decide_frozen(stage: Stage, wanted: Wanted, evidence: Evidence, changes: tuple[str, ...], flag: str) -> Decision:
    """Return what is to be done with a stage that is never run: at most, what its lock records is brought back."""
    if evidence.lock is None:
        raise RecordError(
            f"{stage.file}:{stage.line}: stage `{stage.address}` is frozen and has no lock: nothing says what its "
            "outputs are",
            hint=f"`mlx stage unfreeze {quoted(stage.address)}` and run it, or `mlx accept` what is there",
        )
    declared = {out.path for out in stage.outs}
    lock = replace(evidence.lock, outs=tuple(out for out in evidence.lock.outs if out.path in declared))
    damage = output_changes(lock, evidence.present, evidence.describe)
    lost = tuple(out.path for out in lock.outs if not _as_recorded(out, evidence) and not evidence.holds(out))
    held = (*([f"`{flag}` does not run it"] if flag else []), *changes, *_accepted(lock))
    if damage and (away := _away(lock, evidence)):
        reasons = (FROZEN, f"not here: {naming(away)}", *held)
        return Decision(stage, Action.SKIP, reasons, wanted, None, lock.outs, evidence.lock)
    action = Action.RESTORE if damage else Action.SKIP
    return Decision(stage, action, (*damage, FROZEN, *held), wanted, None, lock.outs, evidence.lock, lost)


def _accepted(lock: Lock) -> tuple[str, ...]:
    return tuple(f"accepted without running: {each.reason}" for each in lock.accepted)


def leave_off(stage: Stage, lock: Lock | None) -> Decision:
    """Return the decision for a stage whose condition does not hold: its lock and outputs stay as they are."""
    assert stage.when is not None
    told = ", ".join(f"`{name}` is {spell(value)}" for name, value in stage.when.values)
    reason = f"off: its `when` is `{stage.when.text}`" + (f", and {told}" if told else "")
    return Decision(stage, Action.SKIP, (reason,), Wanted((), {}), None, lock.outs if lock else (), lock)


def same_inputs(stage: Stage, wanted: Wanted, lock: Lock) -> bool:
    """Say whether `lock` recorded exactly these inputs, field by field (a fingerprint alone is never believed)."""
    now, then = _inputs(draft_lock(stage, wanted), stage), _inputs(lock)
    return not (lock.changed_during_run or lock.accepted) and spell(now) == spell(then)


def input_changes(stage: Stage, wanted: Wanted, lock: Lock | None, describe: Describe) -> list[str]:
    """Return every way in which the stage's inputs differ from those its lock recorded, in words; empty when fresh."""
    if lock is None:
        waits = [f"`{path}` will be made by stage `{maker}` first" for path, maker in wanted.waiting.items()]
        return ["it has not run yet (no lock)", *waits, *_absences(wanted)]
    changes: list[str] = []
    if stage.cmd != lock.cmd:
        changes.append(f"`cmd` changed: `{' && '.join(lock.cmd)}` → `{' && '.join(stage.cmd)}`")
    if stage.wdir != lock.wdir:
        changes.append(f"`wdir` changed: `{lock.wdir or '.'}` → `{stage.wdir or '.'}`")
    known = {file: values for file, values in lock.params.items() if not _is_unknown(file, wanted)}
    changes.extend(_param_changes(wanted.params, known))
    changes.extend(_env_changes(dict(stage.env), lock.env))
    changes.extend(_environment_changes(lock.environment, wanted.environment))
    deps = (*_dep_changes(wanted, lock, describe), *_absences(wanted))
    changes.extend(_named(change, stage.environment.files or ()) for change in deps)
    changes.extend(_url_changes(stage, wanted, lock))
    changes.extend(_declaration_changes(stage, lock))
    changes.extend(f"`{path}` changed while the stage last ran" for path in lock.changed_during_run)
    changes.extend(
        f"the last run went on from what `{out.path}` was before, and it is not `persist` now"
        for out in lock.started_from
        if out.path in {own.path for own in stage.outs if not own.persist}
    )
    return changes


def _declaration_changes(stage: Stage, lock: Lock) -> Iterator[str]:
    declared, made = {out.path: out.git for out in stage.outs}, {out.path: out.git for out in lock.outs}
    for path in sorted(declared.keys() | made.keys()):
        if path not in made:
            yield f"output `{path}` is newly declared"
        elif path not in declared:
            yield f"output `{path}` is no longer declared"
        elif declared[path] != made[path]:
            yield f"output `{path}` is now kept {'in Git' if declared[path] else 'by mlx, not in Git'}"
    for path in sorted(set(stage.metrics) ^ set(lock.metrics)):
        if path in declared and path in made:
            yield f"output `{path}` is {'now' if path in stage.metrics else 'no longer'} declared as metrics"


def _is_unversioned(stage: Stage, wanted: Wanted) -> bool:
    """Say whether nobody can name the version of a URL that the stage reads."""
    return len(wanted.urls) != len(stage.urls) or any(entry.etag is None for entry in wanted.urls)


def _url_changes(stage: Stage, wanted: Wanted, lock: Lock) -> Iterator[str]:
    old, new = ({entry.url: entry for entry in entries} for entries in (lock.urls, wanted.urls))
    for url in sorted(old.keys() | set(stage.urls)):
        if url not in stage.urls:
            yield f"`{url}` is no longer a dependency"
        elif url not in old:
            yield f"`{url}` is a new dependency"
        elif new[url].etag is None:
            yield f"`{url}` may have changed: its place tells no version"
        elif new[url].etag != old[url].etag:
            yield f"`{url}` changed: {_describe_versions(old[url], new[url])}"


def _describe_versions(old: UrlInput, new: UrlInput) -> str:
    versions = f"version {old.etag or 'unknown'} → {new.etag}"
    if all(str(entry.etag).startswith("listing:") for entry in (old, new)):
        versions = "other files, or other versions of them"
    if old.size is None or new.size is None or old.size == new.size:
        return versions
    return f"{versions}, {old.size:,} → {new.size:,} bytes"


def _absences(wanted: Wanted) -> list[str]:
    unread = [f"`{path}` is not here, nor is the listing of what it holds" for path in wanted.unread]
    why = {path: f": stage `{maker}`, which makes it, is off" for path, maker in wanted.off.items()}
    lost = [f"`{path}` does not exist{why.get(path, '')}" for path in wanted.lost]
    return [*lost, *unread]


def _is_unknown(path: str, wanted: Wanted) -> bool:
    """Say whether nothing can be said about an input yet: a stage makes it first, or what holds it cannot be read."""
    if any(path == folder or path.startswith(folder + "/") for folder in wanted.unread):
        return True
    return any(path == dep or (has_magic(dep) and glob_pattern(dep).fullmatch(path)) for dep in wanted.waiting)


def _dep_changes(wanted: Wanted, lock: Lock, describe: Describe) -> list[str]:
    old, new = ({dep.path: dep for dep in deps} for deps in (lock.deps, wanted.deps))
    changes: list[str] = []
    for path in sorted(old.keys() | new.keys() | wanted.waiting.keys()):
        if path in wanted.waiting:
            changes.append(f"`{path}` may change: stage `{wanted.waiting[path]}` runs first")
        elif path in lock.without and path in new:
            changes.append(f"`{path}` is there now, and was not when the stage ran")
        elif path not in old:
            changes.append(f"`{path}` is a new dependency")
        elif path in wanted.without:
            changes.append(f"`{path}` is gone, which the stage ran with")
        elif path not in new:
            if path not in wanted.lost and not _is_unknown(path, wanted):
                changes.append(f"`{path}` is no longer a dependency")
        elif not new[path].counts_as(old[path]):
            changes.append(_word_change(old[path], new[path], wanted, describe))
        elif old[path].executable != new[path].executable:
            changes.append(f"`{path}` changed: it is {'now' if new[path].executable else 'no longer'} executable")
    return [*changes, *_absence_changes(wanted, lock)]


def _word_change(old: Input, new: Input, wanted: Wanted, describe: Describe) -> str:
    told, how = describe(old, new), wanted.normalized.get(new.path)
    if how is None:
        return f"`{new.path}` changed: {told}"
    fault = f" (its bytes count: {how.fault})" * bool(how.fault)
    if new.normal is None or old.normal is None:
        return f"`{new.path}` changed: {told}{fault or ' (its bytes count: no normal form is known)'}"
    return f"`{new.path}` changed in more than {how.by.passed_over}: {told}{fault}"


def _passed_over(wanted: Wanted, lock: Lock) -> Iterator[str]:
    """Yield what differs and does not count."""
    then = {dep.path: dep for dep in lock.deps}
    for dep in wanted.deps if wanted.normalized else ():
        how = wanted.normalized.get(dep.path)
        if how is not None and dep.path in then and dep.digest != then[dep.path].digest:
            yield f"`{dep.path}` differs in {how.by.passed_over} only"


def _absence_changes(wanted: Wanted, lock: Lock) -> Iterator[str]:
    """Yield what became of optional dependencies that are not there, or were not."""
    then = {*(dep.path for dep in lock.deps), *lock.without}
    yield from (f"`{path}` is a new dependency, which is not there" for path in wanted.without if path not in then)
    now = {*(dep.path for dep in wanted.deps), *wanted.without, *wanted.waiting, *wanted.lost}
    yield from (f"`{path}` is no longer a dependency" for path in lock.without if path not in now)


def _param_changes(new: Mapping[str, Mapping[str, object]], old: Mapping[str, Mapping[str, object]]) -> list[str]:
    changes: list[str] = []
    for file in sorted(new.keys() | old.keys()):
        before, after = flatten(old.get(file, {})), flatten(new.get(file, {}))
        for key in sorted(before.keys() | after.keys()):
            if key not in before:
                changes.append(f"`{file}: {key}` is new: {spell(after[key])}")
            elif key not in after:
                changes.append(f"`{file}: {key}` is gone: it was {spell(before[key])}")
            elif spell(before[key]) != spell(after[key]):  # as text: 1, 1.0 and true differ
                changes.append(f"`{file}: {key}` changed {spell(before[key])} → {spell(after[key])}")
    return changes


def _env_changes(new: Mapping[str, str], old: Mapping[str, str]) -> list[str]:
    changes: list[str] = []
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name):
            before, after = (spell(side[name]) if name in side else "unset" for side in (old, new))
            changes.append(f"`env: {name}` changed {before} → {after}")
    return changes


def _environment_changes(old: EnvironmentRecord, new: EnvironmentRecord) -> Iterator[str]:
    for name, before, after in differences(old, new):
        if before is None:
            yield f"`environment: {name}` is new: {after}"
        elif after is None:
            yield f"`environment: {name}` is gone: it was {before}"
        else:
            yield f"`environment: {name}` changed {before} → {after}"


def _named(change: str, files: Iterable[str]) -> str:
    """Return what is told of a dependency; of one of the `files` of an environment, with that said."""
    return f"environment: {change}" if change.startswith(tuple(f"`{path}` " for path in files)) else change


def output_changes(
    lock: Lock, there: Mapping[str, Present | OutputRecord | None], describe: Describe
) -> tuple[str, ...]:
    """Return every way in which the outputs that are `there` differ from those the lock recorded, in words."""
    changes: list[str] = []
    for out in lock.outs:
        present = there.get(out.path)
        if present is None:
            changes.append(f"output `{out.path}` is missing")
        elif present.digest != out.digest:
            changes.append(f"output `{out.path}` is not what the run made: {describe(out, present)}")
        elif present.executable != out.executable:
            changes.append(f"output `{out.path}` is {'no longer' if out.executable else 'now'} executable")
    return tuple(changes)


def _away(lock: Lock, evidence: Evidence) -> list[str]:
    """Return the outputs that are not here and need not be, when all the others are as recorded."""
    away = [out for out in lock.outs if evidence.present.get(out.path) is None]
    rest = (_as_recorded(out, evidence) for out in lock.outs if out not in away)
    return [out.path for out in away] if all(map(evidence.may_stay_away, away)) and all(rest) else []


def _as_recorded(out: OutputRecord, evidence: Evidence) -> bool:
    present = evidence.present.get(out.path)
    return present is not None and (present.digest, present.executable) == (out.digest, out.executable)


def spell(value: object) -> str:
    """Return a JSON value as text, by which values are compared: 1, 1.0 and true differ."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
