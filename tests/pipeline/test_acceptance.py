"""Accepting outputs without a run: what is recorded, what becomes of it later, and what is refused."""

from __future__ import annotations

import pytest

from mlops_cli.errors import MissingObject, RecordError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.acceptance import AcceptedStage, accept
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.records.locks import Acceptance, Lock, check_reason, read_lock
from tests.crashing import crashes
from tests.objects import stored
from tests.workspace.projects import Sandbox

TWO = """
stages:
  prepare:
    cmd: sed '/^#/d' code > prepared
    deps: [code]
    outs: [prepared]
  train:
    cmd: mkdir -p model; cp prepared model/weights; cp prepared model/other; printf '{"n":1}' > m.json; cat other > /dev/null
    deps: [prepared, other]
    outs: [model]
    metrics: [m.json]
"""
REASON = "comments only"


@pytest.fixture
def two(box: Sandbox) -> Sandbox:
    """Return a project of two stages that have run, and a comment that was added since."""
    box.write("code", "one\n")
    box.write("other", "x")
    box.pipeline(TWO)
    box.run()
    box.commit()
    box.write("code", "one\n# a comment\n")
    return box


def accepted(box: Sandbox, *targets: str, reason: str = REASON, dry_run: bool = False) -> tuple[AcceptedStage, ...]:
    project = box.project()
    with exclusive(project, "mlx accept", box.heard, dry_run=dry_run):
        return accept(project, targets, reason, dry_run=dry_run, reporter=box.heard)


def lock(box: Sandbox, stage: str) -> Lock:
    return read_lock(box.read(f"mlx.lock/{stage}.yaml").encode(), stage, "")


def test_the_outputs_belong_to_the_inputs_by_word(two: Sandbox):
    before = two.read("mlx.lock/prepare.yaml").encode()
    made = lock(two, "prepare")
    (told,) = accepted(two, "prepare", dry_run=True)
    assert two.changed_in_git() == ["code"]
    assert accepted(two, "prepare") == (told,)
    (change,) = told.changes
    assert change.startswith("`code` changed")
    assert two.changed_in_git() == ["code", "mlx.lock/prepare.yaml"]
    now = lock(two, "prepare")
    assert now.outs == made.outs
    assert now.deps[0].digest == hash_bytes(b"one\n# a comment\n")
    assert now.accepted == (Acceptance(REASON, hash_bytes(before)),)
    assert two.run() == {"prepare": "skip", "train": "skip"}
    assert two.reasons("prepare") == ("nothing changed", f"accepted without running: {REASON}")
    assert accepted(two, "prepare")[0].changes == (), "nothing differs any more"
    assert lock(two, "prepare") == now


def test_reasons_add_up_until_the_stage_is_run(two: Sandbox):
    accepted(two, "prepare")
    two.write("code", "one\n# another\n")
    accepted(two, "prepare", reason=" again ")
    assert [each.reason for each in lock(two, "prepare").accepted] == [REASON, "again"]
    (two.root / "prepared").unlink()
    assert two.run() == {"prepare": "restore", "train": "skip"}
    assert [each.reason for each in lock(two, "prepare").accepted] == [REASON, "again"]
    assert two.run("prepare", force=True) == {"prepare": "run"}
    assert lock(two, "prepare").accepted == ()


def test_nothing_of_it_is_for_the_run_cache(two: Sandbox):
    accepted(two, "prepare")
    project = two.project()
    assert len(list(project.cache.list_runs())) == 2
    accepted_lock = two.read("mlx.lock/prepare.yaml")
    two.git("checkout", "--quiet", "mlx.lock")
    assert two.actions()["prepare"] == "run"
    key = two.plan()["prepare"].key
    assert key is not None
    project.cache.write_run(key, accepted_lock.encode())  # as somebody else may put it there
    assert two.actions()["prepare"] == "run"


def test_outputs_that_were_edited_are_recorded_and_stored(two: Sandbox):
    two.write("code", "one\n")
    two.write("model/weights", "mended by hand")
    two.write("m.json", '{"n": 2}')
    (told,) = accepted(two, "train")
    assert [change.partition(":")[0] for change in told.changes] == [
        "output `m.json` is not what the run made",
        "output `model` is not what the run made",
    ]
    assert lock(two, "train").metrics == {"m.json": {"n": 2}}
    assert hash_bytes(b"mended by hand").removeprefix("blake3:") in stored(two.project().cache.root)
    assert two.clean()


def test_two_at_once(two: Sandbox):
    two.write("other", "y")
    with pytest.raises(UsageError, match="stage `prepare`, which comes before, is not up to date") as caught:
        accepted(two, "train")
    assert caught.value.hint is not None
    assert "mlx accept prepare" in caught.value.hint
    assert [told.stage for told in accepted(two, "train", "prepare")] == ["prepare", "train"]
    assert two.clean()


def test_a_result_that_no_run_made(box: Sandbox):
    box.write("code", "one\n")
    box.write("prepared", "made elsewhere\n")
    box.pipeline("stages: {prepare: {cmd: cp code prepared, deps: [code], outs: [prepared], frozen: true}}")
    accepted(box, "prepare", reason="made before mlx")
    assert lock(box, "prepare").accepted == (Acceptance("made before mlx"),)
    assert box.clean()
    assert box.read(".gitignore") == "/prepared\n"


def test_an_input_that_changed_during_the_run(two: Sandbox):
    two.pipeline(TWO.replace("sed '/^#/d' code", "echo more >> code; sed '/^#/d' code"))
    two.run("prepare")
    assert two.reasons("prepare") != ("nothing changed",)
    accepted(two, "prepare")
    assert lock(two, "prepare").changed_during_run == ()
    assert two.actions()["prepare"] == "skip"


@pytest.mark.parametrize(
    ("path", "target", "error", "message"),
    [
        ("code", "prepare", RecordError, "dependency `code` of stage `prepare` does not exist"),
        ("prepared", "prepare", MissingObject, "output `prepared` of stage `prepare` is not here"),
        ("m.json", "train", MissingObject, "output `m.json` of stage `train` is not here"),
        ("model/weights", "train", MissingObject, "output `model` of stage `train` is not all here"),
    ],
)
def test_what_is_not_here_is_refused(two: Sandbox, path: str, target: str, error: type[Exception], message: str):
    if target == "train":
        two.write("code", "one\n")
    (two.root / path).unlink()
    with pytest.raises(error, match=message):
        accepted(two, target)
    assert two.git("status", "--porcelain", "mlx.lock") == ""


def test_what_no_run_could_have_made_is_refused(two: Sandbox):
    two.write("code", "one\n")
    two.write("m.json", "not json")
    with pytest.raises(UsageError, match="metrics that cannot be read"):
        accepted(two, "train")
    (two.root / "prepared").unlink()
    (two.root / "prepared").symlink_to("code")
    with pytest.raises(UsageError, match="is a symbolic link"):
        accepted(two, "prepare")
    two.pipeline(TWO + "  new: {cmd: touch new, outs: [new]}\n")
    with pytest.raises(UsageError, match="stage `new` has no output `new` that could be accepted"):
        accepted(two, "new")


def test_data_that_is_not_here_counts_as_recorded(two: Sandbox):
    two.pipeline(TWO.replace("deps: [code]", "deps: [code, raw]"))
    two.write("raw", "much")
    two.add("raw")
    (two.root / "raw").unlink()
    accepted(two, "prepare")
    assert [dep.path for dep in lock(two, "prepare").deps] == ["code", "raw"]


@pytest.mark.parametrize("reason", ["", " \t", "two\nlines", "a\x1b[31m", "x" * 501])
def test_reasons_that_are_refused(reason: str):
    with pytest.raises(ValueError, match="a reason"):
        check_reason(reason)


def test_killed_anywhere(two: Sandbox):
    old = two.read("mlx.lock/prepare.yaml")
    seen = set()
    for _ in crashes(lambda: accepted(two, "prepare")):
        seen.add(two.read("mlx.lock/prepare.yaml"))
        lock(two, "prepare")
        two.git("checkout", "--quiet", "mlx.lock")
    assert old in seen
    assert lock(two, "prepare").accepted != ()


def test_reproduce_says_so(two: Sandbox):
    accepted(two, "prepare")
    two.commit()
    assert two.reproduce(targets=["prepare"]).same
    assert f"what stage `prepare` recorded was accepted without running: {REASON}" in two.heard.notes
