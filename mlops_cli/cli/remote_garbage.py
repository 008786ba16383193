"""The commands `remote gc` and `remote optimize`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_remotes
from mlops_cli.cli.garbage import Grace, seconds_of
from mlops_cli.cli.options import DryRun, Json
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import count, size_text

if TYPE_CHECKING:
    from mlops_cli.workspace.collect import Amount
    from mlops_cli.workspace.remote_collect import Optimized, RemoteCollected

Name = Annotated[
    str | None,
    typer.Argument(metavar="[NAME]", help="The remote (default: the default one)", autocompletion=complete_remotes),
]
Really = Annotated[bool, typer.Option("--yes", "-y", help="Do it; otherwise this only says what would be done")]
AllowAbsent = Annotated[
    bool, typer.Option("--allow-absent", help="Go on where listings of folders are neither here nor there")
]
Forget = Annotated[
    str | None, typer.Option("--forget", metavar="ID", help="Forget another repository that used the remote")
]


def gc(
    context: typer.Context,
    name: Name = None,
    yes: Really = False,
    grace: Grace = None,
    allow_absent: AllowAbsent = False,
    forget: Forget = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove from a remote what nothing needs

    Needed is what any commit of this clone or of its Git remotes names, and what its worktrees do. The rest leaves the
    index once it is older than --grace by the remote's clock; a later collection deletes it, when as much time has
    passed again. What is needed by then comes back. Without --yes nothing is changed.
    """
    from mlops_cli.workspace.remote_collect import collect_remote, forget_repository

    yes = yes and not dry_run
    session = session_of(context)
    output, project = session.output(as_json), session.project()
    seconds = None if grace is None else seconds_of(grace)
    with reporting(output) as reporter:
        if forget is not None:
            forget_repository(project, name, forget, dry_run=not yes)
        found = collect_remote(
            project,
            name,
            now=time.time(),
            grace=seconds,
            dry_run=not yes,
            allow_absent=allow_absent,
            forgotten=forget,
            reporter=reporter,
        )
    output.result("remote-gc", _value(found, dry_run=not yes), _text(found, dry_run=not yes))
    if not yes and not found.empty:
        output.say("next: add `--yes` to do it")


def optimize(
    context: typer.Context, name: Name = None, yes: Really = False, dry_run: DryRun = False, as_json: Json = False
) -> None:
    """Join the small packs and the index segments of a remote

    Many small pushes leave many small files, which make a pull slow. The old packs are deleted by a later
    `mlx remote gc`. Without --yes nothing is changed.
    """
    from mlops_cli.workspace.remote_collect import optimize_remote

    yes = yes and not dry_run
    session = session_of(context)
    output = session.output(as_json)
    with reporting(output) as reporter:
        found = optimize_remote(session.project(), name, dry_run=not yes, reporter=reporter)
    value = {"dry_run": not yes, **asdict(found)}
    value["packs"] = _amount(found.packs, "packs")
    output.result("remote-optimize", value, [_joined(found, dry_run=not yes)])
    if not yes and (found.packs.objects or found.segments):
        output.say("next: add `--yes` to do it")


def _joined(found: Optimized, *, dry_run: bool) -> str:
    if not (found.packs.objects or found.segments):
        return f"nothing to join: `{found.remote}` has no small packs"
    verb = "would join" if dry_run else "joined"
    packs = f"{count(found.packs.objects, 'pack')} ({size_text(found.packs.size)})"
    return f"{verb} {packs} and {count(found.segments, 'segment')} of the index of `{found.remote}`"


def _amount(amount: Amount, noun: str = "objects") -> dict[str, int]:
    return {noun: amount.objects, "size": amount.size}


def _value(found: RemoteCollected, *, dry_run: bool) -> dict[str, Any]:
    plan = found.plan
    return {
        "dry_run": dry_run,
        "remote": found.remote,
        "url": found.url,
        "condemned": _amount(plan.going),
        "deleted": _amount(found.deleted, "files"),
        "restored": found.restored,
        "kept": _amount(plan.kept),
        "young": _amount(plan.young),
        "staying": _amount(plan.staying),
        "packs_rewritten": len(plan.change.anew),
        "litter": found.litter,
        "false": found.false,
        "repositories": list(found.projects),
        "records": {source.value: number for source, number in sorted(found.records.items())},
    }


def _text(found: RemoteCollected, *, dry_run: bool) -> list[str]:
    plan = found.plan
    lines = [f"needed on `{found.remote}`: {_words(plan.kept)}"]
    if plan.young.objects:
        lines.append(f"not needed, but too young to go: {_words(plan.young)}")
    if plan.staying.objects:
        lines.append(f"not needed, but in packs with more that is: {_words(plan.staying)}")
    if found.restored:
        verb = "would bring" if dry_run else "brought"
        lines.append(f"{verb} back from the trash, for it is needed: {count(found.restored, 'object')}")
    if found.litter:
        lines.append(
            f"{'would delete' if dry_run else 'deleted'} what is of no use any more: {count(found.litter, 'file')}"
        )
    if found.deleted.objects:
        verb = "would delete" if dry_run else "deleted"
        lines.append(f"{verb} for good: {count(found.deleted.objects, 'file')} ({size_text(found.deleted.size)})")
    verb = "would put" if dry_run else "put"
    lines.append(
        f"{verb} into its trash: {_words(plan.going)}" if plan.going.objects else "nothing to put into its trash"
    )
    return lines


def _words(amount: Amount) -> str:
    return f"{count(amount.objects, 'object')} ({size_text(amount.size)})"


COMMANDS = {
    "gc": command(gc, "mlx remote gc", "mlx remote gc storage --yes --grace 30d"),
    "optimize": command(optimize, "mlx remote optimize storage --yes"),
}
