"""The examples do what their READMEs say: each is copied to a new repository and run by the real program."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.cli.commands import Group
from mlops_cli.cli.tree import load_entry
from tests.cli.conftest import LEAVES

HOW_TO = Path(__file__).parents[1] / "docs" / "how-to"
EXAMPLES = Path(__file__).parents[1] / "examples"
MADE = shutil.ignore_patterns(
    *("data", "metrics", "metrics.json", "model.joblib", "models", "plots", "__pycache__"),
    *("calls.csv", "placed", "sorted"),
)

DIGITS_STAGES = {"prepare", "train@logistic", "train@forest", "evaluate@logistic", "evaluate@forest"}

Change = Callable[[str, str], None]


@pytest.fixture
def must(mlx: Any) -> Callable[..., Any]:
    """Return a callable that runs `mlx ARGS --json`, which must succeed, and returns the document."""

    def run(*args: str) -> Any:
        result = mlx(*args, "--json")
        assert result.code == 0, result.stderr
        return result.json()

    return run


@pytest.fixture
def digits(repo: Path, must: Any) -> Path:
    """Return the digits example with its data added, before the first run."""
    shutil.copytree(EXAMPLES / "digits", repo, ignore=MADE, dirs_exist_ok=True)
    subprocess.run([sys.executable, "make_data.py"], cwd=repo, check=True, capture_output=True)
    must("init")
    must("add", "data/raw")
    return repo


@pytest.fixture
def wine(repo: Path, must: Any) -> Path:
    """Return the wine example before the first run."""
    shutil.copytree(EXAMPLES / "wine", repo, ignore=MADE, dirs_exist_ok=True)
    must("init")
    return repo


@pytest.fixture
def change(repo: Path) -> Change:
    """Return a callable that gives a parameter another value, as the README tells the reader to."""

    def edit(key: str, value: str) -> None:
        path = repo / "params.yaml"
        text, count = re.subn(rf"({key}: )(?:\[.*\]|\S+)", rf"\g<1>{value}", path.read_text(encoding="utf-8"))
        assert count == 1
        path.write_text(text, encoding="utf-8")

    return edit


def actions(document: Any) -> dict[str, str]:
    return {stage["stage"]: stage["action"] for stage in document["stages"]}


def values(document: Any) -> dict[tuple[str, str], tuple[Any, Any]]:
    return {(row["file"], row["name"]): (row["old"], row["new"]) for row in document["metrics"]}


def test_digits_from_data_to_a_committed_result(digits: Path, must: Any, git: Any) -> None:
    first = must("run")

    assert actions(first) == dict.fromkeys(DIGITS_STAGES, "run")
    assert {path.name for path in (digits / "mlx.lock").iterdir()} == {f"{name}.yaml" for name in DIGITS_STAGES}

    git("add", ".")
    kept = set(git("ls-files").splitlines())
    assert {"data/raw.mlx", "data/labels.csv", "metrics/forest.json", "plots/logistic.csv"} <= kept
    assert not {path for path in kept if path.endswith((".pgm", ".npz", ".joblib"))}

    git("commit", "--message=first")
    again = must("run")

    assert actions(again) == dict.fromkeys(DIGITS_STAGES, "skip")
    assert git("status", "--porcelain") == ""
    assert must("status")["clean"] is True


def test_digits_a_change_to_one_model_runs_that_model(digits: Path, must: Any, git: Any, change: Change) -> None:
    must("run")
    git("add", ".")
    git("commit", "--message=first")
    change("n_estimators", "100")

    planned = must("run", "--dry-run")
    done = must("run")
    compared = values(must("metrics", "diff", "HEAD"))

    changed = {"train@forest", "evaluate@forest"}
    assert actions(done) == {name: "run" if name in changed else "skip" for name in DIGITS_STAGES}
    assert {name for name, action in actions(planned).items() if action != "skip"} == changed
    old, new = compared["metrics/forest.json", "accuracy"]
    assert old < 0.96 < new
    assert all(old == new for (file, _), (old, new) in compared.items() if file == "metrics/logistic.json")


def test_digits_writes_the_same_bytes_again(digits: Path, must: Any, git: Any) -> None:
    must("run")
    git("add", ".")
    git("commit", "--message=first")

    result = must("reproduce", "HEAD")

    assert result["schema"].startswith("mlx/reproduce/")


def test_wine_is_the_smallest_useful_project(wine: Path, must: Any, git: Any, change: Change) -> None:
    assert actions(must("run")) == {"train": "run"}
    git("add", ".")
    git("commit", "--message=first")
    assert actions(must("run")) == {"train": "skip"}
    assert git("status", "--porcelain") == ""

    change("C", "0.1")
    must("run")

    old, new = values(must("metrics", "diff", "HEAD"))["metrics.json", "accuracy"]
    assert old < new


def test_forecast_is_a_matrix_with_exclusions(repo: Path, mlx_in_process: Any, change: Change) -> None:
    shutil.copytree(EXAMPLES / "forecast", repo, ignore=MADE, dirs_exist_ok=True)
    scores = {f"score@{name}" for name in ("mean-2", "mean-7", "mean-28", "trend-7", "trend-28", "last")}
    mlx_in_process("init")

    first = mlx_in_process("run", "--json")

    assert actions(first.json()) == dict.fromkeys({*scores, "best"}, "run"), first.stderr
    change("compare", "[worst]")
    # No stage declares the parameter: it is an input by standing in the command.
    assert actions(mlx_in_process("run", "--json").json()) == {**dict.fromkeys(scores, "skip"), "best": "run"}
    assert '"worst"' in (repo / "best.json").read_text(encoding="utf-8")
    change("from_day", "70")
    assert actions(mlx_in_process("run", "--dry-run", "--json").json()) == dict.fromkeys({*scores, "best"}, "run")


def test_posts_is_the_pipeline_that_dvc_begins_with(repo: Path, mlx_in_process: Any, change: Change) -> None:
    shutil.copytree(EXAMPLES / "posts", repo, ignore=MADE, dirs_exist_ok=True)
    subprocess.run([sys.executable, "make_data.py"], cwd=repo, check=True, capture_output=True)
    stages = ("prepare", "featurize", "train", "evaluate")
    mlx_in_process("init")
    mlx_in_process("add", "data/data.xml")

    first = mlx_in_process("run", "--json")

    assert actions(first.json()) == dict.fromkeys(stages, "run"), first.stderr
    assert actions(mlx_in_process("run", "--json").json()) == dict.fromkeys(stages, "skip")
    measured = json.loads((repo / "metrics/evaluation.json").read_text(encoding="utf-8"))
    assert 0.7 < measured["roc_auc"]["test"] < measured["roc_auc"]["train"]
    change("n_est", "50")
    due = mlx_in_process("run", "--dry-run", "--json")
    assert actions(due.json()) == {"prepare": "skip", "featurize": "skip", "train": "run", "evaluate": "run"}


def test_variants_is_one_stage_over_many_samples(repo: Path, mlx_in_process: Any, change: Change) -> None:
    shutil.copytree(EXAMPLES / "variants", repo, ignore=MADE, dirs_exist_ok=True)
    subprocess.run([sys.executable, "make_data.py"], cwd=repo, check=True, capture_output=True)
    pipeline, calls = repo / "mlx.yaml", repo / "calls.csv"
    mlx_in_process("init")
    mlx_in_process("add", "data/genome.txt", "data/samples")

    def run() -> dict[str, str]:
        done = mlx_in_process("run", "-j", "2", "--json")
        assert done.code == 0, done.stderr
        return actions(done.json())

    two = {"place@A", "place@B", "sort@A", "sort@B"}
    assert run() == dict.fromkeys({*two, "call"}, "run")
    found = [line.split(",")[:3] for line in calls.read_text(encoding="utf-8").splitlines()]
    assert found == [line.split(",") for line in (repo / "data/truth.csv").read_text(encoding="utf-8").splitlines()]
    pipeline.write_text(pipeline.read_text(encoding="utf-8").replace("[A, B]", "[A, B, C]"), encoding="utf-8")
    assert run() == {**dict.fromkeys(two, "skip"), **dict.fromkeys(("place@C", "sort@C", "call"), "run")}
    change("least", "20")
    assert run() == {**dict.fromkeys({*two, "place@C", "sort@C"}, "skip"), "call": "run"}
    change("least", "5")
    assert run()["call"] == "restore"


def test_help_and_how_to_speak_of_data_that_digits_has(digits: Path) -> None:
    pages = [page.read_text(encoding="utf-8") for page in HOW_TO.glob("*.md")]
    lines = [line for page in pages for line in re.findall(r"^\$ (mlx .*)", page, re.MULTILINE)]
    for name in dict.fromkeys(path[0] for path in LEAVES):
        entry = load_entry(name)
        commands = entry.commands.values() if isinstance(entry, Group) else [entry]
        lines += [example for command in commands for example in command.examples]

    named = {path for line in lines for path in re.findall(r"\bdata/[\w./]+", line)}
    assert len(named) > 2
    assert {path for path in named if not (digits / path).exists()} == set()


@pytest.mark.parametrize("name", ["digits", "forecast", "posts", "variants", "wine"])
def test_the_readme_names_every_file(name: str) -> None:
    folder = EXAMPLES / name
    readme = (folder / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in folder.glob("*.py")} if name != "wine" else set()

    assert {script for script in scripts if f"`{script}`" not in readme} == set()
    assert f"cp -r examples/{name} " in readme
