"""Which `mlx.yaml` files are read for a target."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mlops_cli.errors import MlxError, RecordError, UsageError
from mlops_cli.pipeline.inputs import stage_graph
from mlops_cli.pipeline.selection import PLAINLY, Reach, select_stages
from mlops_cli.pipeline.survey import survey_stages
from mlops_cli.workspace.snapshot import Snapshot
from tests.workspace.projects import Sandbox, make_project

BROKEN = "stages: {x: {cmd: echo, outs: [data, own.txt], typo: 1}}\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """Return a monorepo: a root, three services, of which `b` takes from `a`, and one inside another."""
    box = make_project(tmp_path_factory.mktemp("shop") / "project")
    box.pipeline("stages: {report: {cmd: echo, deps: [a/out, b/out], outs: [report.html]}}\n")
    box.pipeline("stages: {make: {cmd: echo, deps: [raw], outs: [out]}, other: {cmd: echo, outs: [o]}}\n", "a/mlx.yaml")
    box.pipeline("stages: {make: {cmd: echo, deps: [../a/out, src], outs: [out]}}\n", "b/mlx.yaml")
    box.pipeline("stages: {look: {cmd: echo, deps: ['../../*/out'], outs: [seen]}}\n", "b/deep/mlx.yaml")
    box.pipeline("resources: {gpus: 2}\nstages: {lone: {cmd: echo, outs: [x]}}\n", "c/mlx.yaml")
    box.pipeline("stages: {train: {cmd: echo, outs: [x], resources: {gpus: 1}}}\n", "d/mlx.yaml")
    return box


def survey(box: Sandbox, *targets: str, reach: Reach = PLAINLY) -> tuple[set[str], set[str], list[str]]:
    """Return the stages selected, the folders whose pipelines were read, and what was noted."""
    notes: list[str] = []
    found = survey_stages(box.snapshot(), targets, reach, notes.append)
    return set(found.selected.order), {stage.folder or "root" for stage in found.graph.stages.values()}, notes


@pytest.mark.parametrize(
    ("target", "here", "stages", "read"),
    [
        ("a:make", "", "a:make", "root a"),
        ("make", "a", "a:make", "root a"),
        ("b:make", "", "a:make b:make", "root a b"),
        ("a/out", "", "a:make", "root a"),
        ("a", "", "a:make a:other", "root a"),
        (".", "c", "c:lone", "root c"),
        ("[ac]:*ne", "", "c:lone", "root a c"),
        ("report", "", "a:make b:make report", "root a b"),
        ("b/deep:look", "", "a:make b:make b/deep:look", "root a b b/deep c d"),  # a glob reaches everywhere
        ("d:train", "", "d:train", "root d"),
    ],
)
def test_only_what_is_needed_is_read(shop: Sandbox, target: str, here: str, stages: str, read: str) -> None:
    found, files, notes = survey(shop, target, reach=Reach(folder=here))
    assert found == set(stages.split())
    assert files == set(read.split())
    assert notes == []


def test_going_down_reads_all(shop: Sandbox) -> None:
    found, files, _ = survey(shop, "a:make", reach=Reach(downstream=True))
    assert found == {"a:make", "b:make", "b/deep:look", "report"}
    assert len(files) == 6


def test_resources_are_looked_for_everywhere(shop: Sandbox) -> None:
    assert survey_stages(shop.snapshot(), ["d:train"]).resources == {"gpus": 2}  # so says `c`
    assert survey_stages(shop.snapshot(), ["a:make"]).resources == {}
    assert survey_stages(shop.snapshot()).resources == {"gpus": 2}


def test_what_nobody_declares_is_looked_for_everywhere(shop: Sandbox) -> None:
    with pytest.raises(UsageError) as caught:
        survey(shop, "lone")
    assert caught.value.hint == "did you mean `c:lone`?"


def test_a_file_that_is_wrong_stops_only_those_who_need_it(shop: Sandbox) -> None:
    good = shop.read("mlx.yaml")
    shop.pipeline(BROKEN)
    try:
        # What is in the way may make what is read: its text would name it. Here it does not, there it does.
        found, _, notes = survey(shop, "c:lone")
        assert found == {"c:lone"}
        assert notes == ["mlx.yaml:2: unknown key `typo` in stage `x`; nothing here needs that file"]
        shop.pipeline("stages: {use: {cmd: echo, deps: [../data], outs: [y]}}\n", "e/mlx.yaml")
        for targets, reach in ((("e:use",), PLAINLY), (("report",), PLAINLY), ((), PLAINLY)):
            with pytest.raises(RecordError, match="unknown key `typo`"):
                survey(shop, *targets, reach=reach)
        with pytest.raises(RecordError, match="unknown key `typo`"):
            survey(shop, "c:lone", reach=Reach(downstream=True))

        shop.pipeline(BROKEN.replace("data,", "'${name}/data',"))  # its first name may be anything
        with pytest.raises(MlxError, match="unknown key `typo`"):
            survey(shop, "c:lone")
        shop.write("e/mlx.yaml", "")
        shop.write("mlx.yaml", good)
        assert survey(shop, "c:lone")[2] == []  # nobody asks what `e` says
    finally:
        shop.write("mlx.yaml", good)
        (shop.root / "e" / "mlx.yaml").unlink(missing_ok=True)


def test_a_run_passes_over_what_is_wrong_elsewhere(box: Sandbox) -> None:
    box.pipeline("stages: {make: {cmd: echo 1 > out, outs: [out]}}\n", "a/mlx.yaml")
    box.pipeline("stages: {oops: 1}\n", "b/mlx.yaml")
    assert box.run("a:make") == {"a:make": "run"}
    assert {address: plan.action for address, plan in box.plan("a").items()} == {"a:make": "skip"}
    with pytest.raises(RecordError, match=r"b/mlx\.yaml:2"):
        box.run()


@dataclass(frozen=True)
class Written:
    """Files that are values."""

    texts: Mapping[str, str]

    def paths(self) -> Sequence[str]:
        return sorted(self.texts)

    def read(self, path: str) -> bytes | None:
        return self.texts[path].encode() if path in self.texts else None


FOLDERS = ("", "a", "a/b", "a/b/c", "d", "d/a")
NAMES = ("x", "y", "o1")
DEPS = ("x", "y", "o1", "a", "b", "../x", "../a/x", "../../d", "*/x", "**/o1", "../*/y", "a/b/c/x", "d/a/x/in", "../b")


@st.composite
def monorepos(draw: st.DrawFn) -> dict[str, str]:
    """Draw the `mlx.yaml` files of a few folders: each has a stage for each output, that reads what lies about."""
    texts = {}
    for folder in draw(st.lists(st.sampled_from(FOLDERS), min_size=2, max_size=5, unique=True)):
        lines = []
        for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
            above = [dep for dep in DEPS if not normal(folder, dep).startswith("..")]
            deps = draw(st.lists(st.sampled_from(above), max_size=2, unique=True))
            lines.append(f"  make-{name}: {{cmd: echo, deps: {deps}, outs: [{name}]}}")
        texts[f"{folder}/mlx.yaml".lstrip("/")] = "\n".join(["mlx: 1", "stages:", *lines, ""])
    return texts


def normal(folder: str, dep: str) -> str:
    return posixpath.normpath(posixpath.join(folder, dep))


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(monorepos(), st.data())
def test_what_is_needed_is_what_a_look_at_everything_says(texts: dict[str, str], data: st.DataObject) -> None:
    try:
        everything = stage_graph(Snapshot(Written(texts)))
    except RecordError:
        assume(False)  # a circle, or an output twice: told when all is looked at
        raise
    target = data.draw(st.sampled_from([*everything.stages, *everything.maker, *FOLDERS[1:], "*:make-x", "make-*"]))
    reach = data.draw(st.sampled_from([PLAINLY, Reach(single=True), Reach(folder="a/b"), Reach(folder="d")]))
    try:
        wanted = select_stages(everything, [target], reach)
    except UsageError as error:
        with pytest.raises(UsageError, match=re.escape(error.message)):
            survey_stages(Snapshot(Written(texts)), [target], reach)
        return
    found = survey_stages(Snapshot(Written(texts)), [target], reach)
    assert set(found.selected.order) == set(wanted.order)
    assert set(found.selected.left) == set(wanted.left)
    for address in (*wanted.order, *wanted.left):
        assert set(found.graph.upstream[address]) == set(everything.upstream[address])
