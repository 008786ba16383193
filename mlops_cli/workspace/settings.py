"""Reading and changing one level of the settings: this clone's, the project's, or the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlops_cli.errors import CheckFailed, UsageError
from mlops_cli.files import write_atomic
from mlops_cli.records import config
from mlops_cli.workspace.project import CONFIG, Project, config_files


def read_level(project: Project, environ: Mapping[str, str], level: str) -> dict[str, object]:
    """Return the settings of one level (`clone`, `project` or `user`), by dotted key."""
    path = config_files(project.root, project.git, environ)[level]
    name = CONFIG if level == "project" else str(path)
    return config.read_config(path.read_bytes(), name) if path.is_file() else {}


def write_level(project: Project, environ: Mapping[str, str], level: str, values: Mapping[str, object]) -> Path:
    """Replace the settings of one level; returns the file that was written."""
    path = config_files(project.root, project.git, environ)[level]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, config.write_config(values))
    return path


def change_settings(
    project: Project,
    environ: Mapping[str, str],
    level: str,
    changes: Mapping[str, str | Sequence[str] | None],
    *,
    dry_run: bool = False,
) -> Path:
    """Set (or, for None, unset) dotted keys at one level; UsageError for an unknown key or a wrong value, and for a
    remote that would be gone with the command.

    A value is text as it is typed, or a list of texts.

    Returns the file that was (or, in a dry run, would be) written.
    """
    with project.editing("mlx config"):
        values = read_level(project, environ, level)
        for key, value in changes.items():
            if key.startswith("remotes.") and isinstance(value, str):
                _refuse_passing(value)
            values = config.unset_value(values, key) if value is None else config.set_value(values, key, value)
        if not dry_run:
            return write_level(project, environ, level, values)
    return config_files(project.root, project.git, environ)[level]


def _refuse_passing(url: str) -> None:
    if url.lower().startswith("memory://"):
        raise UsageError(
            f"`{url}` cannot be a remote: what is in the memory of a command is gone when it ends",
            hint="name a bucket, as `s3://team-bucket/data`, or a folder",
        )


def find_setting(project: Project, key: str) -> config.Setting:
    """Return the setting in force for `key`; UsageError when there is no such key, CheckFailed when it is not set."""
    for setting in config.explain(project.layers):
        if setting.key == key:
            return setting
    config.check_key(key)
    raise CheckFailed(f"`{key}` is not set", hint=f"`mlx config set {key} VALUE` sets it")
