"""Which stages are meant: names, globs and paths over a graph of values, and how far a run goes from there."""

from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError, UsageError
from mlops_cli.pipeline.graph import Graph, build_graph
from mlops_cli.pipeline.selection import Reach, choose, normal_path, select_stages
from mlops_cli.records.pipeline import read_pipeline
from tests.workspace.projects import Sandbox

FILES = {
    "": """
  prepare: {cmd: echo, outs: [prepared]}
  train:
    matrix: {model: [rf-1, rf-2, gb]}
    cmd: echo ${model}
    deps: [prepared]
    outs: ["models/${model}"]
  report: {cmd: echo, deps: [models], outs: [report.html]}
  alone: {cmd: echo, outs: [odd]}
""",
    "sub": """
  train: {cmd: echo, deps: [../prepared], outs: [model.bin]}
  tell: {cmd: echo, deps: [model.bin], outs: [told.txt]}
""",
    "sub/deep": "\n  look: {cmd: echo, deps: [../told.txt], outs: [seen]}\n",
    "other": "\n  look: {cmd: echo, outs: [seen]}\n",
}
TRAINED = ("train@rf-1", "train@rf-2", "train@gb")


@pytest.fixture(scope="module")
def graph() -> Graph:
    stages = []
    for folder, text in FILES.items():
        name = f"{folder}/mlx.yaml" if folder else "mlx.yaml"
        data = f"mlx: 1\nstages:{text}".encode()
        stages += read_pipeline(data, name, folder=folder, read_file=lambda path: None).stages
    return build_graph(stages)


@pytest.mark.parametrize(
    ("folder", "target", "meant"),
    [
        ("", "prepare", ["prepare"]),
        ("", "train", TRAINED),  # a group
        ("", "train@gb", ["train@gb"]),
        ("", ":train@gb", ["train@gb"]),
        ("", "sub:train", ["sub:train"]),
        ("", "train@rf-*", TRAINED[:2]),
        ("", "*", ["prepare", "alone", *TRAINED, "report"]),  # without a colon, the root's
        ("", "sub:*", ["sub:train", "sub:tell"]),
        ("", "*:look", ["other:look", "sub/deep:look"]),
        ("", "sub*:[lt]*", ["sub:train", "sub:tell", "sub/deep:look"]),
        ("", "models/rf-1", ["train@rf-1"]),
        ("", "models/rf-1/weights.bin", ["train@rf-1"]),
        ("", "./models/../prepared", ["prepare"]),
        ("", "sub", ["sub:train", "sub:tell", "sub/deep:look"]),
        ("", "sub/", ["sub:train", "sub:tell", "sub/deep:look"]),
        ("", "sub:", ["sub:train", "sub:tell"]),
        ("", "sub/mlx.yaml", ["sub:train", "sub:tell"]),
        # Seen from a folder: an address means the same as anywhere, any other name what is here.
        ("sub", "tell", ["sub:tell"]),
        ("sub", "train", TRAINED),
        ("sub", "deep:look", ["sub/deep:look"]),
        ("sub", "tel*", ["sub:tell"]),
        ("sub", "model.bin", ["sub:train"]),
        ("sub", "../prepared", ["prepare"]),
        ("sub", "report.html", ["report"]),
        ("sub", ".", ["sub:train", "sub:tell", "sub/deep:look"]),
        ("sub", "deep", ["sub/deep:look"]),
        ("sub/deep", "sub", ["sub:train", "sub:tell", "sub/deep:look"]),
    ],
)
def test_a_target(graph: Graph, folder: str, target: str, meant: list[str]) -> None:
    assert sorted(choose(graph, [target], folder)) == sorted(meant)


@pytest.mark.parametrize(
    ("target", "message", "hint"),
    [
        ("trian", "there is no stage `trian`", "did you mean `train`?"),
        ("look", "there is no stage `look`", "did you mean `other:look` or `sub/deep:look`?"),
        ("", "there is no stage ``", "`mlx stage list` lists the stages"),
        ("../sub", "there is no stage `../sub`", "`mlx stage list` lists the stages"),
        ("other:*x", "no stage matches `other:*x`", "did you mean `other:look`?"),
        ("*:[", "no stage matches `*:[`", "`mlx stage list` lists the stages"),
    ],
)
def test_a_target_that_means_nothing(graph: Graph, target: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(graph, ["prepare", target])
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_no_target_means_all_and_each_stage_comes_once(graph: Graph) -> None:
    assert choose(graph, []) == tuple(graph.stages)
    assert choose(graph, ["train@gb", "train", "train@rf-1"]) == ("train@gb", "train@rf-1", "train@rf-2")


@pytest.mark.parametrize(
    ("targets", "reach", "order", "anew", "left"),
    [
        ("train@gb", Reach(), "prepare train@gb", "", ""),
        ("train@gb", Reach(single=True), "train@gb", "", "prepare"),
        ("train@gb", Reach(downstream=True), "train@gb report", "", "prepare train@rf-1 train@rf-2"),
        ("sub:train", Reach(downstream=True, until=("sub:tell",)), "sub:train sub:tell", "", "prepare"),
        ("report", Reach(single=True), "report", "", f"prepare {' '.join(TRAINED)}"),
        ("", Reach(until=("train@gb",)), "prepare train@gb", "", ""),
        ("", Reach(begin=("sub:train",)), "prepare sub:train sub:tell sub/deep:look", "1 2 3", ""),
        ("", Reach(begin=("sub:train",), until=("sub:tell",)), "prepare sub:train sub:tell", "1 2", ""),
        ("sub:tell", Reach(begin=("sub:train",)), "prepare sub:train sub:tell", "1 2", ""),
        ("report", Reach(begin=("train@gb",)), f"prepare {' '.join(TRAINED)} report", "3 4", ""),
        ("sub train", Reach(until=("sub:train",), downstream=True), None, "", ""),  # nothing of `train` is left
    ],
)
def test_how_far_it_goes(graph: Graph, targets: str, reach: Reach, order: str | None, anew: str, left: str) -> None:
    if order is None:
        with pytest.raises(UsageError, match="`train` is not needed for `sub:train`: nothing leads from one to"):
            select_stages(graph, targets.split(), reach)
        return
    found = select_stages(graph, targets.split(), reach)
    assert sorted(found.order) == sorted(order.split())
    assert list(found.order) == [address for address in graph.stages if address in order.split()]
    assert found.anew == {order.split()[int(number)] for number in anew.split()}
    assert sorted(found.left) == sorted(left.split())


@pytest.mark.parametrize(
    ("targets", "reach", "message"),
    [
        ("", Reach(single=True), "`--single` needs the name of a stage"),
        ("", Reach(downstream=True), "`--downstream` needs the name of a stage"),
        ("a", Reach(single=True, downstream=True), "`--single` and `--downstream` are two ways to choose stages"),
        ("", Reach(single=True, begin=("a",)), "`--single` and `--from` are two ways to choose stages"),
        ("a", Reach(single=True, until=("a",)), "`--single` and `--until` are two ways to choose stages"),
        ("a", Reach(downstream=True, begin=("a",)), "`--downstream` and `--from` are two ways to choose stages"),
    ],
)
def test_what_cannot_be_meant_together(graph: Graph, targets: str, reach: Reach, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        select_stages(graph, targets.split(), reach)
    assert caught.value.message == message


def test_what_is_forced(graph: Graph) -> None:
    assert select_stages(graph, ["report"]).forced(force=True) == {"report": "--force"}
    assert select_stages(graph, ["report"]).forced(force=False) == {}
    until = select_stages(graph, [], Reach(until=("train@gb",)))
    assert until.forced(force=True) == {"prepare": "--force", "train@gb": "--force"}
    assert select_stages(graph, [], Reach(begin=("report",))).forced(force=True) == {"report": "--from"}


def test_paths() -> None:
    assert normal_path("a//./b/../c/") == "a/c"
    assert normal_path("a/../..") is None
    assert normal_path("/a") == "a"


CHAIN = """stages:
  one: {cmd: cp raw one.txt, deps: [raw], outs: [one.txt]}
  two: {cmd: cp one.txt two.txt, deps: [one.txt], outs: [two.txt]}
  three: {cmd: cp two.txt three.txt, deps: [two.txt], outs: [three.txt]}
"""


def test_a_run_of_a_part(box: Sandbox) -> None:
    box.pipeline(CHAIN)
    box.write("raw", "1\n")
    box.run()
    box.write("raw", "2\n")

    # What is above stays as it is, is told, and counts as it is.
    assert box.run("two", reach=Reach(single=True)) == {"two": "skip"}
    assert box.heard.notes[-1] == (
        "`one` is not up to date, and left so: what it made before is used (`mlx run one` brings it up to date)"
    )
    assert box.run("two", reach=Reach(downstream=True), force=True) == {"two": "run", "three": "skip"}
    assert box.read("three.txt") == "1\n"

    # From a stage on, everything runs, though it makes what it made; what it needs is brought up to date first.
    assert box.run(reach=Reach(begin=("two",), until=("two",))) == {"one": "run", "two": "run"}
    assert box.plan()["three"].action == "run"
    assert box.run(reach=Reach(begin=("two",))) == {"one": "skip", "two": "run", "three": "run"}
    assert box.read("three.txt") == "2\n"
    assert set(box.actions().values()) == {"skip"}

    # What is neither here nor recorded cannot be taken as it is.
    (box.root / "one.txt").unlink()
    (box.root / "mlx.lock" / "one.yaml").unlink()
    with pytest.raises(RecordError, match=r"dependency `one.txt` of stage `two` does not exist"):
        box.run("two", reach=Reach(single=True))
    assert "`one` is not up to date" in box.heard.notes[-1]


def test_a_stage_that_is_off_ends_what_goes_through_it(box: Sandbox) -> None:
    box.pipeline(CHAIN)
    box.write("raw", "1\n")
    box.run()
    off = CHAIN.replace("outs: [two.txt]}", "outs: [two.txt], when: false}")
    box.pipeline(off.replace("two.txt three.txt", "two.txt three.txt; echo more >> three.txt"))
    box.write("raw", "2\n")
    assert box.run("one", reach=Reach(downstream=True)) == {"one": "run"}
    assert box.run(reach=Reach(begin=("one",))) == {"one": "run"}
    assert box.run("three", reach=Reach(single=True)) == {"three": "run"}
    assert box.read("three.txt") == "1\nmore\n"
    assert not any("up to date" in note for note in box.heard.notes)
