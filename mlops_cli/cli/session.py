"""What a command is called with: where, in which environment, how loud. Built once, from the global options."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from mlops_cli.cli.bars import TerminalReporter
from mlops_cli.cli.output import Colors, Output
from mlops_cli.cli.spelling import Spelling
from mlops_cli.errors import UsageError
from mlops_cli.words import quoted

if TYPE_CHECKING:
    from mlops_cli.workspace.project import Project


class Session(NamedTuple):
    """The surroundings of one command; `notes` is what its user has been told to know, `folder` what `-C` named."""

    cwd: Path
    environ: Mapping[str, str]
    quiet: bool
    colors: Colors
    notes: list[str]
    folder: str = ""

    def output(self, as_json: bool) -> Output:
        """Return how this command speaks."""
        return Output(as_json, self.quiet, self.colors, self.notes, Spelling(self.cwd, self.folder))

    def project(self) -> Project:
        """Return the project that holds the current folder; UsageError when there is none."""
        from mlops_cli.workspace.project import find_project

        return find_project(self.cwd, self.environ)

    def targets(self, project: Project, paths: Sequence[str] | None) -> tuple[str, ...]:
        """Return paths given relative to the current folder as project paths."""
        from mlops_cli.workspace.project import resolve_targets

        return resolve_targets(project, self.cwd, paths or ())


def session_of(context: typer.Context) -> Session:
    """Return the session that the global options made."""
    session = context.find_root().obj
    assert isinstance(session, Session)
    return session


def make_session(*, quiet: bool, color: str, folder: str) -> Session:
    """Return the session for this process; UsageError when the current folder is gone."""
    try:
        cwd = Path.cwd()
    except FileNotFoundError as error:
        raise UsageError("the current folder does not exist any more", hint="`cd` to one that does") from error
    return Session(cwd, os.environ, quiet, choose_colors(color), [], folder)


def choose_colors(choice: str = "auto") -> Colors:
    """Return which streams get colour: by `--color`, else NO_COLOR, FORCE_COLOR, and whether it is a terminal."""
    if choice != "auto":
        return Colors(choice == "always", choice == "always")
    if os.environ.get("NO_COLOR"):
        return Colors()
    if os.environ.get("FORCE_COLOR"):
        return Colors(stdout=True, stderr=True)
    capable = os.environ.get("TERM") != "dumb"
    return Colors(capable and sys.stdout.isatty(), capable and sys.stderr.isatty())


def activation(environ: Mapping[str, str]) -> str | None:
    """Return the line for a shell that makes `python` the one that runs mlx; None when it is, or no line would."""
    import shutil

    folder = Path(sys.executable).parent
    found = shutil.which("python", path=environ.get("PATH"))
    if (found and Path(found).parent == folder) or not (folder / "python").exists():
        return None
    return f". {quoted(str(folder / 'activate'))}" if (folder / "activate").is_file() else None


@contextmanager
def reporting(output: Output) -> Iterator[TerminalReporter]:
    """Yield a reporter, and take its bar away afterwards."""
    reporter = output.reporter()
    try:
        yield reporter
    finally:
        reporter.close()
