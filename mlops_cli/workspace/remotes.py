"""The remotes that the settings name, and changing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_cli.errors import UsageError
from mlops_cli.records import config as settings
from mlops_cli.workspace.project import Project, config_files
from mlops_cli.workspace.settings import change_settings, read_level, write_level


@dataclass(frozen=True, slots=True)
class NamedRemote:
    """One remote: its URL, whether it is the default, the settings that name it, and what belongs to it alone."""

    name: str
    url: str
    default: bool
    origin: str
    paths: tuple[str, ...] = ()


def default_remote(project: Project) -> str | None:
    """Return the remote that is used when none is named: the chosen one, else the first that takes any path."""
    config = project.config
    return config.core_remote or next((name for name in config.remotes if name not in config.remote_paths), None)


def choose_remote(project: Project, name: str | None) -> str:
    """Return the name of the remote that `name`, or the default, means; UsageError when there is none of that name."""
    remotes = project.config.remotes
    chosen = name or default_remote(project)
    if chosen is None and remotes:
        raise UsageError(
            "this project has no default remote: those that there are take only what their `paths` name",
            hint="`mlx remote add storage URL` adds one, `mlx remote default NAME` chooses one of them",
        )
    if chosen is None:
        raise UsageError(
            "this project has no remote", hint="`mlx remote add storage URL` makes one; a folder is a URL too"
        )
    if chosen not in remotes:
        known = ", ".join(f"`{remote}`" for remote in remotes) or "none"
        raise UsageError(f"there is no remote `{chosen}` (there is: {known})", hint=f"`mlx remote add {chosen} URL`")
    return chosen


def list_remotes(project: Project) -> tuple[NamedRemote, ...]:
    """Return every remote, in the order of the settings."""
    origins = {setting.key: setting.origin for setting in settings.explain(project.layers)}
    if project.config.cache_dir and settings.CACHE_REMOTE in project.config.remotes:
        origins.setdefault(f"remotes.{settings.CACHE_REMOTE}.url", origins["cache.dir"])
    chosen = default_remote(project)
    return tuple(
        NamedRemote(
            name,
            remote.url,
            name == chosen,
            origins.get(f"remotes.{name}.url", ""),
            project.config.remote_paths.get(name, ()),
        )
        for name, remote in project.config.remotes.items()
    )


def add_remote(
    project: Project,
    environ: Mapping[str, str],
    name: str,
    url: str,
    *,
    paths: Sequence[str] = (),
    make_default: bool = False,
    replace: bool = False,
    clone: bool = False,
    dry_run: bool = False,
) -> None:
    """Name a remote in the project's settings (or this clone's); UsageError for a name taken, unless `replace`.

    What `paths` name, if any, belongs to it alone; a remote that has some is the default only if that is asked for.
    """
    if name in project.config.remotes and not replace:
        taken = project.config.remotes[name].url
        raise UsageError(f"remote `{name}` is there already: {taken}", hint="`--force` replaces its URL")
    changes: dict[str, str | Sequence[str]] = {f"remotes.{name}.url": url}
    if split := next((path for path in paths if "," in path), None):
        hint = f"`--paths` once for each; one with a comma in it: `mlx config set remotes.{name}.paths '[\"a,b\"]'`"
        raise UsageError(f"`{split}` is one pattern, and has a comma", hint=hint)
    if paths:
        changes[f"remotes.{name}.paths"] = paths
    has_paths = paths or name in project.config.remote_paths
    if make_default or (default_remote(project) is None and not has_paths):
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
    if is_cache(project, name):
        raise UsageError(
            f"`{name}` is the cache at `{project.config.cache_dir}`, which the settings name as `cache.dir`",
            hint="`mlx config unset cache.dir` puts the cache into this clone again",
        )
    gone = {f"remotes.{name}.{part}" for part in ("url", "paths", "owner")}
    with project.editing("mlx remote remove"):
        for level in config_files(project.root, project.git, environ):
            values = read_level(project, environ, level)
            kept = {key: value for key, value in values.items() if key not in gone}
            if kept.get("core.remote") == name:
                del kept["core.remote"]
            if kept != values and not dry_run:
                write_level(project, environ, level, kept)


def is_cache(project: Project, name: str) -> bool:
    """Say whether the remote `name` is the cache, behind a URL, and not one that the settings name as a remote."""
    named = any(f"remotes.{name}.url" in layer.values for layer in project.layers)
    return name == settings.CACHE_REMOTE and not named and name in project.config.remotes


def _refuse_unknown(project: Project, name: str) -> None:
    if name not in project.config.remotes:
        if not project.config.remotes:
            raise UsageError(f"there is no remote `{name}`, nor any other", hint=f"`mlx remote add {name} URL`")
        known = ", ".join(f"`{remote}`" for remote in project.config.remotes)
        raise UsageError(f"there is no remote `{name}` (there is: {known})", hint="`mlx remote list` shows them")
