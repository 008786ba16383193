"""Stages written by `mlx stage add`."""

from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError, UsageError
from mlops_cli.pipeline.declare import declare_stage, describe_stage, freeze_stages, parse_env, parse_params
from mlops_cli.records.stages import NewStage, Output, ParamsFile
from tests.workspace.projects import Sandbox

NEW = NewStage(name="train", cmd=("python train.py",), deps=("train.py",), outs=(Output("model"),))


def test_declared_stage_can_run(box: Sandbox):
    new = NewStage(name="s", cmd=("cp a b", "cat b"), deps=("a",), outs=(Output("b"),), env=(("X", "1"),))
    assert declare_stage(box.project(), "", new, dry_run=True) == "mlx.yaml"
    assert not box.exists("mlx.yaml")
    assert declare_stage(box.project(), "", new) == "mlx.yaml"
    box.write("a", "x")
    assert box.run() == {"s": "run"}
    assert box.read("b") == "x"


def test_declaring_in_a_sub_folder(box: Sandbox):
    assert declare_stage(box.project(), "sub", NEW) == "sub/mlx.yaml"
    (stage,) = box.snapshot().stages
    assert stage.address == "sub:train"
    assert describe_stage(stage) == {
        "stage": "sub:train",
        "file": f"sub/mlx.yaml:{stage.line}",
        "cmd": ["python train.py"],
        "wdir": "sub",
        "deps": ["sub/train.py"],
        "outs": ["sub/model"],
    }


def test_stage_that_does_not_fit_changes_nothing(box: Sandbox):
    declare_stage(box.project(), "", NEW)
    before = box.read("mlx.yaml")
    box.write("data", "x")
    box.add("data")
    for new, error in (
        (NEW, UsageError),
        (NewStage(name="other", cmd=("x",), outs=(Output("model"),)), RecordError),
        (NewStage(name="other", cmd=("x",), outs=(Output("model/x"),)), RecordError),
        (NewStage(name="other", cmd=("x",), outs=(Output("data"),)), RecordError),
        (NewStage(name="other", cmd=("x",), deps=("x",), outs=(Output("x"),)), RecordError),
        (NewStage(name="bad name", cmd=("x",)), UsageError),
    ):
        with pytest.raises(error) as caught:
            declare_stage(box.project(), "", new)
        assert caught.value.hint
    assert box.read("mlx.yaml") == before


def test_options():
    assert parse_params(["a", "b.c", "p.json:x", "p.json:y", "whole.toml:"]) == (
        ParamsFile("params.yaml", ("a", "b.c")),
        ParamsFile("p.json", ("x", "y")),
        ParamsFile("whole.toml"),
    )
    assert parse_env(["A=1", "B=", "C=x=y"]) == (("A", "1"), ("B", ""), ("C", "x=y"))
    for text in ("A", "=1", ""):
        with pytest.raises(UsageError, match="is not NAME=VALUE"):
            parse_env([text])


def test_what_is_said_of_dependencies_is_shown(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: x\n    deps: [a, {b: {optional: true}}]\n")
    (stage,) = box.snapshot().stages
    shown = describe_stage(stage)
    assert shown["deps"] == ["a", "b"]
    assert shown["optional"] == ["b"]


def test_freezing_and_back(box: Sandbox):
    text = "mlx: 1\nstages:\n  a:\n    matrix: {x: [1, 2]}\n    cmd: touch ${x}  # why\n    outs: ['${x}']\n"
    box.write("sub/mlx.yaml", text)
    with pytest.raises(UsageError, match="`sub:a@1` is not all of `sub:a`"):
        freeze_stages(box.project(), "sub:a@1", frozen=True)
    assert freeze_stages(box.project(), "sub:a", frozen=True, dry_run=True) == (
        ("sub:a@1", "sub:a@2"),
        ("sub/mlx.yaml",),
    )
    assert box.read("sub/mlx.yaml") == text
    freeze_stages(box.project(), "sub:a", frozen=True)
    assert box.read("sub/mlx.yaml") == text + "    frozen: true\n"
    assert freeze_stages(box.project(), "sub:a", frozen=True) == ((), ())
    freeze_stages(box.project(), "sub:a", frozen=False)
    assert box.read("sub/mlx.yaml") == text
