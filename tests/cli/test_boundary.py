"""Whatever happens, the user sees one sentence and an exit code: never a traceback that nobody asked for."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.hashing import hash_bytes
from mlops_cli.workspace import project as project_module
from tests.cli.conftest import Project
from tests.objects import cache_at, damage, lose_all

Started = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(project: Project) -> Started:
    """Return a callable that starts the real program in the project."""

    def run(*args: str, **more: Any) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "HOME": str(project.home), "PYTHONUNBUFFERED": "", **more.pop("env", {})}
        return subprocess.Popen([sys.executable, "-m", "mlops_cli", *args], cwd=project.root, env=environ, **more)

    return run


@pytest.fixture
def unread() -> Any:
    """Return the end of a pipe whose other end nobody holds."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every command that needs a project end in `error`."""

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(project_module, "find_project", fail)


# What a user can act on ----------------------------------------------------------------------------------------------


def no_answer(project: Project) -> list[str]:
    return ["config", "get", "cache.dir"]


def wrong_use(project: Project) -> list[str]:
    return ["add", "absent"]


def wrong_record(project: Project) -> list[str]:
    project.write("mlx.yaml", "mlx: 1\nstagse: {}\n")
    return ["run"]


def nothing_to_judge(project: Project) -> list[str]:
    project.git("rm", "-r", "--quiet", "--cached", "mlx.lock")
    project.git("commit", "--quiet", "--message=No locks")
    return ["reproduce", "HEAD"]


def bytes_elsewhere(project: Project) -> list[str]:
    lose_all(project.cache)
    (project.root / "data" / "labels.csv").unlink()
    return ["checkout", "data/labels.csv"]


def damaged_bytes(project: Project) -> list[str]:
    damage(cache_at(project.cache), hash_bytes(b"b,1\na,0\n"))
    return ["cat", "data/labels.csv"]


def no_such_folder(project: Project) -> list[str]:
    project.must("remote", "add", "gone", "/nonexistent/remote")
    lose_all(project.cache)
    return ["fetch", "--remote", "gone"]


@pytest.mark.parametrize(
    ("arrange", "code", "message", "hint"),
    [
        (no_answer, 1, "`cache.dir` is not set", "`mlx config set cache.dir VALUE` sets it"),
        (wrong_use, 2, "`absent` does not exist", "check the spelling; paths are relative to where you are"),
        (wrong_record, 2, "mlx.yaml:2: unknown key `stagse` in `mlx.yaml`", "did you mean `stages`?"),
        (
            nothing_to_judge,
            3,
            "stage `prepare` has no lock in this revision: there is no result to compare with",
            "choose a revision in which it had run, or name other stages",
        ),
        (
            bytes_elsewhere,
            4,
            "the cache lacks 1 object of `data/labels.csv`",
            "`mlx pull data/labels.csv` brings it from a remote",
        ),
        (damaged_bytes, 5, "`data/labels.csv`: object `blake3:", "it is in `quarantine/` of the cache now; "),
        (no_such_folder, 6, "remote `gone` (`/nonexistent/remote`) does not exist", "mount it, or check its URL"),
    ],
)
def test_an_error_is_a_sentence_a_hint_and_its_exit_code(
    arrange: Callable[[Project], list[str]], code: int, message: str, hint: str, project: Project
) -> None:
    result = project(*arrange(project))

    assert (result.code, result.stdout) == (code, "")
    first, second = result.stderr.splitlines()[-2:]
    assert first.startswith(f"error: {message}")
    assert second.startswith(f"hint: {hint}")


def test_a_folder_that_is_gone(project: Project, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()

    done = subprocess.run(
        ["/bin/sh", "-c", f'cd "{gone}" && rmdir "{gone}" && exec "{sys.executable}" -m mlops_cli status'],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(project_module.__file__).parents[2])},
    )

    assert done.returncode == 2
    assert done.stderr == "error: the current folder does not exist any more\nhint: `cd` to one that does\n"


# What the system refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot go on: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "some/file"), "cannot use `some/file`: permission denied"),
        (OSError("what is this"), "cannot go on: what is this"),
    ],
)
def test_an_error_of_the_system_is_a_sentence(
    error: OSError, message: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(error, monkeypatch)

    result = project("status")

    assert (result.code, result.stdout) == (6, "")
    assert result.stderr.splitlines()[0] == f"error: {message}"
    assert result.stderr.splitlines()[1].startswith("hint: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("args", [["config", "list"], ["config", "list", "--json"], ["--version"], ["--help"]])
def test_an_answer_that_cannot_be_written_is_an_error(args: list[str], start: Started) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(*args, stdout=full, stderr=subprocess.PIPE)
        said = process.communicate()[1].decode()

    assert process.returncode == 6
    assert "cannot go on: the disk is full" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said


# Streams that nobody reads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["ls"], ["--help"], ["ls", "--json"], ["cat", "data/labels.csv"]])
def test_an_answer_that_nobody_reads_is_no_error(args: list[str], start: Started, unread: int) -> None:
    process = start(*args, stdout=unread, stderr=subprocess.PIPE)

    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_a_conversation_that_nobody_hears_stops_nothing(project: Project, start: Started, unread: int) -> None:
    project.write("train.sh", (project.root / "train.sh").read_text() + "head -c 300000 /dev/zero\n")

    process = start("run", stdout=subprocess.PIPE, stderr=unread)

    assert process.communicate()[0].startswith(b"ran 2, restored 0, skipped 1 in ")
    assert process.returncode == 0
    logs = (project.root / ".git" / "mlx" / "runs").glob("*/train@forest.log")
    assert max(log.stat().st_size for log in logs) > 300000


def closing(project: Project, line: str) -> subprocess.CompletedProcess[bytes]:
    """Run `mlx LINE` in a shell, which may close its streams."""
    return subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m mlops_cli {line}'],
        cwd=project.root,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["ls", "--version", "--help", "ls --help", "cat data/labels.csv", "add data/raw"])
@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_an_answer_to_a_closed_stream_is_an_error(command: str, closed: str, project: Project) -> None:
    done = closing(project, f"{command} {closed}")

    assert done.returncode == 6
    assert done.stderr.decode().splitlines() == [
        "error: cannot write the answer: standard output is closed",
        "hint: `>/dev/null` throws it away",
    ]


def test_an_answer_to_a_closed_stream_is_an_error_in_json_too(project: Project) -> None:
    done = closing(project, "ls --json >&-")

    assert done.returncode == 6
    assert json.loads(done.stderr)["message"] == "cannot write the answer: standard output is closed"


@pytest.mark.parametrize(("line", "code"), [("ls 2>&-", 0), ("lss 2>&-", 2), ("ls >&- 2>&-", 6)])
def test_a_conversation_on_a_closed_stream_is_no_error(line: str, code: int, project: Project) -> None:
    done = closing(project, line)

    assert done.returncode == code
    assert done.stderr == b""
    assert bool(done.stdout) == (code == 0)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed: str, tmp_path: Path) -> None:
    code = (
        "import os; from mlops_cli.cli.streams import open_closed_streams; open_closed_streams(); "
        "file = os.open('told', os.O_CREAT | os.O_WRONLY); os.write(file, str(file).encode())"
    )
    subprocess.run(["/bin/sh", "-c", f'"{sys.executable}" -c "{code}" {closed}'], cwd=tmp_path, check=True)

    assert (tmp_path / "told").read_text() == "3"


def on_terminal(start: Started, columns: int, *args: str) -> str:
    """Return what `mlx ARGS` tells a terminal of so many columns."""
    leader, follower = os.openpty()
    try:
        termios.tcsetwinsize(follower, (24, columns))
        attributes = termios.tcgetattr(follower)
        attributes[1] &= ~termios.OPOST  # a newline stays one
        termios.tcsetattr(follower, termios.TCSANOW, attributes)
        start(*args, stdout=subprocess.DEVNULL, stderr=follower, env={"COLUMNS": ""}).wait(60)
        return os.read(leader, 65_536).decode()
    finally:
        os.close(leader)
        os.close(follower)


def test_an_error_is_wrapped_on_a_terminal_and_one_line_elsewhere(project: Project, start: Started) -> None:
    lose_all(project.cache)
    for name in ("storage", "backup"):
        project.must("remote", "remove", name)
    args = ("cat", "data/raw/a.png", "--rev", "HEAD~1")

    drawn = on_terminal(start, 50, *args)
    told = project(*args).stderr

    assert max(map(len, drawn.splitlines())) <= 50 < max(map(len, told.splitlines()))
    assert told.count("\n") == 2
    assert drawn.replace("\n       ", " ").replace("\n      ", " ") == told


def test_a_terminal_that_speaks_only_ascii(project: Project, start: Started) -> None:
    project.write("data/raw/naïve.txt", "more\n")

    process = start("diff", "HEAD", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    text = process.communicate()[0]
    process = start("diff", "HEAD", "--json", stdout=subprocess.PIPE, env={"PYTHONIOENCODING": "ascii"})
    document = process.communicate()[0]

    assert text == b"~ data/raw/na\\xefve.txt  (0 B \\u2192 5 B)\n"
    assert "data/raw/naïve.txt".encode() in document


# Bytes and names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1000, (8 << 20) + 1])
def test_cat_passes_bytes_on_as_they_are(size: int, project: Project) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    (project.root / "bytes").write_bytes(data[:size])
    project.must("add", "bytes")

    result = project("cat", "bytes")

    assert (result.code, result.stdout_bytes, result.stderr) == (0, data[:size], "")


def test_cat_of_a_large_damaged_object_fails_in_the_end(project: Project) -> None:
    (project.root / "bytes").write_bytes(bytes((8 << 20) + 1))
    project.must("add", "bytes")
    stored = max((project.cache / "objects").glob("*/*"), key=lambda path: path.stat().st_size)
    stored.chmod(0o644)
    with stored.open("r+b") as file:
        file.write(b"x")

    result = project("cat", "bytes")

    assert result.code == 5
    assert "is damaged" in result.stderr


def test_names_cannot_control_the_terminal(project: Project) -> None:
    for name in (b"new\nline", b"esc\x1b[31m", b"bad\xff", b"tab\there", "right\u202eleft".encode()):
        (project.root / os.fsdecode(b"odd " + name)).write_bytes(b"x")
        (project.root / "odd").mkdir(exist_ok=True)
        (project.root / "odd" / os.fsdecode(name)).write_bytes(b"x")
    project.must("add", "odd")

    listed = project("ls", "odd")
    added = project("add", os.fsdecode(b"odd new\nline"))
    refused = project("add", os.fsdecode(b"absent \x1b[31m\n"))

    assert [line.rpartition("odd/")[2] for line in listed.stdout.splitlines()[2:]] == [
        "bad\\xff",
        "esc\\x1b[31m",
        "new\\nline",
        "right\\u202eleft",
        "tab\\there",
    ]
    assert added.stdout == "added odd new\\nline (1 file, 1 B)\n"
    assert added.stderr == "next: git add $'odd new\\nline.mlx' .gitignore\n"
    assert refused.stderr.splitlines()[0] == "error: `absent \\x1b[31m\\n` does not exist"


# Interruptions -------------------------------------------------------------------------------------------------------


def test_an_interrupt_is_a_sentence(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)

    result = project("status")

    assert (result.code, result.stdout) == (130, "")
    assert result.stderr == "error: interrupted\nhint: the same command again goes on from here\n"


AT_IMPORT = """
import os, sys
class Signalling:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Signalling())
from mlops_cli.cli.entry import entry
entry()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["mlops_cli.cli.main", "typer", "mlops_cli.cli.usage"])
@pytest.mark.parametrize("args", [["status"], ["status", "--json"]])
def test_an_interrupt_while_the_program_is_loaded(
    number: signal.Signals, name: str, args: list[str], project: Project
) -> None:
    script = AT_IMPORT.format(name=name, number=int(number))

    done = subprocess.run([sys.executable, "-c", script, *args], cwd=project.root, capture_output=True, check=False)

    assert (done.returncode, done.stdout) == (130, b"")
    if "--json" in args:
        assert json.loads(done.stderr) == {
            "schema": "mlx/error/v1",
            "message": "interrupted",
            "hint": "the same command again goes on from here",
            "exit_code": 130,
        }
    else:
        assert done.stderr == b"error: interrupted\nhint: the same command again goes on from here\n"


def test_a_signal_that_is_ignored_when_the_program_is_started_stays_so(project: Project) -> None:
    script = AT_IMPORT.format(name="typer", number=int(signal.SIGINT))
    script = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n{script}"

    done = subprocess.run([sys.executable, "-c", script, "status"], cwd=project.root, capture_output=True, check=False)

    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_says_so_and_puts_the_outputs_back(
    number: signal.Signals, project: Project, start: Started
) -> None:
    before = (project.root / "models" / "forest.txt").read_text()
    project.write("train.sh", "echo begun; exec sleep 60\n")

    process = start("run", "train@forest", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert any(line == b"begun\n" for line in process.stderr), "it ended before the command began"
    process.send_signal(number)
    said = process.communicate()[1].decode()

    assert process.returncode == 130
    assert said == "error: interrupted\nhint: the same command again goes on from here\n"
    assert (project.root / "models" / "forest.txt").read_text() == before


def test_a_run_whose_terminal_closes_puts_the_outputs_back(project: Project, start: Started) -> None:
    before = (project.root / "models" / "forest.txt").read_text()
    project.write("train.sh", "echo begun; exec sleep 60\n")
    ours, theirs = os.openpty()

    process = start(
        "run",
        "train@forest",
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal:
        assert any(b"begun" in line for line in terminal)

    assert process.wait() == 130
    assert (project.root / "models" / "forest.txt").read_text() == before


def test_a_run_under_nohup_goes_on_when_its_terminal_closes(project: Project) -> None:
    os.mkfifo(project.root / "gate")
    project.write("train.sh", f"echo begun; read line < gate; {(project.root / 'train.sh').read_text()}")
    command = f"trap '' HUP; exec '{sys.executable}' -m mlops_cli run train@forest"
    process = subprocess.Popen(
        ["/bin/sh", "-c", command], cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    gate = os.open(project.root / "gate", os.O_RDWR)  # both ends: nobody ever waits for the other
    assert process.stderr is not None
    assert any(line == b"begun\n" for line in process.stderr), "it ended before the command began"

    process.send_signal(signal.SIGHUP)
    os.write(gate, b"go\n")
    said = process.communicate()[0]
    os.close(gate)

    assert process.returncode == 0
    assert said.startswith(b"ran 1, restored 0, skipped 1 in ")


# Bugs ----------------------------------------------------------------------------------------------------------------


def test_a_bug_is_a_short_message_and_a_log(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail_with(RuntimeError("no idea\nat all"), monkeypatch)

    result = project("status")

    assert (result.code, result.stdout) == (70, "")
    log = next(tmp_path.glob("mlx-*.log"))
    assert result.stderr == (
        "error: mlx has a bug: RuntimeError: no idea\\nat all\n"
        f"hint: please report it with `{log}`; nothing was left half done\n"
    )
    assert "arguments: ['status']" in log.read_text()
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_bug_where_no_log_can_be_written(project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    fail_with(RuntimeError("no idea"), monkeypatch)

    result = project("status")

    assert result.code == 70
    assert "report it with what `MLX_TRACEBACK=1` shows" in result.stderr


@pytest.mark.parametrize(
    ("args", "env", "shown"),
    [
        ([], {}, False),
        (["-v"], {}, False),
        (["-vv"], {}, True),
        (["-v", "-C", ".", "-v"], {}, True),
        ([], {"MLX_TRACEBACK": "1"}, True),
        ([], {"MLX_TRACEBACK": ""}, False),
    ],
)
@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "error"), KeyboardInterrupt()])
def test_a_traceback_is_for_who_asks(
    error: BaseException,
    args: list[str],
    env: dict[str, str],
    shown: bool,
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail_with(error, monkeypatch)

    result = project(*args, "status", env=env)

    assert result.stderr.startswith("Traceback (most recent call last)" if shown else "error: ")
    assert "\nhint: " in result.stderr
