"""Measure `mlx` and DVC side by side: the same data, the same work, in turns.

    python benchmarks/compare.py --make-peer ~/peer --work /disk/bench --output figures.json

The one idea: a suite is a generator of steps. What stands between two `yield`s is preparation and is not timed; what
is yielded is a command, timed for each tool in turn. Each round works in new folders and deletes nothing, because a
file system that has lately deleted many files makes new ones more slowly. README.md beside this says how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipelines import write_busy, write_chain, write_independent, write_monorepo

PEER = ("dvc==3.67.*", "dvc-s3")
TOOLS = ("mlx", "dvc")
EXAMPLE = Path(__file__).parents[1] / "examples" / "digits"
EXAMPLE_FILES = ("make_data.py", "prepare.py", "train.py", "evaluate.py", "params.yaml", "mlx.yaml")
PIECE = 1 << 20
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True, slots=True)
class Tool:
    """One of the compared programs; `words` holds the commands that it spells in its own way."""

    name: str
    program: Path | None
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def pointer(self) -> str:
        """The name of the file that stands for `data` in Git."""
        return f"data.{self.name}"

    def command(self, verb: str, *args: str) -> list[str]:
        """Return the argument list for a verb of `mlx` in this tool's words."""
        return [str(self.program), *self.words.get(verb, (verb,)), *args]


@dataclass(frozen=True, slots=True)
class Step:
    """A command to time, unless its `work` has no name; `repeats` above 1 only where the command changes nothing.

    `asked` is the log of a server, a line a request; `grows` a folder of which it is told by how much it grew.
    """

    work: str
    command: Sequence[str]
    folder: Path
    repeats: int = 1
    asked: Path | None = None
    grows: Path | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """What one run of a command took: seconds of wall time, and bytes of the largest process in it.

    With them, where that is asked for, requests to a server, and bytes by which a remote grew.
    """

    seconds: float
    peak: int
    requests: int | None = None
    grown: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """How much work there is; sizes in bytes."""

    files: int
    file_size: int
    large: int
    stages: int
    repeats: int
    seed: int
    many_stages: int = 0
    busy: int = 0
    pipelines: int = 0


# --- running ---------------------------------------------------------------------------------------------------------


def make_environment(home: Path) -> dict[str, str]:
    """Return variables under which neither tool reads the user's settings, reports usage or looks for updates."""
    settings = home / "dvc"
    settings.mkdir(parents=True)
    (settings / "config").write_text("[core]\n    analytics = false\n    check_update = false\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "GIT_", "MLX_", "XDG_"))}
    return {
        **kept,
        "DVC_GLOBAL_CONFIG_DIR": str(settings),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(home / "dvc-site-cache"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "dvc-system"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(home),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]]),
    }


def measure(command: Sequence[str], folder: Path, env: Mapping[str, str], log: Path) -> Figure:
    """Run a command to its end and return what it took; a failure ends the comparison with what it printed."""
    with log.open("w+b") as output:
        begin = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        printed = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"error: `{' '.join(command)}` returned {process.returncode} in {folder}\n{printed}")
    return Figure(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


@dataclass(slots=True)
class Bench:
    """The folder and environment of one comparison, and the figures so far: work → tool → figures."""

    work: Path
    env: Mapping[str, str]
    rows: dict[str, dict[str, list[Figure]]] = field(default_factory=dict)

    def run(self, command: Sequence[str], folder: Path) -> Figure:
        return measure(command, folder, self.env, self.work / "last-output.txt")

    def take(self, tool: Tool, step: Step) -> None:
        """Time one step and keep the figures; what came before is on disk and does not weigh on it."""
        if not step.work:
            self.run(step.command, step.folder)
            return
        os.sync()
        requests, size = _lines(step.asked), _bytes(step.grows)
        figures = [self.run(step.command, step.folder) for _ in range(step.repeats)]
        if step.asked:
            figures = [replace(figure, requests=(_lines(step.asked) - requests) // step.repeats) for figure in figures]
        if step.grows:
            figures = [replace(figure, grown=_bytes(step.grows) - size) for figure in figures]
        self.rows.setdefault(step.work, {}).setdefault(tool.name, []).extend(figures)
        best = min(figure.seconds for figure in figures)
        print(f"  {step.work}: {tool.name} {best:.3f} s", file=sys.stderr, flush=True)

    def start_project(self, tool: Tool, folder: Path, remote: str = "") -> Path:
        """Make a Git repository with the tool set up in it and a remote (a folder beside it); return its place."""
        project = folder / "project"
        project.mkdir(parents=True)
        for command in (
            ["git", "init", "--quiet", "--initial-branch=main"],
            tool.command("init"),
            tool.command("remote add", "storage", remote or str(folder / "remote")),
        ):
            self.run(command, project)
        return project

    def commit(self, project: Path) -> None:
        """Commit everything that Git does not ignore."""
        as_somebody = ["git", "-c", "user.name=b", "-c", "user.email=b@b"]
        for command in (["git", "add", "--all"], [*as_somebody, "commit", "--quiet", "-m", "data"]):
            self.run(command, project)

    def clone(self, project: Path, to: Path) -> Path:
        """Commit what is in a project and clone it; the clone has the records and none of the data."""
        self.commit(project)
        self.run(["git", "clone", "--quiet", str(project), str(to)], project)
        return to


def _lines(log: Path | None) -> int:
    return log.read_bytes().count(b"\n") if log else 0


def _bytes(folder: Path | None) -> int:
    return count(folder)[1] if folder and folder.exists() else 0


# --- suites ----------------------------------------------------------------------------------------------------------


def start(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """How long the program takes to say its version."""
    folder.mkdir(parents=True)
    yield Step("start-up (--version)", tool.command("--version"), folder, settings.repeats)


def files(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """A folder of many small files."""
    project = bench.start_project(tool, folder)
    data = project / "data"
    write_files(data, settings)
    paths = sorted(data.glob("*/*.bin"))
    label = f"{settings.files:,} files of {format_size(settings.file_size)}"
    yield from data_steps(bench, tool, folder, paths[0], label, paths[50::100])


def scale(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """A folder of very many small files, for `mlx` alone: what it does in time, and in memory."""
    if tool.name != "mlx":
        return
    project = bench.start_project(tool, folder)
    write_files(project / "data", settings)
    label = f"{settings.files:,} files of {format_size(settings.file_size)}"
    yield Step(f"add, {label}, alone", tool.command("add", "data"), project)
    bench.clone(project, folder / "clone")
    yield Step(f"status, nothing changed, {label}, alone", tool.command("status"), project, 3)
    change(project / "data" / "000" / "000000.bin")
    yield Step(f"diff, one file changed, {label}, alone", tool.command("diff"), project)
    yield Step(f"gc --dry-run, {label}, alone", tool.command("gc", "--dry-run"), project)
    (project / "data").rename(folder / "set-aside")
    yield Step(f"checkout, {label}, alone", tool.command("checkout", "data"), project)


def write_files(data: Path, settings: Settings) -> None:
    """Fill a new folder with files of bytes that do not compress, a thousand in each sub-folder."""
    numbers = random.Random(settings.seed)
    for index in range(settings.files):
        path = data / f"{index // 1000:03}" / f"{index:06}.bin"
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(numbers.randbytes(settings.file_size))


def change(path: Path) -> None:
    """Write another first byte into a file, which keeps its size."""
    with path.open("r+b") as file:
        first = file.read(1)[0]
        file.seek(0)
        file.write(bytes([first ^ 1]))


def large(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """One large file."""
    project = bench.start_project(tool, folder)
    numbers = random.Random(settings.seed)
    with (project / "data").open("wb") as file:
        for _ in range(settings.large // PIECE):
            file.write(numbers.randbytes(PIECE))
        file.write(numbers.randbytes(settings.large % PIECE))
    label = f"one file of {format_size(settings.large)}"
    yield from data_steps(bench, tool, folder, project / "data", label)
    data = project / "data"
    for what, edit in (("a byte inserted in the middle", insert), ("1 % appended", append)):
        edit(data, settings)
        yield Step("", tool.command("add", "data"), project)
        yield Step(f"push, {what}, {label}", tool.command("push"), project, grows=folder / "remote")
        bench.commit(project)
        clone = folder / "clone"
        bench.run(["git", "pull", "--quiet"], clone)
        yield Step(f"pull, {what}, {label}", tool.command("pull"), clone)


def insert(path: Path, settings: Settings) -> None:
    """Put a byte into the middle of a file."""
    with path.open("r+b") as file:
        file.seek(settings.large // 2)
        rest = file.read()
        file.seek(settings.large // 2)
        file.write(b"!" + rest)


def append(path: Path, settings: Settings) -> None:
    """Add a hundredth of its size to a file."""
    with path.open("ab") as file:
        file.write(random.Random(settings.seed + 1).randbytes(settings.large // 100))


def data_steps(
    bench: Bench, tool: Tool, folder: Path, changed: Path, label: str, some: Sequence[Path] = ()
) -> Iterator[Step]:
    """Take `project/data` through its life.

    `changed` is the file that gets another byte on the way; in `some`, if there are any, a second version differs.
    """
    project = folder / "project"
    yield Step(f"add, {label}", tool.command("add", "data"), project)
    yield Step(f"status, nothing changed, {label}", tool.command("status"), project)
    change(changed)
    yield Step(f"add again, one file changed, {label}", tool.command("add", "data"), project)
    if some:
        pointer = project / tool.pointer
        first = pointer.read_bytes()
        for path in some:
            change(path)
        for command in (tool.command("add", "data"), tool.command("status")):
            yield Step("", command, project)
        pointer.write_bytes(first)
        yield Step(f"checkout, {len(some):,} files differ, {label}", tool.command("checkout", "data"), project)
    before = count(project / "data")
    (project / "data").rename(folder / "set-aside")
    yield Step(f"checkout, {label}", tool.command("checkout", "data"), project)
    if count(project / "data") != before:
        raise SystemExit(f"error: {tool.name} did not bring back what it was given, in {project}")
    yield Step(f"push, {label}", tool.command("push"), project, grows=folder / "remote")
    yield Step(f"push, nothing to do, {label}", tool.command("push"), project)
    yield Step(f"pull into a clone, {label}", tool.command("pull"), bench.clone(project, folder / "clone"))


def s3(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """Many small files over S3: a server on this machine, one for each tool, that tells of every request."""
    folder.mkdir(parents=True)
    log = folder / "requests.txt"
    with s3_server(log) as endpoint:
        bench.env = {**bench.env, **S3_USER, "AWS_ENDPOINT_URL": endpoint}
        place = "s3://bench/project"
        headers = {"Authorization": S3_SIGNATURE}
        request = urllib.request.Request(f"{endpoint}/bench", method="PUT", headers=headers)  # noqa: S310 - http
        urllib.request.urlopen(request).close()  # noqa: S310
        project = bench.start_project(tool, folder, place)
        if tool.name == "dvc":
            bench.run(tool.command("remote", "modify", "storage", "endpointurl", endpoint), project)
        write_files(project / "data", settings)
        bench.run(tool.command("add", "data"), project)
        label = f"{settings.files:,} files of {format_size(settings.file_size)}, S3"

        def step(work: str, command: Sequence[str], folder: Path) -> Step:
            bench.env = {**bench.env, "AWS_ENDPOINT_URL": endpoint}  # the other tool's turn has changed it
            return Step(f"{work}, {label}", command, folder, asked=log)

        yield step("push", tool.command("push"), project)
        yield step("push, nothing to do", tool.command("push"), project)
        yield step("pull into a clone", tool.command("pull"), bench.clone(project, folder / "clone"))
        other = folder / "other"
        bench.run(["git", "clone", "--quiet", str(project), str(other)], project)
        yield step("pull of one file", tool.command("pull", "data/000/000000.bin"), other)


S3_USER = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
S3_SIGNATURE = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """Run moto's S3 server, which logs a line a request to `log`; yield where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    urllib.request.urlopen(f"{endpoint}/moto-api/").close()  # noqa: S310 - http
                    break
                except OSError:
                    time.sleep(0.1)
            else:
                raise SystemExit("error: moto's server does not start: `pip install 'moto[s3,server]'`")
            yield endpoint
        finally:
            process.terminate()
            process.wait()


def pipeline(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """Stages that each copy one small file: in a chain, then independent of one another."""
    for shape, write in (("in a chain", write_chain), ("independent", write_independent)):
        project = bench.start_project(tool, folder / shape.split()[-1])
        write(project, settings.stages)
        label = f"run, {settings.stages:,} stages, {shape}"
        yield Step(f"{label}, all to run", tool.command("run"), project)
        yield Step(f"{label}, nothing to do", tool.command("run"), project, settings.repeats)


def many(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """Very many independent stages, for `mlx` alone: a run with nothing to do."""
    if tool.name != "mlx":
        return
    project = bench.start_project(tool, folder)
    write_independent(project, settings.many_stages)
    yield Step("", tool.command("run"), project)
    label = f"run, {settings.many_stages:,} stages, independent, nothing to do, alone"
    yield Step(label, tool.command("run"), project, settings.repeats)


def jobs(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """Stages that keep a processor busy, one at a time, and for `mlx` two at once."""
    project = bench.start_project(tool, folder)
    write_busy(project, 4, settings.busy, sys.executable)
    yield Step("", tool.command("run"), project)
    yield Step("run, 4 CPU-bound stages, one at a time", tool.command("run", "--force"), project)
    if tool.name == "mlx":
        yield Step("run, 4 CPU-bound stages, -j 2, alone", tool.command("run", "--force", "-j", "2"), project)


def monorepo(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """Many small pipelines in one repository: what is asked of one, then of all."""
    project = bench.start_project(tool, folder)
    one = f"{write_monorepo(project, settings.pipelines)}/{tool.name}.yaml"
    yield Step("", tool.command("run", one), project)
    label = f"{settings.pipelines:,} pipelines"
    yield Step(f"status of one of {label}", tool.command("status", one), project, settings.repeats)
    yield Step(f"run of one of {label}, nothing to do", tool.command("run", one), project, settings.repeats)
    yield Step(f"status of {label}", tool.command("status"), project, settings.repeats)


def digits(bench: Bench, tool: Tool, folder: Path, settings: Settings) -> Iterator[Step]:
    """The digits example: 1,797 small files and five stages."""
    project = bench.start_project(tool, folder)
    for name in EXAMPLE_FILES:
        shutil.copyfile(EXAMPLE / name, project / name)
    shutil.copyfile(Path(__file__).with_name("digits.dvc.yaml"), project / "dvc.yaml")
    bench.run([sys.executable, "make_data.py"], project)
    yield Step("add, digits example", tool.command("add", "data/raw"), project)
    yield Step("run, digits example, all to run", tool.command("run"), project)
    yield Step("run, digits example, nothing to do", tool.command("run"), project, settings.repeats)
    yield Step("status, digits example, nothing changed", tool.command("status"), project, settings.repeats)


SUITES = {
    "start": start,
    "files": files,
    "large": large,
    "s3": s3,
    "pipeline": pipeline,
    "many": many,
    "jobs": jobs,
    "monorepo": monorepo,
    "digits": digits,
    "scale": scale,
}


def count(path: Path) -> tuple[int, int]:
    """Return how many files lie at `path`, and their bytes together."""
    found = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(found), sum(file.stat().st_size for file in found)


def compare(bench: Bench, tools: Sequence[Tool], suites: Sequence[str], rounds: int, settings: Settings) -> None:
    """Take every suite `rounds` times; the tools take turns at each step, and at who goes first."""
    for number in range(rounds):
        order = list(tools) if number % 2 == 0 else list(reversed(tools))
        for name in suites:
            print(f"round {number + 1} of {rounds}, {name}", file=sys.stderr, flush=True)
            place = bench.work / f"round-{number + 1}" / name
            for tool, step in in_turn(
                [(tool, SUITES[name](bench, tool, place / tool.name, settings)) for tool in order]
            ):
                bench.take(tool, step)


def in_turn(suites: Sequence[tuple[Tool, Iterator[Step]]]) -> Iterator[tuple[Tool, Step]]:
    """Yield the next step of each until all have ended; each is prepared only when its turn has come."""
    waiting = list(suites)
    while waiting:
        for tool, steps in list(waiting):
            step = next(steps, None)
            if step is None:
                waiting.remove((tool, steps))
            else:
                yield tool, step


# --- telling ---------------------------------------------------------------------------------------------------------


def report(bench: Bench, tools: Sequence[Tool], rounds: int, settings: Settings) -> dict[str, object]:
    """Return everything measured, as JSON can hold it; seconds, bytes, and how many times faster `mlx` is."""
    rows = []
    for work, figures in bench.rows.items():
        row: dict[str, object] = {"work": work}
        for tool in tools:
            taken = figures.get(tool.name)
            if taken is None:
                continue
            row[tool.name] = {
                "requests": taken[0].requests,
                "grown": taken[0].grown,
                "seconds": statistics.median(figure.seconds for figure in taken),
                "peak": statistics.median(figure.peak for figure in taken),
                "all_seconds": [figure.seconds for figure in taken],
                "all_peaks": [figure.peak for figure in taken],
            }
        if len(figures) == 2:
            row["ratio"] = median(figures["dvc"]) / median(figures["mlx"])
        rows.append(row)
    return {
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()},
        "tools": {tool.name: version(tool, bench) for tool in tools},
        "settings": {name: getattr(settings, name) for name in Settings.__slots__} | {"rounds": rounds},
        "peak_floor": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "rows": rows,
    }


def median(figures: Sequence[Figure]) -> float:
    return statistics.median(figure.seconds for figure in figures)


def version(tool: Tool, bench: Bench) -> str:
    done = subprocess.run(tool.command("--version"), env=bench.env, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def table(bench: Bench, tools: Sequence[Tool]) -> str:
    """Return the medians as aligned text: seconds, the ratio, MiB at the peak."""
    names = [tool.name for tool in tools]
    lines = [["work", *(f"{name} s" for name in names), "ratio", *(f"{name} MiB" for name in names)]]
    for work, figures in bench.rows.items():
        peaks = [
            _told(figures, name, lambda f: f"{statistics.median(x.peak for x in f) / UNITS['MiB']:.0f}")
            for name in names
        ]
        ratio = f"{median(figures['dvc']) / median(figures['mlx']):.1f}x" if len(figures) == 2 else "-"
        seconds = [_told(figures, name, lambda f: f"{median(f):.3f}") for name in names]
        lines.append([work, *seconds, ratio, *peaks])
        for what, told in (("requests", "requests"), ("grown", "MiB more on the remote")):
            numbers = [getattr(figures[name][0], what) if name in figures else None for name in names]
            if all(number is not None for number in numbers):
                shown = [f"{n:,}" if what == "requests" else f"{n / UNITS['MiB']:.2f}" for n in numbers]
                lines.append([f"  {told}", *shown, "", *("" for _ in names)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(row))
        for row in (list(zip(line, widths, strict=True)) for line in lines)
    )


def _told(figures: Mapping[str, list[Figure]], name: str, tell: Callable[[list[Figure]], str]) -> str:
    """Return a cell of the table; what a tool was not asked for is a dash."""
    return tell(figures[name]) if name in figures else "-"


# --- command line ----------------------------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """Return bytes for `4096`, `4KiB`, `8MiB` or `1GiB`."""
    match = re.fullmatch(r"(\d+)(|KiB|MiB|GiB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size: write 4096, 4KiB, 8MiB or 1GiB")
    return int(match[1]) * UNITS[match[2]]


def format_size(size: int) -> str:
    unit = next(unit for unit in ("GiB", "MiB", "KiB", "") if size % UNITS[unit] == 0)
    return f"{size // UNITS[unit]} {unit or 'bytes'}"


def make_peer(folder: Path) -> Path:
    """Return the `dvc` of a virtual environment at `folder`, made if it is not there."""
    program = folder / "bin" / "dvc"
    if not program.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *PEER], check=True)
    return program


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mlx", type=Path, default=Path(sys.executable).with_name("mlx"), help="beside this Python")
    peer = parser.add_mutually_exclusive_group()
    peer.add_argument("--dvc", type=Path, help="the `dvc` program to compare with")
    peer.add_argument(
        "--make-peer", type=Path, metavar="DIR", help=f"install {' and '.join(PEER)} in a virtual environment there"
    )
    parser.add_argument(
        "--tools", nargs="+", choices=TOOLS, default=TOOLS, help="one alone is measured without a ratio"
    )
    parser.add_argument(
        "--only", nargs="+", choices=SUITES, default=[name for name in SUITES if name not in ("s3", "scale")]
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="per round, for quick commands that change nothing")
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--file-size", type=parse_size, default="4KiB")
    parser.add_argument("--large", type=parse_size, default="1GiB")
    parser.add_argument("--stages", type=int, default=100)
    parser.add_argument("--many-stages", type=int, default=1000, help="of the suite `many`")
    parser.add_argument("--busy", type=int, default=20_000_000, help="rounds of a CPU-bound stage")
    parser.add_argument("--pipelines", type=int, default=500, help="of the suite `monorepo`")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="a new folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="write every figure there as JSON")
    return parser.parse_args()


def make_tools(arguments: argparse.Namespace) -> list[Tool]:
    """Return the tools that were asked for; one that is not there ends the program."""
    dvc = make_peer(arguments.make_peer) if arguments.make_peer else arguments.dvc
    words = {"init": ("init", "--quiet"), "remote add": ("remote", "add", "--default"), "run": ("repro",)}
    known = {
        "mlx": Tool("mlx", arguments.mlx.absolute(), {"remote add": ("remote", "add")}),
        "dvc": Tool("dvc", dvc.absolute() if dvc else None, words),
    }
    tools = [known[name] for name in arguments.tools]
    for tool in tools:
        if tool.program is None or not tool.program.is_file():
            raise SystemExit(f"error: there is no {tool.name} to measure; see --{tool.name} and --make-peer")
    return tools


def make_work(work: Path | None, needed: int) -> Path:
    """Return an empty folder with room for `needed` bytes."""
    work = (work or Path(tempfile.mkdtemp(prefix="mlx-benchmark-"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    if any(work.iterdir()):
        raise SystemExit(f"error: {work} is not empty; every comparison wants a new folder")
    free = shutil.disk_usage(work).free
    if free < needed:
        raise SystemExit(f"error: {work} has {free >> 20:,} MiB free, and about {needed >> 20:,} MiB are needed")
    return work


def main() -> None:
    arguments = read_arguments()
    tools = make_tools(arguments)
    settings = Settings(*(getattr(arguments, name) for name in Settings.__slots__))
    # The data, the copy set aside, two versions in the cache, one on the remote.
    a_round = 5 * (settings.files * settings.file_size + settings.large)
    work = make_work(arguments.work, a_round * arguments.rounds * len(tools))

    bench = Bench(work, make_environment(work / "home"))
    compare(bench, tools, arguments.only, arguments.rounds, settings)
    print(table(bench, tools))
    if arguments.output:
        text = json.dumps(report(bench, tools, arguments.rounds, settings), indent=2)
        arguments.output.write_text(text + "\n", encoding="utf-8")
    print(f"the folders of all rounds are in {work}: nothing was deleted", file=sys.stderr)


if __name__ == "__main__":
    main()
