"""Commands that tell of pipelines: `graph`, `why`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.groups import fold_edges, fold_names
from mlops_cli.cli.options import Json, Offline, Stages
from mlops_cli.cli.run_view import NO_STAGES, decision_value
from mlops_cli.cli.selection import Downstream, From, Full, Single, Until, reach_of
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.errors import UsageError
from mlops_cli.words import NAMED, and_more

if TYPE_CHECKING:
    from mlops_cli.pipeline.nearest import Nearest
    from mlops_cli.pipeline.plan import Decision


def why(
    context: typer.Context,
    stages: Stages = None,
    downstream: Downstream = False,
    single: Single = False,
    begin: From = None,
    until: Until = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Say what `mlx run` would do with a stage, and why

    Every reason is told, value by value, and the earlier run that came nearest, if that was not the last. Without a
    name, all stages are; with the options of `mlx run`, those that it would bring up to date. Of URLs that stages read,
    their servers are asked for the version, as `mlx run` does.
    """
    from mlops_cli.pipeline.earlier import nearest_runs
    from mlops_cli.pipeline.interpreter import Python
    from mlops_cli.pipeline.outside import Outside
    from mlops_cli.pipeline.status import plan_survey
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    reach = reach_of(session, project, downstream=downstream, single=single, begin=begin, until=until)
    snapshot = workspace_snapshot(project)
    with reporting(output) as reporter:
        python = Python(session.environ.get("PATH"), project.root)
        outside = Outside(ask=not offline, note=reporter.note, python=python)
        survey, planned = plan_survey(project, snapshot, stages or [], reach, reporter=reporter, outside=outside)
    asked = survey.selected.named if reach.is_plain else survey.selected.order
    chosen = [decision for decision in planned if decision.stage.address in asked]
    nearest = nearest_runs(project, snapshot, chosen)
    lines = []
    for decision in chosen:
        lines.append(f"{decision.stage.address}: {decision.action.value}")
        lines.extend(f"  {reason}" for reason in decision.reasons)
        lines.extend(_nearest_line(nearest.get(decision.stage.address)))
    value = [_why_value(decision, nearest.get(decision.stage.address)) for decision in chosen]
    output.result("why", {"stages": value}, lines)
    if not chosen:
        output.say(NO_STAGES)


def _why_value(decision: Decision, nearest: Nearest | None) -> dict[str, Any]:
    return {**decision_value(decision), "nearest": None if nearest is None else {"changes": list(nearest.changes)}}


def _nearest_line(nearest: Nearest | None) -> list[str]:
    if nearest is None:
        return []
    if not nearest.changes:
        return ["  an earlier run had the same inputs, but what it made is not all in the cache"]
    return [f"  nearest earlier run: {'; '.join(nearest.changes[:NAMED])}{and_more(nearest.changes)}"]


def graph(
    context: typer.Context,
    stages: Stages = None,
    downstream: Downstream = False,
    full: Full = False,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart")] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Print a Graphviz digraph")] = False,
    as_json: Json = False,
) -> None:
    """Show which stage needs which, in run order

    With names, only those stages and what they need. A matrix of more than eight is one line, unless --full.
    """
    from mlops_cli.pipeline.survey import survey_stages
    from mlops_cli.workspace.snapshot import workspace_snapshot

    if mermaid and dot:
        raise UsageError("`--mermaid` and `--dot` are two forms of one graph", hint="choose one of them")
    session = session_of(context)
    output, project = session.output(as_json), session.project()
    reach = reach_of(session, project, downstream=downstream)
    survey = survey_stages(workspace_snapshot(project), stages or (), reach, output.note)
    shown = [survey.graph.stages[address] for address in survey.selected.order]
    value = {
        "stages": [
            {
                "stage": stage.address,
                "needs": list(survey.graph.upstream[stage.address]),
                "outs": [out.path for out in stage.outs],
            }
            for stage in shown
        ]
    }
    draw = _mermaid if mermaid else _dot if dot else _indented
    names = {stage.address: stage.address for stage in shown} if full else fold_names(shown)
    edges = fold_edges(names, survey.graph.upstream)
    output.result("graph", value, draw(edges, list(edges)))
    if not shown:
        output.say(NO_STAGES)


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


COMMANDS = {
    "graph": command(graph, "mlx graph", "mlx graph train --downstream", "mlx graph --mermaid"),
    "why": command(why, "mlx why train@forest"),
}
