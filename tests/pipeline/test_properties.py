"""What holds for every pipeline: after a run there is nothing to do; one changed input runs what lies below it, only."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlops_cli.documents import dump_yaml
from tests.workspace.projects import Sandbox, make_project

SOURCES = ("raw/a", "raw/b", "lone", "tracked/x")


@dataclass(frozen=True)
class Step:
    """One stage: which sources and earlier stages it reads (by number), and how it names them."""

    sources: frozenset[int]
    stages: frozenset[int]
    whole_folder: bool
    parameter: bool


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[Step, ...]:
    count = draw(st.integers(1, 5))
    return tuple(
        Step(
            sources=draw(st.frozensets(st.integers(0, len(SOURCES) - 1), max_size=2)),
            stages=draw(st.frozensets(st.integers(0, number - 1), max_size=2)) if number else frozenset(),
            whole_folder=draw(st.booleans()),
            parameter=draw(st.booleans()),
        )
        for number in range(count)
    )


def reads(step: Step) -> list[str]:
    """Return the files that a step's command reads: all that it declares, so that each of them changes its output."""
    named = {SOURCES[number] for number in step.sources}
    if step.whole_folder and named & {"raw/a", "raw/b"}:
        named |= {"raw/a", "raw/b"}
    return [*sorted(named), *(f"o{number}/out" for number in sorted(step.stages))]


def deps(step: Step) -> list[str]:
    """Return how the step declares them: by file, or by the folder or glob that holds them."""
    if not step.whole_folder:
        return reads(step)
    named = [path.partition("/")[0] for path in reads(step)]
    return [f"{name}/*" if name == "raw" else name for name in dict.fromkeys(named)]


def declare(box: Sandbox, steps: tuple[Step, ...]) -> None:
    stages = {}
    for number, step in enumerate(steps):
        value = f"grep p{number}: params.yaml; " if step.parameter else ""
        stages[f"s{number}"] = {
            "cmd": f"mkdir -p o{number}; ({value}cat {' '.join(reads(step))} /dev/null; echo {number}) > o{number}/out",
            "deps": deps(step),
            "params": [f"p{number}"] if step.parameter else [],
            "outs": [f"o{number}"],
        }
    box.write("mlx.yaml", dump_yaml({"mlx": 1, "stages": stages}))


def touched(steps: tuple[Step, ...], changed: str) -> set[str]:
    """Return the stages that a changed file (or parameter `pN`) reaches through what is declared."""
    reached: set[int] = set()
    for number, step in enumerate(steps):
        if changed in reads(step) or (step.parameter and changed == f"p{number}") or step.stages & reached:
            reached.add(number)
    return {f"s{number}" for number in reached}


def write_params(box: Sandbox, changed: str = "") -> None:
    box.write("params.yaml", "".join(f"p{n}: {int(changed == f'p{n}')}\n" for n in range(5)))


@settings(
    max_examples=12,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking would run hundreds of pipelines
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(pipelines(), st.sampled_from([*SOURCES, "p0", "p1", "p4"]), st.sampled_from([1, 3]))
def test_exactly_what_is_downstream_runs(
    tmp_path_factory: pytest.TempPathFactory, steps: tuple[Step, ...], changed: str, jobs: int
):
    box = make_project(tmp_path_factory.mktemp("pipeline") / "project")
    for path in SOURCES:
        box.write(path, f"{path}\n")
    box.add("tracked")
    write_params(box)
    declare(box, steps)
    everything = {f"s{number}" for number in range(len(steps))}
    assert box.run(jobs=jobs) == dict.fromkeys(box.actions(), "run")
    assert set(box.actions()) == everything
    assert set(box.actions().values()) == {"skip"}
    box.commit()

    if changed in SOURCES:
        box.write(changed, "changed\n")
    else:
        write_params(box, changed)
    expected = {name: "run" if name in touched(steps, changed) else "skip" for name in everything}
    assert box.actions() == expected
    assert box.run(jobs=jobs) == expected
    assert set(box.actions().values()) == {"skip"}

    # Back again: the run cache knows all of it, and Git sees no difference.
    if changed in SOURCES:
        box.write(changed, f"{changed}\n")
    else:
        write_params(box)
    expected = {name: "restore" if action == "run" else "skip" for name, action in expected.items()}
    assert box.actions() == expected
    assert box.run(jobs=jobs) == expected
    assert box.changed_in_git() == []
    assert set(box.run(force=True, jobs=jobs).values()) == {"run"}
    assert box.changed_in_git() == []
