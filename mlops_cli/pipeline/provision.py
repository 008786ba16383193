"""What a run may do about data that is not here: leave it away, where nobody needs it, or fetch what is needed.

A stage that is up to date by its lock is skipped although its outputs are not here, unless a stage that runs reads
them: then these come from the cache or, with `pull`, from a remote. A run that is not remembered here may be on a
remote: that is one request for its key, and a hit only if its inputs are the wanted ones field by field and its outputs
can be had.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlops_cli.documents import parse_values
from mlops_cli.errors import CorruptObject, MissingObject, MlxError, RecordError, RemoteError
from mlops_cli.hashing import Digest
from mlops_cli.pipeline.plan import CACHE_HAS_IT, Action, Decision, Evidence, same_inputs
from mlops_cli.pipeline.wanted import Wanted
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.records.locks import Lock, OutputRecord, read_lock
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.stages import Stage
from mlops_cli.store.trees import check_folder
from mlops_cli.workspace.checkout import bring
from mlops_cli.workspace.compare import as_entry
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.remotes import choose_remote
from mlops_cli.workspace.snapshot import Tracked, track
from mlops_cli.workspace.supply import Pair, Supply, lacks
from mlops_cli.workspace.transfers import Moved


class Provided(NamedTuple):
    """What a run fetched, by remote, and how many run records it found there.

    In a dry run, `paths` are what it would fetch, and `size` (bytes) what the records say of them.
    """

    remotes: tuple[Moved, ...]
    records: int
    paths: tuple[str, ...] = ()
    size: int = 0


class Provision:
    """Decides about stages, and brings what they need, as `pull` and `allow_missing` let it; nothing in a dry run.

    The outputs of the stages that are `named` are wanted by who named them. With `listings` alone, all that comes is
    what lists the files of folders. UsageError when there is no remote to pull from.
    """

    def __init__(
        self,
        project: Project,
        *,
        pull: bool = False,
        allow_missing: bool = False,
        listings: bool = False,
        dry_run: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        if pull and not project.config.remotes:
            choose_remote(project, None)
        self.named: frozenset[str] = frozenset()
        self._project = project
        self._allow_missing = allow_missing
        self._dry_run = dry_run
        self._reporter = reporter
        self._lists = Supply(project, reporter=reporter) if pull or listings else None
        self._supply = self._lists if pull else None
        self._denied: set[Digest] = set()  # what could not be had, whatever an index says
        self._found: dict[str, Lock | None] = {}
        self._records: set[str] = set()
        self._is_unreached = False
        self._foreseen: dict[str, int] = {}

    @property
    def told(self) -> Provided | None:
        """What was fetched, or would be; None for a run that fetches nothing."""
        if self._supply is None:
            return None
        foreseen = self._foreseen
        return Provided(self._supply.moved, len(self._records), tuple(sorted(foreseen)), sum(foreseen.values()))

    def decide(
        self,
        stage: Stage,
        wanted: Wanted,
        evidence: Evidence,
        judge: Callable[[Evidence], Decision],
        *,
        run_cache: bool,
    ) -> Decision:
        """Return what `judge` says is to be done with `stage`, from what is here and can be brought.

        For one that is to be restored, the cache has what that takes.
        """
        local = evidence.holds

        def may_stay_away(out: OutputRecord) -> bool:
            declared = _as_declared(stage, out)
            if declared.git:
                return False
            is_wanted = stage.address in self.named or not declared.push or self._supply is None
            return self._allow_missing or not (is_wanted or local(out))

        def recall(key: str) -> Lock | None:
            known = evidence.recall(key)
            if known is not None and same_inputs(stage, wanted, known) and all(map(local, known.outs)):
                return known
            shared = self._look_up(key, stage, wanted) if run_cache else None
            return shared or (None if self._is_unreached else known)

        wider = evidence._replace(
            recall=recall,
            holds=lambda out: local(out) or self._has(_as_declared(stage, out)),
            may_stay_away=may_stay_away,
        )
        decision = judge(wider)
        while decision.action is Action.RESTORE and not decision.missing and (missing := _lacking(decision, evidence)):
            if self._bring_outputs(decision, missing):
                whence = f"{self._label(missing)} has what that run made"
                reasons = (*(reason for reason in decision.reasons if reason != CACHE_HAS_IT), whence)
                return decision._replace(reasons=reasons)
            decision = judge(wider)
        return decision

    def bring_inputs(self, chosen: Sequence[Pair]) -> bool:
        """Bring what a stage reads and is not here into the workspace; say whether it is there now.

        MissingObject or CorruptObject for what no remote has, RemoteError; UsageError where something is in the way.
        """
        if lacks(self._project, chosen):
            if self._supply is None:
                return False
            if self._dry_run:
                self._foresee(chosen)
                return True
            try:
                self._supply.bring(chosen)
            except MissingObject as error:
                stages = sorted({entry.stage for entry, _ in chosen if entry.stage})
                again = f"`mlx run --pull {' '.join(stages)}` makes again what stages make; " if stages else ""
                raise MissingObject(error.message, hint=again + (error.marked_hint or "")) from error
        if not self._dry_run:
            bring(self._project, chosen, reporter=self._reporter)
        return True

    def bring_listings(self, chosen: Sequence[Pair], whole: Sequence[Pair]) -> bool:
        """Bring what lists the files of folders, and all of what is wanted `whole`; say whether anything was asked for.

        A dry run does so too: what is to be done depends on it.
        """
        if self._lists is None or not (chosen or whole):
            return False
        try:
            for tracked, _ in chosen:
                self._lists.bring_listings(tracked)
            if whole:
                self._lists.bring(whole)
        except MissingObject:  # then it is as if nobody had asked
            return False
        return True

    def _look_up(self, key: str, stage: Stage, wanted: Wanted) -> Lock | None:
        """Return the run of a remote that had these inputs, if its outputs can be had: one request, and only once."""
        if self._supply is None or self._is_unreached:
            return None
        try:
            if key not in self._found:
                self._found[key] = self._find(key, stage, wanted)
            lock = self._found[key]
            if lock is None or not all(self._has(_as_declared(stage, out)) for out in lock.outs):
                return None
        except RemoteError as error:
            self._is_unreached = True
            self._reporter.note(f"results of others are not looked for: {error.message}")
            return None
        self._records.add(key)
        return lock

    def _find(self, key: str, stage: Stage, wanted: Wanted) -> Lock | None:
        assert self._supply is not None
        data = [out.path for out in stage.outs if not out.git]
        for found in self._supply.find_runs(key, data or [out.path for out in stage.outs]):
            try:
                lock = read_lock(found, f"run record {key}", stage.folder)
            except RecordError:  # by another version, or by somebody who means no good
                continue
            if same_inputs(stage, wanted, lock) and self._is_true(lock, stage):
                return lock
        return None

    def _is_true(self, lock: Lock, stage: Stage) -> bool:
        """Say whether outputs that are here are what a record says; of the others that is seen when they come."""
        try:
            for out in lock.outs:
                if not self._project.cache.missing([out.digest]):
                    self._check(_as_declared(stage, out), stage)
        except (MissingObject, CorruptObject, RecordError) as error:
            self._tell_unused(stage, error)
            return False
        return True

    def _tell_unused(self, stage: Stage, error: MlxError) -> None:
        self._reporter.note(f"what an earlier run of `{stage.address}` made is not used: {error.message}")

    def _has(self, tracked: Tracked) -> bool:
        return self._supply is not None and tracked.digest not in self._denied and self._supply.has(tracked)

    def _label(self, missing: Sequence[Tracked]) -> str:
        assert self._supply is not None
        return self._supply.label(missing[0])

    def _bring_outputs(self, decision: Decision, missing: Sequence[Tracked]) -> bool:
        """Bring outputs into the cache; what cannot be had, or is not what its record says, is not wanted any more."""
        assert self._supply is not None
        pairs = [(tracked, "") for tracked in missing]
        if self._dry_run:
            self._foresee(pairs)
            return True
        try:
            self._supply.bring(pairs)
            for tracked in missing:
                self._check(tracked, decision.stage)
        except (MissingObject, CorruptObject, RecordError) as error:
            self._denied.update(tracked.digest for tracked in missing)
            if decision.key is not None:
                self._found[decision.key] = None
            self._tell_unused(decision.stage, error)
            return False
        return True

    def _check(self, tracked: Tracked, stage: Stage) -> None:
        """Raise CorruptObject or RecordError for an output that is not what its record says, or that no run wrote."""
        if tracked.kind is ObjectKind.TREE:
            check_folder(self._project.cache.window, as_entry(tracked))
            return
        with self._project.cache.open(tracked.digest) as stream:
            size = stream.seek(0, os.SEEK_END)
        if size != tracked.size:
            raise RecordError(f"`{tracked.path}` has {size:,} bytes, and its record says {tracked.size:,}")
        if tracked.path in stage.metrics:
            parse_values(self._project.cache.read(tracked.digest), tracked.path)

    def _foresee(self, chosen: Sequence[Pair]) -> None:
        for tracked, part in chosen:
            self._foreseen[f"{tracked.path}/{part}" if part else tracked.path] = 0 if part else tracked.size


def _lacking(decision: Decision, evidence: Evidence) -> list[Tracked]:
    """Return the outputs that are to be restored, and that are neither in the cache nor in the workspace."""
    assert decision.source is not None
    found = []
    for out in decision.source.outs:
        present = evidence.present.get(out.path)
        is_here = present is not None and (present.digest, present.executable) == (out.digest, out.executable)
        if not (is_here or evidence.holds(out)):
            found.append(_as_declared(decision.stage, out))
    return found


def _as_declared(stage: Stage, out: OutputRecord) -> Tracked:
    """Return an output that a record names, kept in Git or from remotes as the stage says now."""
    own = next((declared for declared in stage.outs if declared.path == out.path), None)
    found = track(out.path, out)._replace(stage=stage.address)
    return found if own is None else found._replace(git=own.git, push=own.push)
