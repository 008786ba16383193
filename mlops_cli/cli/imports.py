"""Commands that take data from elsewhere: `import`, `update`, `get`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.options import DryRun, Jobs, Json, Overwrite, Targets
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import count, size_text
from mlops_cli.errors import UsageError
from mlops_cli.words import word

if TYPE_CHECKING:
    from mlops_cli.workspace.importing import Imported, Updated
    from mlops_cli.workspace.origins import Origin

Words = Annotated[
    list[str],
    typer.Argument(metavar="SOURCE [PATH] [OUT]", help="A URL, or a Git repository and a path in it; and where to"),
]
Revision = Annotated[
    str | None, typer.Option("--rev", metavar="REV", help="A branch, tag or commit of the other repository")
]
Elsewhere = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="Where the other project's objects are, if not where it says"),
]
NoDownload = Annotated[bool, typer.Option("--no-download", help="Record it, and leave the bytes where they are")]


def import_(
    context: typer.Context,
    words: Words,
    rev: Revision = None,
    remote: Elsewhere = None,
    no_download: NoDownload = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace what is at the path, whatever it is")] = False,
    jobs: Jobs = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Track data from a URL or another repository

    `mlx import URL [PATH]` downloads a file or a folder. `mlx import REPO PATH [OUT]` takes what another repository's
    mlx project tracks, or one file of its Git, at a revision; the bytes come from where that project keeps them. The
    pointer says where the data is from, and `mlx update` brings a newer version.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.importing import Manner, import_data
    from mlops_cli.workspace.origins import read_words

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    _refuse_many(words, 3, "import")
    origin, target = read_words(tuple(words), session.cwd, rev=rev, remote=remote)
    path = session.targets(project, [_name_of(origin, "`mlx import URL PATH`") if target is None else target])[0]
    with reporting(output) as reporter, exclusive(project, "mlx import", reporter, dry_run=dry_run):
        done = import_data(project, origin, path, Manner(force, not no_download, dry_run, jobs, reporter))
    output.result(
        "import", {"dry_run": dry_run, **asdict(done)}, [_imported(done, dry_run=dry_run, pinned=no_download)]
    )
    written = [done.pointer, *done.gitignores] if done.changed else list(done.gitignores)
    if written and not dry_run:
        output.say(f"next: git add {' '.join(map(word, written))}")


def _name_of(origin: Origin, how: str) -> str:
    if not origin.name:
        raise UsageError(f"`{origin.place}` ends in no name", hint=f"say where to put it: {how}")
    return origin.name


def _imported(done: Imported, *, dry_run: bool, pinned: bool) -> str:
    if not done.changed:
        return f"unchanged {done.path}: {done.place} is what it was"
    facts = [count(done.files, "file")] if done.files is not None else []
    facts += [size_text(done.size)] if done.size is not None else []
    told = f" ({', '.join(facts)})" if facts else ""
    verbs = ("would pin", "pinned") if pinned else ("would import", "imported")  # pinned: nothing came
    return f"{verbs[not dry_run]} {done.path}{told} from {done.place}{_version(done.new)}"


def _version(version: str | None) -> str:
    return f" at {_short(version)}" if version else ""


def _short(version: str | None) -> str:
    """Return a version for reading: of a commit, a listing or a long name only the start."""
    if version is None:
        return "?"
    text = version.removeprefix("listing:")
    return text[:10] if len(text) >= 32 and text.isalnum() else text


def update(
    context: typer.Context,
    paths: Targets = None,
    rev: Revision = None,
    no_download: NoDownload = False,
    local: Annotated[bool, typer.Option("--local", help="Also follow sources of this machine")] = False,
    force: Overwrite = False,
    jobs: Jobs = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Bring imported data to what its source has now

    Each source is asked for its version, and only what changed is downloaded. Without a path, that is every import.
    With --rev, the imports that are named follow another revision from now on.
    """
    from mlops_cli.pipeline.turn import exclusive
    from mlops_cli.workspace.importing import Manner, Outcome
    from mlops_cli.workspace.importing import update as update_imports

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    if rev is not None and not paths:
        raise UsageError("`--rev` is about imports that are named", hint="`mlx update --rev REV PATH`")
    with reporting(output) as reporter, exclusive(project, "mlx update", reporter, dry_run=dry_run):
        how = Manner(force, not no_download, dry_run, jobs, reporter)
        found = update_imports(project, session.targets(project, paths), how, rev=rev, local=local)
    for item in found:
        if item.outcome is Outcome.LEFT:
            output.note(f"`{item.path}` is from this machine (`{item.place}`): `mlx update --local` follows it")
    output.result(
        "update",
        {"dry_run": dry_run, "updates": [_document(item, output) for item in found]},
        [_updated(item, dry_run=dry_run) for item in found],
    )
    if not found:
        output.say("nothing is imported here")
    written = [f"{item.path}.mlx" for item in found if item.outcome in ("same", "updated", "pinned")]
    if written and not dry_run:
        output.say(f"next: git add {' '.join(map(word, written))}")
    errors = [item.error for item in found if item.error is not None]
    if errors:
        if errors[0].hint:
            output.say(f"hint: {errors[0].marked_hint}")
        raise typer.Exit(errors[0].exit_code)


def _document(item: Updated, output: Output) -> dict[str, object]:
    told = {"path": item.path, "place": item.place, "outcome": item.outcome.value, "old": item.old, "new": item.new}
    error = None if item.error is None else output.fault(item.error)
    return {**told, "error": error}


def _updated(item: Updated, *, dry_run: bool) -> str:
    if item.error is not None:
        return f"failed     {item.path}: {item.error.message}"
    moved = f"{_short(item.old)} → {_short(item.new)}"
    told = {
        "unchanged": f"unchanged  {item.path}",
        "left": f"left       {item.path}",
        "same": f"unchanged  {item.path}: {moved} of {item.place} has the same data",
        "pinned": f"pinned     {item.path}: {moved} of {item.place}",
        "updated": f"{'would update' if dry_run else 'updated   '} {item.path}: {moved} of {item.place}",
    }
    return told[item.outcome.value]


def get(
    context: typer.Context,
    words: Annotated[
        list[str], typer.Argument(metavar="SOURCE [PATH]", help="A URL, or a Git repository and a path in it")
    ],
    target: Annotated[str, typer.Option("--output", "-o", metavar="PATH", help="Where to put it")] = "",
    rev: Revision = None,
    remote: Elsewhere = None,
    jobs: Jobs = 0,
    as_json: Json = False,
) -> None:
    """Download data without tracking it

    What a URL has, or what another repository's mlx project tracks, as for `mlx import`. It works anywhere, inside and
    outside of projects, and leaves nothing but the data.
    """
    from mlops_cli.workspace.getting import get_data
    from mlops_cli.workspace.origins import make_repo_origin, read_words

    session = session_of(context)
    output = session.output(as_json)
    _refuse_many(words, 2, "get")
    if len(words) == 2:
        origin = make_repo_origin(words[0], words[1], rev, remote, session.cwd)
    else:
        origin, _ = read_words(tuple(words), session.cwd, rev=rev, remote=remote)  # type: ignore[assignment]
    with reporting(output) as reporter:
        done = get_data(
            origin, session.cwd / (target or _name_of(origin, "`mlx get URL -o PATH`")), jobs=jobs, reporter=reporter
        )
    text = f"got {done.path} ({count(done.files, 'file')}, {size_text(done.size)}) from {done.place}"
    output.result("get", asdict(done), [f"{text}{_version(done.version)}"])


def _refuse_many(words: list[str], most: int, name: str) -> None:
    if len(words) > most:
        raise UsageError(
            f"`mlx {name}` has no use for `{words[most]}`", hint=f"`mlx {name} --help` shows how to use it"
        )


COMMANDS = {
    "import": command(
        import_,
        "mlx import ../shared/prices.csv prices.csv",
        "mlx import ../data-project data/raw images --rev v1",
    ),
    "update": command(update, "mlx update", "mlx update --dry-run"),
    "get": command(get, "mlx get ../shared/prices.csv", "mlx get ../data-project data/raw -o images-v1 --rev v1"),
}
