"""What holds for every pipeline: a run does exactly what an oracle says that shares nothing with the planner.

Random stages are run, edited at random (inputs, parameters, commands, what they declare; outputs are spoilt, stages come
and go) and run again, round after round. `pytest --pipelines 500 tests/pipeline/test_properties.py` does it for longer.
"""

from __future__ import annotations

import json
import os
import random
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from mlops_cli.documents import dump_yaml
from mlops_cli.errors import StageFailed
from mlops_cli.pipeline.manner import StageResult
from tests.pipeline.oracle import OPTIONAL, SCRIPT, UNDECLARED, Done, Spec, World, command, deps
from tests.workspace.projects import Notes, Sandbox, make_project

ROUNDS = 4
SOURCES = ("raw/a", "raw/b", "lone", "tracked/x", SCRIPT)
VALUES, GATES = ("p0", "p1", "p2"), ("g0", "g1")
WORDS = ("a", "b", "c")


@dataclass(slots=True)
class Hearing(Notes):
    """A listener that remembers what was done with each stage, and which failed."""

    actions: dict[str, str] = field(default_factory=dict)
    failures: set[str] = field(default_factory=set)

    def done(self, result: StageResult) -> None:
        self.actions[result.decision.stage.address] = result.decision.action.value

    def failed(self, stage: str, error: object) -> None:
        self.failures.add(stage)


def new_world() -> World:
    there = {path: f"{path}\n" for path in SOURCES}
    return World(there | {SCRIPT: "echo a\n", UNDECLARED: "a\n"}, dict.fromkeys((*VALUES, *GATES), 1))


def new_stage(chance: random.Random, world: World) -> None:
    """Add a stage that reads what is there, or is made by those before it."""
    number = max([*world.stages, *world.locks], default=-1) + 1
    before = [*world.stages.values()]
    chosen = chance.sample(before, min(len(before), chance.choice((0, 1, 1, 2))))
    rare = chance.random
    spec = Spec(
        number=number,
        files=tuple(sorted(chance.sample(SOURCES, chance.choice((0, 1, 1, 2))))),
        above=tuple(sorted(each.number for each in chosen)),
        beside=tuple(sorted(each.number for each in before if each.extra and not each.gate and rare() < 0.4)),
        by_folder=rare() < 0.5,
        value=chance.choice(("", *VALUES)),
        filled_in=rare() < 0.5,
        gate=chance.choice(GATES) if rare() < 0.2 else "",
        optional=rare() < 0.3,
        counts=rare() < 0.3,
        extra=rare() < 0.4,
        persist=rare() < 0.3,
        always=rare() < 0.1,
    )
    world.stages[number] = spec


# Edits: each returns whether there was something to edit. ------------------------------------------------------------


def edit_source(chance: random.Random, world: World) -> bool:
    path = chance.choice((*SOURCES, UNDECLARED))
    word = chance.choice(WORDS)
    world.there[path] = f"echo {word}\n" if path == SCRIPT else f"{word}\n"
    return True


def come_or_go(chance: random.Random, world: World) -> bool:
    """Add or remove a file that is named nowhere, or only as an optional dependency."""
    path = chance.choice(("raw/c", "tracked/y", OPTIONAL))
    if world.there.pop(path, None) is None:
        world.there[path] = chance.choice(WORDS) + "\n"
    return True


def edit_value(chance: random.Random, world: World) -> bool:
    name = chance.choice((*VALUES, *GATES))
    world.params[name] = chance.choice((0, 1, 2))
    return True


def edit_stage(chance: random.Random, world: World) -> bool:
    number = chance.choice([*world.stages])
    spec = world.stages[number]
    what = chance.choice(("text", "by_folder", "counts", "extra", "persist", "fails", "filled_in"))
    if what == "text":
        world.stages[number] = replace(spec, text=chance.choice(WORDS))
        return True
    if what == "extra" and spec.extra and f"x{number}" not in world.there:
        return False  # somebody may read it, and it never was
    world.stages[number] = replace(spec, **{what: not getattr(spec, what)})
    return True


def add_stage(chance: random.Random, world: World) -> bool:
    new_stage(chance, world)
    return True


def take_away(chance: random.Random, world: World) -> bool:
    """Take a stage away whose outputs stay: those who read them read files like any other."""
    gone = [spec for spec in world.stages.values() if spec.gate or all(path in world.there for path in spec.outs)]
    if len(world.stages) < 2 or not gone:
        return False
    del world.stages[chance.choice(gone).number]
    return True


def spoil(chance: random.Random, world: World) -> bool:
    """Edit or remove an output by hand; of a stage that may be off, only edit."""
    path = chance.choice([path for spec in world.stages.values() for path in spec.outs])
    if path not in world.there:
        return False
    if chance.random() < 0.5 and not world.stages[int(path[1:].partition("/")[0])].gate:
        del world.there[path]
    else:
        world.there[path] = "by hand\n"
    return True


EDITS: tuple[Callable[[random.Random, World], bool], ...] = (
    *(edit_source, edit_source, come_or_go, edit_value, edit_value),
    *(edit_stage, edit_stage, add_stage, take_away, spoil),
)


def inputs_of(world: World) -> World:
    """Return what people wrote of a world, as it is now."""
    files = {path: data for path, data in world.there.items() if not is_output(path)}
    return World(files, {**world.params}, {**world.stages})


def go_back(world: World, past: World) -> bool:
    """Let everything that people wrote be as it was; not where a stage would read what is no more."""
    for spec in past.stages.values():
        orphans = {f"o{number}/out" for number in spec.above if number not in past.stages}
        orphans |= {f"x{number}" for number in spec.beside if number not in past.needs(spec)}
        if not orphans <= world.there.keys():
            return False
    world.there = past.there | {path: data for path, data in world.there.items() if is_output(path)}
    world.params, world.stages = {**past.params}, {**past.stages}
    return True


def is_output(path: str) -> bool:
    return path[0] in "ox" and path[1].isdigit()


# The project ---------------------------------------------------------------------------------------------------------


def declared(world: World) -> str:
    """Return the `mlx.yaml` of a world."""
    gated = {f"o{spec.number}" for spec in world.stages.values() if spec.gate}
    gated |= {f"o{number}" for spec in world.stages.values() for number in spec.above if number not in world.stages}
    stages: dict[str, object] = {}
    for spec in world.stages.values():
        out = f"o{spec.number}"
        stage: dict[str, object] = {
            "cmd": command(spec),
            "deps": [
                {dep: {"optional": True}} if dep == OPTIONAL or dep.partition("/")[0] in gated else dep
                for dep in deps(spec)
            ],
            "outs": [{out: {"persist": True}} if spec.persist else out, *spec.outs[1:]],
        }
        if spec.value and not spec.filled_in:
            stage["params"] = [spec.value]
        if spec.gate:
            stage["when"] = f"${{{spec.gate}}} > 0"
        if spec.always:
            stage["always"] = True
        stages[spec.name] = stage
    return dump_yaml({"mlx": 1, "stages": stages}).decode()


def carry_over(box: Sandbox, world: World) -> None:
    """Make the project's files those of the world, where they differ."""
    there = visible(box)
    for path in there.keys() - world.there.keys():
        (box.root / path).unlink()
        if path.startswith("o") and is_output(path):
            (box.root / path).parent.rmdir()
    for path, data in world.there.items():
        if there.get(path) != data:
            (box.root / path).unlink(missing_ok=True)
            box.write(path, data)
    box.write("params.yaml", "".join(f"{name}: {value}\n" for name, value in world.params.items()))
    box.write("mlx.yaml", declared(world))


def visible(box: Sandbox) -> dict[str, str]:
    """Return the files of the project, but for its records and parameters."""
    found = (path for path in box.root.rglob("*") if path.is_file() and ".git" not in path.parts)
    files = {path.relative_to(box.root).as_posix(): path for path in found}
    known = {"mlx.yaml", "params.yaml", "tracked.mlx", ".gitignore", ".mlxignore", ".gitattributes"}
    return {
        name: path.read_text()
        for name, path in files.items()
        if name not in known and not name.startswith(("mlx.lock/", ".mlx/"))
    }


def run(box: Sandbox, chance: random.Random, targets: tuple[int, ...] = (), **how: bool) -> Done:
    """Run the project, several stages at once, going on after a failure; returns what it came to."""
    heard = Hearing()
    try:
        Sandbox(box.root, heard).run(*(f"s{n}" for n in targets), jobs=chance.choice((1, 2, 4)), keep_going=True, **how)
    except StageFailed:
        assert heard.failures
    return Done(heard.actions, frozenset(heard.failures))


def run_twice(box: Sandbox, chance: random.Random, targets: tuple[int, ...], **how: bool) -> Done:
    """Let two processes run the project at once; returns what they came to together, each stage done by one of them."""
    told = [box.project().local / f"told{number}.json" for number in range(2)]
    children = []
    for place in told:  # two children: mlx would take one of ours for a run that our command has started
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about: none of them is needed
            children.append(os.fork())
        if not children[-1]:
            try:
                place.write_text(json.dumps(run(box, chance, targets, **how).actions))
            except BaseException:  # noqa: BLE001 - the parent is told by what is not there
                traceback.print_exc()
            finally:
                os._exit(0)
    for child in children:
        os.waitpid(child, 0)
    ours, theirs = (json.loads(place.read_text()) for place in told)
    for place in told:
        place.unlink()
    assert ours.keys() == theirs.keys()
    done = {name: {ours[name], theirs[name]} - {"skip"} or {"skip"} for name in ours}
    assert all("skip" in (ours[name], theirs[name]) for name in ours), (ours, theirs)
    return Done({name: each.pop() for name, each in done.items()}, frozenset())


def restless(world: World) -> set[str]:
    """Return the stages that may not be done when a run is: each run is one more of those that are `always`."""
    growing: set[int] = set()
    for number, spec in sorted(world.stages.items()):
        if (spec.always and spec.persist) or world.needs(spec) & growing:
            growing.add(number)
    return {spec.name for number, spec in world.stages.items() if spec.always or spec.fails or number in growing}


def play(seed: int, folder: Path) -> None:
    """Let one pipeline live for some rounds."""
    chance = random.Random(seed)
    world = new_world()
    box = make_project(folder)
    carry_over(box, world)
    box.add("tracked")
    for _ in range(chance.randint(2, 6)):
        new_stage(chance, world)
    carry_over(box, world)
    trail = [declared(world)]
    how: dict[str, bool] = {}
    targets: tuple[int, ...] = ()
    past: list[World] = []
    for _ in range(ROUNDS):
        told = "\n".join(trail)
        foreseen = {} if how or targets else box.actions()
        expected = world.run(targets, **how)
        at_once = run_twice if chance.random() < 0.2 and not restless(world) and "force" not in how else run
        assert at_once(box, chance, targets, **how) == expected, told
        known = {name: action for name, action in foreseen.items() if action != "run" and name in expected.actions}
        assert known.items() <= expected.actions.items(), told
        assert visible(box) == world.there, told
        again = world.run(targets)
        assert again.executed <= restless(world)
        assert run(box, chance, targets) == again, told
        past.append(inputs_of(world))
        done = ["went back"] if chance.random() < 0.3 and go_back(world, chance.choice(past)) else []
        while len(done) < chance.randint(1, 3):
            edit = chance.choice(EDITS)
            if edit(chance, world):
                done.append(edit.__name__)
        carry_over(box, world)
        how = {chance.choice(("force", "run_cache")): False} if chance.random() < 0.3 else {}
        how = {"force": True} if "force" in how else how
        targets = (chance.choice([*world.stages]),) if chance.random() < 0.3 else ()
        trail += [f"{', '.join(done)}; then run {targets} {how}", f"params {world.params}", declared(world)]


def test_a_run_does_what_the_oracle_says(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    seed = request.config.getoption("--pipelines-seed") or random.SystemRandom().randrange(1, 10**9)
    for number in range(seed, seed + request.config.getoption("--pipelines")):
        try:
            play(number, tmp_path / str(number))
        except BaseException as error:
            error.add_note(f"again: pytest --pipelines 1 --pipelines-seed {number} {Path(__file__).name}")
            raise
