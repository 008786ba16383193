"""What `mlx run` says: its progress on standard error, and what it did as its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlops_cli.cli.groups import Told, fold_decisions
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import Session
from mlops_cli.cli.text import count, size_text
from mlops_cli.words import naming

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_cli.pipeline.execution import Surroundings
    from mlops_cli.pipeline.plan import Decision
    from mlops_cli.pipeline.provision import Provided
    from mlops_cli.pipeline.runner import StageResult
    from mlops_cli.workspace.project import Project

NO_STAGES = "no stages: `mlx stage add` declares one"

_LONGEST_LINE = 1 << 16  # bytes that are held back until their line ends


def new_surroundings(session: Session, project: Project) -> Surroundings:
    """Return what the commands of a new run find, with a folder for its logs that nobody has."""
    import secrets
    import time

    from mlops_cli.pipeline.execution import Surroundings

    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    return Surroundings(session.environ, project.local / "runs" / run_id)


@dataclass(slots=True)
class RunListener:
    """Shows a run on standard error as it goes; `commands` are those of all that ran.

    Where `several` run at once, each line of a command is told with its stage.
    """

    output: Output
    several: bool = False
    commands: list[str] = field(default_factory=list)
    _begun: dict[str, bytes] = field(default_factory=dict)  # lines that have no end yet

    def begin(self, decision: Decision) -> None:
        self.commands += decision.stage.cmd
        if decision.stage.is_off:
            self.output.say(f"skip {decision.stage.address}: {decision.reasons[0]}")
        if decision.action == "skip":
            return
        reasons = decision.reasons
        self.output.say(f"{decision.action.value} {decision.stage.address}: {reasons[0]}")
        for reason in reasons[1:]:
            self.output.say(f"  and: {reason}")
        if decision.action == "run":
            for line in decision.stage.cmd:
                self.output.say(f"  $ {line}")

    def write(self, stage: str, data: bytes) -> None:
        if not self.several:
            self.output.pass_on(data)
            return
        *lines, rest = (self._begun.pop(stage, b"") + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._begun[stage] = rest
        self._pass_on(stage, lines)

    def _pass_on(self, stage: str, lines: Sequence[bytes]) -> None:
        head = f"{stage} | ".encode()
        self.output.pass_on(b"".join(head + line + b"\n" for line in lines))

    def ended(self, stage: str) -> None:
        if rest := self._begun.pop(stage, b""):
            self._pass_on(stage, [rest])

    def done(self, result: StageResult) -> None:
        address = result.decision.stage.address
        if result.decision.action == "run":
            who = f"{address} is " if self.several else ""
            self.output.say(f"  {who}done in {result.seconds:.1f} s")

    def note(self, message: str) -> None:
        self.output.note(message)


def show_run(
    output: Output,
    stages: Sequence[tuple[Decision, float | None]],
    *,
    dry_run: bool,
    logs: Path | None = None,
    fetched: Provided | None = None,
) -> None:
    decisions = [decision for decision, _ in stages]
    value = {
        "dry_run": dry_run,
        "stages": [
            {**decision_value(decision), "seconds": None if seconds is None else round(seconds, 3)}
            for decision, seconds in stages
        ],
        "logs": None if logs is None else str(logs),
        "fetched": None if fetched is None else _fetched_value(fetched, dry_run=dry_run),
    }
    lines = [line for told in fold_decisions(decisions) for line in _decision_lines(told)] if dry_run else []
    numbers = {
        action: sum(decision.action == action for decision in decisions) for action in ("run", "restore", "skip")
    }
    if dry_run:
        ends = f"would run {numbers['run']}, restore {numbers['restore']}, skip {numbers['skip']}"
    else:
        ends = f"ran {numbers['run']}, restored {numbers['restore']}, skipped {numbers['skip']}"
    if not decisions:
        ends = NO_STAGES
    elif numbers["skip"] == len(decisions):
        off = sum(decision.stage.is_off for decision in decisions)
        ends = f"nothing to do: {count(len(decisions) - off, 'stage')} up to date" + f", {off} off" * bool(off)
    told = [] if fetched is None else _fetched_lines(fetched, dry_run=dry_run)
    output.result("run", value, [*lines, *told, ends])


def _fetched_value(fetched: Provided, *, dry_run: bool) -> dict[str, Any]:
    remotes = fetched.remotes
    paths = fetched.paths if dry_run else sorted({path for each in remotes for path in each.paths})
    return {
        "paths": list(paths),
        "objects": None if dry_run else sum(each.objects for each in remotes),
        "size": fetched.size if dry_run else sum(each.size or 0 for each in remotes),
        "requests": sum(each.requests for each in remotes),
        "transferred": sum(each.transferred for each in remotes),
        "records": fetched.records,
    }


def _fetched_lines(fetched: Provided, *, dry_run: bool) -> list[str]:
    if dry_run:
        return [f"would fetch {naming(fetched.paths)} ({size_text(fetched.size)})"] if fetched.paths else []
    return [
        f"fetched {count(each.objects, 'object')} ({size_text(each.size or 0)}) from `{each.name}`, in "
        f"{count(each.requests, 'request')}"
        for each in fetched.remotes
        if each.objects
    ]


def decision_value(decision: Decision) -> dict[str, Any]:
    return {"stage": decision.stage.address, "action": decision.action.value, "reasons": list(decision.reasons)}


def _decision_lines(told: Told) -> list[str]:
    head = f"{told.action:<8}{told.name}"
    is_plain = told.action == "skip" and not told.is_off
    return [head] if is_plain else [head, *(f"          {reason}" for reason in told.reasons)]
