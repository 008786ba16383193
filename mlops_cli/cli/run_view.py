"""What `mlx run` says: its progress on standard error, and what it did as its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from mlops_cli.cli.groups import Told, fold_decisions
from mlops_cli.cli.live_view import LiveView, can_be_live, tamed
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import Session
from mlops_cli.cli.text import about_text, count, duration_text, size_text
from mlops_cli.words import naming

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_cli.errors import MlxError
    from mlops_cli.pipeline.execution import Surroundings
    from mlops_cli.pipeline.manner import StageResult
    from mlops_cli.pipeline.plan import Decision
    from mlops_cli.pipeline.provision import Provided
    from mlops_cli.pipeline.usage import Spent
    from mlops_cli.workspace.project import Project

NO_STAGES = "no stages: `mlx stage add` declares one"

_LONGEST_LINE = 1 << 16  # bytes that are held back until their line ends
_WORTH_TELLING = 10.0  # s that were saved


def new_surroundings(session: Session, project: Project, *, listed: bool = True) -> Surroundings:
    """Return what the commands of a new run find, with a folder for its logs that nobody has.

    Those that are not `listed` are of no run of this project, and `mlx logs` passes over them.
    """
    import secrets
    import time

    from mlops_cli.pipeline.execution import Surroundings

    now = time.time()
    within = int(now % 1 * 65536)  # by their names, runs of one second are in order too
    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{within:04x}{secrets.token_hex(1)}"
    return Surroundings(session.environ, project.local / ("runs" if listed else "reproduced") / run_id, listed)


@dataclass(slots=True)
class RunListener:
    """Shows a run on standard error as it goes; `commands` are those of all that ran.

    Where `several` run at once, each line of a command is told with its stage.
    """

    output: Output
    several: bool = False
    commands: list[str] = field(default_factory=list)
    live: LiveView | None = None
    _begun: dict[str, bytes] = field(default_factory=dict)  # lines that have no end yet

    def expect(self, stages: int) -> None:
        if self.live is not None:
            self.live.total = stages

    def begin(self, decision: Decision) -> None:
        self.commands += decision.stage.cmd
        if decision.stage.is_off:
            with self._above():
                self.output.say(f"skip {decision.stage.address}: {decision.reasons[0]}")
        if decision.action == "skip":
            self._tell_skipped(decision)
            return
        with self._above():
            self._tell(decision)
        if self.live is not None:
            self.live.begin(decision.stage.address)

    def _tell_skipped(self, decision: Decision) -> None:
        reasons = decision.reasons
        if decision.stage.frozen and not decision.stage.is_off and len(reasons) > 1:
            with self._above():
                self.output.say(f"frozen {decision.stage.address}: {reasons[1]}{and_more(reasons[2:])}")

    def _tell(self, decision: Decision) -> None:
        reasons = decision.reasons
        self.output.say(f"{decision.action.value} {decision.stage.address}: {reasons[0]}")
        for reason in reasons[1:]:
            self.output.say(f"  and: {reason}")
        if decision.action == "run":
            for line in decision.stage.cmd:
                self.output.say(f"  $ {line}")

    def write(self, stage: str, data: bytes) -> None:
        if self.output.quiet or self.output.json:
            return
        if self.live is not None:
            self.live.hear(stage, data)
        if not self.several:
            with self._above(data):
                self.output.pass_on(data)
            return
        *lines, rest = (self._begun.pop(stage, b"") + data).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        self._begun[stage] = rest
        self._pass_on(stage, lines)

    def _pass_on(self, stage: str, lines: Sequence[bytes]) -> None:
        head = f"{stage} | ".encode()
        shown = lines if self.live is None else map(tamed, lines)
        with self._above():
            self.output.pass_on(b"".join(head + line + b"\n" for line in shown))

    def ended(self, stage: str) -> None:
        if rest := self._begun.pop(stage, b""):
            self._pass_on(stage, [rest])

    def spent(self, stage: str, spent: Spent) -> None: ...

    def wait(self) -> None:
        if self.live is not None:
            self.live.tick()

    def failed(self, stage: str, error: MlxError) -> None:  # noqa: ARG002 - it is told at the end, or noted
        if self.live is not None:
            self.live.end(stage, done=False)

    def done(self, result: StageResult) -> None:
        address = result.decision.stage.address
        if self.live is not None:
            self.live.end(address, done=True)
        if result.decision.action == "run":
            who = f"{address} is " if self.several else ""
            with self._above():
                self.output.say(f"  {who}done in {result.seconds:.1f} s")

    def note(self, message: str) -> None:
        with self._above():
            self.output.note(message)

    def make_room(self, *, wanted: bool) -> None:
        """Draw nothing at the foot of the terminal while something else does."""
        if self.live is not None:
            self.live.hide(wanted=wanted)

    def close(self) -> None:
        """Take away what is drawn at the foot of the terminal."""
        if self.live is not None:
            self.live.close()

    def _above(self, data: bytes | None = None) -> AbstractContextManager[None]:
        """Return what makes room for what is told above the lines at the foot of the terminal."""
        return nullcontext() if self.live is None else self.live.above(data)


def make_listener(output: Output, *, several: bool) -> RunListener:
    """Return a listener for this terminal, or for what is none."""
    import time

    live = can_be_live() and not (output.quiet or output.json)
    return RunListener(output, several, live=LiveView(raw=not several, begun=time.monotonic()) if live else None)


class Costs(NamedTuple):
    """What a run took (s), what the commands of each stage used, and what those took before that were not executed."""

    seconds: float | None = None
    spent: Mapping[str, Spent] = {}
    saved: Mapping[str, float] = {}


def and_more(reasons: Sequence[str]) -> str:
    """Return what ends a line that has room for one reason only."""
    return f" (and {count(len(reasons), 'more reason')}: `mlx why`)" if reasons else ""


def show_run(
    output: Output,
    stages: Sequence[tuple[Decision, float | None]],
    *,
    dry_run: bool,
    logs: Path | None = None,
    fetched: Provided | None = None,
    costs: Costs | None = None,
) -> None:
    decisions = [decision for decision, _ in stages]
    costs = costs or Costs()
    value = {
        "dry_run": dry_run,
        "stages": [
            {
                **decision_value(decision),
                "seconds": None if seconds is None else round(seconds, 3),
                **_costs_of(decision, costs),
            }
            for decision, seconds in stages
        ],
        "seconds": None if costs.seconds is None else round(costs.seconds, 3),
        "saved_seconds": round(sum(costs.saved.values()), 3) if costs.saved else None,
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
        ends = f"ran {numbers['run']}, restored {numbers['restore']}, skipped {numbers['skip']}{_time_taken(costs)}"
    if not decisions:
        ends = NO_STAGES
    elif numbers["skip"] == len(decisions):
        off = sum(decision.stage.is_off for decision in decisions)
        ends = f"nothing to do: {count(len(decisions) - off, 'stage')} up to date" + f", {off} off" * bool(off)
    if not dry_run:
        ends += _time_saved(costs)
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


def _costs_of(decision: Decision, costs: Costs) -> dict[str, Any]:
    address = decision.stage.address
    spent = costs.spent.get(address) if decision.action == "run" else None
    return {
        "cpu_seconds": None if spent is None else round(spent.cpu_seconds, 3),
        "peak_memory": None if spent is None else spent.peak_memory,
        "exit_status": None if spent is None else spent.exit_status,
        "saved_seconds": costs.saved.get(address),
    }


def _time_taken(costs: Costs) -> str:
    return "" if costs.seconds is None else f" in {duration_text(costs.seconds)}"


def _time_saved(costs: Costs) -> str:
    saved = sum(costs.saved.values())
    return f"; saved about {about_text(saved)}" if saved >= _WORTH_TELLING else ""


def decision_value(decision: Decision) -> dict[str, Any]:
    return {"stage": decision.stage.address, "action": decision.action.value, "reasons": list(decision.reasons)}


def _decision_lines(told: Told) -> list[str]:
    head = f"{told.action:<8}{told.name}"
    is_plain = told.action == "skip" and not told.is_off
    return [head] if is_plain else [head, *(f"          {reason}" for reason in told.reasons)]
