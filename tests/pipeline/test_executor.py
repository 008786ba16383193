"""Running commands: what they print is shown and kept, and nothing of theirs is left when they are stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mlops_cli.errors import OutsideError
from mlops_cli.pipeline import processes
from mlops_cli.pipeline.execution import describe_status
from mlops_cli.pipeline.executor import execute
from mlops_cli.pipeline.processes import Group, is_running, start_of, stop_group
from tests.workspace.projects import is_alive, wait_for


def run(
    folder: Path,
    *commands: str,
    environ: Mapping[str, str] | None = None,
    output: Callable[[bytes], object] = lambda data: None,
    started: Callable[[Group], object] = lambda group: None,
    left_behind: Callable[[], object] = lambda: None,
) -> int:
    return execute(
        commands,
        folder=folder,
        environ=os.environ if environ is None else environ,
        log=folder / "logs/log",
        output=output,
        started=started,
        left_behind=left_behind,
    )


def test_output_is_shown_and_kept(tmp_path: Path):
    shown = bytearray()
    assert run(tmp_path, "echo out; echo err >&2", "printf 'caf\\351\\000'", output=shown.extend) == 0
    assert bytes(shown) == b"out\nerr\ncaf\xe9\x00"
    assert (tmp_path / "logs/log").read_bytes() == bytes(shown)


def test_first_failure_ends_it(tmp_path: Path):
    assert run(tmp_path, "true", "exit 3", "touch never") == 3
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("exit 1", 1, "exit code 1"),
        ("exit 255", 255, "exit code 255"),
        ("no-such-program --flag", 127, "command not found (exit code 127)"),
        ("./not-executable", 126, "the command is not executable (exit code 126)"),
        ("kill -9 $$", -9, "killed by SIGKILL"),
        ("kill -TERM $$", -15, "killed by SIGTERM"),
        ("sh -c 'kill -9 $$'; exit $?", 137, "exit code 137 (SIGKILL)"),
    ],
)
def test_statuses(tmp_path: Path, command: str, status: int, words: str):
    (tmp_path / "not-executable").write_text("")
    assert run(tmp_path, command) == status
    assert describe_status(status) == words


def test_surroundings(tmp_path: Path):
    shown = bytearray()
    command = 'echo "$PWD $GREETING ${HOME-none}"; if read -r line; then echo "read $line"; else echo empty; fi'
    run(tmp_path, command, environ={"GREETING": "hi $x", "PATH": os.environ["PATH"]}, output=shown.extend)
    assert shown.decode() == f"{tmp_path} hi $x none\nempty\n"


def test_shell_words_are_the_stages_own(tmp_path: Path):
    shown = bytearray()
    run(tmp_path, 'echo "$0 $#" \'single\' "two  spaces" *.txt', output=shown.extend)
    assert shown.decode().endswith(" 0 single two  spaces *.txt\n")


def test_folder_that_is_gone(tmp_path: Path):
    with pytest.raises(OutsideError) as caught:
        execute(
            ["true"],
            folder=tmp_path / "gone",
            environ={},
            log=tmp_path / "log",
            output=print,
            started=print,
        )
    assert caught.value.message == f"cannot start `true` in `{tmp_path / 'gone'}`: no such file or folder"


def test_much_output_is_passed_on_whole(tmp_path: Path):
    """Even when the terminal is slow: what was read last is not lost."""
    shown = bytearray()

    def slowly(data: bytes) -> None:
        shown.extend(data)
        threading.Event().wait(0.0005)

    run(tmp_path, "seq 1 60000", output=slowly)
    assert shown.endswith(b"\n60000\n")
    assert shown.count(b"\n") == 60000


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError, OSError])
def test_broken_output_does_not_stop_the_command(tmp_path: Path, error: type[Exception]):
    """`mlx run 2>&1 | head -1`: the command must neither fail nor wait for ever."""

    def broken(data: bytes) -> None:
        raise error

    assert run(tmp_path, "seq 1 200000; touch done", output=broken) == 0
    assert (tmp_path / "done").exists()
    assert (tmp_path / "logs/log").read_bytes().endswith(b"\n200000\n")


@pytest.mark.parametrize("start", ["", "trap '' TERM; "], ids=["gentle", "stubborn"])
@pytest.mark.parametrize("status", [0, 3])
def test_processes_left_behind_are_ended(tmp_path: Path, start: str, status: int, monkeypatch: pytest.MonkeyPatch):
    """A command is done when all it started is: what writes on would change outputs that are on record."""
    monkeypatch.setattr(processes, "_GRACE_SECONDS", 0.2)
    told: list[bool] = []
    command = f"({start}while :; do sleep 60; done) & echo $! > pids; exit {status}"
    assert run(tmp_path, command, left_behind=lambda: told.append(True)) == status
    assert told == [True]
    assert not alive(tmp_path / "pids")


def test_background_work_that_ends_by_itself_may(tmp_path: Path):
    told: list[bool] = []
    command = "(while kill -0 $$ 2>/dev/null; do :; done; echo late; touch late) &"
    shown = bytearray()
    assert run(tmp_path, command, output=shown.extend, left_behind=lambda: told.append(True)) == 0
    assert (tmp_path / "late").exists()
    assert (bytes(shown), told) == (b"late\n", [])


def test_group_is_on_record_before_the_command_begins(tmp_path: Path):
    def look(group: Group) -> None:
        assert is_running(group)
        assert not (tmp_path / "began").exists()

    assert run(tmp_path, "touch began", started=look) == 0


def test_command_never_begins_without_a_record(tmp_path: Path):
    def fail(group: Group) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "touch began", started=fail)
    assert not (tmp_path / "began").exists()


CHILD = """
import os, sys
from pathlib import Path
from mlops_cli.pipeline.executor import execute

execute(
    [sys.argv[1]],
    folder=Path.cwd(),
    environ=os.environ,
    log=Path("log"),
    output=lambda data: None,
    started=lambda group: Path("group").write_text(f"{group.number} {group.started}"),
)
"""


@pytest.fixture
def outer(tmp_path: Path) -> Callable[[str], subprocess.Popen[bytes]]:
    """Return a way to run a command in a process of its own, which can be interrupted."""

    def start(command: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", CHILD, command], cwd=tmp_path, stderr=subprocess.DEVNULL)
        wait_for((tmp_path / "running").exists)
        return process

    return start


def alive(pids: Path) -> list[str]:
    return [pid for pid in (pids.read_text().split() if pids.exists() else ()) if is_alive(int(pid))]


GENTLE = (
    "trap 'sleep 0.3; echo saved > saved; exit 9' TERM; echo $$ > pids; touch running; while :; do sleep 0.05; done"
)
DEEP = "(sh -c 'echo $$ >> pids; touch running; sleep 60' & wait); echo never"
STUBBORN = "trap 'touch asked' TERM; echo $$ > pids; touch running; while :; do sleep 0.02; done"


@pytest.mark.parametrize("command", [GENTLE, DEEP], ids=["gentle", "deep"])
def test_interruption_stops_everything(tmp_path: Path, outer: Callable[[str], subprocess.Popen[bytes]], command: str):
    process = outer(command)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) != 0
    assert not alive(tmp_path / "pids")
    if command == GENTLE:
        assert (tmp_path / "saved").exists(), "it was asked first, and given time"


def test_second_interruption_kills_at_once(tmp_path: Path, outer: Callable[[str], subprocess.Popen[bytes]]):
    process = outer(STUBBORN)
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "asked").exists)  # it is waiting for the command, which does not end
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    assert time.monotonic() - begun < 4
    wait_for(lambda: not alive(tmp_path / "pids"))


def test_orphan_can_be_found_and_stopped(tmp_path: Path, outer: Callable[[str], subprocess.Popen[bytes]]):
    process = outer(DEEP)
    process.kill()
    process.wait()
    number, started = (tmp_path / "group").read_text().split()
    group = Group(int(number), started)
    assert is_running(group)
    assert not is_running(Group(group.number, "another time"))
    stop_group(group.number)
    wait_for(lambda: not alive(tmp_path / "pids"))


def test_orphans_of_a_leader_that_ended_are_found(tmp_path: Path, outer: Callable[[str], subprocess.Popen[bytes]]):
    process = outer("(sh -c 'echo $$ > pids; touch running; sleep 60') & wait")
    process.kill()
    process.wait()
    number, started = (tmp_path / "group").read_text().split()
    group = Group(int(number), started)
    os.kill(group.number, signal.SIGKILL)
    wait_for(lambda: not start_of(group.number))
    assert alive(tmp_path / "pids")
    assert is_running(group)
    boot, _, ticks = started.rpartition(":")
    assert not is_running(Group(group.number, f"another boot:{ticks}"))
    assert not is_running(Group(group.number, f"{boot}:{int(ticks) + 10**6}"))
    stop_group(group.number)
    assert not is_running(group)
    assert not alive(tmp_path / "pids")


def test_processes_that_are_not_there():
    assert start_of(2**22 + 1) == ""
    assert not is_running(Group(2**22 + 1, ""))
    stop_group(2**22 + 1)
    assert start_of(os.getpid()) == start_of(os.getpid()) != ""
