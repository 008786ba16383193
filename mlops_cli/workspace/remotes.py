"""The remotes that the settings name, and changing them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlops_cli.errors import UsageError
from mlops_cli.records import config as settings
from mlops_cli.workspace.project import Project, config_files
from mlops_cli.workspace.settings import change_settings, read_level, write_level


@dataclass(frozen=True, slots=True)
class NamedRemote:
    """One remote: its URL, whether it is the default, and the settings that name it."""

    name: str
    url: str
    default: bool
    origin: str


def default_remote(project: Project) -> str | None:
    """Return the remote that is used when none is named: the chosen one, else the first."""
    return project.config.core_remote or next(iter(project.config.remotes), None)


def list_remotes(project: Project) -> tuple[NamedRemote, ...]:
    """Return every remote, in the order of the settings."""
    origins = {setting.key: setting.origin for setting in settings.explain(project.layers)}
    chosen = default_remote(project)
    return tuple(
        NamedRemote(name, remote.url, name == chosen, origins.get(f"remotes.{name}.url", ""))
        for name, remote in project.config.remotes.items()
    )


def add_remote(
    project: Project,
    environ: Mapping[str, str],
    name: str,
    url: str,
    *,
    make_default: bool = False,
    replace: bool = False,
    clone: bool = False,
    dry_run: bool = False,
) -> None:
    """Name a remote in the project's settings (or this clone's); UsageError for a name taken, unless `replace`."""
    if name in project.config.remotes and not replace:
        taken = project.config.remotes[name].url
        raise UsageError(f"remote `{name}` is there already: {taken}", hint="`--force` replaces its URL")
    changes = {f"remotes.{name}.url": url}
    if make_default or (default_remote(project) is None):
        changes["core.remote"] = name
    change_settings(project, environ, "clone" if clone else "project", changes, dry_run=dry_run)


def choose_default(
    project: Project, environ: Mapping[str, str], name: str, *, clone: bool = False, dry_run: bool = False
) -> None:
    """Make `name` the default remote; UsageError when there is no such remote."""
    _refuse_unknown(project, name)
    change_settings(project, environ, "clone" if clone else "project", {"core.remote": name}, dry_run=dry_run)


def remove_remote(project: Project, environ: Mapping[str, str], name: str, *, dry_run: bool = False) -> None:
    """Take `name` out of every settings file that names it; UsageError when none does."""
    _refuse_unknown(project, name)
    gone = {f"remotes.{name}.{part}" for part in ("url", "owner")}
    with project.editing("mlx remote remove"):
        for level in config_files(project.root, project.git, environ):
            values = read_level(project, environ, level)
            kept = {key: value for key, value in values.items() if key not in gone}
            if kept.get("core.remote") == name:
                del kept["core.remote"]
            if kept != values and not dry_run:
                write_level(project, environ, level, kept)


def _refuse_unknown(project: Project, name: str) -> None:
    if name not in project.config.remotes:
        if not project.config.remotes:
            raise UsageError(f"there is no remote `{name}`, nor any other", hint=f"`mlx remote add {name} URL`")
        known = ", ".join(f"`{remote}`" for remote in project.config.remotes)
        raise UsageError(f"there is no remote `{name}` (there is: {known})", hint="`mlx remote list` shows them")
