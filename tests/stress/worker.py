"""One of the processes that use a cache at the same time: what a person does in one checkout, at random.

Whatever it did last, and wherever it was killed, its next life begins with `git reset --hard` and `mlx checkout`: the
data of the commit must be there. So it is after each look at an older commit. A command may say that others are at
work (`LockedError`); any other failure is one of the test.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from mlops_cli.errors import LockedError
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store.checkup import Scope
from mlops_cli.workspace.checkout import checkout
from mlops_cli.workspace.collect import collect, empty_trash, restore_trash
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.integrity import Examination, examine
from mlops_cli.workspace.move import move
from mlops_cli.workspace.pushing import push
from tests.stress import model
from tests.workspace.projects import Sandbox

DATA = ("data", "set", "lone.bin", "moved.bin")  # paths that may be tracked
OUTPUT = "out.bin"
PIPELINE = "mlx: 1\nstages:\n  make:\n    cmd: cp data/keep out.bin\n    deps: [data/keep]\n    outs: [out.bin]\n"
HOUR = 3600.0


class Wrong(AssertionError):
    """Something was lost, or is not what it was."""


@dataclass(slots=True)
class Worker:
    """The checkout at `root`, on a branch of its own; `dropped` has a line for each commit that was given up."""

    root: Path
    branch: str
    random: Random
    note: Callable[[str], None]
    files: model.Files = field(default_factory=dict)

    @property
    def box(self) -> Sandbox:
        return Sandbox(self.root)

    @property
    def dropped(self) -> Path:
        return self.root.parent / f"{self.root.name}.dropped"

    # Life ------------------------------------------------------------------------------------------------------------

    def live(self, deadline: float) -> None:
        """Do one thing after another until `deadline` (monotonic seconds)."""
        self.recover()
        verbs, weights = zip(*VERBS, strict=True)
        while time.monotonic() < deadline:
            verb = self.random.choices(verbs, weights)[0]
            try:
                done = verb(self)
            except LockedError:
                done = False
                if verb not in LOOKING:
                    self.recover()
            self.note(verb.__name__ if done is not False else f"{verb.__name__}, in vain")

    def recover(self) -> None:
        """Bring back the last commit, whatever is in the way, and look whether all of it is there."""
        git_dir = Path(self.box.git("rev-parse", "--absolute-git-dir"))
        common = git_dir.parent.parent if git_dir.parent.name == "worktrees" else git_dir
        for lock in (git_dir / "index.lock", git_dir / "HEAD.lock", common / f"refs/heads/{self.branch}.lock"):
            lock.unlink(missing_ok=True)  # of a Git that was killed with us
        self.go_to(self.branch)
        self.box.git("reset", "--quiet", "--hard")
        self.restore("after a restart")

    def go_to(self, *revision: str) -> None:
        """Let Git check a commit out, without its data."""
        self.box.git("checkout", "--quiet", "--force", *revision)
        self.box.git("clean", "--quiet", "-d", "--force")
        self.files = self.committed("HEAD")

    def restore(self, why: str) -> None:
        """Check everything out and compare it with the model."""
        self.patiently(lambda: self.box.checkout(force=True))
        self.compare(why)

    def compare(self, why: str) -> None:
        if told := model.differences(self.root, self.files, (*DATA, OUTPUT)):
            raise Wrong(f"{why}, at {self.box.git('rev-parse', 'HEAD')}: {'; '.join(told)}")

    def patiently(self, work: Callable[[], object]) -> None:
        """Do what must be done before anything else can be, however often others are in the way."""
        deadline = time.monotonic() + 120
        while True:
            try:
                work()
            except LockedError:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def committed(self, revision: str) -> model.Files:
        return model.read(self.box.git("show", f"{revision}:{model.NAME}").encode())

    def command(self, *words: str) -> None:
        """Run the real program; LockedError when it says that others are at work."""
        line = [sys.executable, "-m", "mlops_cli", *words]
        done = subprocess.run(line, cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode == 6 and ("is at work" in done.stderr or "clearing the cache" in done.stderr):
            raise LockedError(done.stderr)
        if done.returncode == 6 and "other mlx commands are at work" in done.stderr:
            raise LockedError(done.stderr)
        if done.returncode:
            raise Wrong(f"`mlx {' '.join(words)}` ended with {done.returncode}: {done.stderr}{done.stdout}")

    # What people do --------------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Change some files, add them, and commit; or think better of it."""
        changed = [self.edit() for _ in range(self.random.randint(1, 4))]
        roots = sorted({path.partition("/")[0] for path in changed})
        targets = changed[:1] if len(changed) == 1 and self.random.random() < 0.4 else roots
        if self.random.random() < 0.08:
            self.command("add", *targets)
        else:
            self.box.add(*targets)
        if self.random.random() < 0.2:
            self.recover()
            return
        self.record("change")

    def record(self, message: str) -> None:
        model.write(self.root, self.files)
        self.box.commit(message)
        self.compare(f"after {message}")

    def edit(self) -> str:
        """Write, delete, copy or rename one file; returns its path, or that of the folder that lost it."""
        owner = self.random.choice(["data", "data", "set", self.lone()])
        if owner.endswith(".bin"):
            self.put(owner, self.random.randrange(model.SEEDS), 0)
            return owner
        mine = [path for path in self.files if path.startswith(f"{owner}/") and path != "data/keep"]
        what = self.random.random()
        if len(mine) > 3 and what < 0.25:
            path = self.random.choice(mine)
            self.take(path)
            return owner
        if mine and what < 0.35:
            path, other = self.random.choice(mine), f"{owner}/{self.name()}"
            seed, executable = self.files[path]
            self.take(path)
            self.put(other, seed, executable)
            return owner
        path = "data/keep" if what > 0.9 else f"{owner}/{self.name()}"
        self.put(path, self.random.randrange(model.SEEDS), int(self.random.random() < 0.1))
        return path

    def lone(self) -> str:
        return next((path for path in DATA if path in self.files), "lone.bin")

    def name(self) -> str:
        return self.random.choice(["{}", "a/{}", "a/b/{}"]).format(f"f{self.random.randrange(8)}")

    def put(self, path: str, seed: int, executable: int) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # it may be a link into the cache
        place.write_bytes(model.content(seed))
        place.chmod(0o755 if executable else 0o644)
        self.files[path] = [seed, executable]

    def take(self, path: str) -> None:
        place = self.root / path
        place.unlink()
        del self.files[path]
        with suppress(OSError):
            for folder in (place.parent, place.parent.parent):
                if folder != self.root:
                    folder.rmdir()

    def run(self) -> None:
        """Run the one stage, and commit."""
        self.box.run()
        self.files[OUTPUT] = [self.files["data/keep"][0], self.executable(OUTPUT)]
        self.record("run")

    def executable(self, path: str) -> int:
        return int(bool((self.root / path).stat().st_mode & 0o100))

    def rename(self) -> None:
        """Move the file that is tracked by itself, and commit."""
        old = self.lone()
        if old not in self.files:
            return
        new = "moved.bin" if old == "lone.bin" else "lone.bin"
        project = self.box.project()
        with exclusive(project, "mlx move"):
            move(project, old, new)
        self.files[new] = self.files.pop(old)
        self.record("move")

    def travel(self) -> None:
        """Look at an older commit."""
        commits = self.box.git("rev-list", "--max-count=60", self.branch).split()
        self.go_to("--detach", self.random.choice(commits))
        if self.random.random() < 0.08:
            self.command("checkout", "--force")
            self.compare("after `mlx checkout`")
        else:
            self.restore("at an older commit")
        self.go_to(self.branch)
        self.restore("back from an older commit")

    def drop(self) -> None:
        """Give up the last commits, so that nothing names them any more."""
        depth = int(self.box.git("rev-list", "--count", self.branch))
        if depth < 4:
            return
        last = self.box.git("rev-parse", "HEAD")
        self.box.git("reset", "--quiet", "--hard", f"HEAD~{self.random.randint(1, min(3, depth - 2))}")
        self.box.git("reflog", "expire", "--expire=now", "HEAD", self.branch)
        with self.dropped.open("a") as stream:
            stream.write(last + "\n")
        self.go_to(self.branch)
        self.restore("after a reset")

    def revive(self) -> None:
        """Bring back, by way of the remote, what was pushed and given up."""
        pushed = self.read_lines(self.dropped) & self.read_lines(self.pushed)
        if not pushed:
            return
        commit = self.random.choice(sorted(pushed))
        self.box.git("rm", "--quiet", "-r", "--cached", ".")
        self.box.git("checkout", "--quiet", "--force", commit, "--", ".")
        self.box.git("clean", "--quiet", "-d", "--force")
        self.files = self.committed(commit)
        project = self.box.project()
        with exclusive(project, "mlx pull"):
            fetch(project)
            checkout(project, force=True)
        self.compare(f"after reviving {commit}")
        self.box.commit("revive")

    @property
    def pushed(self) -> Path:
        return self.root.parent / f"{self.root.name}.pushed"

    @staticmethod
    def read_lines(path: Path) -> set[str]:
        return set(path.read_text().split("\n")[:-1]) if path.exists() else set()

    def push(self) -> None:
        push(self.box.project())
        with self.pushed.open("a") as stream:
            stream.write(self.box.git("rev-parse", "HEAD") + "\n")

    # What keeps the cache in order -----------------------------------------------------------------------------------

    def gc(self) -> None:
        if self.random.random() < 0.15:
            self.command("gc", "--yes", "--grace", "0s")
        else:
            collect(self.box.project(), now=time.time() + self.random.choice([0, HOUR]), grace=0.0)

    def untrash(self) -> None:
        restore_trash(self.box.project())

    def empty(self) -> None:
        empty_trash(self.box.project())

    def fsck(self) -> None:
        if self.random.random() < 0.1:
            self.command("fsck")
            return
        percent = self.random.choice([20.0, 100.0])
        check(examine(self.box.project(), Scope(percent, random=self.random)))

    def status(self) -> None:
        if changed := {path: state for path, state in self.box.states().items() if state != "ok"}:
            raise Wrong(f"`mlx status` says {changed}, and nothing was changed")


def check(found: Examination) -> None:
    """Raise Wrong unless everything that was read was well, and everything that is needed is there."""
    if found.damaged or found.absent or found.checkup.files or found.checkup.strays:
        raise Wrong(f"fsck: {found}")


VERBS: tuple[tuple[Callable[[Worker], bool | None], int], ...] = (
    (Worker.commit, 40),
    (Worker.run, 4),
    (Worker.rename, 3),
    (Worker.travel, 14),
    (Worker.drop, 7),
    (Worker.revive, 5),
    (Worker.push, 6),
    (Worker.gc, 8),
    (Worker.untrash, 2),
    (Worker.empty, 2),
    (Worker.fsck, 5),
    (Worker.status, 4),
)
LOOKING = (Worker.push, Worker.gc, Worker.untrash, Worker.empty, Worker.fsck, Worker.status)


def begin(root: Path, branch: str, remote: Path) -> None:
    """Make the first commit of a project at `root`, a new repository on `branch`."""
    worker = Worker(root, branch, Random(0), lambda _: None)
    worker.put("data/keep", 5, 0)
    worker.put("data/a/f0", 9, 0)
    worker.put("set/f1", 10, 0)
    box = worker.box
    box.remote("storage", str(remote))
    box.pipeline(PIPELINE.removeprefix("mlx: 1\n"))
    box.add("data", "set")
    worker.run()


def forget(root: Path) -> None:
    """Remove a checkout's data, so that all of it must come from the cache."""
    for path in (*DATA, OUTPUT):
        place = root / path
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
