"""`mlx logs`: what the commands of stages wrote, and what they took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.completion import complete_runs
from mlops_cli.cli.options import Json, Stages
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import session_of
from mlops_cli.cli.text import duration_text, size_text, table
from mlops_cli.errors import UsageError

if TYPE_CHECKING:
    from mlops_cli.pipeline.run_history import Run
    from mlops_cli.pipeline.run_record import StageRun
    from mlops_cli.pipeline.stage_logs import StageLog
    from mlops_cli.workspace.project import Project

_POLL_SECONDS = 0.2
_LISTED = 20

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage ends")]
RunName = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="ID", help="Of that run (its beginning does); the last", autocompletion=complete_runs
    ),
]
Tail = Annotated[int | None, typer.Option("--tail", metavar="N", min=0, help="The last N lines only")]


def logs(
    context: typer.Context,
    stages: Stages = None,
    follow: Follow = False,
    run: RunName = None,
    tail: Tail = None,
    listed: Annotated[bool, typer.Option("--list", help="List what ran, and what it took, instead")] = False,
    as_json: Json = False,
) -> None:
    """Show what stages wrote when they last ran

    It comes on standard output as it is, of all attempts, one after the other. Without a stage, the whole last run
    is shown. Logs stay in the clone that ran the stage, and no commit has them: those of the last 100 runs are kept.
    """
    from mlops_cli.pipeline.stage_logs import choose_logs

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    folder = project.relative(session.cwd)
    if follow and (as_json or listed):
        other = "--json" if as_json else "--list"
        raise UsageError(f"`{other}` tells what is there now, and `--follow` waits", hint="choose one of them")
    if listed:
        _show_list(output, project, stages or [], run, folder)
        return
    chosen = choose_logs(project, stages or [], run, folder)
    if as_json:
        facts = [(log.run, each) for log in chosen for each in _attempts(log)]
        output.result("logs", {"runs": [_value(*each) for each in facts]}, [])
        return
    if not chosen:
        output.say("no stage has run here yet: `mlx run` runs what is due")
    _show(output, chosen, follow=follow, tail=tail)


def _attempts(log: StageLog) -> list[StageRun]:
    return [each for each in log.run.facts.stages if each.stage == log.stage]


def _show(output: Output, chosen: Sequence[StageLog], *, follow: bool, tail: int | None) -> None:
    """Write logs to standard output; of several, each after its name, and followed one after the other."""
    from mlops_cli.pipeline.run_history import follow as read
    from mlops_cli.pipeline.run_history import tail_start

    for log in chosen:
        if len(chosen) > 1:
            output.say(f"==> {log.stage}")
        start = 0 if tail is None else tail_start(log.path, tail)
        is_on = _watch(log) if follow else _never
        wrote = tail == 0
        for data in read(log.path, is_on, start=start, pause=lambda: time.sleep(_POLL_SECONDS)):
            wrote = True
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        if not wrote:
            output.say(f"stage `{log.stage}` wrote nothing")
    for log in chosen if follow else ():
        _say_end(output, log)


def _never() -> bool:
    return False


def _watch(log: StageLog) -> Callable[[], bool]:
    """Return what says whether the commands of a stage may write more."""
    from mlops_cli.pipeline.run_history import is_writing, read_run

    return lambda: is_writing(read_run(log.run.folder), log.stage)


def _say_end(output: Output, log: StageLog) -> None:
    from mlops_cli.pipeline.run_history import read_run

    last = _attempts(log._replace(run=read_run(log.run.folder)))[-1:]
    for each in last:
        took = "" if each.seconds is None else f" after {duration_text(each.seconds)}"
        output.say(f"{each.stage}: {_ending(each)}{took}")


def _show_list(output: Output, project: Project, targets: Sequence[str], name: str | None, folder: str) -> None:
    """List the attempts at stages, the newest first."""
    from mlops_cli.pipeline.run_history import runs_of
    from mlops_cli.pipeline.stage_logs import find_run, find_stages

    folders = runs_of(project)
    if name is not None:
        folders = [find_run(folders, name)]
    asked = {stage for target in targets for stage in find_stages(project, target, folder)}
    found = list(_listed(folders, asked, all_of_them=output.json or name is not None))
    headers = ("stage", "when", "took", "CPU", "memory", "ended", "run")
    rows = [(*_row(each), run.id) for run, each in found]
    output.result("logs", {"runs": [_value(run, each) for run, each in found]}, table(headers, rows))
    if not found:
        output.say("nothing has run here yet" if not targets else f"stage `{targets[0]}` has not run here")


def _listed(folders: Sequence[Path], asked: set[str], *, all_of_them: bool) -> Iterator[tuple[Run, StageRun]]:
    """Yield attempts, the newest first: of whole runs, until there are enough for a screen."""
    from mlops_cli.pipeline.run_history import read_run

    told = 0
    for folder in folders:
        run = read_run(folder)
        chosen = [each for each in run.facts.stages if not asked or each.stage in asked]
        yield from ((run, each) for each in reversed(chosen))
        told += len(chosen)
        if told >= _LISTED and not all_of_them:
            return


def _row(each: StageRun) -> tuple[str, ...]:
    took = "" if each.seconds is None else duration_text(each.seconds)
    used = "" if each.cpu_seconds is None else duration_text(each.cpu_seconds)
    peak = "" if each.peak_memory is None else size_text(each.peak_memory)
    attempt = f" (attempt {each.attempt})" if each.attempt > 1 else ""
    return each.stage, _local(each.started), took, used, peak, f"{_ending(each)}{attempt}"


def _local(at: str | None) -> str:
    """Return a time of a record as the clock on the wall had it."""
    from datetime import datetime

    try:
        return "" if at is None else datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError):
        return ""


def _ending(each: StageRun) -> str:
    """Word how an attempt ended."""
    from mlops_cli.pipeline.execution import describe_status
    from mlops_cli.pipeline.run_record import Outcome

    if each.outcome is Outcome.DONE and each.action == "restore":
        return "restored"
    if each.outcome is Outcome.FAILED:
        return f"failed: {describe_status(each.exit_status)}" if each.exit_status else "failed"
    return "" if each.outcome is Outcome.UNKNOWN else each.outcome.value


def _value(run: Run, each: StageRun) -> dict[str, Any]:
    path = run.log(each.stage)
    facts = {name: value for name, value in each._asdict().items() if name != "again"}
    value = {**facts, "outcome": each.outcome.value, "reasons": list(each.reasons)}
    return {"run": run.id, "doing": run.facts.doing, **value, "log": str(path) if path.is_file() else None}


COMMANDS = {"logs": command(logs, "mlx logs train@forest", "mlx logs train --follow", "mlx logs --list")}
