"""What the shell offers when Tab is pressed: this project's remotes, stages, tracked paths and settings.

A shell has no use for errors: outside a project, or with a record that is not valid, nothing is offered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from mlops_cli.errors import MlxError

if TYPE_CHECKING:
    from mlops_cli.workspace.project import Project


def complete_remotes(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of remotes."""
    project = _project(context)
    return _beginning(incomplete, project.config.remotes if project else ())


def complete_stages(context: typer.Context, incomplete: str) -> list[str]:
    """Return the addresses of stages, and the names of groups."""
    from mlops_cli.workspace.snapshot import workspace_snapshot

    project = _project(context)
    try:
        stages = workspace_snapshot(project).stages if project else ()
    except MlxError:
        return []
    groups = (stage.address.partition("@")[0] for stage in stages)
    return _beginning(incomplete, dict.fromkeys((*groups, *(stage.address for stage in stages))))


def complete_runs(context: typer.Context, incomplete: str) -> list[str]:
    """Return the ids of the runs whose logs are kept, the newest first."""
    from mlops_cli.pipeline.run_history import list_runs, runs_folder

    project = _project(context)
    return _beginning(incomplete, (folder.name for folder in list_runs(runs_folder(project))) if project else ())


def complete_paths(context: typer.Context, incomplete: str) -> list[str]:
    """Return the tracked paths and the outputs of stages, as seen from where the command will run."""
    from mlops_cli.workspace.snapshot import workspace_snapshot

    project = _project(context)
    if project is None:
        return []
    try:
        snapshot = workspace_snapshot(project)
        paths = {*snapshot.pointer_paths, *(out.path for stage in snapshot.stages for out in stage.outs if not out.git)}
    except MlxError:
        return []
    start = _start(context)
    return _beginning(incomplete, sorted(os.path.relpath(project.root / path, start) for path in paths))


def complete_targets(context: typer.Context, incomplete: str) -> list[str]:
    """Return stages, groups and paths."""
    return [*complete_stages(context, incomplete), *complete_paths(context, incomplete)]


def complete_settings(context: typer.Context, incomplete: str) -> list[str]:
    """Return the keys that have a value."""
    from mlops_cli.records.config import explain

    project = _project(context)
    return _beginning(incomplete, (setting.key for setting in explain(project.layers)) if project else ())


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and name.isprintable()]


def _start(context: typer.Context) -> Path:
    return Path.cwd() / (context.find_root().params.get("folder") or "")


def _project(context: typer.Context) -> Project | None:
    from mlops_cli.workspace.project import find_project

    start = _start(context)
    try:
        return find_project(start, os.environ) if start.is_dir() else None
    except (MlxError, OSError):
        return None
