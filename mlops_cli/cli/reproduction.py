"""`mlx reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.options import Json, RemoteName, Stages
from mlops_cli.cli.run_view import new_surroundings
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import Line, Style, Styled, count, markdown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlops_cli.pipeline.verdicts import Reproduction, StageVerdict


def reproduce(
    context: typer.Context,
    revision: Annotated[str, typer.Argument(metavar="REV", help="The Git revision whose result is in question")],
    stages: Stages = None,
    remote: RemoteName = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option("--tolerance", metavar="NAME=AMOUNT", help="How far a metric may be off: auc=1e-6, loss=1%"),
    ] = None,
    metrics_only: Annotated[bool, typer.Option("--metrics-only", help="Judge by metrics, not by the bytes")] = False,
    md: Annotated[bool, typer.Option("--md", help="Print a report in Markdown")] = False,
    as_json: Json = False,
) -> None:
    """Run a past revision again and compare the results

    It runs in a scratch worktree, on the inputs that were recorded; every output is compared byte for byte, and every
    metric. Your workspace is not touched. Exit code 0: the same; 1: something differs (it is named); 3: the revision
    has no result to compare with; 4: an input is in no store. A metrics file in which a --tolerance is about something
    is judged by its values, every other output by its bytes.
    """
    from mlops_cli.pipeline import reproduce as core
    from mlops_cli.pipeline.verdicts import Standard, parse_tolerances

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    standard = Standard(parse_tolerances(tolerance or []), metrics_only)
    surroundings = new_surroundings(session, project)
    with reporting(output) as reporter:
        result = core.reproduce(
            project,
            revision,
            stages or [],
            surroundings,
            output=output.pass_on,
            begin=lambda address: output.say(f"run {address} of {revision}"),
            remote=remote,
            standard=standard,
            reporter=reporter,
        )
    value = {
        "revision": revision,
        "commit": result.commit,
        "same": result.same,
        "stages": [_verdict(stage) for stage in result.stages],
        "environment": [{"name": each.name, "recorded": each.old, "now": each.new} for each in result.environment],
        "logs": str(surroundings.logs),
    }
    output.result("reproduce", value, (_markdown if md else _reproduction_text)(result))
    if not result.same:
        raise typer.Exit(1)


def _verdict(stage: StageVerdict) -> dict[str, Any]:
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
        lines.extend(f"  {line}" for line in _differences(stage))
    return [*lines, _verdict_text(result)]


def _differences(stage: StageVerdict) -> Iterator[str]:
    for out in stage.outs:
        if not out.same:
            aside = "" if out.counts else " (not judged by its bytes)"
            yield f"{out.path}: recorded {out.recorded[:19]}, now {out.made[:19]}{aside}"
    for metric in stage.metrics:
        near = " (within the tolerance)" if metric.within else ""
        yield f"{metric.file}: {metric.name} was {metric.recorded}, now {metric.made}{near}"


def _verdict_text(result: Reproduction) -> str:
    outs = [out for stage in result.stages for out in stage.outs]
    told = f"{sum(out.same for out in outs)} of {count(len(outs), 'output')} equal byte for byte"
    metrics = [metric for stage in result.stages for metric in stage.metrics]
    within = sum(metric.within for metric in metrics)
    if len(metrics) > within:
        told += f", {count(len(metrics) - within, 'metric')} different"
    if within:
        told += f", {count(within, 'metric')} within the tolerance"
    return f"{'the same result' if result.same else 'a different result'}: {told}"


def _markdown(result: Reproduction) -> list[Line]:
    """Return the report as Markdown: the verdict first, then what differs."""
    lines: list[Line] = [
        f"**{_verdict_text(result)}**",
        "",
        f"Revision `{result.revision}` (commit `{result.commit}`)",
        "",
    ]
    rows = [(stage.stage, "same" if stage.same else "different", str(len(stage.outs))) for stage in result.stages]
    lines += markdown(("stage", "result", "outputs"), rows)
    outs = [
        (out.path, f"`{out.recorded[:19]}`", f"`{out.made[:19]}`", "yes" if out.counts else "no")
        for stage in result.stages
        for out in stage.outs
        if not out.same
    ]
    if outs:
        lines += ["", *markdown(("output", "recorded", "now", "counts"), outs)]
    if result.environment:
        told = [(each.name, each.old or "", each.new or "not there") for each in result.environment]
        lines += ["", *markdown(("environment", "recorded", "now"), told)]
    metrics = [
        (metric.file, metric.name, str(metric.recorded), str(metric.made), "within" if metric.within else "beyond")
        for stage in result.stages
        for metric in stage.metrics
    ]
    if metrics:
        lines += ["", *markdown(("file", "metric", "recorded", "now", "tolerance"), metrics)]
    return lines


COMMANDS = {
    "reproduce": command(reproduce, "mlx reproduce HEAD~1", "mlx reproduce HEAD~1 train --tolerance 'accuracy=1%' --md")
}
