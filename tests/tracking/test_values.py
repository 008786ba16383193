"""Metrics and parameters: collected from Git alone, compared value by value."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import RecordError
from mlops_cli.tracking.values import Change, collect_metrics, collect_params, compare
from mlops_cli.workspace.snapshot import open_snapshot
from tests.workspace.projects import Sandbox, clone

PIPELINE = """
metrics: [by-hand.json]
stages:
  train:
    matrix: {model: [rf, gb]}
    cmd: 'printf "{\\"score\\": %s, \\"deep\\": {\\"er\\": true, \\"list\\": [1]}}" $(grep -c x params.yaml) > ${model}.json'
    params: [lr, other.toml: [section.seed]]
    metrics: ["${model}.json"]
  never: {cmd: echo, metrics: [never.json]}
"""


@pytest.fixture
def history(box: Sandbox) -> Sandbox:
    """Return a project with results of two commits, whose workspace has new parameters and no new results."""
    box.pipeline(PIPELINE)
    box.write("by-hand.json", '{"noted": 1}')
    for number in (1, 2):
        box.write("params.yaml", f"lr: 0.{number}\nunused: x\n" + "".join(f"k{n}: x\n" for n in range(number)))
        box.write("other.toml", f"[section]\nseed = {number}\n[more]\nwhen = 2026-01-0{number}\n")
        box.run("train")
        box.commit()
    box.write("params.yaml", "lr: 0.3\nunused: x\n")
    return box


def metrics(box: Sandbox, revision: str | None) -> dict[str, dict[str, object]]:
    with open_snapshot(box.project(), revision) as snapshot:
        return collect_metrics(snapshot)


def params(box: Sandbox, revision: str | None) -> dict[str, dict[str, object]]:
    with open_snapshot(box.project(), revision) as snapshot:
        return collect_params(snapshot)


def test_metrics_of_revisions(history: Sandbox):
    assert metrics(history, "HEAD~1") == {
        "by-hand.json": {"noted": 1},
        "gb.json": {"score": 2, "deep.er": True},
        "rf.json": {"score": 2, "deep.er": True},
    }
    assert metrics(history, "HEAD")["rf.json"] == {"score": 3, "deep.er": True}
    assert metrics(history, None) == metrics(history, "HEAD")


def test_params_of_revisions(history: Sandbox):
    assert params(history, "HEAD~1") == {
        "other.toml": {"section.seed": 1, "more.when": "2026-01-01"},
        "params.yaml": {"lr": 0.1, "unused": "x", "k0": "x"},
    }
    assert params(history, None)["params.yaml"] == {"lr": 0.3, "unused": "x"}


def test_without_data(history: Sandbox, tmp_path: Path):
    other = clone(history, tmp_path / "clone")
    assert not (other.project().cache.root).exists()
    for revision in ("HEAD", "HEAD~1"):
        assert metrics(other, revision) == metrics(history, revision)
        assert params(other, revision) == params(history, revision)


def test_comparison(history: Sandbox):
    changes = compare(params(history, "HEAD~1"), params(history, "HEAD"))
    assert changes == (
        Change("other.toml", "more.when", "2026-01-01", "2026-01-02", None),
        Change("other.toml", "section.seed", 1, 2, 1),
        Change("params.yaml", "k1", None, "x", None),
        Change("params.yaml", "lr", 0.1, 0.2, 0.1),
    )
    assert [change.change for change in compare(metrics(history, "HEAD~1"), metrics(history, "HEAD"))] == [1, 1]
    everything = compare(metrics(history, "HEAD"), metrics(history, None), everything=True)
    assert len(everything) == 5
    assert {change.change for change in everything} == {0, None}


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (1, 2, 1),
        (1, 1.0, 0.0),
        (True, 1, None),
        (1, True, None),
        (True, False, None),
        ("1", 1, None),
        (None, 1, None),
        ([1], [1.0], None),
        ({}, [], None),
    ],
)
def test_values_that_differ(old: object, new: object, change: float | None):
    assert compare({"f": {"x": old}}, {"f": {"x": new}}) == (Change("f", "x", old, new, change),)


@pytest.mark.parametrize("value", [1, 1.0, True, None, "x", [1, {"a": 2}], {}])
def test_equal_values(value: object):
    assert compare({"f": {"x": value}}, {"f": {"x": value}}) == ()
    assert len(compare({"f": {"x": value}}, {"f": {"x": value}}, everything=True)) == 1


def test_null_is_not_absence():
    assert compare({"f": {"x": None}}, {"f": {}}) == (Change("f", "x", None, None, None),)
    assert compare({}, {"f": {"x": None}}) == (Change("f", "x", None, None, None),)


values = st.dictionaries(st.sampled_from("abc"), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False))
sides = st.dictionaries(st.sampled_from(["f", "g"]), values)


@given(sides, sides)
def test_comparison_is_symmetric_and_sorted(old: dict[str, dict[str, object]], new: dict[str, dict[str, object]]):
    forth, back = compare(old, new), compare(new, old)
    assert [(c.file, c.name, c.old, c.new) for c in forth] == [(c.file, c.name, c.new, c.old) for c in back]
    assert [(c.file, c.name) for c in forth] == sorted((c.file, c.name) for c in forth)
    assert compare(old, old) == ()


def test_project_without_stages(box: Sandbox):
    assert metrics(box, None) == {}
    assert params(box, None) == {}
    box.write("params.yaml", "a: {b: 1}\nc: [1, 2]\nd: {}\n")
    assert params(box, None) == {"params.yaml": {"a.b": 1, "c": [1, 2], "d": {}}}


def test_files_that_hold_no_mapping(history: Sandbox):
    history.write("by-hand.json", "[1]")
    with pytest.raises(RecordError) as caught:
        metrics(history, None)
    assert caught.value.message == "by-hand.json:1: it must hold a mapping of names to values"
    history.write("by-hand.json", "{")
    with pytest.raises(RecordError, match=r"by-hand\.json:1: "):
        metrics(history, None)
    history.write("params.yaml", "")
    (history.root / "other.toml").unlink()
    assert params(history, None) == {"other.toml": {}, "params.yaml": {}}


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (0.8733, 0.98, 0.1067),
        (1.1, 1.0, -0.1),
        (1000000, 1000000.1, 0.1),
        (0.1, 0.30000000000000004, 0.20000000000000004),
        (1e300, 1e-300, -1e300),
        (3, 10**30, 10**30 - 3),
        (True, 2, None),
        ("1", 2, None),
        (None, 2, None),
    ],
)
def test_the_change_of_decimals_is_a_decimal(old: object, new: object, change: float | None):
    (found,) = compare({"m.json": {"x": old}}, {"m.json": {"x": new}}, everything=True)
    assert repr(found.change) == repr(change)
