"""Run records on remotes: a push sends those of what it pushes, once, with all that restoring them takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline.plan import inputs_key
from mlops_cli.records.locks import read_lock
from mlops_cli.store.remote import Remote
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.pushing import push
from mlops_cli.workspace.run_sharing import run_key
from mlops_cli.workspace.transfers import Pushing, Runs
from tests.workspace.projects import Sandbox

STAGES = """\
stages:
  copy: {cmd: cp raw copied, deps: [raw], outs: [copied]}
  count:
    cmd: 'cp copied counted; echo "{\\"n\\": 1}" > count.json'
    deps: [copied]
    outs: [counted]
    metrics: [count.json]
"""


@pytest.fixture
def ran(box: Sandbox) -> Sandbox:
    """Return a project with a remote, whose two stages have run."""
    box.remote()
    box.write("raw", "raw")
    box.add("raw")
    box.pipeline(STAGES)
    box.run()
    return box


def records(box: Sandbox) -> dict[str, bytes]:
    """Return the run records on the remote."""
    return {path.stem: path.read_bytes() for path in (box.root.parent / "remote").glob("runs/*.yaml")}


def remote_of(box: Sandbox) -> Remote:
    return open_project_remote(box.project(), None)[1]


def key_of(box: Sandbox, stage: str) -> str:
    return run_key(read_lock((box.root / f"mlx.lock/{stage}.yaml").read_bytes(), stage, ""))


def test_a_key_is_told_by_the_lock_alone(ran: Sandbox):
    for address, decision in ran.plan().items():
        assert key_of(ran, address) == inputs_key(decision.stage, decision.wanted)


def test_a_push_sends_the_runs_of_what_it_pushes_once(ran: Sandbox):
    planned = push(ran.project(), how=Pushing(dry_run=True))
    first = push(ran.project())
    assert (planned.runs, first.runs) == (2, 2)
    assert records(ran) == {
        key_of(ran, stage): (ran.root / f"mlx.lock/{stage}.yaml").read_bytes() for stage in ("copy", "count")
    }
    assert not remote_of(ran).missing([hash_bytes(b'{"n": 1}\n')])  # metrics go with the record, though Git has them
    again = push(ran.project())
    assert (again.runs, again.requests) == (0, 2)  # what the remote is, and its index: nothing about runs


def test_a_push_of_some_paths_sends_their_runs_only(ran: Sandbox):
    assert push(ran.project(), ["copied"]).runs == 1
    assert records(ran).keys() == {key_of(ran, "copy")}
    assert push(ran.project(), how=Pushing(runs=Runs.NONE)).runs == 0


def test_earlier_runs_go_when_they_are_asked_for(ran: Sandbox):
    before = {key_of(ran, "copy"), key_of(ran, "count")}
    ran.write("raw", "other")
    ran.add("raw")
    ran.run()
    push(ran.project())
    assert before.isdisjoint(records(ran))
    done = push(ran.project(), how=Pushing(runs=Runs.ALL))
    assert (done.runs, before <= records(ran).keys()) == (2, True)
    assert not remote_of(ran).missing([hash_bytes(b"raw")])


def test_runs_that_are_not_for_others_do_not_go(ran: Sandbox):
    ran.pipeline(STAGES.replace("outs: [copied]", "outs: [copied: {push: false}]"))
    (ran.project().cache.root / f"runs/{key_of(ran, 'count')}.yaml").unlink()  # made by somebody else, say
    assert push(ran.project()).runs == 0


def test_outputs_of_a_record_belong_to_one_remote(ran: Sandbox, tmp_path: Path):
    ran.configure("remotes.private.url", str(tmp_path / "private"))
    ran.configure("remotes.private.paths", '["count.json"]')
    assert push(ran.project()).runs == 1
    assert records(ran).keys() == {key_of(ran, "copy")}


def test_the_first_of_two_results_stays(ran: Sandbox):
    ran.pipeline(STAGES.replace("cp raw copied", "./make"))
    ran.write("make", "#!/bin/sh\ndate +%N > copied\n", mode=0o755)
    ran.run()
    push(ran.project())
    key = key_of(ran, "copy")
    first = records(ran)[key]
    ran.run("copy", force=True)
    ran.heard.notes.clear()
    push(ran.project(), how=Pushing(reporter=ran.heard))
    assert records(ran)[key] == first
    told = "remote `storage` has another result of `copy` for the same inputs, and keeps it: "
    assert ran.heard.notes == [f"{told}who runs that with `--pull` gets the first result"]
    ran.heard.notes.clear()
    push(ran.project(), how=Pushing(reporter=ran.heard))
    assert ran.heard.notes == []


def test_a_record_that_is_of_no_use_is_replaced(ran: Sandbox):
    key = key_of(ran, "copy")
    good = (ran.root / "mlx.lock/copy.yaml").read_bytes()
    bad = {good.replace(old, new) for old, new in ((b"cp raw", b"rm raw"), (b"size: 3", b"size: 4"), (b": 1", b": 7"))}
    for data in (b"", *bad):
        assert data != good
        remote_of(ran).write_run(key, data)
        (remote_of(ran).run_notes.path).unlink(missing_ok=True)
        push(ran.project())
        assert records(ran)[key] == good
