"""One execution of a stage: its place cleared, its commands run and kept in a log, its metrics read.

The same for a run, which publishes what came of it, and for `mlx reproduce`, which compares it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from mlops_cli.documents import parse_values
from mlops_cli.errors import RecordError, StageFailed
from mlops_cli.pipeline.aside import open_up
from mlops_cli.pipeline.command_environ import command_environ
from mlops_cli.pipeline.executor import TimedOut, Write, execute
from mlops_cli.pipeline.notebooks import open_lines
from mlops_cli.pipeline.processes import Group
from mlops_cli.pipeline.run_record import log_file
from mlops_cli.pipeline.usage import Spent
from mlops_cli.records.stages import Stage
from mlops_cli.store.trees import Entry
from mlops_cli.words import quoted
from mlops_cli.workspace.checkout import restore
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.scan import open_scanner

_SHELL_SIGNALS = 128  # a shell exits with this and the number of the signal that ended its command


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a command runs in: the environment it inherits, and the folder that keeps its logs.

    `listed` is whether `mlx logs` finds them there.
    """

    environ: Mapping[str, str]
    logs: Path
    listed: bool = True


def log_path(surroundings: Surroundings, stage: Stage) -> Path:
    """Return the file that keeps what is told of one execution of `stage`."""
    return log_file(surroundings.logs, stage.address)


def clear_outputs(project: Project, paths: Iterable[str], *, kept: Mapping[str, Entry | None] | None = None) -> None:
    """Take away what is at `paths`, whose bytes the caller has made sure of, and make the folders they belong in.

    With `kept`, the caller has made sure of what that names: Edited at anything else, which stays.
    """
    with open_scanner(project) as scanner:
        for path in paths:
            open_up(project.root / path)
            restore(project, scanner, {path: None}, kept=kept)
            (project.root / path).parent.mkdir(parents=True, exist_ok=True)


def run_commands(
    project: Project,
    stage: Stage,
    surroundings: Surroundings,
    *,
    output: Write,
    started: Callable[[Group], object],
    note: Callable[[str], object],
    cancelled: Event | None = None,
    spent: Callable[[Spent], object] | None = None,
) -> None:
    """Run the commands of `stage` in its folder; `started`, `output`, `cancelled` and `spent` are as in `execute`.

    StageFailed when one of them fails, is not found, is killed or takes too long, or when the stage's folder is not
    there; Cancelled.
    """
    log = log_path(surroundings, stage)
    folder = project.root / (stage.wdir or stage.folder)
    if not folder.is_dir():
        raise StageFailed(
            f"stage `{stage.address}` runs in `{stage.wdir or stage.folder}`, which is not a folder",
            hint=f"see `wdir` in {stage.file}:{stage.line}",
        )
    try:
        with open_lines(project, stage, log) as lines:
            status = execute(
                lines.commands,
                folder=folder,
                environ=command_environ(stage, surroundings.environ),
                log=log,
                output=output,
                started=started,
                left_behind=lambda: note(
                    f"the command of stage `{stage.address}` left processes behind; they were stopped "
                    "(end it with `wait` to let them finish)"
                ),
                timeout=stage.conduct.timeout,
                cancelled=cancelled,
                spent=spent,
            )
            failure, further = lines.failure() or describe_status(status), lines.to_look_at()
    except TimedOut as error:
        raise StageFailed(
            f"stage `{stage.address}` took longer than its `timeout` of {stage.conduct.timeout:g} s, and was stopped",
            hint=f"{_shown(stage, surroundings)}; `timeout` is in {stage.file}:{stage.line}",
        ) from error
    if status:
        hint = f"{_shown(stage, surroundings)}{further}"
        raise StageFailed(f"stage `{stage.address}` failed: {failure}", hint=hint)


def _shown(stage: Stage, surroundings: Surroundings) -> str:
    if not surroundings.listed:
        return f"its output is in `{log_path(surroundings, stage)}`"
    return f"`mlx logs {quoted(stage.address)}` shows its output"


def read_metrics(project: Project, stage: Stage, path: str) -> dict[str, object]:
    """Return the (nested) values of a metrics file that `stage` wrote; StageFailed when they cannot be read."""
    file = project.root / path
    if not file.is_file():
        raise StageFailed(f"metrics `{path}` of stage `{stage.address}` is not a file", hint="write JSON, YAML or TOML")
    try:
        values = parse_values(file.read_bytes(), path).value
    except RecordError as error:
        raise StageFailed(
            f"stage `{stage.address}` wrote metrics that cannot be read: {error.message}", hint=error.marked_hint
        ) from error
    if not isinstance(values, dict):
        raise StageFailed(
            f"metrics `{path}` of stage `{stage.address}` must hold a mapping of names to numbers",
            hint='for instance `{"accuracy": 0.97}`',
        )
    return without_lists(values)


def without_lists(values: Mapping[str, object]) -> dict[str, object]:
    """Return nested metrics without their lists: a series is a plot, and would swell every lock."""
    return {
        key: without_lists(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not isinstance(value, list)
    }


def describe_status(status: int) -> str:
    """Word an exit status; a negative one is the number of the signal that ended the command itself."""
    if status == 127:
        return "command not found (exit code 127)"
    if status == 126:
        return "the command is not executable (exit code 126)"
    if 0 < status <= _SHELL_SIGNALS:
        return f"exit code {status}"
    number = -status if status < 0 else status - _SHELL_SIGNALS
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"exit code {status}" if status > 0 else f"killed by signal {number}"
    return f"exit code {status} ({name})" if status > 0 else f"killed by {name}"
