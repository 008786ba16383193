"""Carrying plans out: what runs, what is restored, what is recorded, and what happens when a command fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.errors import MissingObject, RecordError, StageFailed, UsageError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline import journal as journal_module
from mlops_cli.pipeline import stage_work as work_module
from mlops_cli.workspace import checkout as checkout_module
from mlops_cli.workspace.project import find_project
from tests.crashing import crashes
from tests.objects import damage, large
from tests.workspace.projects import Sandbox, is_alive, listing

THREE = """
stages:
  prepare:
    cmd: tr a-z A-Z < raw > prepared
    deps: [raw]
    outs: [prepared]
  train:
    cmd: cat prepared > model && grep lr params.yaml >> model
    deps: [prepared]
    params: [lr]
    outs: [model]
  measure:
    cmd: 'printf "{\\"size\\": %d, \\"history\\": [1, 2]}" $(wc -c < model) > m.json; echo step > plot.csv'
    deps: [model]
    metrics: [m.json]
    plots: [plot.csv]
"""
ALL = ("prepare", "train", "measure")


@pytest.fixture
def three(box: Sandbox) -> Sandbox:
    """Return a project of three stages in a row that have run and are committed."""
    box.write("raw", "some words\n")
    box.write("params.yaml", "lr: 1\nother: 2\n")
    box.pipeline(THREE)
    assert box.run() == dict.fromkeys(ALL, "run")
    box.commit()
    return box


def test_again_does_nothing(three: Sandbox):
    assert three.run() == dict.fromkeys(ALL, "skip")
    assert three.changed_in_git() == []
    assert three.clean()


def test_what_git_keeps(three: Sandbox):
    assert three.git("ls-files").split("\n") == [
        ".gitignore", ".mlx/config.yaml", "m.json", "mlx.lock/measure.yaml", "mlx.lock/prepare.yaml",
        "mlx.lock/train.yaml", "mlx.yaml", "params.yaml", "plot.csv", "raw",
    ]  # fmt: skip
    assert three.read(".gitignore") == "/model\n/prepared\n"
    lock = three.read("mlx.lock/measure.yaml")
    assert "metrics:\n  m.json:\n    size: 17\n" in lock
    assert "history" not in lock.partition("metrics:")[2], "a series is a plot"


def test_forced_run_with_equal_results_changes_nothing_in_git(three: Sandbox):
    assert three.run(force=True) == dict.fromkeys(ALL, "run")
    assert three.changed_in_git() == []


def test_run_of_some(three: Sandbox):
    three.write("raw", "other\n")
    assert three.run("train") == {"prepare": "run", "train": "run"}
    assert three.run("train", force=True) == {"prepare": "skip", "train": "run"}
    with pytest.raises(UsageError, match="there is no stage `nothing`"):
        three.run("nothing")


def test_early_cutoff(three: Sandbox):
    """A changed input that leads to the same output stops there."""
    three.write("raw", "SOME words\n")
    assert three.actions() == dict.fromkeys(ALL, "run")
    assert three.run() == {"prepare": "run", "train": "skip", "measure": "skip"}
    assert three.changed_in_git() == ["mlx.lock/prepare.yaml", "raw"]


def test_reverted_parameter_is_restored(three: Sandbox):
    before = listing(three.root)
    three.write("params.yaml", "lr: 2222\nother: 2\n")
    assert three.run() == {"prepare": "skip", "train": "run", "measure": "run"}
    assert three.read("m.json") != before[b"m.json"][1].decode()
    three.write("params.yaml", "lr: 1\nother: 2\n")
    expected = {"prepare": "skip", "train": "restore", "measure": "restore"}
    assert three.actions() == expected
    assert three.run() == expected
    after = listing(three.root)
    for path in (b"model", b"m.json", b"plot.csv", b"mlx.lock/train.yaml", b"mlx.lock/measure.yaml"):
        assert after[path] == before[path]
    assert three.changed_in_git() == []
    assert three.clean()


def test_plan_is_what_the_run_does(three: Sandbox):
    """Also below a stage that is restored: what it brings back counts, not what is there still."""
    for lr in (2, 3):
        three.write("params.yaml", f"lr: {lr}\n")
        three.run()
    three.write("params.yaml", "lr: 2\n")
    (three.root / "m.json").unlink()
    plan = three.actions()
    assert plan == {"prepare": "skip", "train": "restore", "measure": "restore"}
    assert three.run() == plan
    three.write("params.yaml", "lr: 3\n")
    shutil.copy(three.root / "model", three.root / "model of 2")
    assert three.run("train") == {"prepare": "skip", "train": "restore"}
    assert three.actions()["measure"] == "restore"


def test_no_run_cache(three: Sandbox):
    three.write("params.yaml", "lr: 2\n")
    three.run()
    three.write("params.yaml", "lr: 1\n")
    assert three.run(run_cache=False) == {"prepare": "skip", "train": "run", "measure": "run"}


def test_deleted_outputs_come_back(three: Sandbox):
    for path in ("model", "m.json", "plot.csv"):
        (three.root / path).unlink()
    assert three.run() == {"prepare": "skip", "train": "restore", "measure": "restore"}
    assert three.clean()
    assert three.changed_in_git() == []


def test_output_that_was_changed_by_hand_is_kept_and_told(three: Sandbox):
    three.write("model", "my own work")
    digest = subprocess.run(
        [sys.executable, "-c", "import blake3,sys; print(blake3.blake3(sys.stdin.buffer.read()).hexdigest())"],
        input=b"my own work", capture_output=True, check=True,
    ).stdout.decode().strip()  # fmt: skip
    assert three.run()["train"] == "restore"
    (note,) = three.heard.notes
    assert note.startswith(f"`model` held bytes that no store had; they are kept as `blake3:{digest}`")
    assert three.project().cache.read(f"blake3:{digest}") == b"my own work"  # type: ignore[arg-type]
    three.heard.notes.clear()
    three.write("model", "my other work")
    three.run(force=True)
    assert len(three.heard.notes) == 1


def test_folder_that_was_changed_by_hand_is_kept(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: mkdir -p out && echo 1 > out/a\n    outs: [out]\n")
    box.run()
    box.write("out/mine", "precious")
    box.run(force=True)
    assert sorted(listing(box.root / "out")) == [b"a"]
    assert "precious" in {
        box.project().cache.read(digest).decode(errors="replace") for digest in box.project().cache.list()
    }
    assert len(box.heard.notes) == 1


def test_input_that_changes_while_it_is_used(box: Sandbox):
    box.write("raw", "1")
    box.pipeline("stages:\n  s:\n    cmd: cp raw out && echo 2 > raw\n    deps: [raw]\n    outs: [out]\n")
    box.run()
    (note,) = box.heard.notes
    assert note == (
        "`raw` changed while `s` ran: its outputs are kept, but nobody can tell which version made them, "
        "and the next run makes them again"
    )
    assert (box.root / "out").read_text() == "1"
    assert box.reasons("s") == ("`raw` changed: 1 → 2 bytes", "`raw` changed while the stage last ran")
    box.write("raw", "1")
    assert box.reasons("s") == ("`raw` changed while the stage last ran",)
    assert list(box.project().cache.list_runs()) == []


def test_parameters_and_matches_that_change_while_they_are_used(box: Sandbox):
    box.write("params.yaml", "lr: 0.1\n")
    box.write("d/a.txt", "a")
    box.write("step.sh", "cat d/*.txt > out; echo 'lr: 0.2' > params.yaml; echo b > d/b.txt\n")
    box.pipeline("stages:\n  s:\n    cmd: sh step.sh\n    deps: ['d/*.txt']\n    params: [lr]\n    outs: [out]\n")
    box.run()
    box.write("params.yaml", "lr: 0.1\n")
    (box.root / "d/b.txt").unlink()
    assert box.reasons("s") == (
        "`d/b.txt` changed while the stage last ran",
        "`params.yaml` changed while the stage last ran",
    )
    assert list(box.project().cache.list_runs()) == []


# Failures -------------------------------------------------------------------------------------------------------------


def fails(box: Sandbox, *targets: str) -> StageFailed:
    with pytest.raises(StageFailed) as caught:
        box.run(*targets)
    return caught.value


@pytest.mark.parametrize(
    ("cmd", "words"),
    [
        ("echo half > model; exit 3", "exit code 3"),
        ("echo half > model; kill -9 $$", "killed by SIGKILL"),
        ("no-such-program", "command not found (exit code 127)"),
    ],
)
def test_failing_command(three: Sandbox, cmd: str, words: str):
    before = listing(three.root)
    three.write("mlx.yaml", three.read("mlx.yaml").replace("cat prepared > model && grep lr params.yaml >> model", cmd))
    error = fails(three)
    assert error.message == f"stage `train` failed: {words}"
    assert error.hint is not None
    assert error.hint == "`mlx logs train` shows its output"
    assert (three.surroundings().logs / "train.log").is_file()
    after = listing(three.root)
    for path in (b"model", b"m.json", b"mlx.lock/train.yaml"):
        assert after[path] == before[path]
    *notes, last = three.heard.notes
    assert last == "the outputs that `train` had before are back"
    if "half" in cmd:
        (note,) = notes
        assert note.startswith("what `train` wrote before it failed is in `")
        assert (Path(note.split("`")[3]) / "model").read_text() == "half\n"
    assert three.actions() == {"prepare": "skip", "train": "run", "measure": "run"}


def test_first_run_that_fails_leaves_nothing(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: mkdir -p deep/out && echo half > deep/out/x && false\n    outs: [deep/out]\n")
    fails(box)
    assert not box.exists("deep/out")
    assert not box.exists("mlx.lock")
    assert not box.exists("deep/.gitignore")


def test_failure_ends_the_run(box: Sandbox):
    box.pipeline(
        "stages:\n  a: {cmd: 'false', outs: [a]}\n  b: {cmd: touch b, deps: [a], outs: [b]}\n  c: {cmd: touch c, outs: [c]}\n"
    )
    fails(box)
    assert not box.exists("b")
    assert not box.exists("c")


@pytest.mark.parametrize(
    ("cmd", "message", "hint"),
    [
        ("true", "stage `s` did not write its output `out`", "make the command write it, or mend `outs` in mlx.yaml:3"),
        (
            "ln -s nowhere out; echo '{}' > m.json",
            "stage `s` made its output `out` a symbolic link, which holds no bytes",
            "make the command write the file or folder itself, or a copy of it",
        ),
        ("touch out", "stage `s` did not write its output `m.json`", "make the command write it, or mend `outs` in mlx.yaml:3"),
        ("touch out; mkdir m.json", "metrics `m.json` of stage `s` is not a file", "write JSON, YAML or TOML"),
        ("touch out; echo [1] > m.json", "metrics `m.json` of stage `s` must hold a mapping of names to numbers", 'for instance `{"accuracy": 0.97}`'),
    ],
)  # fmt: skip
def test_outputs_that_are_not_what_was_declared(box: Sandbox, cmd: str, message: str, hint: str):
    from mlops_cli.documents import dump_yaml

    stages = {"s": {"cmd": cmd, "outs": ["out"], "metrics": ["m.json"]}}
    box.write("mlx.yaml", dump_yaml({"mlx": 1, "stages": stages}))
    error = fails(box)
    assert (error.message, error.hint) == (message, hint)
    assert not box.exists("out")
    assert not box.exists("mlx.lock/s.yaml")


@pytest.mark.parametrize("text", ['{"a": NaN}', "{", '{"a": 1, "a": 2}'])
def test_metrics_that_cannot_be_read(box: Sandbox, text: str):
    box.write("text", text)
    box.pipeline("stages:\n  s:\n    cmd: cp text m.json\n    metrics: [m.json]\n")
    error = fails(box)
    assert error.message.startswith("stage `s` wrote metrics that cannot be read: m.json:1: ")


def test_special_file_as_output(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: mkfifo out\n    outs: [out]\n")
    with pytest.raises(StageFailed, match="`out` is a FIFO"):
        box.run()
    assert not box.exists("out")
    assert box.actions() == {"s": "run"}


def test_output_that_git_tracks(box: Sandbox):
    box.write("models/best file", "x")
    box.commit()
    box.pipeline("stages:\n  s:\n    cmd: mkdir -p models && touch models/x\n    outs: [models]\n")
    with pytest.raises(RecordError) as caught:
        box.run()
    assert caught.value.message == "mlx.yaml:3: Git tracks `models/best file`, which stage `s` makes"
    assert caught.value.hint == (
        "`git rm -r --cached 'models/best file'` takes it out of Git; small results belong in `metrics`"
    )
    assert box.read("models/best file") == "x"


# Kinds of outputs -----------------------------------------------------------------------------------------------------


def test_outputs_of_every_kind(box: Sandbox):
    box.write(
        "make.sh",
        """
mkdir -p deep/folder/empty deep/other && printf x > deep/folder/file && ln -s file deep/folder/link
printf '#!/bin/sh\\n' > tool && chmod +x tool && : > empty && printf y > "Ünï cödé"
""",
    )
    box.pipeline(
        "stages:\n  s:\n    cmd: sh make.sh\n    deps: [make.sh]\n    outs: [deep/folder, tool, empty, Ünï cödé]\n"
    )
    box.run()
    before = listing(box.root / "deep/folder")
    assert box.run() == {"s": "skip"}
    shutil.rmtree(box.root / "deep")
    for name in ("tool", "empty", "Ünï cödé"):
        (box.root / name).unlink()
    assert box.run() == {"s": "restore"}
    assert listing(box.root / "deep/folder") == before
    assert os.access(box.root / "tool", os.X_OK)
    assert box.clean()
    assert box.changed_in_git() == sorted(
        [".gitignore", ".mlx/config.yaml", "deep/.gitignore", "make.sh", "mlx.lock/s.yaml", "mlx.yaml"]
    )


@pytest.mark.parametrize("link", ["copy", "hardlink", "symlink"])
def test_link_modes(three: Sandbox, link: str):
    three.configure("cache.link", link)
    three.write("raw", large("some words\n"))
    three.run()
    three.write("params.yaml", "lr: 2\n")
    three.run()
    three.write("params.yaml", "lr: 1\n")
    assert three.run()["train"] == "restore"
    three.write("params.yaml", "lr: 3\n")
    assert three.run()["train"] == "run"  # the old output is a link: the new one must not be written through it
    three.write("params.yaml", "lr: 1\n")
    assert three.run()["train"] == "restore"
    assert three.read("model") == large("SOME WORDS\n") + "lr: 1\n"
    assert three.clean()


def test_ignored_files_in_an_output_folder(box: Sandbox):
    box.write(".mlxignore", "*.tmp\n")
    box.pipeline("stages:\n  s:\n    cmd: mkdir -p out && date +%N > out/x.tmp && echo 1 > out/a\n    outs: [out]\n")
    assert box.run() == {"s": "run"}
    assert box.run() == {"s": "skip"}
    assert box.run(force=True) == {"s": "run"}
    (box.root / "out/a").unlink()
    assert box.run() == {"s": "restore"}
    assert box.exists("out/x.tmp")


def test_metric_that_moves_to_outs_and_back(three: Sandbox):
    text = three.read("mlx.yaml")
    three.write("mlx.yaml", text.replace("metrics: [m.json]", "outs: [m.json]"))
    assert three.reasons("measure")[0] == "output `m.json` is now kept by mlx, not in Git"
    three.git("rm", "--quiet", "--cached", "m.json")
    assert three.run()["measure"] == "restore"
    assert three.run()["measure"] == "skip"
    assert "m.json" in three.read(".gitignore")
    assert "accuracy" not in three.read("mlx.lock/measure.yaml")
    three.write("mlx.yaml", text)
    assert three.run()["measure"] == "restore"
    assert "metrics:\n  m.json:\n    size: 17\n" in three.read("mlx.lock/measure.yaml")


def test_matrix(box: Sandbox):
    box.pipeline(
        """
vars: {seeds: [0, 1]}
stages:
  train:
    matrix: {model: [rf, gb], seed: "${seeds}"}
    cmd: mkdir -p m && echo ${model} ${seed} > m/${model}-${seed}.txt
    outs: ["m/${model}-${seed}.txt"]
  sum:
    cmd: cat m/*.txt > sum
    deps: ["m/*.txt"]
    outs: [sum]
"""
    )
    names = ["train@rf-0", "train@rf-1", "train@gb-0", "train@gb-1"]
    assert box.run() == dict.fromkeys([*names, "sum"], "run")
    assert box.read("sum") == "gb 0\ngb 1\nrf 0\nrf 1\n"
    box.pipeline(box.read("mlx.yaml").replace("mlx: 1\n", "").replace("[0, 1]", "[0, 2]"))
    assert set(box.run()) == {"train@rf-0", "train@gb-0", "train@rf-2", "train@gb-2", "sum"}
    assert box.read("sum").count("\n") == 6, "what the dropped stages made is still there"
    assert box.run("train@rf-0") == {"train@rf-0": "skip"}


def test_pipelines_in_sub_folders(box: Sandbox):
    box.write("shared", "s")
    box.pipeline("stages:\n  all: {cmd: cat one/out two/out > report, deps: [one/out, two/out], outs: [report]}\n")
    for name in ("one", "two"):
        box.pipeline(
            f"stages:\n  make: {{cmd: 'cat ../shared local > out; echo {name} >> out', deps: [../shared, local], outs: [out]}}\n",
            f"{name}/mlx.yaml",
        )
        box.write(f"{name}/local", name)
    assert box.run() == {"one:make": "run", "two:make": "run", "all": "run"}
    assert box.read("report") == "soneone\nstwotwo\n"
    assert "path: ../shared" in box.read("one/mlx.lock/make.yaml")
    assert "path: out" in box.read("one/mlx.lock/make.yaml")
    box.write("two/local", "changed")
    assert box.run() == {"one:make": "skip", "two:make": "run", "all": "run"}
    assert box.run("one:make") == {"one:make": "skip"}


def test_branches_that_change_different_stages_merge(three: Sandbox):
    three.git("checkout", "--quiet", "-b", "branch")
    three.write("params.yaml", "lr: 7\nother: 2\n")
    three.run("train")
    three.commit("other parameter")
    three.git("checkout", "--quiet", "main")
    three.checkout(force=True)
    three.write(
        "mlx.yaml", three.read("mlx.yaml") + "  extra:\n    cmd: cp raw extra\n    deps: [raw]\n    outs: [extra]\n"
    )
    assert three.run() == {**dict.fromkeys(ALL, "skip"), "extra": "run"}
    three.commit("another stage")
    three.git("merge", "--quiet", "-m", "merge", "branch")
    assert three.actions() == {"prepare": "skip", "train": "restore", "measure": "run", "extra": "skip"}
    three.run()
    assert three.clean()


def test_stage_whose_inputs_are_elsewhere(three: Sandbox):
    shutil.rmtree(three.project().cache.root)
    (three.root / "prepared").unlink()
    (three.root / "model").unlink()
    assert three.run() == {"prepare": "run", "train": "run", "measure": "skip"}


def test_object_that_is_damaged_is_made_again(three: Sandbox):
    from mlops_cli.errors import CorruptObject

    cache = three.project().cache
    (stage,) = [stage for stage in three.snapshot().stages if stage.name == "train"]
    (out,) = three.snapshot().outputs(stage)
    damage(cache, out.digest)
    (three.root / "model").unlink()
    with pytest.raises(CorruptObject):
        three.run()
    assert three.run() == {"prepare": "skip", "train": "run", "measure": "skip"}
    assert three.clean()


def test_processes_left_behind_cannot_change_a_result(box: Sandbox):
    box.pipeline(
        "stages:\n  s:\n    cmd: (while ! test -e go; do :; done; echo late >> out) & echo $! > pid; echo 1 > out\n    outs: [out]\n"
    )
    assert box.run() == {"s": "run"}
    assert not is_alive(int(box.read("pid")))
    assert box.heard.notes == [
        "the command of stage `s` left processes behind; they were stopped (end it with `wait` to let them finish)"
    ]


def before_a_restore(box: Sandbox) -> None:
    """Make a stage whose outputs are "new" and "new again", and whose next run restores "old" and "old again"."""
    box.pipeline(
        "stages:\n  s:\n    cmd: mkdir d; cp n a; cat n > d/b; echo ' again' >> d/b\n    deps: [n]\n    outs: [a, d]\n"
    )
    for text in ("old", "new"):
        box.write("n", text)
        box.run()
    box.write("n", "old")
    assert box.actions() == {"s": "restore"}


def test_restore_that_fails_half_way_brings_the_old_outputs_back(box: Sandbox):
    from mlops_cli.errors import CorruptObject
    from mlops_cli.hashing import hash_bytes

    before_a_restore(box)
    damage(box.project().cache, hash_bytes(b"old again\n"))
    before = listing(box.root)
    with pytest.raises(CorruptObject):
        box.run()
    after = listing(box.root)
    for path in (b"a", b"d/b", b"mlx.lock/s.yaml"):
        assert after[path] == before[path]
    assert not list((box.project().local / "journal").rglob("*.json"))


def test_restore_that_is_killed_leaves_no_mix(box: Sandbox):
    before_a_restore(box)
    seen = set()
    for _ in crashes(box.run):
        box.checkout(dry_run=True)  # any command that holds the checkout recovers
        made = (box.read("a"), box.read("d/b"))
        assert made in (("old", "old again\n"), ("new", "new again\n"))
        assert box.clean() == (made[0] == "old")
        seen.add(made)
    assert ("new", "new again\n") in seen, "it was killed before the lock was written"
    assert (box.read("a"), box.read("d/b")) == ("old", "old again\n"), "and the last one was not killed"
    assert box.clean()


@pytest.mark.parametrize("path", ["a", "d/b"])
@pytest.mark.parametrize("text", ["new", "a longer edit"])
@pytest.mark.parametrize("moment", ["restore", "apply_changes"])
@pytest.mark.parametrize("action", ["restore", "run"])
def test_output_that_is_edited_while_outputs_make_way_stays(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, path: str, text: str, moment: str, action: str
):
    """Before the outputs are looked at, and after that: the edit is in no store, whatever its size and time."""
    before_a_restore(box)
    if action == "run":
        box.write("n", "one more")
    place = work_module if (moment, action) == ("restore", "restore") else checkout_module
    if (moment, action) == ("restore", "run"):
        place, moment = work_module, "clear_outputs"
    carry_out = getattr(place, moment)
    text = text if path == "a" else text.ljust(len("new again\n"))
    text = text.replace("new", "mew")

    def edited(*args: Any, **options: Any) -> None:
        box.write(path, text)
        carry_out(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, moment, edited)
        with pytest.raises(UsageError, match="was changed while mlx was about to replace it") as caught:
            box.run()

    assert caught.value.hint == "run the same command again: it stores what is there before it replaces it"
    assert box.read(path) == text
    if path == "d/b":
        assert box.read("a") == "new", "what nobody edited is back"
    assert not list((box.project().local / "journal").rglob("*.json"))
    assert box.run() == {"s": action}
    assert any("held bytes that no store had" in note for note in box.heard.notes)
    assert box.read("a") == box.read("n")


def test_edit_of_an_output_that_comes_back_after_a_failure_stays(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    """What is as it was before the run needs no bringing back: it may be edited by then."""
    before_a_restore(box)
    box.write("mlx.yaml", box.read("mlx.yaml").replace("mkdir d; cp n a;", "cp n a; false;"))
    put_back = journal_module.restore

    def edited(*args: Any, **options: Any) -> None:
        box.write("a", "edit")
        put_back(*args, **options)

    monkeypatch.setattr(journal_module, "restore", edited)
    with pytest.raises(StageFailed):
        box.run()

    assert box.read("a") == "edit"
    assert any("`a` was changed while mlx was about to replace it" in note for note in box.heard.notes)


def test_names_that_a_file_system_folds_are_not_restored(box: Sandbox):
    """Where case counts, a second name for `.mlx` makes the project look as if it did not."""
    names = "A.csv a.csv"
    box.write("n", "old")
    box.pipeline("stages:\n  s:\n    cmd: mkdir d; cd d; for x in $(cat ../n); do echo $x > $x; done\n")
    box.write("mlx.yaml", box.read("mlx.yaml") + "    deps: [n]\n    outs: [d]\n")
    for text in (names, "other"):
        box.write("n", text)
        box.run()
    box.write("n", names)
    (box.root / ".MLX").mkdir(exist_ok=True)

    with pytest.raises(UsageError, match=r"this file system takes `d/A.csv` and `d/a.csv` for the same file"):
        box.run()

    assert os.listdir(box.root / "d") == ["other"]
    shutil.rmtree(box.root / ".MLX")
    assert box.run() == {"s": "restore"}
    assert sorted(os.listdir(box.root / "d")) == ["A.csv", "a.csv"]


def test_missing_tracked_input(box: Sandbox):
    box.write("data", "x")
    box.add("data")
    box.pipeline("stages:\n  s: {cmd: cp data out, deps: [data], outs: [out]}\n")
    (box.root / "data").unlink()
    with pytest.raises(MissingObject) as caught:
        box.run()
    assert caught.value.message == "stage `s` needs `data`, which is recorded but not in the workspace"
    assert caught.value.hint == "`mlx pull data` brings it"


def test_long_names(box: Sandbox):
    name = "s" + "-long" * 39
    folder = "/".join(["deep folder %:"] * 15)
    box.pipeline(f"stages:\n  {name}: {{cmd: echo 1 > out, outs: [out]}}\n", f"{folder}/mlx.yaml")
    assert box.run() == {f"{folder}:{name}": "run"}
    assert box.run() == {f"{folder}:{name}": "skip"}


def test_dependency_that_cannot_be_read_after_the_run_counts_as_changed(box: Sandbox):
    """Hours of work are not thrown away for it."""
    box.write("src/code", "1")
    box.pipeline("stages:\n  s:\n    cmd: echo result > out; mkfifo src/pipe\n    deps: [src]\n    outs: [out]\n")
    box.run()
    assert box.read("out") == "result\n"
    (box.root / "src/pipe").unlink()
    assert box.reasons("s") == ("`src` changed while the stage last ran",)


def test_dependency_edited_before_the_stage_that_needs_it_begins(box: Sandbox):
    """What a stage before takes hours for must not make the later stage's look at its inputs an old one."""
    box.write("util", "1")
    box.pipeline(
        """stages:
  a:
    cmd: echo 2 > util; echo a > a
    deps: [x]
    outs: [a]
  b:
    cmd: cat util > b
    deps: [util, a]
    outs: [b]
  z:
    cmd: cat util > z
    deps: [util]
    outs: [z]
"""
    )
    box.write("x", "1")
    box.run("z")
    box.run("b")
    assert box.read("b") == "2\n"
    assert not [note for note in box.heard.notes if "changed while" in note]
    assert box.actions() == {"a": "skip", "b": "skip", "z": "run"}


def test_metrics_that_are_newly_declared_are_read(box: Sandbox):
    declared = "stages:\n  s:\n    cmd: echo '{\"v\":1}' > m.json\n    %s: [m.json]\n"
    box.pipeline(declared % "plots")
    box.run()
    assert "metrics" not in box.read("mlx.lock/s.yaml")
    box.pipeline(declared % "metrics")
    assert "output `m.json` is now declared as metrics" in box.reasons("s")
    assert box.run() == {"s": "restore"}
    assert "metrics:\n  m.json:\n    v: 1\n" in box.read("mlx.lock/s.yaml")
    box.pipeline(declared % "plots")
    assert "output `m.json` is no longer declared as metrics" in box.reasons("s")
    box.run()
    assert "metrics" not in box.read("mlx.lock/s.yaml")


def test_files_that_only_an_output_hides_do_not_become_outputs(box: Sandbox):
    box.pipeline("stages:\n  s:\n    cmd: mkdir -p out && echo 1 > out/made\n    outs: [out]\n")
    box.write("out/.mlxignore", "*.tmp\n")
    box.write("out/x.tmp", "mine")
    with pytest.raises(UsageError, match="is inside an output of stage `s`"):
        box.run()
    assert (box.read("out/.mlxignore"), box.read("out/x.tmp")) == ("*.tmp\n", "mine")
    shutil.rmtree(box.root / "out")
    box.pipeline("stages:\n  s:\n    cmd: mkdir -p out/d && touch out/d/.mlxignore\n    outs: [out]\n")
    assert "`out/d/.mlxignore` is inside an output" in fails(box).message


def test_lock_behind_a_link_is_not_restored_either(box: Sandbox, tmp_path: Path):
    box.pipeline("stages:\n  s:\n    cmd: echo 1 > out\n    outs: [out]\n")
    box.run()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(box.root / "mlx.lock")
    (box.root / "out").unlink()
    (box.root / "mlx.lock").symlink_to(elsewhere)
    assert box.actions() == {"s": "restore"}
    with pytest.raises(UsageError, match="lies behind the symbolic link"):
        box.run()
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("link", ["models", "mlx.lock"])
def test_outputs_behind_a_link_are_refused_before_anything_runs(box: Sandbox, tmp_path: Path, link: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (box.root / link).symlink_to(elsewhere)
    box.pipeline("stages:\n  s:\n    cmd: touch ran models/m\n    outs: [models/m]\n")
    with pytest.raises(UsageError, match=f"lies behind the symbolic link `{link}`"):
        box.run()
    assert not box.exists("ran")
    assert list(elsewhere.iterdir()) == []


def test_inputs_that_nobody_keeps_are_told(box: Sandbox):
    box.write("d/a", "1")
    box.add("d")
    box.write("d/b", "not added")
    box.write(".gitignore", box.read(".gitignore") + "x.csv\n")
    box.write("x.csv", "1")
    box.write("code", "1")
    box.pipeline("stages:\n  s:\n    cmd: echo 1 > out\n    deps: [d, x.csv, code]\n    outs: [out]\n")
    box.run()
    assert box.heard.notes == [
        "`d` is not what its pointer says: `mlx add d` keeps it",
        "Git ignores `x.csv`, and no store has it: `mlx add x.csv` keeps it",
    ]


def test_inputs_of_which_only_a_part_is_here_are_kept(box: Sandbox):
    """What is gone from the workspace is in the store; adding would take it out of the record."""
    box.write("d/sub/a", "1")
    box.write("d/b", "2")
    box.add("d")
    (box.root / "d/b").unlink()
    box.pipeline("stages:\n  s:\n    cmd: echo 1 > out\n    deps: [d/sub]\n    outs: [out]\n")
    box.run()
    assert box.heard.notes == []
    box.write("d/sub/c", "3")
    box.run()
    assert box.heard.notes == ["`d/sub` is not what its pointer says: `mlx add d/sub` keeps it"]


def test_worktree_with_the_name_of_the_main_one_is_another_checkout(box: Sandbox):
    """Git names a linked worktree after its folder; its journal, lock and failures are its own all the same."""
    box.commit()
    box.git("worktree", "add", "--quiet", "-b", "other", "../main")
    keys = {find_project(root, os.environ).checkout_key for root in (box.root, box.root.parent / "main")}
    assert len(keys) == 2


def test_digest_of_what_was_replaced_stays_in_the_log(box: Sandbox):
    """No record will ever name it, and whoever runs quietly sees no note."""
    box.pipeline("stages:\n  s:\n    cmd: echo made > out\n    outs: [out]\n")
    box.write("out", "by hand")
    box.run()
    assert str(hash_bytes(b"by hand")) in (box.surroundings().logs / "s.log").read_text()
