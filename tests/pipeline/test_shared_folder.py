"""Stages that write different files of one folder."""

from __future__ import annotations

from pathlib import Path

from mlops_cli.workspace.evict import evict
from mlops_cli.workspace.pulling import pull
from mlops_cli.workspace.pushing import push
from tests.workspace.projects import Sandbox, clone

SHARED = """
stages:
  a: {cmd: cp one models/a.joblib, deps: [one], outs: [models/a.joblib]}
  b: {cmd: cp two models/b.joblib, deps: [two], outs: [models/b.joblib]}
  join: {cmd: cat models/*.joblib > all, deps: [models], outs: [all]}
"""


def test_one_folder_of_two_stages(box: Sandbox, tmp_path: Path):
    box.write("one", "1\n")
    box.write("two", "2\n")
    box.write("models/notes.md", "by hand")
    box.pipeline(SHARED)
    box.remote()
    assert box.run(jobs=2) == {"a": "run", "b": "run", "join": "run"}
    assert box.read("all") == "1\n2\n"
    assert box.read("models/.gitignore") == "/a.joblib\n/b.joblib\n"
    assert box.run() == {"a": "skip", "b": "skip", "join": "skip"}
    box.commit()

    box.write("two", "3\n")
    assert box.run() == {"a": "skip", "b": "run", "join": "run"}
    assert box.changed_in_git() == ["mlx.lock/b.yaml", "mlx.lock/join.yaml", "two"]
    box.commit()
    assert push(box.project())

    (box.root / "models/b.joblib").write_text("edited")
    box.checkout("models", force=True)
    assert box.read("models/b.joblib") == "3\n"
    (box.root / "models/a.joblib").unlink()
    assert box.actions() == {"a": "restore", "b": "skip", "join": "skip"}
    evict(box.project(), ["models/a.joblib"])
    assert box.read("models/notes.md") == "by hand"
    assert box.read("models/b.joblib") == "3\n"

    other = clone(box, tmp_path / "other")
    pull(other.project(), ["models"])
    assert other.read("models/a.joblib") + other.read("models/b.joblib") == "1\n3\n"
    assert other.plan()["b"].action == "skip"
