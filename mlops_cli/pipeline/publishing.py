"""Writing what a stage made where Git sees it: its outputs hidden from Git, then its lock.

The objects must be durable before. The rename of the lock is what makes a result count.
"""

from __future__ import annotations

from mlops_cli.files import write_atomic
from mlops_cli.records.stages import Stage
from mlops_cli.workspace.gitignore import hide_from_git
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.snapshot import Snapshot, lock_path


def publish(project: Project, snapshot: Snapshot, stage: Stage, lock: bytes) -> None:
    """Write `lock` as that of `stage`, unless it says the same already."""
    hide_from_git(project.root, [out.path for out in stage.outs if not out.git])
    path = lock_path(stage)
    if snapshot.files.read(path) != lock:
        (project.root / path).parent.mkdir(exist_ok=True)
        write_atomic(project.root / path, lock)
