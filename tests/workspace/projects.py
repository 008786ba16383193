"""A real project in a real Git repository, driven through the core functions that the commands call.

Each verb reads the project anew, as a new process would, and holds the lock where the command does.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlops_cli.errors import MlxError, RecordError
from mlops_cli.pipeline.execution import Surroundings
from mlops_cli.pipeline.manner import Manner, StageResult
from mlops_cli.pipeline.outside import AS_RECORDED, Outside
from mlops_cli.pipeline.plan import Decision
from mlops_cli.pipeline.reproduce import reproduce
from mlops_cli.pipeline.runner import run_project
from mlops_cli.pipeline.status import plan_project, project_status
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.pipeline.usage import Spent
from mlops_cli.pipeline.verdicts import STRICT, Reproduction, Standard
from mlops_cli.progress import Silent
from mlops_cli.words import spelled
from mlops_cli.workspace import settings
from mlops_cli.workspace.add import AddResult, add
from mlops_cli.workspace.checkout import CheckoutResult, checkout
from mlops_cli.workspace.compare import DataStatus
from mlops_cli.workspace.project import Project, find_project, init_project
from mlops_cli.workspace.remotes import add_remote
from mlops_cli.workspace.snapshot import Snapshot, workspace_snapshot

OLD = 1_600_000_000_000_000_000  # ns; long before any test runs


@dataclass(slots=True)
class Notes(Silent):
    """A reporter and a listener that keeps what it was told, as it is typed at the root of the project."""

    notes: list[str] = field(default_factory=list)
    output: bytearray = field(default_factory=bytearray)

    def note(self, message: str) -> None:
        self.notes.append(spelled(message))

    def expect(self, stages: int) -> None: ...

    def begin(self, decision: Decision) -> None: ...

    def write(self, stage: str, data: bytes) -> None:
        self.output += data

    def ended(self, stage: str) -> None: ...

    def spent(self, stage: str, spent: Spent) -> None: ...

    def failed(self, stage: str, error: MlxError) -> None: ...

    def wait(self) -> None: ...

    def done(self, result: StageResult) -> None: ...


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A project at `root`; `heard` is everything that its commands noted."""

    root: Path
    heard: Notes = field(default_factory=Notes)

    def project(self) -> Project:
        # Nothing here is about power cuts, and a sync of the file system waits for every other test's writes too.
        return find_project(self.root, {"MLX_CORE_DURABILITY": "none", **os.environ})

    def snapshot(self) -> Snapshot:
        return workspace_snapshot(self.project())

    # Files -----------------------------------------------------------------------------------------------------------

    def write(self, path: str, content: str | bytes = "", *, mode: int | None = None) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        if mode is not None:
            place.chmod(mode)
        return place

    def read(self, path: str) -> str:
        return (self.root / path).read_bytes().decode()

    def exists(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    def settle(self, path: str = "") -> None:
        """Make every file below `path` look old to its mtime; ctime cannot be set."""
        for folder, _, names in os.walk(self.root / path):
            for name in names:
                os.utime(Path(folder, name), ns=(OLD, OLD), follow_symlinks=False)

    # Git -------------------------------------------------------------------------------------------------------------

    def git(self, *args: str | Path) -> str:
        done = subprocess.run(["git", *map(str, args)], cwd=self.root, check=True, capture_output=True)
        return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")

    def commit(self, message: str = "commit") -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def changed_in_git(self) -> list[str]:
        """Return what `git status` lists, sorted."""
        out = self.git("status", "--porcelain", "-z", "--untracked-files=all")
        return sorted(entry[3:] for entry in out.split("\0") if entry)

    # The verbs -------------------------------------------------------------------------------------------------------

    def configure(self, key: str, value: str) -> None:
        settings.change_settings(self.project(), os.environ, "project", {key: value})

    def remote(self, name: str = "storage", url: str = "../remote") -> Path:
        add_remote(self.project(), os.environ, name, url, replace=True)
        return Path(os.path.normpath(self.root / url))

    def add(self, *paths: str, exact: bool = False, dry_run: bool = False) -> AddResult:
        project = self.project()
        with exclusive(project, "mlx add", self.heard):
            return add(project, paths, exact=exact, dry_run=dry_run, reporter=self.heard)

    def checkout(self, *paths: str, force: bool = False, dry_run: bool = False, whole: bool = False) -> CheckoutResult:
        project = self.project()
        with exclusive(project, "mlx checkout", self.heard):
            return checkout(project, paths, force=force, dry_run=dry_run, whole=whole, reporter=self.heard)

    def data(self) -> dict[str, DataStatus]:
        """Return the status of each path; RecordError where a record cannot be read."""
        found = project_status(self.project())
        for problem in found.problems:
            if isinstance(problem, RecordError):
                raise problem
        return {status.path: status for status in found.data}

    def states(self) -> dict[str, str]:
        return {path: status.state.value for path, status in self.data().items()}

    def clean(self) -> bool:
        return project_status(self.project()).clean

    def pipeline(self, text: str, path: str = "mlx.yaml") -> None:
        self.write(path, f"mlx: 1\n{text}")

    def plan(self, *targets: str, force: bool = False, outside: Outside = AS_RECORDED) -> dict[str, Decision]:
        project = self.project()
        planned = plan_project(project, workspace_snapshot(project), targets, force=force, outside=outside)
        return {decision.stage.address: decision for decision in planned}

    def actions(self) -> dict[str, str]:
        return {address: decision.action.value for address, decision in self.plan().items()}

    def reasons(self, address: str) -> tuple[str, ...]:
        return self.plan()[address].reasons

    def run(self, *targets: str, **how: Any) -> dict[str, str]:
        """Return what was done with each stage; `how` are fields of `Manner`."""
        project = self.project()
        with exclusive(project, "mlx run", self.heard) as turn:
            results = run_project(project, targets, self.surroundings(), self.heard, turn, Manner(**how))
        return {result.decision.stage.address: result.decision.action.value for result in results}

    def reproduce(
        self,
        revision: str = "HEAD",
        targets: Sequence[str] = (),
        remote: str | None = None,
        standard: Standard = STRICT,
    ) -> Reproduction:
        return reproduce(
            self.project(),
            revision,
            targets,
            self.surroundings(),
            output=self.heard.output.extend,
            begin=lambda address: None,
            remote=remote,
            standard=standard,
            reporter=self.heard,
        )

    def surroundings(self, environ: Mapping[str, str] | None = None) -> Surroundings:
        return Surroundings(environ or os.environ, self.project().local / "runs" / "test")


def make_repo(root: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", root], check=True)
    return root


def make_project(root: Path, folder: str = "") -> Sandbox:
    """Return a new project in a new repository at `root`, or in its `folder`."""
    make_repo(root)
    place = root / folder
    place.mkdir(exist_ok=True, parents=True)
    init_project(place, os.environ)
    return Sandbox(place)


def listing(folder: Path) -> dict[bytes, tuple[str, bytes]]:
    """Return everything below `folder`, as bytes names, with its kind and its content."""
    found: dict[bytes, tuple[str, bytes]] = {}
    start = os.fsencode(folder)
    for place, folders, names in os.walk(start):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            relative = os.path.relpath(path, start)
            if os.path.islink(path):
                found[relative] = ("symlink", os.readlink(path))
            elif os.path.isdir(path):
                found[relative] = ("folder", b"")
            elif not os.path.isfile(path):
                found[relative] = ("special", b"")
            else:
                kind = "executable" if os.stat(path).st_mode & 0o100 else "file"
                with open(path, "rb") as stream:
                    found[relative] = (kind, stream.read())
    return found


def is_alive(pid: int) -> bool:
    """Say whether a process is there and more than a zombie, which a container may never reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition: Callable[[], object]) -> None:
    """Poll until `condition` is true; AssertionError after half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def clone(source: Sandbox, root: Path) -> Sandbox:
    """Return a fresh clone of what `source` has committed: records and code, no data."""
    subprocess.run(["git", "clone", "--quiet", source.git("rev-parse", "--show-toplevel"), root], check=True)
    prefix = source.git("rev-parse", "--show-prefix").rstrip("/")
    return Sandbox(root / prefix)
