"""What killed commands left goes; what a living one is writing stays."""

from __future__ import annotations

import os
import subprocess
import sys

from mlops_cli.workspace.litter import sweep
from tests.workspace.projects import Sandbox


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(box: Sandbox) -> None:
    living = os.getppid()
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    assert ended.stdout.read() == b""  # it is through, and a zombie until somebody waits for it
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    for name in (f"{living}-a", f"{ended.pid}-b", f"{os.getpid()}-c", "x-d"):
        box.write(f"data/.mlx-tmp-{name}")

    removed = sweep(box.project())

    ended.stdout.close()
    ended.wait()
    assert {path.rpartition("-")[2] for path in removed} == {"b", "c", "d"}
    assert [path.name for path in (box.root / "data").iterdir()] == [f".mlx-tmp-{living}-a"]
