"""The command `status`: what differs from the records, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_targets
from mlops_cli.cli.groups import fold_decisions
from mlops_cli.cli.options import AllowMissing, Check, Json
from mlops_cli.cli.output import Output
from mlops_cli.cli.run_view import and_more
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import count, size_text
from mlops_cli.errors import RecordError, UsageError
from mlops_cli.words import NAMED, so_for, word, words

if TYPE_CHECKING:
    from mlops_cli.pipeline.provision import Provision
    from mlops_cli.pipeline.status import ProjectStatus
    from mlops_cli.progress import Reporter
    from mlops_cli.workspace.compare import DataStatus
    from mlops_cli.workspace.project import Project
    from mlops_cli.workspace.unpushed import Offer


def status(
    context: typer.Context,
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TARGET]...", help="Tracked paths, stages, or folders with either", autocompletion=complete_targets
        ),
    ] = None,
    check: Check = False,
    remote: Annotated[bool, typer.Option("--remote", help="Also ask the remotes what they lack")] = False,
    allow_missing: AllowMissing = False,
    as_json: Json = False,
) -> None:
    """Show what differs from the records

    That is data in the workspace which is not what its pointer names, and stages that `mlx run` would run or restore,
    with every reason. Exits with 2 when something is in the way of knowing, as a record that cannot be read or a FIFO
    in a tracked folder; the rest is told all the same. With targets, only they are looked at, and what they need. With
    --allow-missing, data that is not here is no difference: a stage is up to date when its lock has its inputs. With
    --check and --remote, that is a test for a clone without data of whether the locks fit the code and everything is
    pushed.
    """
    from mlops_cli.pipeline.interpreter import Python
    from mlops_cli.pipeline.outside import Outside
    from mlops_cli.pipeline.status import project_status

    if remote and targets:
        raise UsageError("`--remote` is about the whole project", hint="leave the targets out")
    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter:
        provision = _open_provision(project, reporter, remote=remote) if allow_missing else None
        outside = Outside(python=Python(session.environ.get("PATH"), project.root))
        found = project_status(
            project, reporter, targets or (), project.relative(session.cwd), provision=provision, outside=outside
        )
        there, steps = _unpushed(project, output, reporter) if remote else ([], [])
    lacking = any(each["lacking"] for each in there)
    value = {
        "clean": found.clean,
        "data": [item._asdict() for item in found.data],
        "stages": [
            {"stage": d.stage.address, "action": d.action.value, "reasons": list(d.reasons)} for d in found.stages
        ],
        "problems": list(map(output.fault, found.problems)),
        "remote": there[0] if there else None,
        "remotes": there,
    }
    output.result("status", value, [*_status_text(found), *(line for each in there for line in _remote_text(each))])
    for line in _status_hints(found, output, "pull" if project.config.remotes else "checkout"):
        output.say(line)
    for step in steps:
        output.say(f"next: {step}")
    if found.problems:
        raise typer.Exit(found.problems[0].exit_code)
    if check and (lacking or not found.clean):
        raise typer.Exit(1)


def _open_provision(project: Project, reporter: Reporter, *, remote: bool) -> Provision:
    """Return what leaves data away that is not here; listings of folders come from remotes that are asked anyway."""
    from mlops_cli.pipeline.provision import Provision

    return Provision(project, allow_missing=True, listings=remote, reporter=reporter)


def _unpushed(project: Project, output: Output, reporter: Reporter) -> tuple[list[dict[str, Any]], list[str]]:
    """Return what each remote lacks, and what to do about it."""
    from mlops_cli.workspace.unpushed import find_offer, find_unpushed

    try:
        found = find_unpushed(project, reporter=reporter)
    except RecordError:  # which the status tells as well
        output.note("the remotes were not asked, for a record cannot be read")
        return [], []
    offer = find_offer(project, found)
    tell_refused(output, offer)
    there = [
        {"name": each.store.name, "url": each.store.url, "lacking": [item._asdict() for item in each.paths]}
        for each in found
    ]
    return there, list(offer.next_steps())


def tell_refused(output: Output, offer: Offer) -> None:
    """Tell why a push would not send some of what remotes lack."""
    for error in offer.refused:
        output.note(f"`mlx push` would refuse that: {error.message}")


def _remote_text(there: Mapping[str, Any]) -> list[str]:
    if not there["lacking"]:
        return [f"remote `{there['name']}` has it all"]
    lacking = (
        f"  {item['path']}  ({count(item['objects'], 'object')}, {size_text(item['size'])})"
        for item in there["lacking"]
    )
    return [f"not on remote `{there['name']}`:", *lacking]


_STATES = {"not_cached": "not here"}  # the others are words as they are


def _status_text(found: ProjectStatus) -> list[str]:
    away = [_away_text(item) for item in found.data if item.away]
    away += [
        f"frozen {each.stage.address}: {each.reasons[1]}{and_more(each.reasons[2:])}"
        for each in found.stages
        if each.stage.frozen and each.action == "skip" and len(each.reasons) > 1
    ]
    if found.clean:
        parts = [count(len(found.data), "data path")] if found.data else []
        off = sum(decision.stage.is_off for decision in found.stages)
        parts += [count(len(found.stages) - off, "stage")] if found.stages else []
        left = f", {count(off, 'stage')} off" * bool(off)
        missing = sum(item.state != "ok" for item in found.data)
        left += f" ({missing:,} not here)" * bool(missing)
        return [f"clean: {', '.join(parts)} as recorded{left}" if parts else "clean: nothing is tracked yet", *away]
    lines = away
    if changed := [item for item in found.data if item.state != "ok"]:
        lines.append("data:")
        lines.extend(
            f"  {_STATES.get(item.state, item.state.value):<11}{item.path}{_detail(item)}{_origin(item)}"
            for item in changed
        )
    if due := [told for told in fold_decisions(found.stages) if told.action != "skip"]:
        lines.append("stages:")
        for told in due:
            lines.append(f"  {told.action:<11}{told.name}")
            lines.extend(f"               {reason}" for reason in told.reasons)
    if found.problems:
        lines += ["problems:", *(f"  {error.message}" for error in found.problems)]
    return lines


def _away_text(item: DataStatus) -> str:
    return f"{item.path}  in part here ({item.files - item.away:,} of {count(item.files, 'file')})"


def _origin(item: DataStatus) -> str:
    return f"  (imported from {item.source})" if item.source else ""


def _detail(item: DataStatus) -> str:
    if item.state != "modified":
        return ""
    counts = ((item.modified, "modified"), (item.added, "added"), (item.deleted, "deleted"))
    told = ", ".join(f"{number:,} {word}" for number, word in counts if number)
    return f"  ({told or 'what it was is not all here'})"


def _named(items: Sequence[DataStatus]) -> str:
    return words(item.path for item in items[:NAMED])


def _status_hints(found: ProjectStatus, output: Output, bringing: str) -> list[str]:
    """Return what to do next: commands that work as things are.

    What was edited is not overwritten without `--force`, so whatever else is to be brought is named beside it.
    """
    hints = []
    if partly := [item for item in found.data if item.away and item.state == "ok"]:
        hints.append(f"next: `mlx {bringing} {_named(partly)}` brings the rest{so_for(partly[NAMED:])}")
    modified = [item for item in found.data if item.state == "modified"]
    known = [item for item in modified if not _is_unknown(item)]
    partial = [item for item in known if not (item.added or item.modified)]
    edited = [item for item in known if item.added or item.modified]
    if partial:
        hints.append(f"next: {_partial_hint(partial[0], bringing)}")
    if edited:
        hints.append(f"next: {_edited_hint(edited[0], bringing)}")
    absent = [] if found.may_be_missing else found.data
    if missing := [item for item in absent if item.state == "missing"]:
        line = f"mlx checkout {_named(missing)}" if modified else "mlx checkout"
        hints.append(
            f"next: `{line}` brings missing data back from the cache{so_for(missing[NAMED:]) if modified else ''}"
        )
    if away := [item for item in absent if item.state == "not_cached" or _is_unknown(item)]:
        line = f"mlx pull {_named(away)}" if known else "mlx pull"
        hints.append(
            f"next: `{line}` brings data that is not here from a remote{so_for(away[NAMED:]) if known else ''}"
        )
    if found.problems:
        if hint := output.hint(found.problems[0]):
            hints.append(f"next: {hint}")
    elif any(decision.action != "skip" for decision in found.stages):
        hints.append("next: `mlx run` brings the stages up to date")
    return hints


def _partial_hint(item: DataStatus, bringing: str) -> str:
    path = word(item.path)
    told = [f"`mlx add {path}` records that it is", "`mlx diff` lists it"]
    if item.restorable or bringing == "pull":
        told.insert(0, f"`mlx {bringing} {path}` brings back what is gone{' and the rest' * bool(item.away)}")
    return ", ".join(told)


def _edited_hint(item: DataStatus, bringing: str) -> str:
    path = word(item.path)
    undo = bringing if item.deleted or item.away or not item.restorable else "checkout"
    told = [f"`mlx add {path}` records it"] if item.storable else []
    if item.restorable or undo == "pull":
        told.append(f"`mlx {undo} --force {path}` undoes it{' and brings the rest' * bool(item.away)}")
    return ", ".join([*told, "`mlx diff` lists it"])


def _is_unknown(item: DataStatus) -> bool:
    """Say whether something differs and nobody can tell what: what it was is not all here."""
    return item.state == "modified" and not (item.added or item.modified or item.deleted)


COMMANDS = {
    "status": command(
        status, "mlx status", "mlx status data/raw train", "mlx status --check && echo clean", "mlx status --remote"
    ),
}
