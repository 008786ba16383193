"""The schedule: whatever the graph and whatever stages take, nothing begins too early, and nothing waits in vain."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import UsageError
from mlops_cli.pipeline.schedule import Schedule
from mlops_cli.records.conduct import Conduct
from mlops_cli.records.stages import Stage

CAPACITY = {"cpus": 2.0, "memory": 100.0, "gpus": 1.0}


def stage(name: str, **conduct: object) -> Stage:
    return Stage(
        address=name,
        name=name,
        folder="",
        group=name,
        cmd=("true",),
        deps=(),
        params=(),
        outs=(),
        metrics=(),
        plots=(),
        env=(),
        wdir="",
        desc="",
        line=3,
        file="mlx.yaml",
        conduct=Conduct(**conduct),  # type: ignore[arg-type]
    )


@dataclass
class Case:
    """Stages in run order, what each needs, how many may run at once, and which fail."""

    stages: list[Stage]
    upstream: dict[str, tuple[str, ...]]
    jobs: int
    failing: set[str]
    seed: int
    running: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


conducts = st.builds(
    Conduct,
    resources=st.dictionaries(st.sampled_from(sorted(CAPACITY)), st.sampled_from([0.5, 1.0]), max_size=2).map(
        lambda taken: tuple(sorted(taken.items()))
    ),
    mutex=st.lists(st.sampled_from(["disk", "net"]), max_size=2, unique=True).map(tuple),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    names = [f"s{number}" for number in range(draw(st.integers(1, 12)))]
    upstream = {
        name: tuple(draw(st.lists(st.sampled_from(names[:number]), max_size=3, unique=True))) if number else ()
        for number, name in enumerate(names)
    }
    stages = [stage(name)._replace(conduct=draw(conducts)) for name in names]
    failing = draw(st.sets(st.sampled_from(names), max_size=2))
    return Case(stages, upstream, draw(st.integers(1, 4)), failing, draw(st.integers(0, 1000)))


def above(upstream: dict[str, tuple[str, ...]], name: str) -> set[str]:
    return {name}.union(*(above(upstream, each) for each in upstream[name]))


@given(cases())
def test_every_rule_holds_at_every_moment(case: Case) -> None:
    chance = random.Random(case.seed)
    by_name = {each.address: each for each in case.stages}
    schedule = Schedule(case.stages, case.upstream, jobs=case.jobs, capacity=CAPACITY)
    while not schedule.ended:
        while (found := schedule.next()) is not None:
            assert set(case.upstream[found.address]) <= set(case.done)
            schedule.begin(found.address)
            case.running.append(found.address)
            assert_fits([by_name[name] for name in case.running], case.jobs)
        assert schedule.running == tuple(sorted(case.running, key=lambda name: int(name[1:])))
        assert_nothing_waits_in_vain(case, by_name)
        ended = chance.choice(case.running)
        case.running.remove(ended)
        if ended in case.failing:
            case.failed.append(ended)
            schedule.fail(ended)
        elif chance.random() < 0.2:
            schedule.again(ended)
        else:
            case.done.append(ended)
            schedule.succeed(ended)
    dropped = {name for name in by_name if not (above(case.upstream, name) - {name}).isdisjoint(case.failed)}
    assert set(schedule.dropped) == dropped
    assert sorted([*case.done, *case.failed, *dropped]) == sorted(by_name)


def assert_fits(running: list[Stage], jobs: int) -> None:
    assert len(running) <= jobs
    taken = [group for each in running for group in each.conduct.mutex]
    assert len(taken) == len(set(taken))
    for name, most in CAPACITY.items():
        assert sum(dict(each.conduct.resources).get(name, 0) for each in running) <= most


def assert_nothing_waits_in_vain(case: Case, by_name: dict[str, Stage]) -> None:
    over = {*case.done, *case.failed, *case.running}
    for name, each in by_name.items():
        if name not in over and set(case.upstream[name]) <= set(case.done):
            with pytest.raises(AssertionError):
                assert_fits([*(by_name[other] for other in case.running), each], case.jobs)


def test_who_rests_lets_others_pass() -> None:
    schedule = Schedule([stage("a"), stage("b")], {"a": (), "b": ()}, jobs=1, capacity={})
    found = schedule.next(["a"])
    assert found is not None
    assert found.address == "b"
    assert schedule.next(["a", "b"]) is None


def test_nothing_begins_after_a_stop() -> None:
    schedule = Schedule([stage("a"), stage("b"), stage("c")], {"a": (), "b": (), "c": ("a",)}, jobs=1, capacity={})
    schedule.begin("a")
    schedule.stop()
    assert not schedule.ended
    schedule.succeed("a")
    assert schedule.ended
    assert schedule.dropped == ("b", "c")


@pytest.mark.parametrize(
    ("resources", "message", "hint"),
    [
        ((("tpus", 1.0),), "takes `tpus`, of which nothing says how much there is", "`mlx run --resource tpus=1`"),
        ((("cpus", 3.0),), "takes 3 cpus, and there are 2 cpus", "`mlx run --resource cpus=3`"),
        ((("memory", 2.0**31),), "takes 2 GiB of memory, and there are", "`mlx run --resource memory=2147483648`"),
    ],
)
def test_what_never_fits_is_refused(resources: tuple[tuple[str, float], ...], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Schedule([stage("a", resources=resources)], {"a": ()}, jobs=1, capacity=CAPACITY)
    assert caught.value.message.startswith("mlx.yaml:3: stage `a` ")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
