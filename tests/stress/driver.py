"""Eight processes on one cache, some of them killed, and at the end a look at every commit.

Four repositories with two worktrees each share a cache and a remote; each repository has a link mode of its own. Run as
a program (`python -m tests.stress.driver --help`) or by the test beside this. All that happens follows from the seed, but
for what the system's scheduler decides.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random

from mlops_cli.store import packs
from mlops_cli.store.checkup import Scope
from mlops_cli.workspace.integrity import examine
from tests.conftest import pin_world
from tests.stress import model
from tests.stress.worker import DATA, OUTPUT, Worker, Wrong, begin, check, forget
from tests.workspace.projects import Sandbox, make_project

LINKS = ("copy", "reflink", "hardlink", "symlink")
STUCK = 240.0  # seconds that one life may go on after the end
GATHERED = 6  # small packs that become one, instead of 32


class Stress:
    """The repositories below `folder`, and the processes that use them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.cache = folder / "cache"
        self.worktrees: list[Path] = []
        self.lives: Counter[int] = Counter()

    def prepare(self) -> None:
        """Make the repositories, each with a first commit, and a linked worktree beside each."""
        for link in LINKS:
            root = self.folder / link
            box = make_project(root)
            for key, value in (("gc.auto", "0"), ("core.fsync", "none"), ("maintenance.auto", "false")):
                box.git("config", key, value)
            box.configure("cache.dir", str(self.cache))
            box.configure("cache.link", link)
            box.configure("core.lock_timeout", "20")
            begin(root, "main", self.folder / "remote")
            other = self.folder / f"{link}-2"
            box.git("worktree", "add", "--quiet", "-b", "side", other)
            self.worktrees += [root, other]

    def branch_of(self, worktree: Path) -> str:
        return "side" if worktree.name.endswith("-2") else "main"

    # Processes -------------------------------------------------------------------------------------------------------

    def run(self, seconds: float, *, killing: bool) -> bool:
        """Let the processes work for that time, and kill some; returns whether all went well."""
        deadline = time.monotonic() + seconds
        chance = Random(self.seed)
        alive = {self.start(number, deadline): number for number in range(len(self.worktrees))}
        well = True
        while alive:
            time.sleep(0.05)
            if killing and well and time.monotonic() < deadline and chance.random() < 0.08:
                os.killpg(chance.choice(list(alive)), signal.SIGKILL)
            for child in list(alive):
                done, status = os.waitpid(child, os.WNOHANG)
                if not done:
                    continue
                number = alive.pop(child)
                if os.waitstatus_to_exitcode(status) == -signal.SIGKILL and well:
                    self.note("killed")
                    alive[self.start(number, deadline)] = number
                elif status and well:
                    well = False
                    for other in alive:
                        os.killpg(other, signal.SIGTERM)
        return well

    def start(self, number: int, deadline: float) -> int:
        worktree = self.worktrees[number]
        life = self.lives[number]
        self.lives[number] += 1

        def live() -> None:
            random.seed(f"{self.seed} {number} {life}")
            chance = Random(f"{self.seed} {number} {life}")
            faulthandler.dump_traceback_later(max(deadline - time.monotonic(), 0) + STUCK, exit=True)
            Worker(worktree, self.branch_of(worktree), chance, self.note).live(deadline)

        return self.fork(live)

    def fork(self, work: Callable[[], object]) -> int:
        """Do `work` in a child, with a group of its own; returns its number."""
        child = os.fork()
        if child:
            with suppress(OSError):  # it does so, too: whoever is first
                os.setpgid(child, child)
            return child
        code = 1
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent is told by the exit code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def note(self, what: str) -> None:
        """Count one thing that was done, by whichever process."""
        with (self.folder / "done").open("a") as stream:
            stream.write(f"{what}\n")

    def done(self) -> Counter[str]:
        path = self.folder / "done"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    # The end ---------------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Compare every commit with what it must be, then the cache as a whole; returns whether all is well."""
        with_git = {}
        for worktree in self.worktrees:
            with_git[self.fork(lambda worktree=worktree: self.look_at(worktree))] = worktree  # type: ignore[misc]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in with_git]
        if any(codes):
            return False
        for link in LINKS:
            check(examine(Sandbox(self.folder / link).project(), Scope()))
        left = [path for name in ("tmp", "quarantine") for path in (self.cache / name).rglob("*")]
        left += self.folder.rglob(".mlx-tmp-*")
        if left:
            raise Wrong(f"left behind: {', '.join(map(str, left))}")
        return True

    def look_at(self, worktree: Path) -> None:
        """Check out every commit of a branch from nothing but the cache."""
        worker = Worker(worktree, self.branch_of(worktree), Random(0), self.note)
        worker.recover()
        forget(worktree)
        seen = set()
        for commit in worker.box.git("rev-list", worker.branch).split():
            worker.go_to("--detach", commit)
            data = (worktree / model.NAME).read_bytes()
            if data not in seen:
                seen.add(data)
                worker.restore("at the end")
                self.note("looked at a commit")
        worker.go_to(worker.branch)
        worker.restore("at the end")
        worker.put("data/keep", 1, 0)  # whoever writes takes away what the killed left
        worker.box.add(*(path for path in DATA if path != OUTPUT and (worktree / path).exists()))


def stress(folder: Path, seconds: float, seed: int, *, killing: bool = True) -> bool:
    """Run all of it below `folder`, an empty one; returns whether all went well, and prints what was done."""
    packs.MANY_SMALL = GATHERED
    tested = Stress(folder, seed)
    tested.prepare()
    well = tested.run(seconds, killing=killing) and tested.look()
    sys.stdout.write(", ".join(f"{number} {what}" for what, number in sorted(tested.done().items())) + "\n")
    return well


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.driver", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    parser.add_argument("--folder", type=Path, help="an empty folder to work in; it stays")
    parser.add_argument("--no-kill", action="store_true", help="let every process live to its end")
    options = parser.parse_args(arguments)
    pin_world()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlx-stress-"))
    folder.mkdir(exist_ok=True)
    sys.stdout.write(f"seed {options.seed}, in {folder}\n")
    sys.stdout.flush()
    well = stress(folder, options.seconds, options.seed, killing=not options.no_kill)
    if well and options.folder is None:
        shutil.rmtree(folder)
    return 0 if well else 1


if __name__ == "__main__":
    subprocess.run(["git", "version"], check=True, stdout=subprocess.DEVNULL)
    raise SystemExit(main(sys.argv[1:]))
