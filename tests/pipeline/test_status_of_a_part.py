"""`mlx status` of what is named: stages, tracked paths, folders."""

from __future__ import annotations

import pytest

from mlops_cli.errors import UsageError
from mlops_cli.pipeline.status import project_status
from tests.workspace.projects import Sandbox, make_project

MONOREPO = {
    "a": "stages: {make: {cmd: cat raw/x > out, deps: [raw], outs: [out]}}\n",
    "b": "stages: {make: {cmd: cat ../a/out > out, deps: [../a/out], outs: [out]}}\n",
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a monorepo of two pipelines, of which one takes from the other; its data was edited."""
    box = make_project(tmp_path_factory.mktemp("shop") / "project")
    for folder, text in MONOREPO.items():
        box.pipeline(text, f"{folder}/mlx.yaml")
        box.write(f"{folder}/raw/x", folder)
    box.add("a/raw", "b/raw")
    box.run()
    box.write("a/raw/x", "edited")
    return box


def told(box: Sandbox, *targets: str, folder: str = "") -> tuple[dict[str, str], dict[str, str], int]:
    found = project_status(box.project(), box.heard, targets, folder)
    data = {item.path: item.state.value for item in found.data}
    return data, {plan.stage.address: plan.action.value for plan in found.stages}, len(found.problems)


@pytest.mark.parametrize(
    ("targets", "folder", "data", "stages"),
    [
        ("a", "", "a/raw", "a:make"),
        (".", "b", "b/raw", "b:make"),
        ("b:make", "", "", "b:make"),
        ("out", "b", "", "b:make"),
        ("a/raw/x", "", "a/raw", ""),
        ("a/raw.mlx", "", "a/raw", ""),
        ("../a/raw make", "b", "a/raw", "b:make"),
        (".", "", "a/raw b/raw", "a:make b:make"),
    ],
)
def test_only_what_is_named_is_told(shop: Sandbox, targets: str, folder: str, data: str, stages: str) -> None:
    paths, actions, problems = told(shop, *targets.split(), folder=folder)
    assert set(paths) == set(data.split())
    assert set(actions) == set(stages.split())
    assert problems == 0
    assert all(state == ("modified" if path == "a/raw" else "ok") for path, state in paths.items())
    assert set(actions.values()) <= {"run"}  # what `b` takes may change


def test_what_nobody_knows(shop: Sandbox) -> None:
    with pytest.raises(UsageError) as caught:
        told(shop, "a/raw", "a:mak")
    assert caught.value.message == "there is no stage `a:mak`, and no tracked data of that name"
    assert caught.value.hint == "did you mean `a:make`?"


def test_a_file_that_is_wrong_is_told_where_it_matters(shop: Sandbox) -> None:
    good = shop.read("a/mlx.yaml")
    shop.write("a/mlx.yaml", "stages: [\n")
    try:
        assert told(shop, "a") == ({"a/raw": "modified"}, {}, 1)
        assert told(shop, "b:make") == ({}, {}, 1)
        assert told(shop, "b/raw") == ({"b/raw": "ok"}, {}, 0)
    finally:
        shop.write("a/mlx.yaml", good)
