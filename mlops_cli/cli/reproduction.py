"""`mlx reproduce`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.options import Json, RemoteName, Stages
from mlops_cli.cli.run_view import new_surroundings
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import Line, Style, Styled, count

if TYPE_CHECKING:
    from mlops_cli.pipeline.reproduce import Reproduction


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


COMMANDS = {"reproduce": command(reproduce, "mlx reproduce HEAD~1")}
