"""Commands on what is stored: `du`, `fsck`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_paths, complete_remotes
from mlops_cli.cli.options import DryRun, Json
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import Line, Style, Styled, count, size_text, table
from mlops_cli.errors import UsageError
from mlops_cli.words import NAMED, and_more

if TYPE_CHECKING:
    from mlops_cli.store.checkup import Scope
    from mlops_cli.workspace.integrity import Examination, Fault
    from mlops_cli.workspace.usage import Usage

Whole = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH]...", help="Tracked paths, each as a whole", autocompletion=complete_paths),
]


def du(
    context: typer.Context,
    paths: Whole = None,
    rev: Annotated[str | None, typer.Option("--rev", metavar="REV", help="As it was at a Git revision")] = None,
    every: Annotated[bool, typer.Option("--all-revisions", help="Every version that a commit here records")] = False,
    as_json: Json = False,
) -> None:
    """Show what the tracked data takes in the cache

    Size is that of the files; stored is what their objects take here, each counted once: unique is what only that path
    needs, shared what others need as well. Without a path, the parts of the cache follow: packs hold small files and
    listings, compressed where that pays.
    """
    from mlops_cli.workspace.usage import measure

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    if rev and every:
        raise UsageError("`--rev` and `--all-revisions` are two questions", hint="choose one of them")
    targets = session.targets(project, paths)
    with reporting(output) as reporter:
        found = measure(project, targets, revision=rev, every=every, reporter=reporter)
    value = {
        "revision": rev,
        "paths": [{**asdict(item), "stored": item.stored} for item in found.used],
        "total": found.total,
        "cache": {part.name: {"files": part.files, "bytes": part.bytes} for part in found.cache},
    }
    output.result("du", value, _usage_text(found, project.cache.url, every=every, whole=not targets))
    if any(item.unique is None for item in found.used):
        output.say("next: `mlx fetch` brings the listings that are not here, marked `?`")
    elif any(item.absent and item.revision is None for item in found.used):
        output.say("next: `mlx fetch` brings what is not here")


def _usage_text(found: Usage, url: str | None, *, every: bool, whole: bool) -> Iterator[Line]:
    rows = [
        (
            size_text(item.size),
            *map(_size, (item.stored, item.unique, item.shared)),
            *([item.revision or ""] * every),
            item.path,
        )
        for item in found.used
    ]
    yield from table(("size", "stored", "unique", "shared", *(["recorded in"] * every), "path"), rows)
    together = f"all together: {size_text(found.total)} stored, each object counted once"
    yield together if rows else "nothing is tracked yet"
    for item in found.used:
        if item.absent:
            at = f" at {item.revision}" if item.revision else ""
            yield f"not here: {count(item.absent, 'object')} of {item.path}{at}"
    if whole:
        yield ""
        parts = [(part.name, f"{part.files:,}", size_text(part.bytes)) for part in found.cache if part.files]
        yield from table(("cache", "files", "size"), parts)
        takes = size_text(sum(part.bytes for part in found.cache))
        yield f"the cache takes {takes}" if url is None else f"what is here of the cache at {url} takes {takes}"


def _size(size: int | None) -> str:
    return "?" if size is None else size_text(size)


Sample = Annotated[
    float, typer.Option("--sample", metavar="PERCENT", show_default=False, help="Read that much of it only")
]
Duration = Annotated[
    float | None, typer.Option("--max-duration", metavar="SECONDS", help="Begin nothing after that time")
]
Repair = Annotated[bool, typer.Option("--repair", help="Bring good copies from the trash or a remote")]
Examined = Annotated[
    str | None,
    typer.Option(
        "--remote",
        "-r",
        metavar="NAME",
        help="Read that remote instead of the cache; with --repair, bring from there",
        autocompletion=complete_remotes,
    ),
]


def fsck(
    context: typer.Context,
    sample: Sample = 100.0,
    max_duration: Duration = None,
    repair: Repair = False,
    remote: Examined = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Read every stored byte and tell what is damaged

    Damaged objects move to quarantine/ in the cache, and are named with the tracked path that they belong to; so is
    what the records need and the cache lacks. Entries of the run cache are read too. With --sample or --max-duration,
    what was not read for the longest time is read first, so that a little each day comes round to all. Exits with 5
    when something is damaged, 4 when something is only absent, 2 when a record of the workspace cannot be read, or
    says another size than its data has.

    With --remote and no --repair, it is a remote that is read, and nothing is changed: whether the files are there that
    its index names, whether their bytes are right, and whether files in chunks come together. `mlx push --repair` is
    what mends a remote.
    """
    from mlops_cli.records.config import CACHE_REMOTE
    from mlops_cli.workspace.elsewhere import refuse_elsewhere
    from mlops_cli.workspace.integrity import examine
    from mlops_cli.workspace.remedies import remedies
    from mlops_cli.workspace.remote_integrity import examine_remote, remote_remedies
    from mlops_cli.workspace.remotes import is_cache

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    scope = _scope(sample, max_duration)
    with reporting(output) as reporter:
        if repair:
            refuse_elsewhere(project, "`mlx push --repair` forgets what is damaged there, `mlx add` stores it again")
        if not repair and (remote or project.cache.url is not None):
            found = examine_remote(project, remote or CACHE_REMOTE, scope, reporter=reporter)
        else:
            found = examine(project, scope, repair=repair, remote=remote, dry_run=dry_run, reporter=reporter)
    output.result("fsck", {"dry_run": dry_run, **_value(found, output)}, _findings(found, dry_run=dry_run))
    stores = is_cache(project, found.examined)
    for line in remote_remedies(found, is_cache=stores) if found.examined else remedies(project, found):
        output.say(f"next: {line}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def _scope(sample: float, max_duration: float | None) -> Scope:
    from mlops_cli.store.checkup import Scope

    if not 0 < sample <= 100:
        raise UsageError(f"`--sample {sample:g}` is not a share", hint="give a number above 0, up to 100")
    if max_duration is not None and not max_duration > 0:
        hint = "give more than 0 seconds; without `--max-duration` all is read"
        raise UsageError(f"in `--max-duration {max_duration:g}` nothing can be read", hint=hint)
    return Scope(sample, max_duration)


_ABSENT = ("digest", "paths", "files", "stage", "mended", "in_trash", "source")


def _value(found: Examination, output: Output) -> dict[str, object]:
    checkup = found.checkup
    return {
        "examined": found.examined,
        "complete": checkup.complete,
        "objects": checkup.objects,
        "bytes": checkup.bytes,
        "damaged": [asdict(fault) for fault in found.damaged],
        "absent": [{key: asdict(fault)[key] for key in _ABSENT} for fault in found.absent],
        "files": [asdict(file) for file in checkup.files],
        "unread": list(map(output.fault, found.unread)),
        "false": list(map(output.fault, found.false)),
        "strays": checkup.strays,
        "leftovers": checkup.leftovers,
        "remote": found.remotes[0] if len(found.remotes) == 1 else "",
        "remotes": list(found.remotes),
        "returned": found.returned,
        "repaired": found.repaired,
        "runs": {"count": found.runs.count, "unusable": found.runs.unusable},
    }


def _findings(found: Examination, *, dry_run: bool) -> Iterator[Line]:
    checkup = found.checkup
    for file in checkup.files:
        if found.examined:
            yield Styled(f"damaged: {file.file}: {file.why}", Style.RED)
            continue
        kept = "it is put away" if file.file.startswith("runs/") else "what is good in it was kept"
        rebuilt = kept if file.rebuilt else "it is as it was"
        yield Styled(f"damaged: {file.file}: {file.why}; {rebuilt}", Style.YELLOW if file.rebuilt else Style.RED)
    for fault in found.damaged:
        moved = f"; it is in {fault.moved} now" if fault.moved else ""
        yield Styled(f"damaged: {_owner(fault)}: {fault.why}{moved}{_mended(fault, found)}", Style.RED)
    yield from _absent_text(found)
    for error in found.unread:
        yield Styled(f"unread: {error.message}; what it needs was not looked for", Style.YELLOW)
    for error in found.false:
        yield Styled(f"false: {error.message}", Style.YELLOW)
    for stray in checkup.strays:
        yield f"stray: {stray} is not named like an object"
    if checkup.leftovers:
        verb = "would remove" if dry_run else "removed"
        yield f"{verb} what killed commands left: {size_text(checkup.leftovers)}"
    if found.runs.unusable:
        number = count(found.runs.unusable, "run")
        yield f"outputs of {number} in the run cache are not here: they are made again when they are asked for"
    lost = [*found.damaged, *found.absent]
    ahead = [fault for fault in lost if fault.source and not fault.mended]
    if found.repaired:
        places = [*["the trash"] * bool(found.returned), *[_remotes(found)] * bool(found.remotes)]
        yield f"repaired {count(found.repaired, 'object')} from {' and '.join(places)}"
    elif found.repairing and dry_run and lost:
        places = list(
            dict.fromkeys(_place(fault, found) for fault in sorted(ahead, key=lambda fault: fault.source != "trash"))
        )
        yield f"would repair {count(len(ahead), 'object')}{' from ' * bool(ahead)}{' and '.join(places)}"
    place = f"remote `{found.examined}`" if found.examined else "the cache"
    share = "" if checkup.complete else f", {checkup.units:,} of {count(checkup.of_units, 'part')} of {place}"
    read = f"read {count(checkup.objects, 'object')}{f' of {place}' * bool(found.examined)} "
    read += f"({size_text(checkup.bytes)}{share})"
    looked = checkup.units or checkup.complete
    well = looked and not (found.damaged or found.absent or checkup.files)
    yield f"{read}: all as stored" if well else read


def _absent_text(found: Examination) -> Iterator[Line]:
    """Word what is not there: of a remote, many objects of a tracked path in one line."""
    lacking = Counter(fault.paths for fault in found.absent if fault.path)
    many = {paths: lost for paths, lost in lacking.items() if found.examined and lost > NAMED}
    for paths, lost in many.items():
        first = next(fault.why for fault in found.absent if fault.paths == paths)
        told = f"{count(lost, 'object')} of {', '.join(paths[:NAMED])}{and_more(paths)}"
        yield Styled(f"absent: {told}; the first: {first}", Style.YELLOW)
    for fault in found.absent:
        if fault.paths not in many:
            why = f": {fault.why}" if found.examined else ""
            yield Styled(f"absent: {_owner(fault)}{why}{_mended(fault, found)}", Style.YELLOW)


def _owner(fault: Fault) -> str:
    name = fault.digest[:19]
    if not fault.path:
        return f"{name}, which no record names"
    at = f" at {fault.revision}" if fault.revision else ""
    where = fault.files or fault.paths
    return f"{name} of {', '.join(where[:NAMED])}{and_more(where)}{at}"


def _mended(fault: Fault, found: Examination) -> str:
    if fault.mended:
        return "; good bytes are here"
    if fault.source:
        return f"; good bytes would come from {_place(fault, found)}"
    return "; good bytes were found nowhere" if found.repairing else ""


def _place(fault: Fault, found: Examination) -> str:
    return "the trash" if fault.source == "trash" else _remotes(found)


def _remotes(found: Examination) -> str:
    return " or ".join(f"`{name}`" for name in found.remotes)


COMMANDS = {
    "du": command(du, "mlx du", "mlx du data/raw --all-revisions"),
    "fsck": command(fsck, "mlx fsck", "mlx fsck --sample 5", "mlx fsck --repair", "mlx fsck --remote storage"),
}
