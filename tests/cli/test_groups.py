"""A matrix of many as one line: values in, lines out; and that the commands fold and unfold."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from mlops_cli.cli.groups import Told, fold_decisions, fold_edges, fold_names
from mlops_cli.pipeline.graph import build_graph
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.pipeline.wanted import Wanted
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stages import Stage
from tests.conftest import InProcess
from tests.workspace.projects import make_project

PIPELINE = """mlx: 1
stages:
  prepare: {cmd: echo > prepared, outs: [prepared]}
  train:
    matrix: {n: [1, 2, 3, 4, 5, 6, 7, 8, 9]}
    cmd: echo ${n} > m${n}
    deps: [prepared]
    outs: ["m${n}"]
  judge:
    matrix: {n: [1, 2]}
    cmd: echo
    deps: ["m${n}"]
    outs: ["j${n}"]
"""


def stages(folder: str = "") -> tuple[Stage, ...]:
    return read_pipeline(PIPELINE.encode(), "mlx.yaml", folder=folder, read_file=lambda path: None).stages


def test_names_and_edges() -> None:
    graph = build_graph(stages())
    names = fold_names(graph.stages.values())
    assert names["prepare"] == "prepare"
    assert names["train@3"] == "train@* (9 stages)"
    assert names["judge@1"] == "judge@1"
    assert fold_edges(names, graph.upstream) == {
        "prepare": (),
        "train@* (9 stages)": ("prepare",),
        "judge@1": ("train@* (9 stages)",),
        "judge@2": ("train@* (9 stages)",),
    }
    assert set(fold_names(stages("a/b")).values()) >= {"a/b:train@* (9 stages)"}
    # Of what is shown, only what is shown is needed.
    some = {address: address for address in ("train@1", "judge@1")}
    assert fold_edges(some, graph.upstream) == {"train@1": (), "judge@1": ("train@1",)}


def test_decisions() -> None:
    train = [stage for stage in stages() if stage.group == "train"]

    def decide(stage: Stage, *reasons: str, action: Action = Action.RUN) -> Decision:
        return Decision(stage, action, reasons, Wanted((), {}), None, None)

    first = decide(stages()[0], "new")
    alike = [decide(stage, "new", "because") for stage in train]
    assert fold_decisions([alike[0], first, *alike[1:]]) == [
        Told("train@* (9 stages)", "run", ("new", "because")),
        Told("prepare", "run", ("new",)),
    ]
    alike[4] = decide(train[4], "because", "and more")
    more = "more reasons of each: `mlx why train`"
    assert fold_decisions(alike) == [Told("train@* (9 stages)", "run", ("because", more))]
    # Few of one action are told one by one, many as a part of all.
    twice = [*alike, *(decide(stage._replace(address=f"{stage.address}-x"), "own") for stage in train)]
    skips = [decide(train[0]._replace(address="train@x"), "nothing changed", action=Action.SKIP)]
    found = fold_decisions([*twice, *skips])
    assert found == [
        Told("train@* (18 of 19 stages)", "run", ("reasons of each: `mlx why train`",)),
        Told("train@x", "skip", ("nothing changed",)),
    ]


def test_commands_fold(mlx_in_process: InProcess, tmp_path: Path) -> None:
    box = make_project(tmp_path / "project")
    box.write("mlx.yaml", PIPELINE)
    project = partial(mlx_in_process, cwd=box.root)
    assert project("graph").stdout.splitlines() == [
        "prepare",
        "train@* (9 stages) <- prepare",
        "judge@1 <- train@* (9 stages)",
        "judge@2 <- train@* (9 stages)",
    ]
    assert project("graph", "judge@2", "--full").stdout.splitlines() == [
        "prepare",
        "train@2 <- prepare",
        "judge@2 <- train@2",
    ]
    below = project("graph", "train@1", "--downstream", "--json").json()
    assert [node["stage"] for node in below["stages"]] == ["train@1", "judge@1"]
    assert project("stage", "list", "judge", "train").stdout.splitlines()[2] == "train@* (9 stages)   echo 1 > m1"
    assert project("run", "--dry-run").stdout.splitlines()[2:5] == [
        "run     train@* (9 stages)",
        "          it has not run yet (no lock)",
        "          `prepared` will be made by stage `prepare` first",
    ]
    assert project("status", "train").stdout.splitlines()[1] == "  run        train@* (9 stages)"


def test_the_shell_completes_stages_without_reading_many_files(mlx_in_process: InProcess, tmp_path: Path) -> None:
    box = make_project(tmp_path / "project")
    box.pipeline("stages: {all: {cmd: echo}}\n")
    for number in range(25):
        box.write(f"part{number:02}/mlx.yaml", PIPELINE)
    box.write("part09/mlx.yaml", "no")

    def complete(line: str, folder: str = "") -> set[str]:
        env = {"_MLX_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        return set(mlx_in_process(cwd=box.root / folder, env=env).stdout.split())

    assert complete("mlx run ") == {"all", *(f"part{number:02}:" for number in range(25))}
    assert complete("mlx run part2") >= {"part24:prepare", "part20:train", "part20:train@1"}
    assert complete("mlx run part03:j") == {"part03:judge", "part03:judge@1", "part03:judge@2"}
    assert complete("mlx run part0") & {"part09:", "part08:prepare"} == {"part08:prepare"}
    assert complete("mlx run p", "part04") >= {"prepare"}
