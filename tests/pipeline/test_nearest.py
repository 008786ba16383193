"""Which earlier run came nearest: by the inputs that differ, of those that made the same outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlops_cli.pipeline.earlier import nearest_runs
from tests.workspace.projects import Sandbox, make_project

STAGE = "stages:\n  s: {cmd: cat data params.yaml > out, deps: [data], params: [lr, depth], outs: [out]}\n"


def nearest(box: Sandbox) -> tuple[str, ...] | None:
    found = nearest_runs(box.project(), box.snapshot(), box.plan().values()).get("s")
    return None if found is None else found.changes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose stage ran with three pairs of parameters, lr 0.3 and depth 3 last: not to be changed."""
    box = make_project(tmp_path_factory.mktemp("made") / "project")
    box.pipeline(STAGE)
    box.write("data", "some\n")
    for number in (1, 2, 3):
        box.write("params.yaml", f"lr: 0.{number}\ndepth: {number}\n")
        box.run()
    return box.root


@pytest.fixture
def ran(made: Path, tmp_path: Path) -> Sandbox:
    """Return a copy of that project."""
    shutil.copytree(made, tmp_path / "project", symlinks=True)
    return Sandbox(tmp_path / "project")


def test_the_one_with_the_fewest_differences(ran: Sandbox):
    ran.write("params.yaml", "lr: 0.2\ndepth: 1\n")
    assert nearest(ran) == ("`params.yaml: depth` changed 2 → 1",)
    assert len(ran.reasons("s")) == 2


def test_nothing_nearer_than_the_last(ran: Sandbox):
    ran.write("params.yaml", "lr: 0.3\ndepth: 4\n")
    assert nearest(ran) is None


def test_without_a_lock_the_last_counts_too(ran: Sandbox):
    (ran.root / "mlx.lock/s.yaml").unlink()
    ran.write("params.yaml", "lr: 0.3\ndepth: 4\n")
    ran.write("data", "other words\n")
    assert nearest(ran) == ("`params.yaml: depth` changed 3 → 4", "`data` changed: 5 → 12 bytes")


def test_the_same_inputs_whose_outputs_are_gone(ran: Sandbox):
    ran.write("params.yaml", "lr: 0.2\ndepth: 2\n")
    objects = ran.project().cache.root
    for path in [*objects.glob("objects/**/*"), *objects.glob("packs/*")]:
        if path.is_file():
            path.unlink()
    assert nearest(ran) == ()


def test_what_is_up_to_date_or_restored_has_none(ran: Sandbox):
    assert nearest(ran) is None
    ran.write("params.yaml", "lr: 0.2\ndepth: 2\n")
    assert ran.actions() == {"s": "restore"}
    assert nearest(ran) is None


def test_entries_that_mean_nothing_are_passed_over(ran: Sandbox):
    runs = ran.project().cache.root / "runs"
    (runs / "0.yaml").write_text("mlx: 1\nouts:\n  - {path: out, blob: no}\n")
    (runs / "1.yaml").write_bytes(b"\xff")
    (runs / "2.yaml").mkdir()
    (runs / "3.yaml").write_text("mlx: 1\ncmd: x\nouts:\n  - {path: other, tree: 'blake3:0'}\n")
    ran.write("params.yaml", "lr: 0.2\ndepth: 1\n")
    assert nearest(ran) == ("`params.yaml: depth` changed 2 → 1",)


def test_other_outputs_are_another_stage(ran: Sandbox):
    (ran.root / "mlx.lock/s.yaml").unlink()
    ran.pipeline(STAGE.replace("outs: [out]", "outs: [out, out2]"))
    assert nearest(ran) is None
