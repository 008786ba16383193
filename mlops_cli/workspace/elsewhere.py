"""What commands on the folder of a cache say where the cache is behind a URL."""

from __future__ import annotations

from mlops_cli.errors import UsageError
from mlops_cli.workspace.project import Project


def refuse_elsewhere(project: Project, hint: str) -> None:
    """Raise UsageError, with what to do instead as its `hint`, when the cache is behind a URL."""
    if project.cache.url is not None:
        raise UsageError(f"the cache is `{project.cache.url}`, not a folder of this machine", hint=hint)
