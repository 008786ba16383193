"""Commands that are notebooks, as the executor runs them: a process of its own, told by a file what to do.

The process is an ordinary command to the executor: of one group with its kernel, logged, timed, cancelled. What it
needs lies in a scratch folder that is gone afterwards; what it reports of a failure is read from there.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlops_cli.errors import RecordError, StageFailed, UsageError
from mlops_cli.pipeline.values import read_params
from mlops_cli.records.notebooks import NotebookRun, assign, parse_notebook
from mlops_cli.records.stages import Stage
from mlops_cli.workspace.project import Project

LIBRARIES = ("nbclient", "nbformat", "jupyter_client")
PROCESS = "mlops_cli.pipeline.notebook_process"


@dataclass(frozen=True, slots=True)
class Lines:
    """The commands of a stage as a shell runs them, where a notebook says why it failed, and leaves what it came to."""

    commands: tuple[str, ...]
    report: Path | None = None
    unfinished: Path | None = None

    def failure(self) -> str | None:
        """Return what a notebook says of its failure: a sentence that follows `failed: `."""
        if self.report is None or not self.report.is_file():
            return None
        return self.report.read_text(encoding="utf-8")

    def to_look_at(self) -> str:
        """Return where a notebook that failed is, to follow where the log is."""
        if self.unfinished is None or self.failure() is None or not self.unfinished.is_file():
            return ""
        return f", the notebook as far as it came in `{self.unfinished}`"


def has_notebook(stage: Stage) -> bool:
    """Say whether a command of `stage` is a notebook."""
    return any(parse_notebook(line) for line in stage.cmd)


def refuse_without_libraries(stage: Stage) -> None:
    """UsageError when `stage` runs a notebook and what that takes is not installed."""
    if has_notebook(stage) and any(importlib.util.find_spec(name) is None for name in LIBRARIES):
        raise UsageError(
            f"{stage.file}:{stage.line}: stage `{stage.address}` runs a notebook, which needs nbclient",
            hint="`pip install 'mlops-cli[notebook]'`",
        )


@contextmanager
def open_lines(project: Project, stage: Stage, log: Path) -> Iterator[Lines]:
    """Yield the commands of `stage`; the copy of a notebook that fails is left beside `log`."""
    runs = [parse_notebook(line) for line in stage.cmd]
    if not any(runs):
        yield Lines(stage.cmd)
        return
    refuse_without_libraries(stage)
    values = _variables(project, stage)
    with tempfile.TemporaryDirectory(prefix="mlx-") as name:
        scratch, unfinished = Path(name), log.with_name(f"{log.stem}.ipynb")
        commands = [
            _line(scratch, index, run, values, unfinished) if run else line
            for index, (line, run) in enumerate(zip(stage.cmd, runs, strict=True))
        ]
        yield Lines(tuple(commands), scratch / "report", unfinished)


def _line(scratch: Path, index: int, run: NotebookRun, values: dict[str, object], unfinished: Path) -> str:
    told = {
        "notebook": run.notebook,
        "executed": run.executed,
        "kernel": run.kernel,
        "variables": {**values, **run.variables},
        "report": str(scratch / "report"),
        "unfinished": str(unfinished),
    }
    path = scratch / f"{index}.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    # `-P`: nothing in the folder where the notebook runs stands in for a module of ours. Its kernel does find those.
    return shlex.join([sys.executable, "-P", "-m", PROCESS, str(path)])


def _variables(project: Project, stage: Stage) -> dict[str, object]:
    """Return the parameters of `stage` as variables of a notebook: nested as in their files."""
    found: dict[str, object] = {}
    for file in stage.params:
        try:
            values = read_params((project.root / file.path).read_bytes(), file, stage)
        except OSError as error:
            raise StageFailed(f"`{file.path}` of stage `{stage.address}` cannot be read: {error.strerror}") from error
        for key, value in values.items():
            try:
                assign(found, key, value)
            except ValueError as error:
                hint = "name it otherwise, or give the value in `cmd`: `--NAME ${params.KEY}`"
                raise RecordError(f"{stage.file}:{stage.line}: parameter {error}", hint=hint) from error
    return found
