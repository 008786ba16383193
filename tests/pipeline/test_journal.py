"""Runs that were killed: whatever they left, the next command finds the old state or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_cli.errors import StageFailed
from mlops_cli.hashing import hash_bytes, hash_file
from mlops_cli.pipeline import journal
from mlops_cli.pipeline.journal import Unfinished, read_unfinished, recover
from mlops_cli.pipeline.processes import Group
from mlops_cli.pipeline.status import plan_project, project_status
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.store.trees import Entry
from mlops_cli.workspace.snapshot import workspace_snapshot
from tests.objects import lose
from tests.workspace.projects import Notes, Sandbox, listing


@pytest.fixture
def ran(box: Sandbox) -> Sandbox:
    """Return a project whose stage has run once, making a folder, a file and metrics."""
    box.write("n", "1")
    box.pipeline(
        """
stages:
  s:
    cmd: mkdir folder && cp n folder/n && cp n file && printf '{"n":%s}' $(cat n) > m.json
    deps: [n]
    outs: [folder, file, sub/absent]
    metrics: [m.json]
""".replace(", sub/absent", "")
    )
    box.run()
    box.commit()
    return box


LOCK = "mlx.lock/s.yaml"
# Root may enter every folder; these are the powers that take it.
_POWERS = "-dac_override,-dac_read_search"
UNPRIVILEGED = ("setpriv", f"--bounding-set={_POWERS}", f"--inh-caps={_POWERS}") if os.geteuid() == 0 else ()


def begun(box: Sandbox, **more: object) -> Unfinished:
    """Write the entry of a run of `s` that has just begun, and return it."""
    unfinished = Unfinished("s", entries(box), LOCK, hash_file(box.root / LOCK), **more)  # type: ignore[arg-type]
    return journal.begin(box.project(), unfinished)


def entries(box: Sandbox) -> dict[str, Entry | None]:
    from mlops_cli.workspace.scan import open_scanner

    with open_scanner(box.project()) as scanner:
        return {path: scanner.look(path) for path in ("folder", "file", "m.json")}


def visible(box: Sandbox) -> dict[bytes, tuple[str, bytes]]:
    return {path: found for path, found in listing(box.root).items() if not path.startswith(b".git/")}


def test_entry_round_trip(ran: Sandbox):
    for unfinished in (
        Unfinished("a:b/c", entries(ran), "mlx.lock/c.yaml", None),
        Unfinished("s", entries(ran), LOCK, hash_bytes(b""), hash_bytes(b"1"), Group(7, "boot:1"), waiting=True),
    ):
        back = read_unfinished(unfinished.to_bytes())
        assert back.stage == unfinished.stage
        assert {k: v and v[1:] for k, v in back.outs.items()} == {k: v and v[1:] for k, v in unfinished.outs.items()}
        assert replace(back, outs={}) == replace(unfinished, outs={})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"null", b'{"stage": 1, "outs": []}', b'{"stage": "s", "outs": {"x": [9]}}']
)
def test_what_is_no_entry(data: bytes):
    with pytest.raises(ValueError):  # noqa: PT011 - json's own is one too
        read_unfinished(data)


def cut_short(box: Sandbox, spoil: Callable[[Sandbox], None], **more: object) -> Notes:
    """Leave what a killed run would leave, spoiled further by `spoil`; return what the recovery noted."""
    begun(box, **more)
    spoil(box)
    notes = Notes()
    with box.project().lock("test"):
        assert recover(box.project(), notes) == ("s",)
        assert recover(box.project(), notes) == ()
    return notes


def nothing(box: Sandbox) -> None: ...


def took_away(box: Sandbox) -> None:
    shutil.rmtree(box.root / "folder")
    (box.root / "file").unlink()


def wrote_half(box: Sandbox) -> None:
    took_away(box)
    box.write("folder/new", "half")
    box.write("m.json", '{"n"')


def wrote_other_kinds(box: Sandbox) -> None:
    took_away(box)
    box.write("folder", "a file now")
    box.write("file/inner", "a folder now")
    (box.root / "m.json").unlink()
    os.mkfifo(box.root / "m.json")


@pytest.mark.parametrize("spoil", [nothing, took_away, wrote_half, wrote_other_kinds])
def test_old_outputs_come_back(ran: Sandbox, spoil: Callable[[Sandbox], None]):
    before = visible(ran)
    notes = cut_short(ran, spoil)
    assert visible(ran) == before
    assert ran.clean()
    (note,) = notes.notes
    if spoil in (nothing, took_away):
        assert note == "stage `s` was cut short: its old outputs are back"
        assert not (ran.project().local / "failed").exists()
    else:
        head, _, tail = note.partition("; ")
        assert head == "stage `s` was cut short: its old outputs are back"
        aside = Path(tail.split("`")[1])
        assert tail == f"what it had written is in `{aside}`"
        if spoil is wrote_half:
            assert {name for name, (kind, _) in listing(aside).items() if kind == "file"} == {
                b"folder/new", b"m.json"
            }  # fmt: skip


KILLED = """
import os, shutil, sys
from pathlib import Path
from tests.workspace.projects import Sandbox
left, move = int(sys.argv[2]), shutil.move
def killing(*args):
    global left
    if not left:
        os.kill(os.getpid(), 9)
    left -= 1
    return move(*args)
shutil.move = killing
Sandbox(Path(sys.argv[1])).checkout()
"""


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_killed_while_setting_aside(ran: Sandbox, moved: int):
    """The recovery itself may be killed: what it had set aside stays, and the old outputs come back all the same."""
    before = visible(ran)
    begun(ran)
    wrote_half(ran)
    ran.write("folder/other", "other half")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, ran.root, str(moved)], check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == -9
    recovered(ran)
    assert visible(ran) == before
    failed = ran.project().local / "failed" / ran.project().checkout_key
    kept = {path.split(b"/", 1)[1]: data for path, (kind, data) in listing(failed).items() if kind == "file"}
    assert kept == {b"folder/new": b"half", b"folder/other": b"other half", b"m.json": b'{"n"'}


def test_first_run_that_is_killed_leaves_nothing(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: sleep 60\n    outs: [deep/out]\n")
    journal.begin(box.project(), Unfinished("s", {"deep/out": None}, LOCK, None))
    box.write("deep/out/x", "half")
    (note,) = recovered(box)
    assert not box.exists("deep/out")
    assert Path(note.split("`")[3], "deep/out/x").read_text() == "half"


def test_what_mlxignore_hides_stays_where_it_is(ran: Sandbox):
    ran.write(".mlxignore", "*.notes\n")
    ran.write("folder/sub/my.notes", "precious")
    pipeline = ran.read("mlx.yaml")
    ran.write("mlx.yaml", pipeline.replace("mkdir folder", "mkdir -p folder/sub && echo half > folder/sub/x && false"))
    for _ in range(2):
        with pytest.raises(StageFailed):
            ran.run()
        assert (ran.read("folder/sub/my.notes"), ran.read("folder/n")) == ("precious", "1")
    begun(ran)
    ran.write("folder/sub/x", "half")
    assert len(recovered(ran)) == 1
    assert (ran.read("folder/sub/my.notes"), ran.exists("folder/sub/x")) == ("precious", False)


def test_outputs_of_another_branch_are_left_alone(ran: Sandbox):
    """After a switch of branches the lock is another one: the outputs that its run had belong to it no more."""
    begun(ran)
    ran.write("m.json", '{"n"')
    ran.write(LOCK, ran.read(LOCK).replace("n: 1", "n: 5"))
    ran.write("m.json", '{"n":5}')
    superseded, old = recovered(ran)
    assert superseded.startswith("stage `s` was cut short; its lock is another one by now")
    assert f"`file` was `{hash_bytes(b'1')}`" in old
    assert ran.read("m.json") == '{"n":5}'
    assert recovered(ran) == []


def test_what_recovery_sets_aside_outlives_later_failures(ran: Sandbox):
    """After a kill it may be the user's: no failure after it takes its place."""
    pipeline = ran.read("mlx.yaml")
    for number in range(2):
        begun(ran)
        ran.write("file", f"precious {number}")
        recovered(ran)
        ran.write("mlx.yaml", pipeline.replace("mkdir folder", f"echo {number} > file && false"))
        for _ in range(2):
            with pytest.raises(StageFailed):
                ran.run()
        ran.write("mlx.yaml", pipeline)
    failed = ran.project().local / "failed" / ran.project().checkout_key
    kept = {path.read_text() for path in failed.rglob("file")}
    assert kept == {"precious 0", "precious 1", "1\n"}


def test_waiting_entry_names_no_processes(ran: Sandbox):
    """Its group ended long ago: another of that number is none of ours."""
    begun(ran, group=Group(2**22 + 7, "boot:1"))
    took_away(ran)
    lose_old(ran)
    recovered(ran)
    (entry,) = ran.project().journal.iterdir()
    assert read_unfinished(entry.read_bytes()).group is None


def test_what_was_moved_is_told_even_when_moving_stops_halfway(ran: Sandbox, monkeypatch: pytest.MonkeyPatch):
    move = shutil.move

    def refuse(source: Path, target: Path) -> object:
        if Path(source).name == "m.json":
            raise PermissionError(1, "Operation not permitted", str(source))
        return move(source, target)

    begun(ran)
    wrote_half(ran)
    monkeypatch.setattr(shutil, "move", refuse)
    unable, kept = recovered(ran)
    assert "cannot be brought back yet" in unable
    assert (Path(kept.split("`")[1]) / "folder/new").read_text() == "half"


def test_what_is_no_output_any_more_is_the_users(ran: Sandbox):
    begun(ran)
    ran.write("file", "final, by hand")
    ran.write("mlx.yaml", "mlx: 1\n")
    ran.add("file")
    assert ran.read("file") == "final, by hand"
    assert str(hash_bytes(b"final, by hand")) in ran.read("file.mlx")
    one = hash_bytes(b"1")
    (note,) = [note for note in ran.heard.notes if "`file`" in note]
    assert note.startswith("`file` is no longer an output of stage `s`, and stays as it is; before the run")
    assert note.endswith(f"it was `{one}`")
    assert not [note for note in ran.heard.notes if "are back" in note]


@pytest.mark.parametrize("mode", [0o000, 0o555])
def test_folders_that_nobody_may_enter(ran: Sandbox, mode: int):
    """A command may leave such; run without root's powers, this is what tells recovery from a refusal."""
    before = visible(ran)
    lines = f"mkdir -p folder/shut && echo $(date +%N) > folder/shut/x && chmod {mode:o} folder/shut && false"
    pipeline = ran.read("mlx.yaml")
    ran.write("mlx.yaml", pipeline.replace("mkdir folder", lines))
    for _ in range(2):
        done = subprocess.run([*UNPRIVILEGED, sys.executable, "-m", "mlops_cli", "-C", ran.root, "run"], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "the outputs that `s` had before are back" in done.stderr
        assert "error: stage `s` failed: exit code 1" in done.stderr
    ran.write("mlx.yaml", pipeline)
    assert visible(ran) == before


def test_result_whose_lock_was_written_stands(ran: Sandbox):
    """The rename of the lock is the moment: after it, the new outputs are the result."""
    old = entries(ran)
    ran.write("n", "2")
    ran.run()
    after = visible(ran)
    journal.begin(ran.project(), Unfinished("s", old, LOCK, hash_bytes(b"before"), hash_file(ran.root / LOCK)))
    ran.checkout()  # any command that holds the checkout, as `exclusive` recovers
    assert visible(ran) == after
    assert ran.clean()
    assert ran.heard.notes == ["stage `s` was cut short after it was done: its result stands"]


def test_result_whose_lock_was_not_written_goes(ran: Sandbox):
    before = visible(ran)
    notes = cut_short(ran, wrote_half, after=hash_bytes(b"the lock that was to come"))
    assert visible(ran) == before
    assert "old outputs are back" in notes.notes[0]


def test_entry_that_is_written_again_is_as_durable(ran: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """It replaces the only list of the old outputs: after a power cut it must be whole."""
    project = ran.project()
    unfinished = begun(ran)
    synced = set()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    journal.update(project, replace(unfinished, group=Group(7, "boot:1")))
    folder = project.local / "journal" / project.checkout_key
    (entry,) = folder.iterdir()
    assert {entry.stat().st_ino, folder.stat().st_ino} <= synced


def test_torn_and_strange_entries_stop_nobody(ran: Sandbox):
    project = ran.project()
    unfinished = begun(ran)
    folder = project.local / "journal" / project.checkout_key
    (real,) = folder.iterdir()
    (folder / ".mlx-tmp-99999999-abc").write_bytes(unfinished.to_bytes())
    (folder / ".mlx-tmp-99999999-def").write_bytes(unfinished.to_bytes()[:10])
    (folder / "other.json").write_text("garbage")
    before = visible(ran)
    notes = Notes()
    with project.lock("test"):
        assert recover(project, notes) == ("s",)
    assert not real.exists()
    told = next(note for note in notes.notes if "cannot be read" in note)
    kept = Path(told.partition("kept as `")[2].partition("`")[0])
    assert kept.read_text() == "garbage", "an entry names bytes: even one that cannot be read is not thrown away"
    assert list(folder.iterdir()) == []
    assert visible(ran) == before


def test_old_outputs_that_cannot_be_brought_back_stop_nobody_and_are_not_forgotten(ran: Sandbox):
    project = ran.project()
    before = {path: it for path, it in listing(ran.root).items() if not path.startswith(b".git/")}
    begun(ran)
    took_away(ran)
    away = project.cache.root.with_name("away")
    project.cache.root.rename(away)
    for _ in range(2):  # each command says it again
        notes = Notes()
        with exclusive(project, "test", notes):
            pass
        (note,) = notes.notes
        assert note.startswith("stage `s` was cut short, and its old outputs cannot be brought back yet: ")
    shutil.rmtree(project.cache.root, ignore_errors=True)
    away.rename(project.cache.root)
    with exclusive(project, "test", Notes()):
        pass
    assert {path: it for path, it in listing(ran.root).items() if not path.startswith(b".git/")} == before
    assert ran.clean()


def lose_old(box: Sandbox) -> Callable[[], None]:
    """Take the bytes of the old outputs away from the cache; returns what brings them back."""
    return lose(box.project().cache, hash_bytes(b"1"))


def recovered(box: Sandbox) -> list[str]:
    notes = Notes()
    with exclusive(box.project(), "test", notes):
        pass
    return notes.notes


def test_what_came_to_a_path_while_its_old_output_was_away_stays(ran: Sandbox):
    """The user was told that the old outputs are not back: what is written there afterwards is nobody's half output."""
    begun(ran)
    wrote_half(ran)
    give_back = lose_old(ran)
    unable, aside = recovered(ran)
    assert "cannot be brought back yet: " in unable
    assert unable.endswith("(`mlx run s` makes them anew)")
    kept = Path(aside.removeprefix("what it had written is in ").strip("`"))
    assert (kept / "folder/new").read_text() == "half"
    ran.write("file", "the user's")
    give_back()
    stays, back = recovered(ran)
    assert stays == "`file` is not what stage `s` had before, and stays as it is"
    assert "its old outputs are back" in back
    assert (ran.read("file"), ran.read("folder/n")) == ("the user's", "1")
    assert (kept / "folder/new").read_text() == "half", "and nothing that was set aside is lost"


def test_old_outputs_are_not_forgotten_when_the_stage_runs_again_meanwhile(ran: Sandbox):
    before = visible(ran)
    begun(ran)
    took_away(ran)
    give_back = lose_old(ran)
    assert len(recovered(ran)) == 1
    pipeline = ran.read("mlx.yaml")
    ran.write("mlx.yaml", pipeline.replace("mkdir folder", "mkdir folder && false"))
    with pytest.raises(StageFailed, match="failed: exit code 1"):
        ran.run()
    give_back()
    ran.write("mlx.yaml", pipeline)
    assert recovered(ran) == ["stage `s` was cut short: its old outputs are back"]
    assert visible(ran) == before


def test_run_that_succeeds_ends_the_waiting(ran: Sandbox):
    begun(ran)
    took_away(ran)
    lose_old(ran)
    assert len(recovered(ran)) == 1
    ran.run()
    assert ran.read("folder/n") == "1"
    assert recovered(ran) == []


def test_half_restored_folder_is_completed(ran: Sandbox):
    """A full disk, or a kill, may end the restoring at any file; what is there then is not the command's."""
    ran.write("mlx.yaml", ran.read("mlx.yaml").replace("cp n folder/n", "cp n folder/n && echo more > folder/more"))
    ran.run()
    before = visible(ran)
    begun(ran)
    (ran.root / "folder/more").unlink()
    assert recovered(ran) == ["stage `s` was cut short: its old outputs are back"]
    assert visible(ran) == before


def test_dry_run_puts_nothing_right(ran: Sandbox):
    begun(ran)
    wrote_half(ran)
    before = visible(ran)
    notes = Notes()
    with exclusive(ran.project(), "test", notes, dry_run=True):
        pass
    assert visible(ran) == before
    told = "a run was cut short: the next command that writes puts its outputs right first"
    assert notes.notes == [told]
    for ask in (
        project_status,
        lambda project, notes: plan_project(project, workspace_snapshot(project), reporter=notes),
    ):
        notes = Notes()
        ask(ran.project(), notes)
        assert notes.notes == [told], "what is planned is not what will be done"
    assert "its old outputs are back" in recovered(ran)[0]


def test_process_that_ended_long_ago_is_not_confused_with_another(ran: Sandbox):
    me = os.getpid()
    cut_short(ran, nothing, group=Group(me, "another boot:1"))


def test_leftovers_of_a_killed_command_are_swept(ran: Sandbox):
    dead = 2**22 + 7
    litter = [
        ran.write(f".mlx-tmp-{dead}-abc", "half a pointer"),
        ran.write(f"mlx.lock/.mlx-tmp-{dead}-abc", "half a lock"),
        ran.write(f"folder/.mlx-tmp-{dead}-abc-0", "half a file"),
        ran.write(".mlx-tmp-nonsense", "x"),
    ]
    (ran.root / f"folder/.mlx-tmp-{dead}-link").symlink_to("nowhere")
    alive = ran.write(f".mlx-tmp-{os.getppid()}-abc", "someone is writing it")
    assert ran.clean(), "scans pass over them"
    project = ran.project()
    with exclusive(project, "test"):
        pass
    assert all(path.exists() for path in litter), "nothing says that anyone was killed"
    lock = project.local / "locks" / f"{project.checkout_key}.lock"
    lock.write_text(json.dumps({"pid": dead, "command": "mlx add", "started": "then"}))
    with exclusive(project, "test"):
        pass
    assert not any(path.exists() for path in litter)
    assert not os.path.lexists(ran.root / f"folder/.mlx-tmp-{dead}-link")
    assert alive.exists()
    assert lock.read_bytes() == b""
