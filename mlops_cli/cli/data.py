"""Commands on the workspace: `init`, `add`, `checkout`, `unprotect`, `diff`, `remove`, `move`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_paths
from mlops_cli.cli.options import Check, DryRun, Jobs, Json, Overwrite, RemoteName, Targets
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.status import tell_refused
from mlops_cli.cli.text import Line, Style, Styled, count, size_text
from mlops_cli.cli.usage import refuse_range
from mlops_cli.errors import UsageError
from mlops_cli.words import word, words

if TYPE_CHECKING:
    from mlops_cli.workspace.add import AddResult
    from mlops_cli.workspace.checkout import Restored
    from mlops_cli.workspace.differences import FileChange
    from mlops_cli.workspace.project import Project
    from mlops_cli.workspace.relink import Relinked
    from mlops_cli.workspace.shortfalls import Failed
    from mlops_cli.workspace.transfers import Moved

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files or folders")]
Tracked = Annotated[list[str], typer.Argument(metavar="PATH...", help="Tracked paths", autocompletion=complete_paths)]


def init(context: typer.Context, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Make the current folder an mlx project

    Writes .mlx/config.yaml; data goes to a cache inside the Git directory, shared by all worktrees of the clone.
    """
    from mlops_cli.workspace.project import find_outer, init_project

    session = session_of(context)
    output = session.output(as_json)
    project, created = init_project(session.cwd, session.environ, dry_run=dry_run)
    verb = "would make" if dry_run else "made"
    text = f"{verb} a project in {project.root}" if created else f"{project.root} is a project already"
    outer = find_outer(project) if created else None
    if outer is not None:
        output.note(f"it is inside the project `{outer}`, which does not see what is below `{project.root}`")
    output.result("init", {"dry_run": dry_run, "root": str(project.root), "created": created}, [text])
    if created and not dry_run:
        output.say("next: `mlx add PATH` tracks data; `git add .mlx` shares the settings")


def add(
    context: typer.Context,
    paths: Paths,
    to_remote: Annotated[
        bool, typer.Option("--to-remote", help="Send the bytes straight to a remote, and keep none in the cache")
    ] = False,
    remote: RemoteName = None,
    jobs: Jobs = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="Drop from the record what is away, as after a pull of a part")
    ] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Track files and folders

    Their bytes are stored in the cache, and a small pointer is written beside each: commit the pointers with Git. A
    path inside a tracked folder updates the folder at that place only. Of a folder that is here in part, what was
    evicted or never brought stays in the record, unless --exact says that what is here is all. With --to-remote the
    pointer is written when the remote has everything; `mlx pull` is what brings it into a cache.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.add import add as add_data
    from mlops_cli.workspace.relink import warn_root
    from mlops_cli.workspace.streamed_add import add_to_remote

    if (remote or jobs) and not to_remote:
        raise UsageError("`--remote` and `--jobs` are about sending", hint="give `--to-remote` as well, or neither")
    if exact and to_remote:
        raise UsageError("`--to-remote` sends whole folders only", hint="`mlx add --exact PATH`, then `mlx push PATH`")
    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx add", reporter, dry_run=dry_run):
        targets = session.targets(project, paths)
        warn_root(project, reporter)
        moved: tuple[Moved, ...] = ()
        if to_remote:
            options: dict[str, Any] = {"remote": remote, "jobs": jobs, "dry_run": dry_run}
            result, moved = add_to_remote(project, targets, **options, reporter=reporter)
        else:
            result = add_data(project, targets, exact=exact, dry_run=dry_run, reporter=reporter)
    value = {
        "dry_run": dry_run,
        "added": [asdict(item) for item in result.added],
        "gitignores": result.gitignores,
        "remotes": [{name: getattr(each, name) for name in _SENT} for each in moved],
    }
    output.result("add", value, _added_text(result, moved, dry_run=dry_run))
    written = [item.pointer for item in result.added if item.changed] + list(result.gitignores)
    if written and not dry_run:
        output.say(f"next: git add {words(written)}")


def _added_text(result: AddResult, moved: Sequence[Moved], *, dry_run: bool) -> list[str]:
    verb, sent = ("would add", "would send") if dry_run else ("added", "sent")
    lines = [
        f"{verb if item.changed else 'unchanged'} {item.path} ({count(item.files, 'file')}, {size_text(item.size)})"
        for item in result.added
    ]
    lines += [
        f"{sent} {count(each.objects, 'object')} ({size_text(each.size or 0)}) to `{each.name}`" for each in moved
    ]
    return lines


_SENT = ("name", "url", "paths", "objects", "size", "requests", "transferred")


def checkout(
    context: typer.Context,
    paths: Targets = None,
    force: Overwrite = False,
    again: Annotated[bool, typer.Option("--relink", help="Only link or copy anew, as cache.link says now")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make data in the workspace match its records

    The bytes come from the cache: `mlx pull` brings those that are not there. Without a path, what the cache lacks is
    left as it is and named, the rest is brought, and it exits with 4; folders that are here in part stay so, and by
    their names they come as a whole. Files whose own bytes are stored nowhere are not
    overwritten unless --force is given. With --relink no file gets other bytes: those that are as recorded become
    links, clones or copies, and those that are not stay as they are.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.checkout import checkout as check_out
    from mlops_cli.workspace.relink import relink, warn_root
    from mlops_cli.workspace.shortfalls import not_brought
    from mlops_cli.workspace.snapshot import workspace_snapshot

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    if again and force:
        raise UsageError("`--relink` overwrites nothing, so `--force` means nothing", hint="leave one of them out")
    restored: tuple[Restored, ...] = ()
    relinked: tuple[Relinked, ...] = ()
    failed: Failed = {}
    with reporting(output) as reporter, exclusive(project, "mlx checkout", reporter, dry_run=dry_run):
        targets = session.targets(project, paths)
        warn_root(project, reporter)
        if again:
            relinked = relink(project, targets, dry_run=dry_run, reporter=reporter)
        else:
            options: dict[str, Any] = {"force": force, "dry_run": dry_run, "partly": not targets}
            done = check_out(project, targets, **options, reporter=reporter)
            restored, failed = done.restored, done.failed
    value = {"dry_run": dry_run, "restored": list(map(asdict, restored)), "relinked": list(map(asdict, relinked))}
    lines = _relinked_text(relinked, "relink", dry_run=dry_run) if again else restored_text(restored, dry_run=dry_run)
    tell_failed(output, failed)
    output.result("checkout", value, lines if restored or not failed else [])
    if failed:
        raise not_brought(failed, workspace_snapshot(project).tracked())


def tell_failed(output: Output, failed: Failed) -> None:
    """Name each of several tracked paths that could not be brought; one alone is told by the error."""
    for path, error in failed.items() if len(failed) > 1 else ():
        output.note(f"`{path}` was not brought: {error.message}")


def _relinked_text(relinked: tuple[Relinked, ...], verb: str, *, dry_run: bool) -> list[str]:
    done = f"would {verb}" if dry_run else f"{verb}ed"
    lines = [f"{done} {item.path} ({count(item.files, 'file')})" for item in relinked]
    return lines or [f"nothing to {verb}: every file is as it should be"]


def unprotect(context: typer.Context, paths: Tracked, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Make linked files writable copies

    In the hardlink and symlink modes of cache.link, files of the workspace are the cache's own and must not be edited.
    This replaces them by copies, one by one and each at once.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.relink import unprotect as make_writable

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx unprotect", reporter, dry_run=dry_run):
        done = make_writable(project, session.targets(project, paths), dry_run=dry_run, reporter=reporter)
    value = {"dry_run": dry_run, "unprotected": list(map(asdict, done))}
    output.result("unprotect", value, _relinked_text(done, "unprotect", dry_run=dry_run))
    if done and not dry_run:
        output.say(f"next: edit, then `mlx add {word(done[0].path)}` records it")


def restored_text(restored: tuple[Restored, ...], *, dry_run: bool) -> list[str]:
    """Word what a checkout did, a line a path."""
    verb = "would bring back" if dry_run else "brought back"
    lines = []
    for item in restored:
        counts = ((item.added, "added"), (item.modified, "modified"), (item.deleted, "deleted"))
        told = ", ".join(f"{number:,} {word}" for number, word in counts if number)
        lines.append(f"{verb} {item.path} ({told or 'its listing, to be fetched, tells how much'})")
    return lines or ["the workspace matches its records"]


def diff(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OLD [NEW]] [PATH]...", help="Git revisions (HEAD, the workspace), then tracked paths"),
    ] = None,
    remote: Annotated[bool, typer.Option("--remote", help="List the files that their remotes lack instead")] = False,
    check: Check = False,
    as_json: Json = False,
) -> None:
    """List the data files that differ between two revisions

    One revision is compared with the workspace, none means HEAD. Only the folders that differ are read. With --remote,
    what the workspace's records name is compared with the remotes: listed are the files that a push would send.
    """
    from mlops_cli.workspace.differences import diff_data, diff_workspace
    from mlops_cli.workspace.snapshot import open_snapshot, split_revisions

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    (old, new), paths = split_revisions(project, session.cwd, arguments or [])
    refuse_range("diff", (old, new))
    targets = session.targets(project, paths)
    if remote:
        if len(paths) < len(arguments or []):
            hint = "leave the revision out; `mlx push --rev REV --dry-run` tells how much of one is not there"
            raise UsageError("`--remote` compares the records of the workspace with remotes", hint=hint)
        _diff_remotes(output, project, targets, check=check)
        return
    with open_snapshot(project, old) as before, reporting(output) as reporter:
        if new is None:
            changes = diff_workspace(project, before, targets, reporter)
        else:
            with open_snapshot(project, new) as after:
                changes = diff_data(project.cache, before, after, targets)
    value = {"old": old, "new": new, "changes": [change._asdict() for change in changes], "remotes": []}
    output.result("diff", value, map(_difference, changes))
    if not changes:
        output.say("no data differs")
    if check and changes:
        raise typer.Exit(1)


def _diff_remotes(output: Output, project: Project, targets: Sequence[str], *, check: bool) -> None:
    from mlops_cli.workspace.unpushed import find_offer, find_unpushed, list_files

    with reporting(output) as reporter:
        lacking = find_unpushed(project, targets, reporter=reporter)
    found = [list_files(project, lacks) for lacks in lacking]
    offer = find_offer(project, lacking)
    tell_refused(output, offer)
    remotes = [
        {
            "name": each.name,
            "url": each.url,
            "files": len(each.files),
            "size": sum(file.new_size or 0 for file in each.files),
            "listings": each.listings,
        }
        for each in found
    ]
    changes = [{**file._asdict(), "remote": each.name} for each in found for file in each.files]
    lines: list[Line] = []
    for each in found:
        if each.empty:
            lines.append(f"remote `{each.name}` has it all")
            continue
        listings = f" ({count(each.listings, 'listing')} of folders as well)" * bool(each.listings)
        lines += [f"not on remote `{each.name}`{listings}:", *map(_difference, each.files)]
    changes.sort(key=lambda change: str(change["path"]))
    output.result("diff", {"old": "", "new": None, "changes": changes, "remotes": remotes}, lines)
    if any(not each.empty for each in found):
        for step in offer.next_steps(targets):
            output.say(f"next: {step}")
        if check:
            raise typer.Exit(1)


def _difference(change: FileChange) -> Line:
    mark, style = {"added": ("+", Style.GREEN), "modified": ("~", Style.YELLOW), "deleted": ("-", Style.RED)}[
        change.change
    ]
    facts = []
    if change.executable is None or change.old_digest != change.new_digest:
        facts.append(_sizes(change))
    if change.executable is not None:
        facts.append("now executable" if change.executable else "no longer executable")
    return Styled(f"{mark} {change.path}  ({', '.join(facts)})", style)


def _sizes(change: FileChange) -> str:
    old, new = change.old_size, change.new_size
    if old is None or new is None:
        return size_text(old if new is None else new)  # type: ignore[arg-type]  # one side is always there
    return f"{size_text(old)} → {size_text(new)}" if old != new else size_text(new)


def remove(context: typer.Context, paths: Tracked, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Stop tracking data: delete its pointer

    The files stay where they are, and the stored bytes in the cache.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.remove import remove as remove_pointers

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx remove", reporter, dry_run=dry_run):
        result = remove_pointers(project, session.targets(project, paths), dry_run=dry_run)
    verb = "would stop tracking" if dry_run else "no longer tracking"
    output.result("remove", {"dry_run": dry_run, **asdict(result)}, [f"{verb} {path}" for path in result.removed])
    if not dry_run:
        output.say("the files are still here, and Git sees them again")


def move(
    context: typer.Context,
    old: Annotated[str, typer.Argument(metavar="OLD", help="What is tracked", autocompletion=complete_paths)],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Its new path, or a folder to put it into")],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Rename tracked data, with its pointer

    The pointer, the lines in .gitignore and what is in the workspace move together; no data is read, and none need be
    here. Into and out of tracked folders, their listings change. A command that was killed is completed by the same
    command again.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.git import tracked_files
    from mlops_cli.workspace.move import move as move_data

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx move", reporter, dry_run=dry_run):
        source, target = session.targets(project, [old, new])
        done = move_data(project, source, target, dry_run=dry_run)
    verb = "would move" if dry_run else "moved"
    rest = "" if done.data else "; nothing of it is in the workspace"
    for stage in done.stages:
        output.note(f"stage `{stage}` reads `{done.old}`: change the path in its `mlx.yaml`")
    output.result("move", {"dry_run": dry_run, **asdict(done)}, [f"{verb} {done.old} to {done.new}{rest}"])
    removed = tracked_files(project.root, done.removed) if done.removed else []  # Git refuses names it never knew
    changed = [*done.written, *removed, *done.gitignores]
    if changed and not dry_run:
        output.say(f"next: git add {words(dict.fromkeys(changed))}")


COMMANDS = {
    "init": command(init, "git init && mlx init"),
    "add": command(add, "mlx add data/raw", "mlx add data/raw/0007.pgm", "mlx add --to-remote data/raw"),
    "checkout": command(checkout, "mlx checkout data/raw", "mlx checkout --relink"),
    "unprotect": command(unprotect, "mlx unprotect data/raw"),
    "diff": command(diff, "mlx diff", "mlx diff HEAD~1 HEAD data/raw", "mlx diff --remote"),
    "remove": command(remove, "mlx remove data/raw"),
    "move": command(move, "mlx move data/raw images"),
}
