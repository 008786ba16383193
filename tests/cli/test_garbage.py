"""`mlx gc` as people meet it: what it says, what it asks, and its exit codes."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from mlops_cli.cli import garbage
from mlops_cli.cli.bars import TerminalReporter
from tests.cli.conftest import Project


@pytest.fixture
def cluttered(project: Project) -> Project:
    """Return the finished project with a file in the cache that nothing names any more."""
    project.write("labels.csv", "unneeded\n")
    project.must("add", "labels.csv")
    project.write("labels.csv", "needed\n")
    project.must("add", "labels.csv")
    return project


def went(project: Project) -> int:
    files = (project.root / ".git" / "mlx" / "cache" / "trash").rglob("*")
    return sum(path.is_file() for path in files)


def test_a_dry_run_tells_what_it_would_do(cluttered: Project) -> None:
    result = cluttered.must("gc", "--dry-run", "--grace", "0s")

    assert "would put into the trash: 1 object" in result.stdout
    assert result.stdout.startswith("needed: ")
    assert result.stderr == ""
    assert went(cluttered) == 0


def test_the_young_stay(cluttered: Project) -> None:
    result = cluttered.must("gc", "--yes")

    assert "not needed, but too young to go: 1 object" in result.stdout
    assert "nothing to put into the trash" in result.stdout


def test_the_grace_age_is_a_setting_and_a_flag_comes_before_it(cluttered: Project) -> None:
    cluttered.must("config", "set", "gc.grace", "0s")

    assert "would put into the trash: 1 object" in cluttered.must("gc", "--dry-run").stdout
    assert "too young to go: 1 object" in cluttered.must("gc", "--dry-run", "--grace", "1h").stdout


def test_collect_restore_and_empty(cluttered: Project) -> None:
    collected = cluttered.must("gc", "--yes", "--grace", "0s")
    assert "\nput into the trash: 1 object" in collected.stdout
    assert "next: `mlx gc --restore`" in collected.stderr
    assert went(cluttered) > 0
    assert "would bring back" in cluttered.must("gc", "--restore", "--dry-run").stdout
    assert "brought back" in cluttered.must("gc", "--restore").stdout
    assert went(cluttered) == 0
    cluttered.must("gc", "--yes", "--grace", "0s")
    assert "would delete" in cluttered.must("gc", "--empty-trash", "--dry-run").stdout
    assert cluttered("gc", "--empty-trash").code == 2
    assert "deleted" in cluttered.must("gc", "--empty-trash", "--yes").stdout
    assert went(cluttered) == 0
    cluttered.must("status")


def test_without_anybody_to_ask_it_wants_yes(cluttered: Project) -> None:
    result = cluttered("gc")

    assert result.code == 2
    assert result.stderr == (
        "error: `mlx gc` asks before it does anything, and nobody is there to ask\nhint: add `--yes`\n"
    )


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("yes\n", 0), ("n\n", 1), ("", 1), ("\n", 1)])
def test_it_asks(answer: str, code: int, cluttered: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_can_ask", lambda output: True)

    result = _typed(cluttered, answer)

    assert result.code == code
    assert "would put into the trash: 1 object" in result.stderr
    assert "go on? [y/N] " in result.stderr
    assert bool(went(cluttered)) is (code == 0)
    if code:
        assert "nothing was done" in result.stderr


def test_no_bar_is_drawn_over_the_question(cluttered: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(garbage, "_can_ask", lambda output: True)
    monkeypatch.setattr(TerminalReporter, "close", lambda self: order.append("closed"))
    monkeypatch.setattr(TerminalReporter, "start", lambda self, *_: order.append("started"))
    monkeypatch.setattr(garbage, "write_error", lambda text: order.append("asked"))

    _typed(cluttered, "n\n")

    assert order[order.index("asked") - 1] == "closed"


def _typed(project: Project, answer: str) -> Any:
    from tests.conftest import InProcess

    home = {"HOME": str(project.home), "XDG_CONFIG_HOME": str(project.home / ".config")}
    return InProcess(project.root)("gc", "--grace", "0s", env=home, stdin=answer)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--restore", "--empty-trash"], "`--restore` and `--empty-trash` are two different things"),
        (["--grace", "soon", "-n"], "`--grace soon` is not a duration"),
        (["--grace=-1d", "-n"], "`--grace -1d` is not a duration"),
        (["--forget", "nowhere"], "no project at"),
    ],
)
def test_what_cannot_be_meant_is_refused(args: list[str], message: str, project: Project) -> None:
    result = project("gc", *args)

    assert result.code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert "hint: " in result.stderr


def test_what_cannot_be_read_is_named(cluttered: Project) -> None:
    cluttered.write("labels.csv.mlx", "mlx: 1\npath: labels.csv\nblob: blake3:12")

    result = cluttered("gc", "--yes", "--grace", "0s")

    assert result.code == 2
    assert "labels.csv.mlx" in result.stderr
    assert "nothing was collected" in result.stderr
    assert went(cluttered) == 0
    cluttered.must("gc", "--yes", "--grace", "0s", "--salvage")


def test_a_shallow_clone_is_inconclusive(cluttered: Project) -> None:
    (cluttered.root / ".git" / "shallow").write_text("0" * 40 + "\n")

    assert cluttered("gc", "--yes").code == 3


def test_json_tells_the_details(cluttered: Project) -> None:
    document = cluttered.must("gc", "--yes", "--grace", "0s", "--json").json()

    assert (document["action"], document["dry_run"], document["objects"]) == ("collect", False, 1)
    assert document["details"]["records"]["history"] > 0
    assert document["details"]["kept"]["objects"] > 0


def test_a_project_that_is_gone_can_be_forgotten(project: Project) -> None:
    notes = project.root / ".git" / "mlx" / "cache" / "projects"
    notes.mkdir()
    gone = project.root.parent / "gone"
    (notes / "x.json").write_text(f'{{"root": "{gone}", "git": "{gone}/.git"}}')

    refused = project("gc", "--yes")
    assert (refused.code, f"mlx gc --forget {gone}" in refused.stderr) == (3, True)
    assert "would collect without regard" in project.must("gc", "--forget", "../gone", "--dry-run").stdout
    assert project("gc", "--yes").code == 3
    assert project.must("gc", "--forget", "../gone", "--json").json()["action"] == "forget"

    project.must("gc", "--yes")


# Evicting ------------------------------------------------------------------------------------------------------------


def test_evict_tells_what_went_and_how_it_comes_back(project: Project) -> None:
    planned = project.must("evict", "data/raw", "--dry-run").stdout
    done = project("evict", "data/raw", "--yes")

    assert done.code == 0
    assert re.fullmatch(
        r"evicted data/raw: \d+ objects? of the cache \(.*\), 7 files of the workspace \(.*\); `storage` has it\n",
        done.stdout,
    )
    assert planned == done.stdout.replace("evicted", "would evict")
    assert done.stderr == "next: `mlx pull data/raw` brings it back\n"
    assert not (project.root / "data" / "raw").exists()
    assert "  not here   data/raw\n" in project("status").stdout
    project.must("pull", "data/raw")
    assert project("evict", "data/raw", "--yes", "--cache-only", "--json").json()["paths"][0]["files"] == 0


def test_evict_refuses_what_is_nowhere_else(project: Project) -> None:
    project.write("data/raw/new.png", "new\n")
    project.must("add", "data/raw")

    done = project("evict", "data/raw", "--yes")

    assert done.code == 2
    assert "remote `storage` does not hold 2 objects of `data/raw`: what is here may be the only copy" in done.stderr
    assert "hint: `mlx push data/raw` first" in done.stderr
    assert (project.root / "data" / "raw" / "new.png").exists()


def test_evict_asks_and_a_no_ends_it(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = project("evict", "data/raw")
    assert refused.code == 2
    assert "hint: add `--yes`" in refused.stderr
    monkeypatch.setattr(garbage, "_can_ask", lambda output: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n"))

    asked = project("evict", "data/raw")

    assert asked.code == 1
    assert "here? [y/N]" in asked.stderr
    assert (project.root / "data" / "raw" / "a.png").exists()
