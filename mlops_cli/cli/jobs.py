"""Commands on jobs: `job make`, `job run`."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import Group, command
from mlops_cli.cli.completion import complete_stages
from mlops_cli.cli.options import Jobs, Json, RemoteName
from mlops_cli.cli.session import reporting, session_of
from mlops_cli.cli.text import count, size_text
from mlops_cli.errors import MlxError, UsageError
from mlops_cli.words import word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlops_cli.pipeline.worker import JobResult


def make(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="A stage", autocompletion=complete_stages)],
    file: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="The file to write")] = "job.yaml",
    remote: RemoteName = None,
    jobs: Jobs = 0,
    as_json: Json = False,
) -> None:
    """Make a job of a stage, to be run elsewhere

    Its code and data go to the remote, as they are now, and a small file says by digest what they are. `mlx job run`
    runs it wherever the remote can be reached; the result goes there too, and `mlx run --pull` takes it from there.
    """
    from mlops_cli.files import write_atomic
    from mlops_cli.pipeline.interpreter import Python
    from mlops_cli.pipeline.jobs import make_job
    from mlops_cli.pipeline.outside import Outside
    from mlops_cli.pipeline.turn import exclusive

    session = session_of(context)
    output, project = session.output(as_json), session.project()
    with reporting(output) as reporter, exclusive(project, "mlx job make", reporter):
        outside = Outside(ask=True, note=reporter.note, python=Python(session.environ.get("PATH"), project.root))
        options: dict[str, Any] = {"remote": remote, "jobs": jobs, "reporter": reporter, "outside": outside}
        made = make_job(project, stage, folder=project.relative(session.cwd), **options)
        write_atomic(session.cwd / file, made.job.to_bytes())
    value = {
        "stage": made.job.stage,
        "key": made.job.key,
        "file": file,
        "remote": made.moved.name,
        "url": made.moved.url,
        "objects": made.moved.objects,
        "size": made.moved.size,
        "requests": made.moved.requests,
    }
    sent = f"{count(made.moved.objects, 'object')} ({size_text(made.moved.size or 0)}) sent to `{made.moved.name}`"
    output.result("job-make", value, [f"made {file} of stage `{made.job.stage}`: {sent}"])
    output.say(f"next: mlx job run {word(file)}, wherever the remote can be reached")


def run(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="JOB", help="What `mlx job make` wrote")],
    folder: Annotated[
        str | None, typer.Option("--folder", metavar="DIR", help="A new folder to run in, which stays")
    ] = None,
    cache: Annotated[str | None, typer.Option("--cache", metavar="DIR", help="A cache that several jobs share")] = None,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="Where the remote is from here")] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Run it even if its result is there")] = False,
    as_json: Json = False,
) -> None:
    """Run a job, with nothing but its file and the remote

    No repository is needed. Everything that comes is verified; what the stage makes goes to the remote, and the same
    job again finds it there. Exit code 3: its inputs are others here, such as an interpreter that is one of them.
    """
    from mlops_cli.pipeline.worker import Place, run_job
    from mlops_cli.records.jobs import read_job

    session = session_of(context)
    output = session.output(as_json)
    job = read_job(_read(session.cwd / file, file), file)
    with reporting(output) as reporter, _folder_for(session.cwd, folder) as place:
        where = Place(place, session.cwd / cache if cache else None, session.environ)
        result = run_job(job, where, url=url, force=force, output=output.pass_on, reporter=reporter)
    output.result("job-run", _result_value(result), _result_text(result))
    if result.nondeterministic:
        raise typer.Exit(1)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read `{name}`: {error.strerror}", hint="`mlx job make STAGE` writes one") from error


@contextmanager
def _folder_for(cwd: Path, folder: str | None) -> Iterator[Path]:
    """Yield the folder to run in: a temporary one, which stays only when the job fails, unless one is named."""
    import shutil
    import tempfile

    if folder is not None:
        yield cwd / folder
        return
    made = Path(tempfile.mkdtemp(prefix="mlx-job-"))
    try:
        yield made
    except MlxError as error:
        if not (made / "logs").is_dir():
            shutil.rmtree(made, ignore_errors=True)
            raise
        raise type(error)(error.message, hint=f"{error.marked_hint or ''}; what it left is in `{made}`") from error
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    shutil.rmtree(made, ignore_errors=True)


def _result_value(result: JobResult) -> dict[str, Any]:
    return {
        "stage": result.stage,
        "key": result.key,
        "reused": result.reused,
        "nondeterministic": list(result.nondeterministic),
        "outs": [{"path": out.path, "digest": out.digest, "size": out.size} for out in result.outs],
        "metrics": {file: dict(values) for file, values in result.metrics.items()},
        "seconds": round(result.seconds, 3),
        "fetched": result.fetched._asdict(),
        "sent": result.sent._asdict(),
    }


def _result_text(result: JobResult) -> list[str]:
    if result.reused:
        return [f"stage `{result.stage}` has run with these inputs: the remote has its result"]
    outs = count(len(result.outs), "output")
    moved = f"fetched {size_text(result.fetched.bytes)}, sent {size_text(result.sent.bytes)}"
    lines = [f"ran stage `{result.stage}` in {result.seconds:.1f} s: {outs}, {moved}"]
    if result.nondeterministic:
        named = ", ".join(f"`{path}`" for path in result.nondeterministic)
        lines.append(f"not the same as the earlier run of this job made: {named}; the remote keeps the earlier result")
    return lines


COMMANDS = {
    "job": Group(
        "Run stages where only a remote can be reached",
        {
            "make": command(make, "mlx job make prepare -o prepare.yaml"),
            "run": command(run, "mlx job run prepare.yaml", "mlx job run prepare.yaml --folder worker"),
        },
    )
}
