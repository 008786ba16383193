"""`kill -9`, Ctrl-C and `kill` at any moment: the old state or the new, never a mix, and the same command goes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_cli.store.trees import tree_objects
from mlops_cli.workspace.project import find_project
from mlops_cli.workspace.snapshot import workspace_snapshot
from tests.cli.conftest import Project
from tests.crashing import killed_at

DEADLINE = 60  # seconds; only a test that fails waits so long
PIPELINE = """\
mlx: 1
stages:
  train:
    cmd: sh train.sh
    deps: [data.csv]
    outs: [model.txt, out]
    metrics: [metrics.json]
"""
TRAIN = """\
mkdir -p out/deep
cp data.csv model.txt
cp data.csv out/deep/copy
echo '{"rows": 1}' > metrics.json
"""
# The command and what it starts leave their ids, say that they are there, and wait for a line that never comes.
WAITING = """\
echo half > model.txt
echo $$ > child
sh -c 'echo $$ > grandchild; exec cat hold' &
while ! test -s grandchild; do :; done
echo begun
cat hold
"""
OLD, NEW = "a,1\n", "b,2\n"

# A child that dies in the middle of the real program, started as a user starts it.
PROGRAM = """\
import sys
from mlops_cli.cli.entry import entry
from tests.crashing import arm
sys.argv[0] = "mlx"
arm(int(sys.argv.pop(1)))
entry()
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a project whose stage ran on the old data: to be copied, never changed."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "home").mkdir()
    (folder / "repo").mkdir()
    project = Project(folder / "repo", folder / "home")
    project.git("init", "--quiet", "--initial-branch=main", "--template=")
    project.must("init")
    project.write("data.csv", OLD)
    project.must("add", "data.csv")
    project.write("mlx.yaml", PIPELINE)
    project.write("train.sh", TRAIN)
    project.must("run")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message=First result")
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Callable[[], Project]:
    """Return a callable that makes a copy of the project."""

    def copy() -> Project:
        folder = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(made, folder, symlinks=True)
        return Project(folder / "repo", folder / "home")

    return copy


@pytest.fixture
def project(copied: Callable[[], Project]) -> Project:
    return copied()


def until(condition: Callable[[], object]) -> None:
    """Look until `condition` holds, and fail when the deadline has passed."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        os.sched_yield()


def is_alive(pid: int) -> bool:
    """Say whether a process is there and more than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_nothing_is_promised_that_is_not_here(project: Project) -> None:
    """Read every record, and every byte that one names."""
    found = find_project(project.root, os.environ)
    for tracked in workspace_snapshot(found).tracked():
        digests = [tracked.digest]
        if tracked.kind == "tree":
            digests = [digest for digest, _ in tree_objects(found.cache, tracked.digest)]
        for digest in digests:
            found.cache.check(digest)  # raises when it is absent or damaged


def seen_by_git(project: Project) -> list[str]:
    """Return what Git lists as new or changed."""
    done = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=project.root,
        check=True,
        capture_output=True,
        text=True,
    )
    return sorted(done.stdout.splitlines())


def litter(project: Project) -> list[Path]:
    """Return what killed processes left behind, in the workspace and in the cache (locks and empty folders aside)."""
    cache = project.root / ".git" / "mlx" / "cache"
    abandoned = [*(cache / "tmp").glob("*/*"), *cache.rglob(".mlx-tmp-*")]
    return [*(path for path in project.root.rglob(".mlx-tmp-*") if ".git" not in path.parts), *abandoned]


def files(root: Path) -> dict[str, bytes]:
    """Return the files of the workspace."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


# Killed while adding -------------------------------------------------------------------------------------------------


def write_data(project: Project) -> None:
    project.write("data.csv", NEW)
    for number in range(3):
        project.write(f"images/{number}.png", f"pixels {number}\n")
    (project.root / "images" / "large").write_bytes(bytes(2 << 20))


def assert_an_add_goes_on(project: Project) -> None:
    """Look at a project in which `mlx add data.csv images` was killed, and run that again."""
    assert_nothing_is_promised_that_is_not_here(project)
    told = {item["path"]: item["state"] for item in project.must("status", "--json").json()["data"]}
    assert told["data.csv"] == ("ok" if recorded(project, "data.csv") == NEW else "modified")
    assert told.get("images") == ("ok" if (project.root / "images.mlx").exists() else None)

    project.must("add", "data.csv", "images")

    assert_nothing_is_promised_that_is_not_here(project)
    told = {item["path"]: item["state"] for item in project.must("status", "--json").json()["data"]}
    assert (told["data.csv"], told["images"]) == ("ok", "ok")
    assert seen_by_git(project) == [" M .gitignore", " M data.csv.mlx", "?? images.mlx"]
    assert litter(project) == []
    assert (project.root / ".gitignore").read_text().splitlines().count("/images") == 1


def recorded(project: Project, path: str) -> str:
    """Return the bytes that a path's pointer names."""
    return project.must("cat", path).stdout


def test_an_add_that_is_killed_at_any_point(copied: Callable[[], Project]) -> None:
    points = 0
    for at in range(0, 1000, 3):
        project = copied()
        write_data(project)
        if not killed_at(lambda: project.must("add", "data.csv", "images"), at):  # noqa: B023 - called here and now
            break
        assert_an_add_goes_on(project)
        points += 1
    assert 15 < points < 100


@pytest.mark.parametrize("at", [8, 25, 40, 50, 55])
def test_a_real_add_that_is_killed(at: int, project: Project) -> None:
    write_data(project)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(at), "add", "data.csv", "images"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )

    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
    assert_an_add_goes_on(project)


# Killed while a stage runs -------------------------------------------------------------------------------------------


def change_data(project: Project) -> None:
    project.write("data.csv", NEW)
    project.must("add", "data.csv")


def assert_a_run_goes_on(project: Project) -> None:
    """Look at a project in which `mlx run` was killed at whatever point, and run it again."""
    assert_nothing_is_promised_that_is_not_here(project)
    (told,) = project.must("status", "--json").json()["stages"]
    assert (told["stage"], told["action"] in ("run", "restore", "skip")) == ("train", True)
    lock = (project.root / "mlx.lock" / "train.yaml").read_bytes()

    first = project.must("checkout", "data.csv")  # any command that writes puts things right
    second = project.must("checkout", "--dry-run", "--force")

    assert second.stderr == ""
    assert second.stdout == "the workspace matches its records\n", first.stderr
    made = {(project.root / path).read_text() for path in ("model.txt", "out/deep/copy")}
    assert made in ({OLD}, {NEW})
    assert (project.root / "mlx.lock" / "train.yaml").read_bytes() == lock
    (told,) = project.must("status", "--json").json()["stages"]
    assert told["action"] in ({"run", "restore"} if made == {OLD} else {"skip"})
    project.must("run")
    assert {(project.root / path).read_text() for path in ("model.txt", "out/deep/copy")} == {NEW}
    assert '"clean": true' in project.must("status", "--json").stdout
    assert seen_by_git(project) == [" M data.csv.mlx", " M mlx.lock/train.yaml"]
    assert_nothing_is_promised_that_is_not_here(project)
    assert litter(project) == []


def test_a_run_that_is_killed_at_any_point(copied: Callable[[], Project]) -> None:
    points = 0
    for at in range(0, 1000, 4):
        project = copied()
        change_data(project)
        if not killed_at(lambda: project.must("run"), at):  # noqa: B023 - called here and now
            break
        assert_a_run_goes_on(project)
        points += 1
    assert 15 < points < 100


@pytest.mark.parametrize("at", [30, 55, 70, 80, 90])
def test_a_real_run_that_is_killed(at: int, project: Project) -> None:
    change_data(project)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(at), "run"],
        cwd=project.root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        check=False,
        timeout=DEADLINE,
    )

    assert done.returncode == -signal.SIGKILL
    assert_a_run_goes_on(project)


@contextlib.contextmanager
def waiting_run(project: Project) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Start `mlx run`; yield it, and the ids of its command and of what that started, once both wait."""
    os.mkfifo(project.root / "hold")
    project.write("train.sh", WAITING)
    project.write("data.csv", NEW)
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_cli", "run"],
        cwd=project.root,
        env={**os.environ, "HOME": str(project.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    group = 0
    try:
        assert process.stderr is not None
        assert any(line == b"begun\n" for line in process.stderr)
        child, grandchild = (int((project.root / name).read_text()) for name in ("child", "grandchild"))
        group = os.getpgid(child)
        assert group == os.getpgid(grandchild) != os.getpgid(process.pid)
        yield process, child, grandchild
    finally:
        process.kill()
        if group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        process.communicate(timeout=DEADLINE)


def test_a_run_that_is_killed_while_its_command_runs(project: Project) -> None:
    with waiting_run(project) as (process, child, grandchild):
        process.kill()
        process.wait(DEADLINE)
        assert is_alive(child)  # nobody was there to stop it
        assert is_alive(grandchild)

        status = project.must("status", "--json").json()
        assert status["clean"] is False
        assert status["stages"][0]["action"] == "run"
        assert_nothing_is_promised_that_is_not_here(project)
        project.write("train.sh", TRAIN)
        result = project.must("add", "data.csv")

        assert not is_alive(child)
        assert not is_alive(grandchild)
    failed = project.root / ".git" / "mlx" / "failed" / "main" / "train~killed"
    assert f"note: stage `train` was cut short: its old outputs are back; what it had written is in `{failed}`" in (
        result.stderr.splitlines()
    )
    assert (failed / "model.txt").read_text() == "half\n"
    assert (project.root / "model.txt").read_text() == OLD
    assert (project.root / "out" / "deep" / "copy").read_text() == OLD
    assert (project.root / "metrics.json").read_text() == '{"rows": 1}\n'
    assert_a_run_goes_on_from(project)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_interrupted(number: signal.Signals, project: Project) -> None:
    with waiting_run(project) as (process, child, grandchild):
        before = files(project.root)
        process.send_signal(number)
        out, err = process.communicate(timeout=DEADLINE)

        assert (process.returncode, out) == (130, b"")
        assert err == b"error: interrupted\nhint: the same command again goes on from here\n"
        assert not is_alive(child)
        assert not is_alive(grandchild)
    assert {**before, "model.txt": OLD.encode()}.items() <= files(project.root).items()
    assert (project.root / "out" / "deep" / "copy").read_text() == OLD
    assert litter(project) == []
    assert project.must("checkout", "--dry-run", "model.txt", "out").stderr == ""
    assert_a_run_goes_on_from(project)


def test_a_signal_that_the_thread_of_the_output_is_given(project: Project) -> None:
    tgkill = getattr(ctypes.CDLL(None), "tgkill", None)
    if tgkill is None:
        pytest.skip("this system cannot signal one thread of another process")
    with waiting_run(project) as (process, child, grandchild):
        others = {int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir()} - {process.pid}
        assert tgkill(process.pid, max(others), signal.SIGTERM) == 0
        process.communicate(timeout=DEADLINE)

        assert process.returncode == 130
        assert not is_alive(child)
        assert not is_alive(grandchild)


def test_a_command_that_ignores_a_request_to_stop_is_stopped(project: Project) -> None:
    with waiting_run(project) as (process, child, grandchild):
        os.kill(child, signal.SIGSTOP)  # a stopped process hears nothing
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE)

        assert process.returncode == 130
        until(lambda: not is_alive(child))
        assert not is_alive(grandchild)
    assert (project.root / "model.txt").read_text() == OLD


def assert_a_run_goes_on_from(project: Project) -> None:
    """Let the stage that was cut short run to its end."""
    project.write("train.sh", TRAIN)
    project.must("add", "data.csv")
    project.must("run")
    assert (project.root / "model.txt").read_text() == NEW
    assert '"clean": true' in project.must("status", "--json").stdout
    assert seen_by_git(project) == [
        " M data.csv.mlx",
        " M mlx.lock/train.yaml",
        "?? child",
        "?? grandchild",
    ]
    assert litter(project) == []
