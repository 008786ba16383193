"""A run where data is not here: nothing comes that nobody needs, and no server is asked unless it is to be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.documents.schemas import find_violations
from mlops_cli.errors import MissingObject, RemoteError, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.manner import PLAINLY, Manner
from mlops_cli.pipeline.plan import Decision
from mlops_cli.pipeline.provision import Provided, Provision
from mlops_cli.pipeline.runner import run_project
from mlops_cli.pipeline.status import plan_project
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.records.locks import read_lock
from mlops_cli.workspace.fetching import fetch
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.run_sharing import run_key
from mlops_cli.workspace.snapshot import workspace_snapshot
from mlops_cli.workspace.transfers import Pushing, Runs, Trust
from tests.conftest import InProcess
from tests.workspace.projects import Sandbox, clone, make_project

STAGES = """\
stages:
  join: {cmd: 'mkdir -p joined && cat data/*.txt > joined/all && cp lone joined', deps: ["data/*.txt", lone], outs: [joined]}
  count:
    matrix: {by: [c, w]}
    cmd: 'wc -${by} joined/all > counted-${by} && echo "{\\"size\\": $(cat size.yaml | tr -d a-z:)}" > ${by}.json'
    deps: [joined]
    params: [size.yaml: [size]]
    outs: ["counted-${by}"]
    metrics: ["${by}.json"]
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a project whose stages ran with two values of a parameter, its remote, and a clone of it."""
    folder = tmp_path_factory.mktemp("template")
    box = make_project(folder / "project")
    box.remote()
    for name in ("a.txt", "b.txt", "other.bin"):
        box.write(f"data/{name}", name * 100)
    box.write("lone", "lone")
    box.add("data", "lone")
    box.pipeline(STAGES)
    for size in (2, 1):
        box.write("size.yaml", f"size: {size}\n")
        box.run()
    box.commit()
    push(box.project(), how=Pushing(runs=Runs.ALL))
    clone(box, folder / "fresh")
    return folder


@pytest.fixture
def made(template: Path, tmp_path: Path) -> Sandbox:
    """Return the project in which the stages ran; the remote has the results of both values."""
    shutil.copytree(template, tmp_path, symlinks=True, dirs_exist_ok=True)
    return Sandbox(tmp_path / "project")


@pytest.fixture
def fresh(made: Sandbox) -> Sandbox:
    """Return a clone of it without any data."""
    return Sandbox(made.root.parent / "fresh")


def run(
    box: Sandbox, *targets: str, how: Manner = PLAINLY, **flags: bool
) -> tuple[dict[str, Decision], Provided | None]:
    project = box.project()
    with exclusive(project, "mlx run", box.heard) as turn:
        provision = Provision(project, reporter=box.heard, **flags)
        results = run_project(project, targets, box.surroundings(), box.heard, turn, how, provision)
    return {result.decision.stage.address: result.decision for result in results}, provision.told


def plan(box: Sandbox, *targets: str, **flags: bool) -> tuple[dict[str, Decision], Provided | None]:
    project = box.project()
    provision = Provision(project, dry_run=True, reporter=box.heard, **flags)
    planned = plan_project(project, workspace_snapshot(project), targets, provision=provision)
    return {decision.stage.address: decision for decision in planned}, provision.told


def actions(found: tuple[dict[str, Decision], Any]) -> list[str]:
    return [decision.action.value for decision in found[0].values()]


def fetched(found: tuple[Any, Provided | None]) -> dict[str, int]:
    """Return the paths of which something came, and how many objects and requests that was."""
    assert found[1] is not None
    paths = {path: 0 for each in found[1].remotes for path in each.paths}
    return {**paths, "objects": sum(each.objects for each in found[1].remotes)}


def requests(found: tuple[Any, Provided | None]) -> int:
    assert found[1] is not None
    return sum(each.requests for each in found[1].remotes)


def lose_remote(box: Sandbox) -> None:
    shutil.move(str(box.root.parent / "remote"), str(box.root.parent / "gone"))


def test_a_clone_without_data_is_judged_by_its_records(fresh: Sandbox):
    fresh.pipeline(STAGES.replace('"data/*.txt"', "data"))  # no listing, no files of a glob
    before, _ = plan(fresh, allow_missing=True)
    assert before["join"].action == "run"  # what it needs is declared otherwise now
    fresh.git("checkout", "mlx.yaml")
    found = run(fresh, pull=True, allow_missing=True)
    assert actions(found) == ["skip"] * 3
    assert found[0]["join"].reasons == ("nothing changed; not here: `joined`",)
    assert fetched(found) == {"data": 0, "objects": 1}  # the listing, which a glob is expanded by
    lose_remote(fresh)
    assert actions(run(fresh, allow_missing=True)) == ["skip"] * 3
    assert fresh.changed_in_git() == []
    assert not fresh.exists("joined")


def test_what_a_stage_that_runs_needs_comes_and_nothing_else(fresh: Sandbox):
    fresh.write("size.yaml", "size: 3\n")
    planned = plan(fresh, "count@c", pull=True)
    assert actions(planned) == ["skip", "run"]
    assert planned[1] is not None
    assert planned[1].paths == ("joined",)
    found = run(fresh, "count@c", pull=True)
    assert actions(found) == ["skip", "run"]
    assert fetched(planned) == {"data": 0, "objects": 1}  # its listing, which a plan needs
    assert fetched(found) == {"joined": 0, "objects": 3}
    assert fresh.exists("joined/lone")
    assert not fresh.exists("data")
    assert not fresh.exists("lone")
    assert requests(found) < 12
    again = run(fresh, "count@c", pull=True)
    assert (actions(again), requests(again)) == (["skip", "skip"], 0)


def test_a_result_of_somebody_else_is_one_request_a_key(fresh: Sandbox):
    fresh.write("size.yaml", "size: 2\n")
    found = run(fresh, "count", pull=True)
    assert actions(found) == ["skip", "restore", "restore"]
    assert found[0]["count@c"].reasons[-1] == "remote `storage` has what that run made"
    assert fetched(found).keys() == {"data", "counted-c", "c.json", "counted-w", "objects"}
    assert found[1] is not None
    assert found[1].records == 2
    assert fresh.read("c.json") == '{"size":  2}\n'
    listing, looks, files = 3, 2, 3
    assert requests(found) <= listing + looks + files
    fresh.write("size.yaml", "size: 9\n")
    assert actions(run(fresh, "count@w", pull=True)) == ["skip", "run"]


def test_a_run_that_is_to_be_anew_looks_nowhere(fresh: Sandbox):
    fresh.write("size.yaml", "size: 2\n")
    found = run(fresh, "count@c", pull=True, how=Manner(run_cache=False))
    assert actions(found) == ["skip", "run"]
    assert found[1] is not None
    assert found[1].records == 0


def test_outputs_that_are_asked_for_by_name_come(fresh: Sandbox):
    found = run(fresh, "count@c", pull=True)
    assert actions(found) == ["skip", "restore"]
    assert fetched(found) == {"data": 0, "counted-c": 0, "objects": 2}
    assert found[0]["count@c"].reasons == ("output `counted-c` is missing", "remote `storage` has what that run made")
    assert fresh.changed_in_git() == []


def test_without_pull_no_server_is_asked(fresh: Sandbox):
    lose_remote(fresh)
    fetched_before = fresh.project().cache
    assert not list(fetched_before.list_runs())
    fresh.write("size.yaml", "size: 3\n")
    found = plan(fresh, allow_missing=True)
    assert found[1] is None
    with pytest.raises(MissingObject) as caught:
        run(fresh, "count@c", allow_missing=True)
    assert caught.value.exit_code == 4


def test_what_the_cache_has_is_brought_where_it_is_needed(fresh: Sandbox):
    fetch(fresh.project())
    lose_remote(fresh)
    assert actions(run(fresh, allow_missing=True)) == ["skip"] * 3
    assert not fresh.exists("joined")
    fresh.write("size.yaml", "size: 3\n")
    assert actions(run(fresh, "count@c", allow_missing=True)) == ["skip", "run"]
    assert fresh.exists("joined/all")
    assert not fresh.exists("data")


def test_files_of_a_folder_come_one_by_one(fresh: Sandbox):
    fresh.pipeline(STAGES.replace("cat data", "cat -s data"))
    found = run(fresh, "join", pull=True)
    assert actions(found) == ["run"]
    assert sorted(path.name for path in (fresh.root / "data").iterdir()) == ["a.txt", "b.txt"]
    assert fresh.states()["data"] == "ok"  # here in part
    (fresh.root / "data/a.txt").write_text("edited")
    fresh.add("data/a.txt")
    (fresh.root / "data/b.txt").unlink()
    fresh.add("data/b.txt")
    assert actions(run(fresh, "join", pull=True)) == ["run"]
    assert fresh.read("data/a.txt") == "edited"
    assert not fresh.exists("data/b.txt")


def test_a_remote_that_is_gone(fresh: Sandbox):
    gone = fresh.root.parent / "remote"
    run(fresh, "join", "count@c", pull=True)
    lose_remote(fresh)
    fresh.git("checkout", "mlx.lock")
    fresh.write("size.yaml", "size: 3\n")
    found = run(fresh, "count@c", pull=True)
    assert actions(found) == ["skip", "run"]
    told = "results of others are not looked for: remote `storage` (`../remote`) does not exist"
    assert [note for note in fresh.heard.notes if "results" in note] == [told.replace("../remote", str(gone))]
    fresh.git("checkout", "size.yaml")
    with pytest.raises(RemoteError) as caught:
        run(fresh, "count@w", pull=True, how=Manner(run_cache=False))
    assert caught.value.exit_code == 6


def test_the_command_line_of_a_clone_without_data(made: Sandbox, fresh: Sandbox):
    mlx = InProcess(fresh.root)
    assert mlx("status", "--check").code == 1
    assert mlx("status", "--check", "--allow-missing").code == 1  # what a glob matches cannot be told from here
    gate = ["status", "--check", "--allow-missing", "--remote"]
    passed = mlx(*gate)
    assert (passed.code, passed.stdout) == (
        0,
        "clean: 2 data paths, 3 stages as recorded (2 not here)\nremote `storage` has it all\n",
    )
    told = mlx("run", "--pull", "join", "--json").json()
    assert find_violations(told, "run") == []
    requests = told["fetched"].pop("requests")
    transferred = told["fetched"].pop("transferred")
    assert (requests < 10, transferred > 0) == (True, True)
    assert told["fetched"] == {"paths": ["joined"], "objects": 3, "size": 1120, "records": 0}
    fresh.write("size.yaml", "size: 2\n")
    assert mlx("run", "count", "--pull", "--dry-run").stdout.splitlines()[-2:] == [
        "would fetch `c.json`, `counted-c`, `counted-w` and 1 more (55 B)",
        "would run 0, restore 2, skip 1",
    ]
    assert mlx(*gate).code == 1
    fresh.git("checkout", "size.yaml")
    made.write("lone", "another")
    made.add("lone")
    made.run()
    made.commit()
    fresh.git("pull", "--quiet", made.root, "main")
    missing = mlx(*gate)
    assert missing.code == 1
    assert "not on remote `storage`:\n" in missing.stdout


def test_no_remote_at_all(box: Sandbox):
    with pytest.raises(UsageError):
        Provision(box.project(), pull=True)


def test_what_is_nowhere_can_be_made_again(made: Sandbox, fresh: Sandbox):
    shutil.rmtree(made.root.parent / "remote")
    push(made.project(), ["data", "lone"], Pushing(runs=Runs.NONE, trust=Trust.NOTHING))
    fresh.write("size.yaml", "size: 3\n")
    with pytest.raises(MissingObject) as caught:
        run(fresh, "count@c", pull=True)
    assert (caught.value.hint or "").startswith("`mlx run --pull join` makes again what stages make")
    assert actions(run(fresh, "join", pull=True)) == ["run"]


def test_records_that_lie_are_no_hit(made: Sandbox, fresh: Sandbox):
    lock = (made.root / "mlx.lock/count@c.yaml").read_bytes()
    made.write("size.yaml", "size: 2\n")
    made.run()
    good = (made.root / "mlx.lock/count@c.yaml").read_bytes()
    place = made.root.parent / f"remote/runs/{run_key(read_lock(good, 'lock', ''))}.yaml"
    assert place.read_bytes() == good
    size = b"size: %d}" % len(made.read("counted-c"))
    assert size in good
    fresh.write("size.yaml", "size: 2\n")
    for bad in (
        lock,  # of other inputs
        good.replace(b"counted-c", b"joined"),  # of other outputs
        good.replace(b"path: counted-c", b"path: ../counted-c"),
        good.replace(size, b"size: 1}"),
        good.replace(b"mlx: 1", b"mlx: 2"),
        b"\0",
    ):
        assert bad != good
        place.write_bytes(bad)
        assert plan(fresh, "count@c", pull=True)[0]["count@c"].action == "run", bad
    place.write_bytes(good)
    assert plan(fresh, "count@c", pull=True)[0]["count@c"].action == "restore"


def test_outputs_that_are_not_what_their_record_says(made: Sandbox, fresh: Sandbox):
    good = (made.root / "mlx.lock/join.yaml").read_bytes()
    place = made.root.parent / f"remote/runs/{run_key(read_lock(good, 'lock', ''))}.yaml"
    place.write_bytes(good.replace(b"files: 2", b"files: 3"))
    (fresh.root / "mlx.lock/join.yaml").unlink()
    found = run(fresh, "join", pull=True)
    assert actions(found) == ["run"]
    assert any("is not used" in note for note in fresh.heard.notes)
    assert (fresh.root / "mlx.lock/join.yaml").read_bytes() == good


@pytest.mark.parametrize(
    ("stage", "old", "new"),
    [("join", b"files: 2", b"files: 3"), ("join", b"", b""), ("count@c", b"size: %d}", b"size: 1}")],
    ids=["totals", "kind", "size"],
)
def test_a_record_that_lies_of_what_is_here_keeps_nothing_from_running(
    made: Sandbox, fresh: Sandbox, stage: str, old: bytes, new: bytes
):
    good = (made.root / f"mlx.lock/{stage}.yaml").read_bytes()
    if old.endswith(b"%d}"):
        old %= len(made.read("counted-c"))
    elif not old:  # a file's digest where a folder's belongs
        old, new = good.rpartition(b"tree: ")[2].partition(b",")[0], hash_bytes(b"lone").encode()
    bad = good.replace(old, new)
    assert bad != good
    (made.root.parent / f"remote/runs/{run_key(read_lock(good, 'lock', ''))}.yaml").write_bytes(bad)
    fetch(fresh.project())
    (fresh.root / f"mlx.lock/{stage}.yaml").unlink()

    assert run(fresh, stage, pull=True)[0][stage].action == "run"

    assert any(f"what an earlier run of `{stage}` made is not used: " in note for note in fresh.heard.notes)
    assert (fresh.root / f"mlx.lock/{stage}.yaml").read_bytes() == good


def test_metrics_that_no_run_wrote_are_no_result(made: Sandbox, fresh: Sandbox):
    good = (made.root / "mlx.lock/count@c.yaml").read_bytes()
    place = made.root.parent / f"remote/runs/{run_key(read_lock(good, 'lock', ''))}.yaml"
    old, new = (hash_bytes(made.read(name).encode()) for name in ("c.json", "data/a.txt"))
    bad = good.replace(old.encode(), new.encode())
    assert bad != good
    place.write_bytes(bad.replace(b"size: 13", b"size: 500"))
    (fresh.root / "mlx.lock/count@c.yaml").unlink()
    assert actions(run(fresh, "count@c", pull=True)) == ["skip", "run"]
    assert any(note.startswith("what an earlier run of `count@c` made is not used: ") for note in fresh.heard.notes)
    assert fresh.changed_in_git() == []


def test_what_a_command_goes_on_from_comes(made: Sandbox, fresh: Sandbox):
    for box in (made, fresh):
        box.pipeline(
            "stages: {grow: {cmd: echo x >> grown, params: [size.yaml: [size]], outs: [grown: {persist: true}]}}"
        )
    made.run()
    made.commit()
    done = push(made.project())
    assert done.runs == 0  # it is not repeatable
    fresh.git("checkout", "mlx.yaml")
    fresh.git("pull", "--quiet", made.root, "main")
    fresh.write("size.yaml", "size: 2\n")
    assert actions(run(fresh, pull=True)) == ["run"]
    assert fresh.read("grown") == "x\nx\n"
