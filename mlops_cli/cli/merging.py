"""Commands on merges: `install`, `resolve`."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_paths
from mlops_cli.cli.options import DryRun, Json, RemoteName
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.spelling import advice
from mlops_cli.cli.text import Line, Style, Styled
from mlops_cli.errors import MissingObject, UsageError
from mlops_cli.words import NAMED, and_more, so_for, word, words

if TYPE_CHECKING:
    from mlops_cli.workspace.merge_setup import Setup
    from mlops_cli.workspace.resolve import Resolution, Stuck

Conflicting = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH]...", help="Tracked paths, locks, folders", autocompletion=complete_paths),
]


def install(
    context: typer.Context,
    undo: Annotated[
        bool, typer.Option("--uninstall", help="Take back what it did, in this clone and in the file")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Have Git merge pointers and locks with mlx

    Folders that both branches changed are merged file by file. Writes lines to .gitattributes, which is to be
    committed, and a merge driver to the settings of this clone: every clone installs its own. Where mlx cannot be
    found when Git merges, Git does what it did before.
    """
    from mlops_cli.workspace import merge_setup

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    if undo:
        done = merge_setup.uninstall(project, dry_run=dry_run)
    else:
        done = merge_setup.install(project, _program(), dry_run=dry_run)
    value = {"dry_run": dry_run, "uninstall": undo, "attributes": merge_setup.ATTRIBUTES, **asdict(done)}
    for line in done.others:
        output.note(f"`{line}` in `{merge_setup.ATTRIBUTES}` stays as it is: those files are not merged by mlx")
    output.result("install", value, _installed_text(done, merge_setup.ATTRIBUTES, undo=undo, dry_run=dry_run))
    if done.attributes_changed and not dry_run:
        others = "" if undo else ", and `mlx install` in every other clone"
        output.say(f"next: `git add {word(merge_setup.ATTRIBUTES)}`{others}")


def _program() -> Path | None:
    """Return the file that is `mlx` where this one runs."""
    beside = Path(sys.executable).with_name("mlx")
    found = str(beside) if beside.is_file() else shutil.which("mlx")
    return Path(found).absolute() if found else None


def _installed_text(done: Setup, attributes: str, *, undo: bool, dry_run: bool) -> Iterator[Line]:
    would, past = ("would ", 0) if dry_run else ("", 1)
    if done.attributes_changed:
        verb = (("remove", "removed"), ("add", "added"))[not undo][past]
        yield f"{would}{verb} the lines of mlx {'from' if undo else 'to'} {attributes}"
    if done.driver_changed:
        verb = (("remove", "removed"), ("set", "set"))[not undo][past]
        yield f"{would}{verb} the merge driver of this clone"
    if not (done.attributes_changed or done.driver_changed):
        yield "nothing to remove" if undo else "installed already"


def resolve(
    context: typer.Context,
    paths: Conflicting = None,
    ours: Annotated[bool, typer.Option("--ours", help="Of what both sides changed differently, take ours")] = False,
    theirs: Annotated[
        bool, typer.Option("--theirs", help="Of what both sides changed differently, take theirs")
    ] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Bring listings that are not here from a remote")] = False,
    remote: RemoteName = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Merge pointers and locks that Git left in conflict

    Folders are merged file by file; of two locks one stands, and `mlx run` finds out what is to be done. What is merged
    is put into Git's index, as `git mergetool` does. What both sides changed differently stays in conflict, and it
    exits with 1, unless --ours or --theirs decides: all else of both sides is kept then, too. In a rebase ours is what
    you rebase onto. No data is brought: `mlx checkout` does that.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.project_remote import open_project_remote
    from mlops_cli.workspace.resolve import resolve as resolve_conflicts
    from mlops_cli.workspace.sides import Side

    if ours and theirs:
        raise UsageError("`--ours` and `--theirs` are two decisions", hint="choose one of them")
    if remote and not fetch:
        raise UsageError("`--remote` says where listings come from", hint="give `--fetch` as well, or neither")
    choice = Side.OURS if ours else Side.THEIRS if theirs else None
    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx resolve", reporter, dry_run=dry_run):
        listings = open_project_remote(project, remote, reporter)[1] if fetch else None
        targets = session.targets(project, paths)
        found = resolve_conflicts(project, targets, choice=choice, remote=listings, dry_run=dry_run)
    output.result("resolve", _value(found, output, dry_run=dry_run), _resolved_text(found, dry_run=dry_run))
    _say_next(found, output, dry_run=dry_run)
    if found.stuck:
        missing = all(isinstance(stuck.error, MissingObject) for stuck in found.stuck)
        raise typer.Exit(MissingObject.exit_code if missing else 1)


def _value(found: Resolution, output: Output, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "doing": found.doing.name,
        "resolved": [asdict(item) for item in found.resolved],
        "conflicts": [
            {
                "path": stuck.path,
                "clashes": [clash._asdict() for clash in stuck.clashes],
                "error": output.fault(stuck.error) if stuck.error else None,
            }
            for stuck in found.stuck
        ],
        "others": found.others,
    }


def _resolved_text(found: Resolution, *, dry_run: bool) -> Iterator[Line]:
    for item in found.resolved:
        verb = "remove" if item.deleted else f"take {item.side}" if item.side else "merge"
        done = {"remove": "removed", "merge": "merged"}.get(verb, verb.replace("take", "took"))
        yield f"{f'would {verb}' if dry_run else done} {item.path}{f': {item.note}' if item.note else ''}"
    for stuck in found.stuck:
        for clash in stuck.clashes[:NAMED]:
            yield Styled(f"conflict: {clash.path} was {clash.what}", Style.RED)
        if len(stuck.clashes) > NAMED:
            yield Styled(f"conflict: {stuck.path}: {and_more(stuck.clashes).removeprefix(' and ')}", Style.RED)
        if stuck.error is not None:
            yield Styled(f"conflict: {stuck.error.message}", Style.RED)
    for path in found.others[:NAMED]:
        yield f"left to you: {path}"
    if len(found.others) > NAMED:
        yield f"left to you: {and_more(found.others).removeprefix(' and ')}"
    if not (found.resolved or found.stuck or found.others):
        yield "nothing is in conflict"


def _say_next(found: Resolution, output: Output, *, dry_run: bool) -> None:
    decided = [stuck.path for stuck in found.stuck if stuck.clashes]
    if decided:
        named = words(path.removesuffix(".mlx") for path in decided[:NAMED])
        whose = f"ours is {found.doing.ours}, theirs is {found.doing.theirs}"
        output.say(f"next: `mlx resolve --ours {named}`, or `--theirs`{so_for(decided[NAMED:])}; {whose}")
    for stuck in [stuck for stuck in found.stuck if stuck.error][:NAMED]:
        output.say(f"next: {_hint(stuck, output)}")
    if found.resolved and not (dry_run or found.stuck):
        output.say(f"next: {', then '.join(_steps(found))}")


def _hint(stuck: Stuck, output: Output) -> str:
    assert stuck.error is not None
    return advice(stuck.error, output.spelling.cwd) or f"`git checkout --ours {word(stuck.path)}`, or `--theirs`"


def _steps(found: Resolution) -> Sequence[str]:
    """Return the commands that follow, each in backticks."""
    kept = [item.path for item in found.resolved if not item.deleted]
    data = [path.removesuffix(".mlx") for path in kept if path.endswith(".mlx")]
    checkout = f"`mlx checkout {words(data)}`" if len(data) <= NAMED else "`mlx checkout`"
    run = ["`mlx run`"] if any("mlx.lock/" in path for path in kept) else []
    return [*([checkout] if data else []), "`git status`" if found.others else f"`{found.doing.go_on}`", *run]


COMMANDS = {
    "install": command(install, "mlx install", "mlx install --uninstall"),
    "resolve": command(resolve, "mlx resolve", "mlx resolve --theirs data/raw"),
}
