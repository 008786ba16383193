"""`mlx remove`: stop tracking data. The pointer goes, the bytes stay: in the workspace and in the stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlops_cli.errors import UsageError
from mlops_cli.workspace.gitignore import show_to_git
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import workspace_snapshot


@dataclass(frozen=True, slots=True)
class RemoveResult:
    """The paths that are tracked no longer, and the `.gitignore` files that changed."""

    removed: tuple[str, ...]
    gitignores: tuple[str, ...]


def remove(project: Project, targets: Sequence[str], *, dry_run: bool = False) -> RemoveResult:
    """Delete the pointers of `targets`; UsageError, before anything is touched, when one has none."""
    snapshot = workspace_snapshot(project)
    known = set(snapshot.pointer_paths)
    paths = tuple(dict.fromkeys(target.removesuffix(".mlx") for target in targets))
    for path in paths:
        if path not in known:
            raise UsageError(f"`{path}` has no pointer `{path}.mlx`", hint="`mlx ls` lists what is tracked")
    if dry_run:
        return RemoveResult(paths, ())
    for path in paths:
        (project.root / f"{path}.mlx").unlink(missing_ok=True)
    return RemoveResult(paths, show_to_git(project.root, paths))
