"""Random work of eight processes on one cache: whatever they do, and wherever they are killed, no commit loses data."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

SLACK = 180  # seconds beyond its time; only a run that hangs needs them


def test_no_commit_loses_data(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    seconds = request.config.getoption("--stress")
    seed = request.config.getoption("--stress-seed") or random.SystemRandom().randrange(1, 10**9)
    line = [sys.executable, "-m", "tests.stress.driver", "--seconds", str(seconds), "--seed", str(seed)]
    root = Path(__file__).parents[2]

    done = subprocess.run(
        [*line, "--folder", tmp_path / "stress"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=2 * seconds + SLACK,
    )

    assert done.returncode == 0, f"{' '.join(line)}\n{done.stdout}"
    for verb in ("commit", "travel", "gc"):
        assert f" {verb}" in done.stdout, done.stdout
