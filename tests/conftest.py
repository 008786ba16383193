"""Pin the world before anything is imported, and give tests a Git repository and the command line.

A test sees the same home, time zone, width, colours and Git identity on every machine. `mlx` runs the real program in a
process of its own; `mlx_in_process` is quicker and sees only what is written through Python's streams.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

# Under `nohup` every process that a test starts would inherit that a hang-up is ignored, and ignore it as it should.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

DATE = "2026-01-02T03:04:05+00:00"
PINNED = {
    "COLUMNS": "100",
    "GIT_AUTHOR_DATE": DATE,
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_COMMITTER_DATE": DATE,
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C.UTF-8",
    "LINES": "40",
    "NO_COLOR": "1",
    # The stages of a pipeline say `python`: it is to be the one that runs the tests.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "TERM": "xterm",
    "TZ": "UTC",
}
UNSET = {
    "CI",
    "CLICOLOR_FORCE",
    "FORCE_COLOR",
    "GITHUB_ACTIONS",
    "GIT_CEILING_DIRECTORIES",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_WORK_TREE",
    "OMP_NUM_THREADS",
    "PY_COLORS",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "XDG_CACHE_HOME",
}


def pin_world() -> None:
    """Give this process, and so all that it starts, the environment above."""
    for name in [name for name in os.environ if name in UNSET or name.startswith("MLX_")]:
        del os.environ[name]
    os.environ.update(PINNED)
    time.tzset()
    os.umask(0o022)


pin_world()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let what is played at random be more than there is time for each day, or be what failed."""
    parser.addoption("--stress", type=float, default=8.0, metavar="SECONDS", help="length of the stress run (8)")
    parser.addoption("--stress-seed", type=int, default=0, metavar="N", help="what the stress run does (random)")
    parser.addoption("--pipelines", type=int, default=8, metavar="N", help="how many random pipelines are played (8)")
    parser.addoption("--points", type=int, default=29, metavar="N", help="a run is cut short at one point in N (29)")
    parser.addoption("--pipelines-seed", type=int, default=0, metavar="N", help="which they are (random)")


@dataclass(frozen=True, slots=True)
class Result:
    """How one command ended; `stdout` and `stderr` are decoded, `stdout_bytes` is as it came."""

    code: int
    stdout: str
    stderr: str
    stdout_bytes: bytes

    def json(self) -> Any:
        """Return the document on stdout, or, after a failure under `--json`, the one on stderr."""
        return json.loads(self.stdout or self.stderr)


def make_result(code: int, stdout: bytes, stderr: bytes) -> Result:
    return Result(code, stdout.decode("utf-8", "surrogateescape"), stderr.decode("utf-8", "surrogateescape"), stdout)


def as_bytes(text: str | bytes | None) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty home folder of this test's own; `~/.config` lies in it."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / ".config"))
    return folder


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Return an empty Git repository on the branch `main`."""
    folder = tmp_path / "repo"
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main", folder], check=True)
    return folder


@dataclass(frozen=True, slots=True)
class Subprocess:
    """Run `mlx` in a process of its own, in `cwd` unless a call names another folder."""

    cwd: Path

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
    ) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "mlops_cli", *map(str, args)],
            cwd=cwd or self.cwd,
            env={**os.environ, **(env or {})},
            input=as_bytes(stdin),
            capture_output=True,
            check=False,
        )
        return make_result(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True, slots=True)
class InProcess:
    """Call the command line's `main` in this process; what child processes print is not captured."""

    cwd: Path

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | bytes | None = None,
    ) -> Result:
        from mlops_cli.cli.main import main

        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True) for _ in range(2))
        typed = io.TextIOWrapper(io.BytesIO(as_bytes(stdin)), "utf-8")
        with (
            contextlib.chdir(cwd or self.cwd),
            mock.patch.dict(os.environ, env or {}),
            mock.patch.object(sys, "stdin", typed),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main([str(arg) for arg in args])
        return make_result(code, out.buffer.getvalue(), err.buffer.getvalue())


@pytest.fixture
def mlx(repo: Path) -> Subprocess:
    """Return a callable that runs `mlx` as a user does, in `repo`."""
    return Subprocess(repo)


@pytest.fixture
def mlx_in_process(repo: Path) -> InProcess:
    """Return a callable like `mlx` that saves the start of a process, in `repo`."""
    return InProcess(repo)


@pytest.fixture
def git(repo: Path) -> Callable[..., str]:
    """Return a callable that runs Git in `repo` and returns what it printed, without the last newline."""

    def run(*args: str | Path, cwd: Path | None = None) -> str:
        done = subprocess.run(["git", *map(str, args)], cwd=cwd or repo, check=True, capture_output=True, text=True)
        return done.stdout.removesuffix("\n")

    return run
