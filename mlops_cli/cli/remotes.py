"""The commands `remote add/list/default/remove/check`; `remote gc` and `remote optimize` are in `remote_garbage`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from mlops_cli.cli.commands import Group, command
from mlops_cli.cli.completion import complete_remotes
from mlops_cli.cli.options import DryRun, Json
from mlops_cli.cli.remote_garbage import COMMANDS as GARBAGE
from mlops_cli.cli.remote_garbage import Name as Chosen
from mlops_cli.cli.session import Session, session_of
from mlops_cli.cli.text import Line, table
from mlops_cli.errors import RemoteError

Name = Annotated[str, typer.Argument(metavar="NAME", help="The remote's name")]
Known = Annotated[str, typer.Argument(metavar="NAME", help="The remote's name", autocompletion=complete_remotes)]
Level = Annotated[bool, typer.Option("--clone", help="Only in this clone, not committed")]


def add(
    context: typer.Context,
    name: Name,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="A folder or an fsspec URL; a relative path is from the root")
    ],
    paths: Annotated[
        list[str] | None,
        typer.Option("--paths", metavar="PATTERN", help="What belongs to it alone, as in .gitignore (several times)"),
    ] = None,
    make_default: Annotated[bool, typer.Option("--default", help="Use it when no remote is named")] = False,
    replace: Annotated[bool, typer.Option("--force", "-f", help="Replace a remote of this name")] = False,
    clone: Level = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Name a remote

    The first one is the default. Tracked paths that --paths names, with all that is below them, go to this remote and
    to no other; it takes nothing else, unless it is the default. Nothing is contacted: `mlx remote check` does that.
    """
    from mlops_cli.workspace.remotes import add_remote

    session = session_of(context)
    project = session.project()
    add_remote(
        project,
        session.environ,
        name,
        url,
        paths=paths or (),
        make_default=make_default,
        replace=replace,
        clone=clone,
        dry_run=dry_run,
    )
    text = f"remote `{name}` {'would be' if dry_run else 'is'} {url}"
    text += f", for {' '.join(paths)}" if paths else ""
    value = {"dry_run": dry_run, "name": name, "url": url, "paths": paths or [], "remotes": _remotes(session)}
    session.output(as_json).result("remote-add", value, [text])


def list_(context: typer.Context, as_json: Json = False) -> None:
    """List the remotes"""
    session = session_of(context)
    output = session.output(as_json)
    remotes = _remotes(session)
    some = any(item["paths"] for item in remotes)
    rows = [
        (
            item["name"],
            item["url"],
            "default" if item["default"] else "",
            *([" ".join(item["paths"])] if some else []),
            item["origin"],
        )
        for item in remotes
    ]
    headers = ("name", "url", "", *(["paths"] if some else []), "from")
    output.result("remote-list", {"remotes": remotes}, table(headers, rows))
    if not rows:
        output.say("no remotes: `mlx remote add NAME URL` makes one")


def default(
    context: typer.Context, name: Known, clone: Level = False, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Choose the remote that is used when none is named"""
    from mlops_cli.workspace.remotes import choose_default

    session = session_of(context)
    choose_default(session.project(), session.environ, name, clone=clone, dry_run=dry_run)
    text = f"the default remote {'would be' if dry_run else 'is'} `{name}`"
    value = {"dry_run": dry_run, "name": name, "remotes": _remotes(session)}
    session.output(as_json).result("remote-default", value, [text])


def remove(context: typer.Context, name: Known, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Forget a remote; what it stores stays there"""
    from mlops_cli.workspace.remotes import remove_remote

    session = session_of(context)
    remove_remote(session.project(), session.environ, name, dry_run=dry_run)
    text = f"remote `{name}` {'would be' if dry_run else 'is'} forgotten; its data stays"
    value = {"dry_run": dry_run, "name": name, "remotes": _remotes(session)}
    session.output(as_json).result("remote-remove", value, [text])


def check(context: typer.Context, name: Chosen = None, as_json: Json = False) -> None:
    """Try what a remote is needed for

    It is asked, listed, written to, read and tidied up again, on a key of its own. Exits with 6 when something fails.
    """
    from mlops_cli.workspace.probe import Outcome, check_remote
    from mlops_cli.workspace.remotes import choose_remote

    session = session_of(context)
    output = session.output(as_json)
    project = session.project()
    found = check_remote(project, choose_remote(project, name))
    lines: list[Line] = [f"remote `{found.remote}` ({found.url})"]
    for step in found.steps:
        took = f"{step.seconds:.2f} s" if step.outcome in (Outcome.WORKS, Outcome.FAILED) else ""
        lines.append(f"{step.outcome.value:<12}{step.name:<8}{took:<9}{step.detail}")
        if step.hint:
            lines.append(f"{'':<29}hint: {output.spelling.spell(step.hint)}")
    value = {
        "remote": found.remote,
        "url": found.url,
        "usable": found.usable,
        "steps": [{**asdict(step), "hint": output.spelling.spell(step.hint)} for step in found.steps],
    }
    output.result("remote-check", value, lines)
    if not found.usable:
        raise typer.Exit(RemoteError.exit_code)


def _remotes(session: Session) -> list[dict[str, Any]]:
    """Return the remotes as the settings have them now, read anew."""
    from mlops_cli.workspace.remotes import list_remotes

    return [asdict(remote) for remote in list_remotes(session.project())]


COMMANDS = {
    "remote": Group(
        "Name the folders and buckets that share data",
        {
            "add": command(
                add,
                "mlx remote add storage s3://bucket/project",
                "mlx remote add private /mnt/private --paths 'private/**'",
            ),
            "list": command(list_, "mlx remote list"),
            "default": command(default, "mlx remote default backup"),
            "remove": command(remove, "mlx remote remove backup"),
            "check": command(check, "mlx remote check", "mlx remote check storage"),
            **GARBAGE,
        },
    ),
}
