"""Commands on pipelines: `run`, `graph`, `why`, `reproduce`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.options import DryRun, Json, RemoteName, Stages
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import Session, activation, reporting, session_of
from mlops_cli.cli.text import Line, Style, Styled, count
from mlops_cli.errors import StageFailed, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_cli.pipeline.execution import Surroundings
    from mlops_cli.pipeline.plan import Decision
    from mlops_cli.pipeline.reproduce import Reproduction
    from mlops_cli.pipeline.runner import StageResult
    from mlops_cli.workspace.project import Project

_LONGEST_LINE = 1 << 16  # bytes that are held back until their line ends
_NO_STAGES = "no stages: `mlx stage add` declares one"


def run(
    context: typer.Context,
    stages: Stages = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Run the named stages even if nothing changed")] = False,
    anew: Annotated[bool, typer.Option("--no-run-cache", help="Do not restore results of earlier runs")] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=0, max=1000, help="Stages at once; 0: one a CPU")
    ] = 1,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="After a failure, go on with what does not need it")
    ] = False,
    resource: Annotated[
        list[str] | None, typer.Option("--resource", metavar="NAME=N", help="How much there is of a resource")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring outputs up to date: skip, restore or execute

    A stage whose inputs and outputs are as its lock records is skipped, one that ran before with the same inputs is
    restored, the others are executed, with --jobs several at once. A command's output is shown as it comes, and kept.
    When a command fails, the outputs there were come back, and nothing new begins; what runs goes on to its end.
    """
    from mlops_cli.pipeline.declare import parse_resources
    from mlops_cli.pipeline.journal import exclusive
    from mlops_cli.pipeline.runner import Manner, run_project
    from mlops_cli.pipeline.status import plan_project
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    names = stages or []
    how = Manner(jobs, keep_going, force, not anew, parse_resources(resource or []))
    if dry_run:
        with reporting(output) as reporter:
            snapshot = workspace_snapshot(project)
            planned = plan_project(project, snapshot, names, force=force, run_cache=not anew, reporter=reporter)
        _show_run(output, [(decision, None) for decision in planned], dry_run=True)
        return
    listener = _Listener(output, several=jobs != 1)
    with reporting(output) as reporter, exclusive(project, "mlx run", reporter):
        surroundings = _surroundings(session, project)
        with _naming_python(session, listener):
            results = run_project(project, names, surroundings, listener, how)
    logs = surroundings.logs if surroundings.logs.is_dir() else None
    _show_run(output, [(result.decision, result.seconds) for result in results], dry_run=False, logs=logs)


@contextmanager
def _naming_python(session: Session, listener: _Listener) -> Iterator[None]:
    """Say with the failure of a stage for which there is no `python` which environment has one."""
    import shutil

    try:
        yield
    except StageFailed as error:
        wanted = any(re.search(r"(^|[\s;&|(])python\s", line) for line in listener.commands)
        line = activation(session.environ) if wanted and "exit code 127" in error.message else None
        if line is None or shutil.which("python", path=session.environ.get("PATH")) is not None:
            raise
        raise StageFailed(
            error.message, hint=f"`{line}` puts the `python` of mlx on PATH; {error.marked_hint}"
        ) from error


def _surroundings(session: Session, project: Project) -> Surroundings:
    import secrets
    import time

    from mlops_cli.pipeline.execution import Surroundings

    run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
    return Surroundings(session.environ, project.local / "runs" / run_id)


@dataclass(slots=True)
class _Listener:
    """Shows a run on standard error as it goes; `commands` are those of all that ran.

    Where `several` run at once, each line of a command is told with its stage.
    """

    output: Output
    several: bool = False
    commands: list[str] = field(default_factory=list)
    _begun: dict[str, bytes] = field(default_factory=dict)  # lines that have no end yet

    def begin(self, decision: Decision) -> None:
        self.commands += decision.stage.cmd
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


def _show_run(
    output: Output, stages: Sequence[tuple[Decision, float | None]], *, dry_run: bool, logs: Path | None = None
) -> None:
    decisions = [decision for decision, _ in stages]
    value = {
        "dry_run": dry_run,
        "stages": [
            {**_decision(decision), "seconds": None if seconds is None else round(seconds, 3)}
            for decision, seconds in stages
        ],
        "logs": None if logs is None else str(logs),
    }
    lines = [line for decision in decisions for line in _decision_lines(decision)] if dry_run else []
    numbers = {
        action: sum(decision.action == action for decision in decisions) for action in ("run", "restore", "skip")
    }
    if dry_run:
        ends = f"would run {numbers['run']}, restore {numbers['restore']}, skip {numbers['skip']}"
    else:
        ends = f"ran {numbers['run']}, restored {numbers['restore']}, skipped {numbers['skip']}"
    if not decisions:
        ends = _NO_STAGES
    elif numbers["skip"] == len(decisions):
        ends = f"nothing to do: {count(len(decisions), 'stage')} up to date"
    output.result("run", value, [*lines, ends])


def _decision(decision: Decision) -> dict[str, Any]:
    return {"stage": decision.stage.address, "action": decision.action.value, "reasons": list(decision.reasons)}


def _decision_lines(decision: Decision) -> list[str]:
    head = f"{decision.action.value:<8}{decision.stage.address}"
    return [head, *(f"          {reason}" for reason in decision.reasons)] if decision.action != "skip" else [head]


def why(context: typer.Context, stages: Stages = None, as_json: Json = False) -> None:
    """Say what `mlx run` would do with a stage, and why

    Every reason is told, value by value. Without a name, all stages are.
    """
    from mlops_cli.pipeline.graph import choose
    from mlops_cli.pipeline.inputs import stage_graph
    from mlops_cli.pipeline.status import plan_project
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    snapshot = workspace_snapshot(project)
    with reporting(output) as reporter:
        planned = plan_project(project, snapshot, stages or [], reporter=reporter)
    asked = set(choose(stage_graph(snapshot), stages or [])) if planned else set()
    chosen = [decision for decision in planned if decision.stage.address in asked]
    lines = []
    for decision in chosen:
        lines.append(f"{decision.stage.address}: {decision.action.value}")
        lines.extend(f"  {reason}" for reason in decision.reasons)
    output.result("why", {"stages": [_decision(decision) for decision in chosen]}, lines)
    if not chosen:
        output.say(_NO_STAGES)


def graph(
    context: typer.Context,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Print a Graphviz digraph")] = False,
    as_json: Json = False,
) -> None:
    """Show which stage needs which, in run order"""
    from mlops_cli.pipeline.inputs import stage_graph
    from mlops_cli.workspace.snapshot import workspace_snapshot

    if mermaid and dot:
        raise UsageError("`--mermaid` and `--dot` are two forms of one graph", hint="choose one of them")
    session = session_of(context)
    output, project = session.output(as_json), session.project()
    found = stage_graph(workspace_snapshot(project))
    value = {
        "stages": [
            {"stage": address, "needs": list(found.upstream[address]), "outs": [out.path for out in stage.outs]}
            for address, stage in found.stages.items()
        ]
    }
    draw = _mermaid if mermaid else _dot if dot else _indented
    output.result("graph", value, draw(found.upstream, list(found.stages)))
    if not found.stages:
        output.say(_NO_STAGES)


def _indented(upstream: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[str]:
    return [f"{name}{' <- ' + ', '.join(upstream[name]) if upstream[name] else ''}" for name in order]


def _mermaid(upstream: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[str]:
    numbers = {name: f"s{number}" for number, name in enumerate(order)}
    labels = {name: name.replace('"', "#quot;") for name in order}
    nodes = [f'  {numbers[name]}["{labels[name]}"]' for name in order]
    edges = [f"  {numbers[above]} --> {numbers[name]}" for name in order for above in upstream[name]]
    return ["flowchart TD", *nodes, *edges]


def _dot(upstream: Mapping[str, Sequence[str]], order: Sequence[str]) -> list[str]:
    labels = {name: name.replace("\\", "\\\\").replace('"', '\\"') for name in order}
    nodes = [f'  "{labels[name]}";' for name in order]
    edges = [f'  "{labels[above]}" -> "{labels[name]}";' for name in order for above in upstream[name]]
    return ["digraph stages {", *nodes, *edges, "}"]


def reproduce(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REV", help="The Git revision whose result is in question")],
    stages: Stages = None,
    remote: RemoteName = None,
    as_json: Json = False,
) -> None:
    """Run a past revision again and compare the results

    It runs in a scratch worktree, on the inputs that were recorded; every output is compared byte for byte, and every
    metric. Your workspace is not touched. Exit code 0: the same; 1: something differs (it is named); 3: the revision
    has no result to compare with; 4: an input is in no store.
    """
    from mlops_cli.pipeline import reproduce as core

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    surroundings = _surroundings(session, project)
    with reporting(output) as reporter:
        result = core.reproduce(
            project,
            revision,
            stages or [],
            surroundings,
            output=output.pass_on,
            begin=lambda address: output.say(f"run {address} of {revision}"),
            remote=remote,
            reporter=reporter,
        )
    value = {
        "revision": revision,
        "commit": result.commit,
        "same": result.same,
        "stages": [_verdict(stage) for stage in result.stages],
        "logs": str(surroundings.logs),
    }
    output.result("reproduce", value, _reproduction_text(result))
    if not result.same:
        raise typer.Exit(1)


def _verdict(stage: Any) -> dict[str, Any]:
    return {
        "stage": stage.stage,
        "same": stage.same,
        "outs": [{**asdict(out), "same": out.same} for out in stage.outs],
        "metrics": [asdict(metric) for metric in stage.metrics],
    }


def _reproduction_text(result: Reproduction) -> list[Line]:
    lines: list[Line] = []
    for stage in result.stages:
        same_or_not = Styled(f"same      {stage.stage}", Style.GREEN), Styled(f"different {stage.stage}", Style.RED)
        lines.append(same_or_not[not stage.same])
        lines.extend(
            f"  {out.path}: recorded {out.recorded[:19]}, now {out.made[:19]}" for out in stage.outs if not out.same
        )
        lines.extend(f"  {m.file}: {m.name} was {m.recorded}, now {m.made}" for m in stage.metrics)
    outs = [out for stage in result.stages for out in stage.outs]
    same = sum(out.same for out in outs)
    equal = f"{same} of {count(len(outs), 'output')} equal byte for byte"
    metrics = sum(len(stage.metrics) for stage in result.stages)
    if metrics:
        equal += f", {count(metrics, 'metric')} different"
    return [*lines, f"{'the same result' if result.same else 'a different result'}: {equal}"]


COMMANDS = {
    "run": command(run, "mlx run", "mlx run train --dry-run"),
    "graph": command(graph, "mlx graph", "mlx graph --mermaid"),
    "why": command(why, "mlx why train@forest"),
    "reproduce": command(reproduce, "mlx reproduce HEAD~1"),
}
