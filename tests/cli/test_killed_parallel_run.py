"""`mlx run -j N` killed or interrupted at any moment: the next run ends where an undisturbed one does."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Project

DEADLINE = 60.0  # seconds; only a test that fails waits so long
NAMES = ("one", "two", "three")
PIPELINE = (
    "mlx: 1\nstages:\n"
    + "".join(
        f"  {name}: {{cmd: 'mkdir -p {name}; echo half > {name}/a; sleep 0.02; cp in {name}/a; "
        f'echo "{{\\"x\\": 1}}" > {name}.json\', deps: [in], outs: [{name}], metrics: [{name}.json]}}\n'
        for name in NAMES
    )
    + "  end: {cmd: 'cat one/a two/a three/a > end', deps: [one, two, three], outs: [end]}\n"
)
MLX = (sys.executable, "-m", "mlops_cli", "run", "-j", "4")


def records_and_outputs(root: Path) -> dict[str, bytes]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and ".git" not in path.relative_to(root).parts]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize("seed", range(3))
def test_the_next_run_ends_where_an_undisturbed_one_does(project: Project, tmp_path: Path, seed: int) -> None:
    project.write("mlx.yaml", PIPELINE)
    project.write("in", "one\n")
    project.must("run", "-j", "4")
    project.write("in", "two\n")
    undisturbed = tmp_path / "undisturbed"
    shutil.copytree(project.root, undisturbed, symlinks=True)
    begun = time.monotonic()
    subprocess.run(MLX, cwd=undisturbed, check=True, capture_output=True)
    chance = random.Random(seed)
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])

    process = subprocess.Popen(MLX, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said = process.communicate(timeout=chance.uniform(0.2, 1.0) * (time.monotonic() - begun))[1]
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        said = process.communicate(timeout=DEADLINE)[1]

    assert process.returncode in (0, 130, -signal.SIGKILL), said.decode()
    if number != signal.SIGKILL:
        assert {(project.root / name / "a").read_text() for name in NAMES} <= {"one\n", "two\n"}
    project.must("run", "-j", "4")
    assert records_and_outputs(project.root) == records_and_outputs(undisturbed)
