"""`mlx run`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.options import AllowMissing, DryRun, Json, Offline, Stages
from mlops_cli.cli.output import Output
from mlops_cli.cli.run_view import Costs, RunListener, make_listener, new_surroundings, show_run
from mlops_cli.cli.selection import Downstream, From, Single, Until, reach_of
from mlops_cli.cli.session import Session, activation, reporting, session_of
from mlops_cli.errors import StageFailed

if TYPE_CHECKING:
    from mlops_cli.pipeline.manner import Manner, Work
    from mlops_cli.pipeline.provision import Provision
    from mlops_cli.pipeline.stage_work import StageWork
    from mlops_cli.progress import Reporter
    from mlops_cli.workspace.project import Project


def run(
    context: typer.Context,
    stages: Stages = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Run the named stages even if nothing changed")] = False,
    downstream: Downstream = False,
    single: Single = False,
    begin: From = None,
    until: Until = None,
    anew: Annotated[bool, typer.Option("--no-run-cache", help="Do not restore results of earlier runs")] = False,
    pull: Annotated[
        bool, typer.Option("--pull", help="Fetch from remotes what stages need, and results of others, as it goes")
    ] = False,
    allow_missing: AllowMissing = False,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", metavar="N", min=0, max=1000, help="Stages at once; 0: one a CPU")
    ] = 1,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="After a failure, go on with what does not need it")
    ] = False,
    resource: Annotated[
        list[str] | None, typer.Option("--resource", metavar="NAME=N", help="How much there is of a resource")
    ] = None,
    offline: Offline = False,
    executor: Annotated[
        str | None,
        typer.Option("--executor", metavar="NAME", help="Run each stage as a job; local: in an empty folder here"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring outputs up to date: skip, restore or execute

    A stage whose inputs and outputs are as its lock records is skipped, one that ran before with the same inputs is
    restored, the others are executed, with --jobs several at once. A command's output is shown as it comes, and kept.
    When a command fails, the outputs there were come back, and nothing new begins; what runs goes on to its end.
    Of what is left above with --single or --downstream, what is not up to date is told, and used as it is. No remote is
    asked without --pull.
    """
    from mlops_cli.pipeline.declare import parse_resources
    from mlops_cli.pipeline.manner import Manner

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    reach = reach_of(session, project, downstream=downstream, single=single, begin=begin, until=until)
    how = Manner(jobs, keep_going, force, not anew, parse_resources(resource or []), reach, offline)
    providing = {"pull": pull, "allow_missing": allow_missing}
    delegate = _delegate(session, project, executor) if executor else None
    if dry_run:
        _foresee(session, output, project, stages or [], how, providing)
    else:
        _carry_out(session, output, project, stages or [], how, providing, delegate)


def _foresee(
    session: Session, output: Output, project: Project, names: list[str], how: Manner, providing: Mapping[str, bool]
) -> None:
    """Show what a run would do."""
    from mlops_cli.pipeline.interpreter import Python
    from mlops_cli.pipeline.outside import Outside
    from mlops_cli.pipeline.status import plan_project
    from mlops_cli.workspace.snapshot import workspace_snapshot

    with reporting(output) as reporter:
        snapshot = workspace_snapshot(project)
        provision = _open_provision(project, providing, reporter, dry_run=True)
        python = Python(session.environ.get("PATH"), project.root)
        outside = Outside(ask=not how.offline, note=reporter.note, python=python)
        options: dict[str, Any] = {"force": how.force, "run_cache": how.run_cache, "provision": provision}
        planned = plan_project(project, snapshot, names, reach=how.reach, **options, outside=outside, reporter=reporter)
    fetched = provision.told if provision else None
    show_run(output, [(decision, None) for decision in planned], dry_run=True, fetched=fetched)


def _carry_out(
    session: Session,
    output: Output,
    project: Project,
    names: list[str],
    how: Manner,
    providing: Mapping[str, bool],
    delegate: Callable[[StageWork], Work] | None,
) -> None:
    """Run, and show what was done."""
    from mlops_cli.pipeline.plan import Action
    from mlops_cli.pipeline.recorder import recorded
    from mlops_cli.pipeline.run_history import read_times, runs_folder, saved_by
    from mlops_cli.pipeline.runner import run_project
    from mlops_cli.pipeline.turn import exclusive

    started = time.monotonic()
    listener = make_listener(output, several=how.jobs != 1)
    with reporting(output) as reporter, closing(listener), exclusive(project, "mlx run", reporter) as turn:
        surroundings = new_surroundings(session, project)
        reporter.share_with(listener)
        provision = _open_provision(project, providing, reporter)
        with _naming_python(session, listener), recorded(listener, surroundings.logs, project.prefix) as record:
            results = run_project(project, names, surroundings, record, turn, how, provision, delegate)
    saved = saved_by([result.decision for result in results], read_times(runs_folder(project), project.prefix))
    show_run(
        output,
        [(result.decision, result.seconds) for result in results],
        dry_run=False,
        logs=surroundings.logs if any(result.decision.action is Action.RUN for result in results) else None,
        fetched=provision.told if provision else None,
        costs=Costs(time.monotonic() - started, record.spent_by, saved),
    )


def _delegate(session: Session, project: Project, executor: str) -> Callable[[StageWork], Work]:
    from mlops_cli.pipeline.delegation import delegate

    return delegate(project, executor, session.environ)


def _open_provision(
    project: Project, asked: Mapping[str, bool], reporter: Reporter, *, dry_run: bool = False
) -> Provision | None:
    """Return what brings data that is not here, or leaves it away; None for a run that needs all of it here."""
    if not any(asked.values()):
        return None
    from mlops_cli.pipeline.provision import Provision

    return Provision(project, **asked, dry_run=dry_run, reporter=reporter)


@contextmanager
def _naming_python(session: Session, listener: RunListener) -> Iterator[None]:
    """Say with the failure of a stage for which there is no `python` which environment has one."""
    import shutil

    try:
        yield
    except StageFailed as error:
        wanted = any(re.search(r"(^|[\s;&|(])python\s", line) for line in listener.commands)
        line = activation(session.environ) if wanted and "exit code 127" in error.message else None
        if line is None or shutil.which("python", path=session.environ.get("PATH")) is not None:
            raise
        raise StageFailed(
            error.message, hint=f"`{line}` puts the `python` of mlx on PATH; {error.marked_hint}"
        ) from error


COMMANDS = {
    "run": command(
        run, "mlx run", "mlx run train --dry-run", "mlx run --from prepare --until train", "mlx run 'train@f*'"
    )
}
