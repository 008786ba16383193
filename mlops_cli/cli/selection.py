"""Options by which commands select stages, so that they mean the same everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlops_cli.cli.completion import complete_stages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlops_cli.cli.session import Session
    from mlops_cli.pipeline.selection import Reach
    from mlops_cli.workspace.project import Project

Downstream = Annotated[
    bool, typer.Option("--downstream", help="The stages and everything below them, not what they need")
]
Single = Annotated[bool, typer.Option("--single", "-s", help="Only the stages, and nothing that they need")]
From = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="STAGE",
        help="Run this stage and everything below it anew, although nothing changed",
        autocompletion=complete_stages,
    ),
]
Until = Annotated[
    list[str] | None,
    typer.Option(
        "--until", metavar="STAGE", help="Nothing but what this stage needs, and itself", autocompletion=complete_stages
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Every instance of a matrix, however many")]


def reach_of(
    session: Session,
    project: Project,
    *,
    downstream: bool = False,
    single: bool = False,
    begin: Sequence[str] | None = None,
    until: Sequence[str] | None = None,
) -> Reach:
    """Return how far a command goes whose stages are named where the user is."""
    from mlops_cli.pipeline.selection import Reach

    return Reach(downstream, single, tuple(begin or ()), tuple(until or ()), project.relative(session.cwd))
