"""Commands on the settings and the installation: `config get/set/unset/list`, `doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mlops_cli.cli.commands import Group, command
from mlops_cli.cli.completion import complete_settings
from mlops_cli.cli.options import DryRun, Json
from mlops_cli.cli.session import session_of
from mlops_cli.cli.text import Line, table
from mlops_cli.errors import UsageError

Key = Annotated[
    str,
    typer.Argument(metavar="KEY", help="For instance core.remote or cache.link", autocompletion=complete_settings),
]
Clone = Annotated[bool, typer.Option("--clone", help="Only in this clone, not committed")]
User = Annotated[bool, typer.Option("--user", help="In every project of yours on this machine")]


def _level(clone: bool, user: bool) -> str:
    if clone and user:
        raise UsageError("`--clone` and `--user` are two places", hint="choose one of them")
    return "clone" if clone else "user" if user else "project"


def get(context: typer.Context, key: Key, as_json: Json = False) -> None:
    """Print the value of a setting

    It is the value in force here. Exit code 1: nothing sets it.
    """
    from mlops_cli.workspace.settings import find_setting

    session = session_of(context)
    setting = find_setting(session.project(), key)
    session.output(as_json).result("config-get", setting._asdict(), [_text(setting.value)])


def set_(
    context: typer.Context,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="The value, as in YAML")],
    clone: Clone = False,
    user: User = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Set a value

    It goes to the project's committed settings, unless --clone or --user is given.
    """
    from mlops_cli.records.config import set_value
    from mlops_cli.workspace.settings import change_settings

    session, level = session_of(context), _level(clone, user)
    output, project = session.output(as_json), session.project()
    path = change_settings(project, session.environ, level, {key: value}, dry_run=dry_run)
    if key == "core.remote" and value not in project.config.remotes:
        output.note(f"no remote is called `{value}` yet: `mlx remote add {value} URL` makes it")
    changed = {"dry_run": dry_run, "key": key, "value": set_value({}, key, value)[key], "level": level}
    text = f"{key} {'would be' if dry_run else '='} {value} in {path}"
    output.result("config-set", {**changed, "file": str(path)}, [text])


def unset(
    context: typer.Context,
    key: Key,
    clone: Clone = False,
    user: User = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Unset a value

    It is taken out of the project's committed settings, unless --clone or --user is given.
    """
    from mlops_cli.workspace.settings import change_settings

    session, level = session_of(context), _level(clone, user)
    path = change_settings(session.project(), session.environ, level, {key: None}, dry_run=dry_run)
    text = f"{key} {'would no longer be' if dry_run else 'is no longer'} set in {path}"
    value = {"dry_run": dry_run, "key": key, "level": level, "file": str(path)}
    session.output(as_json).result("config-unset", value, [text])


def list_(
    context: typer.Context,
    show_origin: Annotated[bool, typer.Option("--show-origin", help="Say where each value comes from")] = False,
    as_json: Json = False,
) -> None:
    """List every setting in force"""
    from mlops_cli.records.config import explain

    session = session_of(context)
    found = explain(session.project().layers)
    rows = [(setting.key, _text(setting.value), *([setting.origin] if show_origin else [])) for setting in found]
    headers = ("key", "value", "from") if show_origin else ("key", "value")
    session.output(as_json).result("config-list", {"settings": [s._asdict() for s in found]}, table(headers, rows))


def _text(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def doctor(context: typer.Context, as_json: Json = False) -> None:
    """Check the installation, the remotes and every record

    Exit code 1: something is wrong. Paste the output into a bug report.
    """
    from mlops_cli.pipeline.doctor import Health, examine

    session = session_of(context)
    output = session.output(as_json)
    findings = examine(session.cwd, session.environ)
    healthy = all(finding.health is not Health.FAILED for finding in findings)
    lines: list[Line] = []
    told = []
    for finding in findings:
        hint = output.spelling.spell(finding.hint)
        told.append({**asdict(finding), "hint": hint})
        lines.append(f"{finding.health.value:<8}{finding.name:<16}{finding.detail}")
        if hint:
            lines.append(f"{'':<24}hint: {hint}")
    value = {"healthy": healthy, "findings": told}
    output.result("doctor", value, lines)
    if not healthy:
        raise typer.Exit(1)


COMMANDS = {
    "doctor": command(doctor, "mlx doctor"),
    "config": Group(
        "Read and change settings\n\n"
        "A flag comes before an MLX_* variable, then this clone's settings, the project's, the user's, the default.",
        {
            "get": command(get, "mlx config get cache.link"),
            "set": command(set_, "mlx config set cache.link hardlink", "mlx config set --clone cache.dir /big/cache"),
            "unset": command(unset, "mlx config unset cache.link"),
            "list": command(list_, "mlx config list --show-origin"),
        },
    ),
}
