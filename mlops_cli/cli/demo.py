"""`mlx demo`: a real project in a new folder, taken through everything, each command shown before it runs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from mlops_cli.cli.commands import command
from mlops_cli.cli.options import Json
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import Session, activation, session_of
from mlops_cli.errors import StageFailed, UsageError
from mlops_cli.words import quoted


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the demo: why it comes now, its words, and the folder to run it in (empty: the project)."""

    why: str
    words: tuple[str, ...]
    folder: str = ""


def demo(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder to make; DIR-clone and DIR-remote too")],
    as_json: Json = False,
) -> None:
    """Make an example project and take it through everything

    From the first file to a reproduced result; each command is shown before it runs. It is an ordinary Git repository
    afterwards: play with it.
    """
    session = session_of(context)
    output = session.output(as_json)
    project = session.cwd / folder
    places = [project, project.with_name(f"{project.name}-remote"), project.with_name(f"{project.name}-clone")]
    for place in places:
        if place.exists():
            raise UsageError(f"`{place}` exists already", hint="choose another folder, or remove it")
    _copy_example(project)
    done = [_run_step(session, output, project, step) for step in _steps(project.name)]
    value = {"folder": str(project), "clone": str(places[2]), "remote": str(places[1]), "steps": done}
    seconds = sum(step["seconds"] for step in done if isinstance(step["seconds"], float))
    line = activation(session.environ)
    enter = " && ".join([*([line] if line else []), f"cd {quoted(folder)}", "mlx status"])
    text = f"That was all of it, in {seconds:.0f} seconds. The project is in {folder}: `{enter}`"
    output.result("demo", value, ["", text])


def _steps(name: str) -> list[Step]:
    clone = f"../{name}-clone"
    return [
        Step("A project is a Git repository with a folder `.mlx` in it.", ("git", "init", "--quiet", "-b", "main")),
        Step("", ("mlx", "init")),
        Step("The data: 1,797 handwritten digits, one image file each.", ("python", "make_data.py")),
        Step("Store it by content. Git keeps a pointer of five lines.", ("mlx", "add", "data/raw")),
        Step("", ("cat", "data/raw.mlx")),
        Step("The pipeline is declared in mlx.yaml: prepare, then two models, each evaluated.", ("mlx", "graph")),
        Step("Run it.", ("mlx", "run")),
        Step("", ("mlx", "metrics", "show")),
        Step("Code, pointers and locks go into one commit.", ("git", "add", ".")),
        Step("", (*_GIT_AS, "commit", "--quiet", "-m", "First result")),
        Step(
            "Change one parameter: ten times the trees.",
            ("sed", "-i.old", "s/n_estimators: 10$/n_estimators: 100/", "params.yaml"),
        ),
        Step("", ("rm", "params.yaml.old")),
        Step("mlx says what that means before it does anything.", ("mlx", "status")),
        Step("Only what depends on it runs.", ("mlx", "run")),
        Step("", ("mlx", "params", "diff")),
        Step("", ("mlx", "metrics", "diff")),
        Step(
            "Share it: any folder or bucket can be a remote.", ("mlx", "remote", "add", "storage", f"../{name}-remote")
        ),
        Step("", ("git", "add", ".")),
        Step("", (*_GIT_AS, "commit", "--quiet", "-m", "More trees")),
        Step("", ("mlx", "push")),
        Step("A colleague clones: code, pointers and locks, no data.", ("git", "clone", "--quiet", ".", clone)),
        Step("Metrics are in Git, so they need no data.", ("mlx", "metrics", "diff", "HEAD~1", "HEAD"), clone),
        Step("", ("mlx", "pull"), clone),
        Step("Nothing has changed, so there is nothing to run.", ("mlx", "run"), clone),
        Step(
            "Is the first result what its commit says? Run it again and compare.", ("mlx", "reproduce", "HEAD~1"), clone
        ),
    ]


_GIT_AS = ("git", "-c", "user.name=mlx demo", "-c", "user.email=demo@example.invalid", "-c", "commit.gpgsign=false")


def _run_step(session: Session, output: Output, project: Path, step: Step) -> dict[str, object]:
    folder = (project / step.folder).resolve()
    shown = ("git", *step.words[len(_GIT_AS) :]) if step.words[: len(_GIT_AS)] == _GIT_AS else step.words
    quiet = output.json or output.quiet
    if not quiet:
        if step.why:
            print(f"\n# {step.why}")
        where = f"({folder.name}) " if step.folder else ""
        print(f"{where}$ {shlex.join(shown)}", flush=True)
    started = time.monotonic()
    done = subprocess.run(
        _real(step.words), cwd=folder, env=_environ(session.environ), capture_output=quiet, check=False
    )
    if done.returncode:
        raise StageFailed(
            f"the demo stopped: `{shlex.join(shown)}` returned {done.returncode}",
            hint=f"{_last_words(done.stderr) if quiet else 'its output is above'}; the project is in `{project}`",
        )
    return {"command": shlex.join(shown), "folder": folder.name, "seconds": round(time.monotonic() - started, 3)}


def _last_words(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return f"it said `{lines[-1]}`" if lines else "it said nothing"


def _real(words: Sequence[str]) -> list[str]:
    """Return the words with `mlx` and `python` being the ones that run this demo, whatever is on PATH."""
    if words[0] == "mlx":
        return [sys.executable, "-m", "mlops_cli", *words[1:]]
    return [sys.executable, *words[1:]] if words[0] == "python" else list(words)


def _environ(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with this interpreter's folder first, so that stages find the same `python`."""
    return {**environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"}


def _copy_example(project: Path) -> None:
    import shutil

    package = Path(__file__).parent.parent
    homes = (package / "examples" / "digits", package.parent / "examples" / "digits")  # installed, or a source checkout
    home = next((home for home in homes if home.is_dir()), None)
    if home is None:
        raise UsageError("the example project is not installed with mlx", hint="reinstall `mlops-cli`")
    project.mkdir(parents=True)
    for name in ("README.md", "make_data.py", "prepare.py", "train.py", "evaluate.py", "mlx.yaml", "params.yaml"):
        shutil.copyfile(home / name, project / name)


COMMANDS = {"demo": command(demo, "mlx demo digits-demo")}
