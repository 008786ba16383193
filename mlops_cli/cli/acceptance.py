"""`mlx accept`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_stages
from mlops_cli.cli.options import DryRun, Json
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import count

if TYPE_CHECKING:
    from mlops_cli.pipeline.acceptance import AcceptedStage


def accept(
    context: typer.Context,
    stages: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE...", help="Stages, groups (train for train@*) or outputs", autocompletion=complete_stages
        ),
    ],
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why nothing has to run; it stays in the lock")
    ],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Record that outputs belong to inputs that changed

    For a change that cannot matter, such as a comment in the code: the stage counts as up to date, though it was not
    run. The reason stays in its lock until it is. Nothing is restored elsewhere as if a run had made it.
    """
    from mlops_cli.pipeline.acceptance import accept as core
    from mlops_cli.pipeline.interpreter import Python
    from mlops_cli.pipeline.outside import Outside
    from mlops_cli.pipeline.turn import exclusive

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx accept", reporter, dry_run=dry_run):
        folder = project.relative(session.cwd)
        python = Python(session.environ.get("PATH"), project.root)
        outside = Outside(ask=True, note=reporter.note, python=python, frozen_too=True)
        found = core(project, stages, reason, folder=folder, dry_run=dry_run, reporter=reporter, outside=outside)
    value = {
        "dry_run": dry_run,
        "stages": [{"accepted": bool(stage.changes), **asdict(stage)} for stage in found],
    }
    output.result("accept", value, _text(found, dry_run=dry_run))


def _text(found: tuple[AcceptedStage, ...], *, dry_run: bool) -> list[str]:
    lines: list[str] = []
    for stage in found:
        if not stage.changes:
            lines.append(f"up to date {stage.stage}")
            continue
        lines.append(f"{'would accept' if dry_run else 'accepted'} {stage.stage}: {stage.changes[0]}")
        lines.extend(f"  and: {change}" for change in stage.changes[1:])
    number = sum(bool(stage.changes) for stage in found)
    if not number:
        return [*lines, "nothing to accept"]
    return [*lines, f"{'would record' if dry_run else 'recorded'} the reason in {count(number, 'lock')}"]


COMMANDS = {
    "accept": command(
        accept, 'mlx accept train --reason "comments only"', 'mlx accept train --reason "comments only" --dry-run'
    )
}
