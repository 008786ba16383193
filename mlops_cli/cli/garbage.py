"""Commands that free disk space: `gc`, `evict`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mlops_cli.cli.bars import TerminalReporter
from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_paths
from mlops_cli.cli.options import DryRun, Json
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.streams import write_error
from mlops_cli.cli.text import count, size_text
from mlops_cli.errors import UsageError
from mlops_cli.words import words

if TYPE_CHECKING:
    from mlops_cli.progress import Reporter
    from mlops_cli.workspace.collect import Amount, Collected
    from mlops_cli.workspace.evict import Eviction
    from mlops_cli.workspace.project import Project

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask")]
Grace = Annotated[
    str | None,
    typer.Option("--grace", metavar="DURATION", help="Leave alone what is younger, as in 12h; gc.grace otherwise"),
]
Restore = Annotated[bool, typer.Option("--restore", help="Bring back all that is in the trash")]
Empty = Annotated[bool, typer.Option("--empty-trash", help="Delete, for good, all that is in the trash")]
Forget = Annotated[
    str | None, typer.Option("--forget", metavar="PATH", help="Collect no more for a project that is gone from disk")
]
Shallow = Annotated[bool, typer.Option("--allow-shallow", help="Go by the commits that a shallow clone has")]
Salvage = Annotated[bool, typer.Option("--salvage", help="Of records that cannot be read, keep the digests in them")]


def gc(
    context: typer.Context,
    grace: Grace = None,
    yes: Yes = False,
    restore: Restore = False,
    empty_trash: Empty = False,
    forget: Forget = None,
    allow_shallow: Shallow = False,
    salvage: Salvage = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put what nothing needs into the cache's trash

    Kept is what any commit that Git can reach, the index, a worktree, a run that was cut short or a young run cache
    entry names, in every project that uses the cache. The rest goes to the trash once it is older than --grace; what
    has been there for as long is deleted, unless it is needed by then: that comes back. Remotes are left alone.
    """
    from mlops_cli.workspace.elsewhere import refuse_elsewhere

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    refuse_elsewhere(project, "`mlx remote gc cache` collects it")
    action = _chosen({"restore": restore, "empty-trash": empty_trash, "forget": forget is not None})
    if not (dry_run or action in ("restore", "forget") or yes or _can_ask(output)):
        raise UsageError("`mlx gc` asks before it does anything, and nobody is there to ask", hint="add `--yes`")
    options = {"allow_shallow": allow_shallow, "salvage": salvage, "dry_run": dry_run}
    with reporting(output) as reporter:
        if forget is not None:
            done = _forget(project, session.cwd, forget, dry_run=dry_run)
        elif restore:
            done = _restore(project, reporter, dry_run=dry_run)
        elif empty_trash:
            done = _empty(project, output, reporter, yes=yes, **options)
        else:
            done = _collect(project, output, reporter, grace, yes=yes, **options)
    value = {"dry_run": dry_run, "action": action, **asdict(done.amount), "returned": asdict(done.returned)}
    output.result("gc", {**value, "details": done.details}, done.lines)
    if done.details and done.amount.objects and not dry_run:
        output.say("next: `mlx gc --restore` brings it back; `mlx gc --empty-trash` frees the space at once")


def _chosen(asked: Mapping[str, bool]) -> str:
    chosen = [name for name, on in asked.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"`--{chosen[0]}` and `--{chosen[1]}` are two different things", hint="choose one of them")
    return chosen[0] if chosen else "collect"


class _Done(NamedTuple):
    """What an action came to, for people (`lines`) and for programs."""

    amount: Amount
    returned: Amount
    lines: Sequence[str]
    details: dict[str, Any] | None = None


def _forget(project: Project, cwd: Path, path: str, *, dry_run: bool) -> _Done:
    from mlops_cli.workspace.collect import Amount, forget_project

    forget_project(project, Path(os.path.normpath(cwd / path)), dry_run=dry_run)
    verb = "would collect" if dry_run else "collecting"
    return _Done(Amount(), Amount(), [f"{verb} without regard to {path} from now on"])


def _restore(project: Project, reporter: Reporter, *, dry_run: bool) -> _Done:
    from mlops_cli.workspace.collect import Amount, restore_trash

    amount = restore_trash(project, dry_run=dry_run, reporter=reporter)
    return _Done(amount, Amount(), [f"{'would bring' if dry_run else 'brought'} back {_amount(amount, 'file')}"])


def _empty(
    project: Project, output: Output, reporter: TerminalReporter, *, yes: bool, dry_run: bool, **options: Any
) -> _Done:
    from mlops_cli.workspace.collect import empty_trash

    agree = _asking(output, reporter, yes, lambda found: f"delete {_amount(found.gone, 'file')} for good?")
    found = empty_trash(project, agree=agree, dry_run=dry_run, reporter=reporter, **options)
    lines = [f"{'would delete' if dry_run else 'deleted'} {_amount(found.gone, 'file')}"]
    return _Done(found.gone, found.returning, [*_returning(found.returning, dry_run=dry_run), *lines])


def _collect(
    project: Project,
    output: Output,
    reporter: TerminalReporter,
    grace: str | None,
    *,
    yes: bool,
    dry_run: bool,
    **options: Any,
) -> _Done:
    from mlops_cli.workspace.collect import collect

    seconds = None if grace is None else seconds_of(grace)
    agree = _asking(output, reporter, yes, lambda found: _question(output, found))
    now = time.time()
    found = collect(project, now=now, grace=seconds, agree=agree, dry_run=dry_run, reporter=reporter, **options)
    return _Done(found.plan.going, found.returning, _text(found, dry_run=dry_run), _details(found))


def seconds_of(text: str) -> float:
    """Return what `--grace` says (s); UsageError."""
    from mlops_cli.records.config import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        hint = "a number with s, m, h, d or w: `--grace 14d`"
        raise UsageError(f"`--grace {text}` is not a duration", hint=hint) from error


def _can_ask(output: Output) -> bool:
    return not output.json and sys.stdin.isatty() and sys.stderr.isatty()


def _asking(
    output: Output, reporter: TerminalReporter, yes: bool, question: Callable[[Any], str]
) -> Callable[[Any], bool]:
    """Return what asks the user; a no ends the command."""

    def ask(found: object) -> bool:
        if yes:
            return True
        reporter.close()  # a bar would be drawn over the question
        write_error(f"{question(found)} [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            output.say("nothing was done")
            raise typer.Exit(1)
        return True

    return ask


def _question(output: Output, found: Collected) -> str:
    for line in _text(found, dry_run=True):
        output.say(line)
    return "go on?"


def _amount(amount: Amount, noun: str = "object") -> str:
    return f"{count(amount.objects, noun)} ({size_text(amount.size)})"


def _details(found: Collected) -> dict[str, Any]:
    plan = found.plan
    return {
        "projects": list(found.projects),
        "records": {source.value: number for source, number in sorted(found.records.items())},
        "kept": asdict(plan.kept),
        "young": asdict(plan.young),
        "staying": asdict(plan.staying),
        "packs_removed": len(plan.dead),
        "packs_rewritten": len(plan.sparse),
        "runs": len(plan.runs),
        "expired": asdict(found.expired),
        "trash": asdict(found.thrown),
    }


def _text(found: Collected, *, dry_run: bool) -> list[str]:
    plan = found.plan
    records = ", ".join(f"{number:,} in {_PLACES[source.value]}" for source, number in sorted(found.records.items()))
    lines = [f"needed: {_amount(plan.kept)}, by {records or 'no record'}"]
    lines.extend(f"  project {root}" for root in found.projects)
    if plan.young.objects:
        lines.append(f"not needed, but too young to go: {_amount(plan.young)}")
    if plan.staying.objects:
        lines.append(f"not needed, but in packs with more that is: {_amount(plan.staying)}")
    if plan.runs:
        lines.append(f"run cache: {count(len(plan.runs), 'old entry').replace('entrys', 'entries')}")
    if found.expired.objects:
        lines.append(f"{'would delete' if dry_run else 'deleted'} from the trash: {_amount(found.expired, 'file')}")
    lines.extend(_returning(found.returning, dry_run=dry_run))
    verb = "would put" if dry_run else "put"
    lines.append(f"{verb} into the trash: {_amount(plan.going)}" if not plan.empty else "nothing to put into the trash")
    return lines


def _returning(amount: Amount, *, dry_run: bool) -> list[str]:
    if not amount.objects:
        return []
    return [
        f"{'would bring' if dry_run else 'brought'} back from the trash, for it is needed: {_amount(amount, 'file')}"
    ]


_PLACES = {
    "history": "commits",
    "index": "the index",
    "workspace": "the workspace",
    "journal": "runs that were cut short",
    "runs": "the run cache",
}


def evict(
    context: typer.Context,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Tracked paths, or paths inside them", autocompletion=complete_paths),
    ],
    cache_only: Annotated[bool, typer.Option("--cache-only", help="Leave the files of the workspace")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all of it on the remote, too")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Drop local bytes that a remote holds

    From the workspace go the files that are as recorded, from the cache what nothing else here needs; `mlx pull` brings
    it all back. First the remote is asked whether it has it, by the names and sizes of its files: what is nowhere else
    is never dropped. Files that were edited stay, and so does what another path, worktree or project needs.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.evict import evict as evict_paths

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    if not (dry_run or yes or _can_ask(output)):
        raise UsageError("`mlx evict` asks before it does anything, and nobody is there to ask", hint="add `--yes`")
    targets = session.targets(project, paths)
    with reporting(output) as reporter, exclusive(project, "mlx evict", reporter, dry_run=dry_run):
        agree = _asking(output, reporter, yes, lambda found: f"drop {size_text(found.freed)} here?")
        done = evict_paths(
            project,
            targets,
            cache_only=cache_only,
            verify=verify,
            dry_run=dry_run,
            agree=agree,
            reporter=reporter,
        )
    value = {"dry_run": dry_run, "freed": done.freed, "paths": [asdict(each) for each in done.paths]}
    output.result("evict", value, _evicted_text(done, dry_run=dry_run))
    if not (done.empty or dry_run):
        output.say(f"next: `mlx pull {words(each.path for each in done.paths)}` brings it back")


def _evicted_text(done: Eviction, *, dry_run: bool) -> Iterator[str]:
    verb = "would evict" if dry_run else "evicted"
    for each in done.paths:
        if each.objects or each.files:
            parts = [f"{count(each.objects, 'object')} of the cache ({size_text(each.size)})"] * bool(each.objects)
            parts += [f"{count(each.files, 'file')} of the workspace ({size_text(each.removed)})"] * bool(each.files)
            yield f"{verb} {each.path}: {', '.join(parts)}; `{each.remote}` has it"
        else:
            yield f"nothing to evict of {each.path}"
        if each.kept:
            yield f"  {count(each.kept, 'object')} of it {'stay' if each.kept > 1 else 'stays'}, needed by others here"
        if each.edited:
            them = "they are" if each.edited > 1 else "it is"
            yield f"  {count(each.edited, 'file')} {'stay' if each.edited > 1 else 'stays'}: {them} not as recorded"


COMMANDS = {
    "evict": command(evict, "mlx evict data/raw --dry-run", "mlx evict data/raw --cache-only --yes"),
    "gc": command(gc, "mlx gc --dry-run", "mlx gc --yes --grace 30d"),
}
