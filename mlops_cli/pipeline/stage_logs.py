"""Which logs are meant: by the names of stages, and by that of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import MlxError, UsageError
from mlops_cli.pipeline.run_history import Run, find_latest, read_run, runs_of
from mlops_cli.pipeline.run_record import log_file
from mlops_cli.pipeline.selection import Reach
from mlops_cli.pipeline.survey import survey_stages
from mlops_cli.words import quoted
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import workspace_snapshot


class StageLog(NamedTuple):
    """The log of a stage in one run."""

    run: Run
    stage: str

    @property
    def path(self) -> Path:
        """The file."""
        return self.run.log(self.stage)


def choose_logs(project: Project, targets: Sequence[str], name: str | None, folder: str) -> list[StageLog]:
    """Return the logs that are asked for; UsageError for a stage or run that there is not."""
    folders = runs_of(project)
    if name is None and targets:
        chosen: dict[str, StageLog] = {}
        for target in targets:
            found = [(stage, find_latest(folders, stage)) for stage in find_stages(project, target, folder)]
            ran = {stage: StageLog(latest, stage) for stage, latest in found if latest is not None}
            if not ran:
                raise UsageError(
                    f"stage `{target}` has not run here", hint=f"`mlx run {quoted(target)}` runs what is due"
                )
            chosen |= ran
        return list(chosen.values())
    return _in_run(project, targets, name, folder)


def _in_run(project: Project, targets: Sequence[str], name: str | None, folder: str) -> list[StageLog]:
    """Return the logs of the run whose id begins with `name`, or of the last one."""
    folders = runs_of(project)
    place = next(iter(folders), None) if name is None else find_run(folders, name)
    if place is None:
        return []
    run = read_run(place)
    ran = dict.fromkeys(each.stage for each in run.facts.stages)
    asked = {stage for target in targets for stage in find_stages(project, target, folder)} if targets else set(ran)
    chosen = [StageLog(run, stage) for stage in ran if stage in asked and run.log(stage).is_file()]
    if targets and not chosen:
        hint = f"`mlx logs --list --run {run.id}` says what it did"
        raise UsageError(f"run `{run.id}` did not run stage `{targets[0]}`", hint=hint)
    return chosen


def find_stages(project: Project, target: str, folder: str) -> list[str]:
    """Return the addresses that `target`, typed in `folder`, may mean: of stages that have a log, or are declared."""
    places = runs_of(project)
    if any(log_file(place, target).is_file() for place in places):
        return [target]
    try:
        selected = survey_stages(workspace_snapshot(project), [target], Reach(folder=folder)).selected
        return [stage for stage in selected.order if stage in selected.named]
    except MlxError:  # it may have been declared when it ran
        ran = {each.stage: None for place in places for each in read_run(place).facts.stages}
        found = [stage for stage in ran if stage.partition("@")[0] == target]
        if found:
            return found
        raise


def find_run(folders: Sequence[Path], name: str) -> Path:
    """Return the one of `folders` whose name is, or begins with, `name`; UsageError when that is none, or not one."""
    found = [folder for folder in folders if folder.name.startswith(name)]
    exact = [folder for folder in found if folder.name == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    which = f"{len(found)} runs begin with" if found else "there is no run"
    raise UsageError(f"{which} `{name}`", hint="`mlx logs --list` names the runs")
