"""Decisions: values in, a verdict and its reasons out; every reason's words are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.plan import Action, Decision, Evidence, decide, inputs_key
from mlops_cli.pipeline.wanted import Present, Wanted
from mlops_cli.records.locks import Input, Lock, OutputRecord
from mlops_cli.records.pointers import ObjectKind
from mlops_cli.records.stages import Dependency, Output, Stage

ONE, TWO, THREE = (hash_bytes(text) for text in (b"1", b"2", b"3"))
BLOB, TREE = ObjectKind.BLOB, ObjectKind.TREE


def dep(path: str, digest: str = ONE, kind: ObjectKind = BLOB, size: int = 1) -> Input:
    return Input(path, kind, digest, size)  # type: ignore[arg-type]


STAGE = Stage(
    address="train",
    name="train",
    folder="",
    group="train",
    cmd=("python train.py",),
    deps=(Dependency("train.py"), Dependency("data")),
    params=(),
    outs=(Output("model"), Output("m.json", git=True)),
    metrics=("m.json",),
    plots=(),
    env=(("SEED", "1"),),
    wdir="",
    desc="",
    line=3,
    file="mlx.yaml",
)
WANTED = Wanted(
    deps=(dep("train.py"), dep("data", TWO, TREE, 10)),
    params={"params.yaml": {"train": {"lr": 0.1, "layers": [8, 8], "name": "a"}}},
)
LOCK = Lock(
    cmd=("python train.py",),
    deps=WANTED.deps,
    params=WANTED.params,
    env={"SEED": "1"},
    outs=(OutputRecord("model", BLOB, THREE, 5), OutputRecord("m.json", BLOB, ONE, 2, git=True)),
    metrics={"m.json": {"accuracy": 0.9}},
)
PRESENT: Mapping[str, Present | None] = {"model": Present(BLOB, THREE, 5), "m.json": Present(BLOB, ONE, 2)}


def evidence(**changes: Any) -> Evidence:
    base = Evidence(
        lock=LOCK,
        present=PRESENT,
        recall=lambda key: None,
        holds=lambda out: True,
        describe=lambda old, new: f"{old.size} → {new.size} bytes",
    )
    return base._replace(**changes)


def decided(stage: Stage = STAGE, wanted: Wanted = WANTED, *, force: bool = False, **changes: Any) -> Decision:
    return decide(stage, wanted, evidence(**changes), force=force)


def outcome(decision: Decision) -> tuple[Action, tuple[str, ...]]:
    return decision.action, decision.reasons


def test_nothing_changed():
    decision = decided()
    assert outcome(decision) == (Action.SKIP, ("nothing changed",))
    assert decision.outs == LOCK.outs


def test_never_ran():
    assert outcome(decided(lock=None)) == (Action.RUN, ("it has not run yet (no lock)",))


def test_forced():
    decision = decided(force=True)
    assert outcome(decision) == (Action.RUN, ("asked for with `--force`",))
    assert decision.outs is None
    decision = decided(STAGE._replace(cmd=("x",)), force=True)
    assert decision.reasons == ("asked for with `--force`", "`cmd` changed: `python train.py` → `x`")


def with_params(**values: object) -> Wanted:
    train = {"lr": 0.1, "layers": [8, 8], "name": "a"}
    return WANTED._replace(params={"params.yaml": {"train": {**train, **values}}})


CHANGES: list[tuple[str, Callable[[], tuple[Stage, Wanted]], tuple[str, ...]]] = [
    (
        "cmd",
        lambda: (STAGE._replace(cmd=("a", "b")), WANTED),
        ("`cmd` changed: `python train.py` → `a && b`",),
    ),
    ("wdir", lambda: (STAGE._replace(wdir="src"), WANTED), ("`wdir` changed: `.` → `src`",)),
    ("param", lambda: (STAGE, with_params(lr=0.05)), ("`params.yaml: train.lr` changed 0.1 → 0.05",)),
    ("param text", lambda: (STAGE, with_params(name="é")), ('`params.yaml: train.name` changed "a" → "é"',)),
    (
        "param in a list",
        lambda: (STAGE, with_params(layers=[8, 9])),
        ("`params.yaml: train.layers` changed [8, 8] → [8, 9]",),
    ),
    (
        "param type in a list",
        lambda: (STAGE, with_params(layers=[8, 8.0])),
        ("`params.yaml: train.layers` changed [8, 8] → [8, 8.0]",),
    ),
    ("param to null", lambda: (STAGE, with_params(lr=None)), ("`params.yaml: train.lr` changed 0.1 → null",)),
    (
        "param to mapping",
        lambda: (STAGE, with_params(lr={"start": 1})),
        ("`params.yaml: train.lr` is gone: it was 0.1", "`params.yaml: train.lr.start` is new: 1"),
    ),
    (
        "several params",
        lambda: (STAGE, with_params(lr=1, name="b", extra=True)),
        (
            "`params.yaml: train.extra` is new: true",
            "`params.yaml: train.lr` changed 0.1 → 1",
            '`params.yaml: train.name` changed "a" → "b"',
        ),
    ),
    (
        "param gone",
        lambda: (STAGE, WANTED._replace(params={})),
        (
            "`params.yaml: train.layers` is gone: it was [8, 8]",
            "`params.yaml: train.lr` is gone: it was 0.1",
            '`params.yaml: train.name` is gone: it was "a"',
        ),
    ),
    ("env", lambda: (STAGE._replace(env=(("SEED", "2"),)), WANTED), ('`env: SEED` changed "1" → "2"',)),
    (
        "env names",
        lambda: (STAGE._replace(env=(("OTHER", "2"),)), WANTED),
        ('`env: OTHER` changed unset → "2"', '`env: SEED` changed "1" → unset'),
    ),
    (
        "dep",
        lambda: (STAGE, WANTED._replace(deps=(dep("train.py", THREE, size=7), WANTED.deps[1]))),
        ("`train.py` changed: 1 → 7 bytes",),
    ),
    (
        "new and dropped dep",
        lambda: (STAGE, WANTED._replace(deps=(WANTED.deps[0], dep("other")))),
        ("`data` is no longer a dependency", "`other` is a new dependency"),
    ),
    (
        "lost dep",
        lambda: (STAGE, WANTED._replace(deps=WANTED.deps[:1], lost=("data",))),
        ("`data` does not exist",),
    ),
    (
        "unread dep",
        lambda: (STAGE, WANTED._replace(deps=WANTED.deps[:1], unread=("data",))),
        ("`data` is not here, nor is the listing of what it holds",),
    ),
    (
        "waiting",
        lambda: (STAGE, WANTED._replace(deps=WANTED.deps[:1], waiting={"data": "prepare"})),
        ("`data` may change: stage `prepare` runs first",),
    ),
    (
        "waiting glob",
        lambda: (STAGE, WANTED._replace(deps=WANTED.deps[1:], waiting={"*.py": "generate"})),
        ("`*.py` may change: stage `generate` runs first",),
    ),
    (
        "waiting params",
        lambda: (STAGE, WANTED._replace(params={}, waiting={"params.yaml": "tune"})),
        ("`params.yaml` may change: stage `tune` runs first",),
    ),
    (
        "new output",
        lambda: (STAGE._replace(outs=(*STAGE.outs, Output("new"))), WANTED),
        ("output `new` is newly declared",),
    ),
    (
        "dropped output",
        lambda: (STAGE._replace(outs=STAGE.outs[:1]), WANTED),
        ("output `m.json` is no longer declared",),
    ),
    (
        "output that Git is to keep",
        lambda: (STAGE._replace(outs=(Output("model", git=True), STAGE.outs[1])), WANTED),
        ("output `model` is now kept in Git",),
    ),
    (
        "output that Git is not to keep",
        lambda: (STAGE._replace(outs=(STAGE.outs[0], Output("m.json"))), WANTED),
        ("output `m.json` is now kept by mlx, not in Git",),
    ),
]


@pytest.mark.parametrize(("make", "reasons"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_changed_inputs_run(make: Callable[[], tuple[Stage, Wanted]], reasons: tuple[str, ...]):
    stage, wanted = make()
    assert outcome(decided(stage, wanted)) == (Action.RUN, reasons)


@pytest.mark.parametrize(
    ("old", "new"), [(1, 1.0), (1, True), (0, False), (0.0, -0.0), ("1", 1), (None, "null"), ([], {})]
)
def test_values_that_python_takes_for_equal(old: object, new: object):
    lock = replace(LOCK, params={"params.yaml": {"x": old}})
    wanted = WANTED._replace(params={"params.yaml": {"x": new}})
    assert decided(STAGE, wanted, lock=lock).action is Action.RUN


def test_order_of_keys_is_no_change():
    lock = replace(LOCK, params={"params.yaml": {"x": {"a": 1, "b": [{"c": 1, "d": 2}]}}})
    wanted = WANTED._replace(params={"params.yaml": {"x": {"b": [{"d": 2, "c": 1}], "a": 1}}})
    assert decided(STAGE, wanted, lock=lock).action is Action.SKIP


def test_push_is_no_reason():
    stage = STAGE._replace(outs=(Output("model", push=False), STAGE.outs[1]))
    assert decided(stage).action is Action.SKIP


def test_first_run_says_what_it_waits_for():
    wanted = WANTED._replace(waiting={"data": "prepare"}, lost=("x",))
    assert decided(STAGE, wanted, lock=None).reasons == (
        "it has not run yet (no lock)",
        "`data` will be made by stage `prepare` first",
        "`x` does not exist",
    )


# Outputs --------------------------------------------------------------------------------------------------------------

STORED = "the cache has what the last run made"


@pytest.mark.parametrize(
    ("present", "reason"),
    [
        (None, "output `model` is missing"),
        (Present(BLOB, ONE, 9), "output `model` is not what the run made: 5 → 9 bytes"),
        (Present(TREE, ONE, 9), "output `model` is not what the run made: 5 → 9 bytes"),
        (Present(BLOB, THREE, 5, executable=True), "output `model` is now executable"),
    ],
)
def test_damaged_outputs_are_restored(present: Present | None, reason: str):
    decision = decided(present={**PRESENT, "model": present})
    assert outcome(decision) == (Action.RESTORE, (reason, STORED))
    assert decision.source == LOCK
    decision = decided(present={**PRESENT, "model": present}, holds=lambda out: out.path != "model")
    assert outcome(decision) == (Action.RUN, (reason, "output `model` is not in the cache either"))
    assert decision.missing == ("model",)


def test_lost_executable_mark():
    lock = replace(LOCK, outs=(LOCK.outs[1]._replace(executable=True), LOCK.outs[0]))
    assert decided(lock=lock).reasons[0] == "output `model` is no longer executable"


def test_outputs_that_are_there_need_no_store():
    assert decided(holds=lambda out: False).action is Action.SKIP


# The run cache --------------------------------------------------------------------------------------------------------


def recalling(wanted: Wanted, answer: Lock) -> Callable[[str], Lock | None]:
    key = inputs_key(STAGE, wanted)
    return lambda asked: answer if asked == key else None


def test_earlier_run_is_restored():
    wanted = with_params(lr=0.5)
    earlier = replace(LOCK, params=wanted.params)
    decision = decided(STAGE, wanted, recall=recalling(wanted, earlier))
    assert outcome(decision) == (
        Action.RESTORE,
        ("`params.yaml: train.lr` changed 0.1 → 0.5", "an earlier run had the same inputs"),
    )
    assert decision.source == earlier
    assert decided(STAGE, wanted, recall=recalling(wanted, earlier), lock=None).action is Action.RESTORE


def test_hit_is_believed_only_field_by_field():
    wanted = with_params(lr=0.5)
    for other in (
        LOCK,
        replace(LOCK, params=wanted.params, cmd=("else",)),
        replace(LOCK, params=wanted.params, deps=LOCK.deps[:1]),
        replace(LOCK, params=wanted.params, env={}),
        replace(LOCK, params=wanted.params, outs=LOCK.outs[:1]),
        replace(LOCK, params=wanted.params, wdir="x"),
        replace(LOCK, params={"params.yaml": {"train": {"lr": 0.5, "layers": [8.0, 8], "name": "a"}}}),
    ):
        assert decided(STAGE, wanted, recall=recalling(wanted, other)).action is Action.RUN


def test_hit_whose_bytes_are_gone_runs():
    wanted = with_params(lr=0.5)
    earlier = replace(LOCK, params=wanted.params)
    decision = decided(STAGE, wanted, recall=recalling(wanted, earlier), holds=lambda out: out.path == "model")
    assert decision.action is Action.RUN


@pytest.mark.parametrize("unknown", [{"waiting": {"data": "p"}}, {"lost": ("data",)}, {"unread": ("data",)}])
def test_unknown_inputs_have_no_key(unknown: dict[str, Any]):
    wanted = WANTED._replace(**unknown)
    assert inputs_key(STAGE, wanted) is None
    assert decided(STAGE, wanted, recall=lambda key: LOCK).action is Action.RUN


def test_key_depends_on_inputs_only():
    key = inputs_key(STAGE, WANTED)
    assert key == inputs_key(STAGE._replace(desc="else", line=9, address="other", name="other"), WANTED)
    assert key == inputs_key(STAGE, WANTED._replace(deps=WANTED.deps[::-1], absent=("data",)))
    for stage, wanted in (
        (STAGE._replace(cmd=("x",)), WANTED),
        (STAGE._replace(env=()), WANTED),
        (STAGE._replace(wdir="x"), WANTED),
        (STAGE._replace(outs=STAGE.outs[:1]), WANTED),
        (STAGE, with_params(lr=1)),
        (STAGE, WANTED._replace(deps=())),
    ):
        assert inputs_key(stage, wanted) != key
