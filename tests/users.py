"""Other users of this machine: what they run has their rights and no more. Only root can try that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Result, make_result
from tests.disks import bound

TEAM = 54_100  # a group; no user or group of these numbers need exist
_FIRST = 54_000
_REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a home at `home`, a group of their own, and `TEAM` as another."""

    number: int
    home: Path
    python: Path
    modules: tuple[Path, ...]
    umask: int = 0o022

    def run(self, *command: str | Path, cwd: Path | None = None) -> Result:
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.home,
            env={
                **os.environ,
                "GIT_CONFIG_GLOBAL": str(self.home / ".gitconfig"),
                "HOME": str(self.home),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": os.pathsep.join(map(str, self.modules)),
                "XDG_CONFIG_HOME": str(self.home / ".config"),
            },
            user=self.number,
            group=self.number,
            extra_groups=[TEAM],
            umask=self.umask,
            capture_output=True,
            check=False,
        )
        return make_result(done.returncode, done.stdout, done.stderr)

    def mlx(self, *args: str | Path, cwd: Path | None = None) -> Result:
        return self.run(self.python, "-m", "mlops_cli", *args, cwd=cwd)

    def own(self, place: Path) -> None:
        """Give everything at and below `place` to this user."""
        for path in (place, *place.rglob("*")):
            os.chown(path, self.number, self.number, follow_symlinks=False)


@dataclass(frozen=True, slots=True)
class Place:
    """A folder that every user can enter, and a Python that they can run."""

    root: Path
    python: Path
    modules: tuple[Path, ...]

    def user(self, number: int, umask: int = 0o022) -> User:
        """Return a user with an empty home in this place."""
        user = User(_FIRST + number, self.root / f"user-{number}", self.python, self.modules, umask)
        user.home.mkdir(mode=0o755)
        user.own(user.home)
        return user


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextmanager
def open_place() -> Iterator[Place]:
    """Yield a new place; skips where nobody can act for other users, or they can be given no Python."""
    if os.geteuid() != 0:
        pytest.skip("only root can act for other users")
    root = Path(tempfile.mkdtemp(prefix="mlx-users-", dir="/tmp"))
    try:
        root.chmod(0o755)
        # Root's own Python, what is installed for it and this code may all be where nobody else can come.
        with ExitStack() as stack:
            prefix = stack.enter_context(bound(Path(sys.base_prefix), _made(root / "python"), read_only=True))
            python = prefix / Path(sys.executable).resolve().relative_to(sys.base_prefix)
            own = _made(root / "own")  # the package alone: a checkout's folder may let nobody in
            stack.enter_context(bound(_REPOSITORY / "mlops_cli", _made(own / "mlops_cli"), read_only=True))
            sources = [Path(path) for path in sys.path if "-packages" in path]
            modules = tuple(
                stack.enter_context(bound(source, _made(root / f"modules-{number}"), read_only=True))
                for number, source in enumerate(sources)
            )
            place = Place(root, python, (own, *modules))
            probe = place.user(0).mlx("--version")
            if probe.code:
                pytest.skip(f"other users cannot run these tests' Python: {probe.stderr.strip()[-200:]}")
            yield place
    finally:
        shutil.rmtree(root)
