"""What stays at the foot of a terminal while stages run, and that output cannot disturb it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from mlops_cli.cli.live_view import LiveView, Running, frame, last_line, tamed
from mlops_cli.cli.output import Colors, Output
from mlops_cli.cli.run_view import make_listener
from mlops_cli.cli.spelling import Spelling
from mlops_cli.cli.text import about_text, clipped, duration_text
from tests.cli.conftest import Project

RUNNING = {
    "prepare": Running(90.0, b"reading\n"),
    "train@a-model-with-a-name-that-is-long": Running(30.5, b"10%\r20%\r"),
}


def test_a_frame() -> None:
    assert frame(RUNNING, 3, 100, 95.0, 100.0, (80, 24)) == [
        "prepare                              10 s  reading",
        "train@a-model-with-a-name-tha…  1 min 9 s  20%",
        "3 of 100 done, 2 running, 1 min 35 s",
    ]


def test_a_frame_fits_the_terminal() -> None:
    many = {f"stage{number:02}": Running(0.0, b"\xe5\x9b\xbd" * 100) for number in range(20)}
    for columns in (1, 2, 5, 20, 39, 80):
        lines = frame(many, 0, 20, 1.0, 1.0, (columns, 10))
        assert len(lines) == 5
        assert all(clipped(line, columns - 1) == line for line in lines)
    assert "(16 more than shown)" in frame(many, 0, 20, 1.0, 1.0, (80, 10))[-1]


@pytest.mark.parametrize(
    ("tail", "line"),
    [
        (b"", ""),
        (b"one\ntwo\n\n  \n", "two"),
        (b"10%\r20%\r", "20%"),
        (b"\x1b[31mred\x1b[0m\x1b[2J\n", "red"),
        (b"\x1b]0;title\x07text\x00\x9b\n", "text \ufffd"),
        (b"caf\xe9 \x1b[", "caf\ufffd"),
    ],
)
def test_the_last_line(tail: bytes, line: str) -> None:
    assert last_line(tail) == line


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"plain", b"plain"),
        (b"10%\r20%\r", b"20%"),
        (b"\x1b[31mred\x1b[0m", b"\x1b[31mred\x1b[0m\x1b[0m"),
        (b"\x1b[2J\x1b[Hgone\x1b[3A", b"gone"),
        (b"\x1b]0;title\x07text", b"text"),
        ("naïve\t中".encode(), "naïve        中".encode()),
        (b"\xff\x07\x1b", b"\\xff\\x07"),
        ("\x9b2J".encode(), b"\\x9b2J"),
    ],
)
def test_output_that_moves_nothing(line: bytes, shown: bytes) -> None:
    assert tamed(line) == shown


@pytest.mark.parametrize(
    ("seconds", "exactly", "about"),
    [
        (0.04, "0.0 s", "10 s"),
        (12.4, "12 s", "12 s"),
        (59.6, "1 min", "1 min"),
        (245, "4 min 5 s", "4 min"),
        (7265, "2 h 1 min", "2 h 1 min"),
        (3600, "1 h", "1 h"),
    ],
)
def test_lengths_of_time(seconds: float, exactly: str, about: str) -> None:
    assert (duration_text(seconds), about_text(seconds)) == (exactly, about)


def test_a_terminal_that_became_narrower_is_cleared_of_the_lines_it_made_two_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = LiveView(raw=False, begun=now, total=9)
    view.begin("train")
    now += 5
    monkeypatch.setattr("mlops_cli.cli.live_view.error_size", lambda: (80, 24))
    view.tick()
    assert capfd.readouterr().err == "train  5 s\n0 of 9 done, 1 running, 5 s"
    monkeypatch.setattr("mlops_cli.cli.live_view.error_size", lambda: (20, 24))
    view.tick()
    assert capfd.readouterr().err == "\r\x1b[2A\x1b[Jtrain  5 s\n0 of 9 done, 1 run…"
    view.close()
    assert capfd.readouterr().err == "\r\x1b[1A\x1b[J"


def screen(said: str) -> list[str]:
    """Return what a terminal shows in the end of `said`, which knows three ways to move."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|[\r\n]|[^\x1b\r\n]+", said):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif part == "\x1b[J":
            lines[row:] = [lines[row][:column]]
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return lines


def run_on_terminal(project: Project, *words: str, until: str) -> str:
    """Run `mlx` on a terminal; returns what came there. What waits at `gate` goes on once `until` was seen."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    with subprocess.Popen(
        [sys.executable, "-m", "mlops_cli", *words], cwd=project.root, stdout=theirs, stderr=theirs, env=environ
    ) as process:
        os.close(theirs)
        said, opened = b"", False
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # nobody has the other end any more
                break
            if not data:
                break
            said += data
            if not opened and until.encode() in said:
                opened = True
                (project.root / "gate").write_text("go\n")
    os.close(ours)
    assert process.returncode == 0
    return said.decode()


@pytest.fixture
def waiting(project: Project) -> Project:
    """Return a project of a stage that waits at a gate, and one that does not."""
    os.mkfifo(project.root / "gate")
    project.write(
        "mlx.yaml",
        "mlx: 1\nstages:\n"
        "  slow: {cmd: \"printf '10%%\\\\r20%%'; read go < gate; printf '\\\\033[2J\\\\n'; echo > slow\", outs: [slow]}\n"
        '  quick: {cmd: "echo text; echo > quick", outs: [quick]}\n',
    )
    return project


def test_on_a_terminal_what_runs_is_shown_and_goes_when_it_ends(waiting: Project) -> None:
    said = run_on_terminal(waiting, "run", "-j", "2", until="1 of 2 done, 1 running, 1 s")

    assert (
        re.search(r"\x1b\[J(slow  \d s  20%)\r\n1 of 2 done, 1 running, 1 s", said)
        or "slow  1 s  20%\r\n1 of 2" in said
    )
    last = screen(said.replace("\x1b[0m", ""))
    assert [line for line in last if "running" in line] == []
    assert "quick | text" in last
    assert "slow | 20%" in last
    assert re.fullmatch(r"ran 2, restored 0, skipped 0 in \d.\d s", last[-2])


@pytest.mark.parametrize(
    ("term", "quiet", "as_json", "live"),
    [
        ("xterm", False, False, True),
        ("dumb", False, False, False),
        ("", False, False, False),
        ("xterm", True, False, False),
        ("xterm", False, True, False),
    ],
)
def test_where_there_are_such_lines(
    term: str, quiet: bool, as_json: bool, live: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", term)
    output = Output(as_json, quiet, Colors(), [], Spelling(tmp_path))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        assert (make_listener(output, several=True).live is not None) is live
    os.close(ours)
    assert make_listener(output, several=True).live is None
