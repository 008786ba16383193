"""Commands that tell of pipelines: `graph`, `why`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.groups import fold_edges, fold_names
from mlops_cli.cli.options import Json, Stages
from mlops_cli.cli.run_view import NO_STAGES, decision_value
from mlops_cli.cli.selection import Downstream, From, Full, Single, Until, reach_of
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.errors import UsageError


def why(
    context: typer.Context,
    stages: Stages = None,
    downstream: Downstream = False,
    single: Single = False,
    begin: From = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Say what `mlx run` would do with a stage, and why

    Every reason is told, value by value. Without a name, all stages are; with the options of `mlx run`, those that it
    would bring up to date.
    """
    from mlops_cli.pipeline.status import plan_survey
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    reach = reach_of(session, project, downstream=downstream, single=single, begin=begin, until=until)
    with reporting(output) as reporter:
        survey, planned = plan_survey(project, workspace_snapshot(project), stages or [], reach, reporter=reporter)
    asked = survey.selected.named if reach.is_plain else survey.selected.order
    chosen = [decision for decision in planned if decision.stage.address in asked]
    lines = []
    for decision in chosen:
        lines.append(f"{decision.stage.address}: {decision.action.value}")
        lines.extend(f"  {reason}" for reason in decision.reasons)
    output.result("why", {"stages": [decision_value(decision) for decision in chosen]}, lines)
    if not chosen:
        output.say(NO_STAGES)


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
