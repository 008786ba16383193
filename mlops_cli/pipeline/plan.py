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

from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

from mlops_cli.errors import RecordError
from mlops_cli.hashing import fingerprint
from mlops_cli.pipeline.changes import Describe, input_changes, is_unversioned, output_changes, passed_over, spell
from mlops_cli.pipeline.wanted import Present, Wanted
from mlops_cli.records.locks import Lock, OutputRecord, inputs_of
from mlops_cli.records.stages import Stage
from mlops_cli.words import naming, quoted

CACHE_HAS_IT = "the cache has what the last run made"
FROZEN = "frozen"


class Action(StrEnum):
    """What is to be done with a stage."""

    RUN = "run"
    RESTORE = "restore"
    SKIP = "skip"


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
    if wanted.waiting or wanted.lost or wanted.unread or not stage.repeatable or is_unversioned(stage, wanted):
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
            reasons = ("nothing changed", *passed_over(wanted, lock), *_accepted(lock), *always)
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


def _away(lock: Lock, evidence: Evidence) -> list[str]:
    """Return the outputs that are not here and need not be, when all the others are as recorded."""
    away = [out for out in lock.outs if evidence.present.get(out.path) is None]
    rest = (_as_recorded(out, evidence) for out in lock.outs if out not in away)
    return [out.path for out in away] if all(map(evidence.may_stay_away, away)) and all(rest) else []


def _as_recorded(out: OutputRecord, evidence: Evidence) -> bool:
    present = evidence.present.get(out.path)
    return present is not None and (present.digest, present.executable) == (out.digest, out.executable)
