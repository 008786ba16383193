"""Stages that go on from what is there (`persist`), that are run every time (`always`), that never are (`frozen`)."""

from __future__ import annotations

import pytest

from mlops_cli.errors import Inconclusive, MissingObject, RecordError, StageFailed
from mlops_cli.pipeline.provision import Provision
from mlops_cli.pipeline.status import plan_project, project_status
from mlops_cli.records.locks import read_lock
from mlops_cli.workspace.owning import own_files
from tests.crashing import crashes, killed_at
from tests.objects import LARGE, contents, lose
from tests.workspace.projects import Sandbox

GROWING = """
stages:
  train:
    cmd: mkdir -p points; cat step >> points/log; cp points/log model; test "$(cat step)" != bad
    deps: [step]
    outs: [model, {points: {persist: true}}]
"""


@pytest.fixture
def growing(box: Sandbox) -> Sandbox:
    """Return a project whose stage has added one step to its checkpoints."""
    box.write("step", "one\n")
    box.pipeline(GROWING)
    box.run()
    return box


def started_from(box: Sandbox) -> list[str]:
    return [out.path for out in read_lock(box.read("mlx.lock/train.yaml").encode(), "lock", "").started_from]


def test_the_command_goes_on_from_what_is_there(growing: Sandbox):
    assert started_from(growing) == []
    before = growing.snapshot().lock(growing.snapshot().stages[0])
    growing.write("step", "two\n")
    assert growing.run() == {"train": "run"}
    assert growing.read("points/log") == growing.read("model") == "one\ntwo\n"
    after = growing.snapshot().lock(growing.snapshot().stages[0])
    assert before is not None
    assert after is not None
    assert after.started_from == tuple(out for out in before.outs if out.path == "points")
    assert growing.run() == {"train": "skip"}


def test_its_results_are_not_for_the_run_cache(growing: Sandbox):
    growing.write("step", "two\n")
    growing.run()
    lock = growing.read("mlx.lock/train.yaml")
    (growing.root / "points/log").unlink()
    assert growing.run() == {"train": "restore"}, "as its own lock says"
    assert growing.read("points/log") == "one\ntwo\n"
    assert growing.read("mlx.lock/train.yaml") == lock
    growing.write("step", "one\n")
    assert growing.actions() == {"train": "run"}, "that run began with nothing"
    assert list(growing.project().cache.list_runs()) == []


def test_a_failure_brings_back_what_was_written_to(growing: Sandbox):
    growing.write("points/mine", "added by hand")
    growing.write("step", "bad")
    with pytest.raises(StageFailed):
        growing.run()
    assert growing.read("points/log") == "one\n"
    assert growing.read("points/mine") == "added by hand"
    aside = growing.project().local / "failed" / growing.project().checkout_key / "train/points"
    assert (aside / "log").read_text() == "one\nbad"
    assert growing.clean() is False


def test_a_retry_begins_where_the_first_attempt_did(growing: Sandbox):
    growing.pipeline(
        GROWING.replace('test "$(cat step)" != bad', "test -e again || { touch again; false; }") + "    retries: 1\n"
    )
    growing.write("step", "two\n")
    assert growing.run() == {"train": "run"}
    assert growing.read("points/log") == "one\ntwo\n"


@pytest.mark.parametrize("mode", ["hardlink", "symlink"])
def test_the_cache_is_never_written_to(box: Sandbox, mode: str):
    box.configure("cache.link", mode)
    box.write("step", "." * LARGE)
    box.pipeline(GROWING)
    box.run()
    linked = box.root / "points/log"
    linked.unlink()
    box.run()
    assert linked.is_symlink() or linked.stat().st_nlink > 1
    box.write("step", "two\n")
    box.run()
    assert box.read("points/log") == "." * LARGE + "two\n"
    contents(box.project().cache.root)  # raises when one is damaged
    box.write("step", "bad")
    with pytest.raises(StageFailed):
        box.run()
    assert box.read("points/log") == "." * LARGE + "two\n"
    contents(box.project().cache.root)


def test_beginning_with_nothing_is_told(growing: Sandbox):
    growing.write("step", "two\n")
    for name in ("points/log", "points"):
        path = growing.root / name
        path.rmdir() if path.is_dir() else path.unlink()
    growing.run()
    assert growing.read("points/log") == "two\n"
    assert started_from(growing) == []
    (note,) = growing.heard.notes
    assert note.startswith("`points` is not here: stage `train` starts from nothing (`mlx checkout points` before")


def test_no_longer_persisted_is_a_reason(growing: Sandbox):
    growing.pipeline(GROWING.replace("{points: {persist: true}}", "points"))
    assert growing.actions() == {"train": "skip"}, "it began with nothing"
    growing.pipeline(GROWING)
    growing.write("step", "two\n")
    growing.run()
    growing.pipeline(GROWING.replace("{points: {persist: true}}", "points"))
    assert growing.reasons("train") == (
        "the last run went on from what `points` was before, and it is not `persist` now",
    )
    growing.run()
    assert growing.read("points/log") == "two\n"


def test_killed_while_it_writes_in_place(growing: Sandbox):
    growing.pipeline(GROWING.replace("cp points", "test -e calm || kill -9 $PPID; cp points"))
    growing.write("step", "two\n")
    assert killed_at(growing.run, 1 << 30), "by its command"
    assert growing.read("points/log") == "one\ntwo\n"
    growing.add("step")  # any command that holds the checkout recovers
    assert growing.read("points/log") == growing.read("model") == "one\n"
    growing.write("calm")
    assert growing.run() == {"train": "run"}
    assert growing.read("points/log") == growing.read("model") == "one\ntwo\n"


def test_killed_while_files_are_made_the_workspace_s_own(growing: Sandbox):
    log, other = growing.root / "points/log", growing.root / "other"
    other.hardlink_to(log)
    project = growing.project()
    for _ in crashes(lambda: own_files(project, ["points"])):
        assert log.read_text() == "one\n"
    assert log.stat().st_nlink == 1
    log.write_text("two")
    assert other.read_text() == "one\n"


def test_reproduced_from_where_it_started(growing: Sandbox):
    growing.write("step", "two\n")
    growing.run()
    growing.commit()
    assert growing.reproduce().same
    start = growing.snapshot().lock(growing.snapshot().stages[0])
    assert start is not None
    lose(growing.project().cache, start.started_from[0].digest)
    with pytest.raises(MissingObject, match=r"input `points` of stage `train` .* is not in the cache"):
        growing.reproduce()


CALLBACK = """
stages:
  fetch:
    cmd: cp outside fetched
    outs: [fetched]
    always: true
  count:
    cmd: wc -l < fetched > count
    deps: [fetched]
    outs: [count]
"""


@pytest.fixture
def callback(box: Sandbox) -> Sandbox:
    """Return a project with a stage that looks at a file that it does not declare."""
    box.write("outside", "1\n")
    box.pipeline(CALLBACK)
    box.run()
    return box


def test_always(callback: Sandbox):
    assert callback.run() == {"fetch": "run", "count": "skip"}
    assert callback.plan()["fetch"].reasons == ("`always`",)
    callback.write("outside", "1\n2\n")
    assert callback.run() == {"fetch": "run", "count": "run"}
    callback.write("outside", "1\n")
    assert callback.run() == {"fetch": "run", "count": "restore"}
    callback.pipeline(CALLBACK.replace("    always: true\n", ""))
    assert callback.run() == {"fetch": "skip", "count": "skip"}


def test_always_is_not_dirty_for_ever(callback: Sandbox):
    assert callback.clean()
    found = {each.stage.address: each for each in project_status(callback.project()).stages}
    assert found["fetch"].reasons == ("nothing changed", "`always`: `mlx run` runs it")
    (callback.root / "fetched").unlink()
    assert not callback.clean()


def test_a_stage_that_makes_nothing(box: Sandbox):
    box.write("site", "1")
    box.pipeline("stages: {publish: {cmd: cat site >> published, deps: [site]}}")
    assert box.run() == {"publish": "run"}
    assert box.run() == {"publish": "skip"}
    box.write("site", "2")
    assert box.run() == {"publish": "run"}
    box.write("site", "1")
    assert box.run() == {"publish": "run"}, "there is nothing to restore: what it did elsewhere is to be done again"
    assert box.read("published") == "121"
    box.commit()
    with pytest.raises(Inconclusive):
        box.reproduce()


IMPORT = """
stages:
  fetch:
    cmd: cp source fetched
    deps: [source]
    outs: [fetched]
  prepare:
    cmd: sort fetched > prepared
    deps: [fetched]
    outs: [prepared]
    frozen: true
  count:
    cmd: wc -l < prepared > count
    deps: [prepared]
    outs: [count]
"""


@pytest.fixture
def frozen(box: Sandbox) -> Sandbox:
    """Return a project whose middle stage was frozen after it had run."""
    box.write("source", "b\na\n")
    box.pipeline(IMPORT.replace("    frozen: true\n", ""))
    box.run()
    box.pipeline(IMPORT)
    return box


def test_frozen_is_not_run(frozen: Sandbox):
    assert frozen.run() == {"fetch": "skip", "prepare": "skip", "count": "skip"}
    lock = frozen.read("mlx.lock/prepare.yaml")
    frozen.write("source", "c\n")
    assert frozen.run() == {"fetch": "run", "prepare": "skip", "count": "skip"}
    held = frozen.plan()["prepare"].reasons
    assert held[0] == "frozen"
    assert held[1].startswith("`fetched` changed")
    assert frozen.clean()
    assert frozen.run(force=True) == {"fetch": "run", "prepare": "skip", "count": "run"}
    assert frozen.read("mlx.lock/prepare.yaml") == lock


def test_what_is_frozen_needs_nothing(frozen: Sandbox):
    frozen.write("source", "c\n")
    assert frozen.run("count") == {"prepare": "skip", "count": "skip"}
    (frozen.root / "source").unlink()
    assert frozen.run("count") == {"prepare": "skip", "count": "skip"}


def test_what_the_lock_of_a_frozen_stage_records_comes_back(frozen: Sandbox):
    frozen.write("source", "c\n")
    frozen.run()
    lock = frozen.read("mlx.lock/prepare.yaml")
    (frozen.root / "prepared").unlink()
    assert frozen.run() == {"fetch": "skip", "prepare": "restore", "count": "skip"}
    assert frozen.read("prepared") == "a\nb\n"
    assert frozen.read("mlx.lock/prepare.yaml") == lock
    lock_of = frozen.snapshot().lock(frozen.snapshot().stages[1])
    assert lock_of is not None
    (frozen.root / "prepared").unlink()
    lose(frozen.project().cache, lock_of.outs[0].digest)
    with pytest.raises(MissingObject, match=r"stage `prepare` is frozen, and `prepared` .* is not here") as caught:
        frozen.run()
    assert caught.value.hint == "`mlx pull prepared`"
    frozen.remote().mkdir()
    project = frozen.project()
    for options, action in (({"allow_missing": True}, "skip"), ({"pull": True}, "restore")):
        provision = Provision(project, **options, dry_run=True)
        planned = plan_project(project, frozen.snapshot(), ["prepare"], provision=provision)
        assert [decision.action for decision in planned] == [action]


def test_the_declaration_of_a_frozen_stage_may_change(frozen: Sandbox):
    frozen.pipeline(IMPORT.replace("outs: [prepared]", "outs: [other]"))
    assert frozen.run("prepare") == {"prepare": "skip"}
    assert frozen.plan("prepare")["prepare"].reasons == (
        "frozen",
        "output `other` is newly declared",
        "output `prepared` is no longer declared",
    )


def test_frozen_without_a_lock(box: Sandbox):
    box.pipeline("stages: {train: {cmd: touch model, outs: [model], frozen: true}}")
    with pytest.raises(RecordError, match=r"mlx.yaml:2: stage `train` is frozen and has no lock"):
        box.run()
    assert not box.clean()


def test_reproduce_takes_what_is_frozen_as_recorded(frozen: Sandbox):
    frozen.write("source", "c\n")
    frozen.run()
    frozen.commit()
    assert [verdict.stage for verdict in frozen.reproduce().stages] == ["fetch", "count"]
    with pytest.raises(Inconclusive, match="does not belong"):
        frozen.reproduce(targets=["prepare"])


def test_always_and_frozen_contradict(box: Sandbox):
    box.pipeline("stages:\n  a: {cmd: x, always: true, frozen: true}\n")
    with pytest.raises(RecordError, match=r"mlx.yaml:3: stage `a` cannot be run always and be frozen"):
        box.plan()
