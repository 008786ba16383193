from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mlops_cli.errors import LockedError
from mlops_cli.store import guard as guard_module
from mlops_cli.store.guard import NAME, Guard, alone
from tests.workspace.projects import wait_for


def guard(root: Path, *, timeout: float = 0, entered: list[int] | None = None) -> Guard:
    return Guard(root, timeout=timeout, entered=lambda: (entered if entered is not None else []).append(1))


def is_free(root: Path) -> bool:
    try:
        with alone(root, doing="mlx gc", timeout=0):
            return True
    except LockedError:
        return False


def test_many_share_it(tmp_path: Path) -> None:
    with guard(tmp_path).held(), guard(tmp_path).held():
        assert not is_free(tmp_path)
    assert is_free(tmp_path)


def test_it_is_held_until_the_outermost_block_ends(tmp_path: Path) -> None:
    entered: list[int] = []
    shared = guard(tmp_path, entered=entered)

    with shared.held():
        with shared.held():
            pass
        assert not is_free(tmp_path)

    assert is_free(tmp_path)
    assert len(entered) == 1


def test_it_can_be_given_up_for_a_while(tmp_path: Path) -> None:
    entered: list[int] = []
    shared = guard(tmp_path, entered=entered)

    with shared.held():
        with shared.released():
            assert is_free(tmp_path)
        assert not is_free(tmp_path)
    with shared.released():  # nothing to give up
        pass

    assert len(entered) == 2


def test_who_waits_long_to_take_it_again_tells_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "TELL_SECONDS", 0.1)
    notes: list[str] = []
    told = threading.Event()
    swept = threading.Event()

    def note(message: str) -> None:
        notes.append(message)
        told.set()

    def sweep() -> None:
        with alone(tmp_path, doing="mlx gc", timeout=0):
            swept.set()
            told.wait(30)

    sweeping = threading.Thread(target=sweep)
    shared = guard(tmp_path)
    with shared.held():
        with shared.released(note):
            sweeping.start()
            swept.wait(30)
        assert not is_free(tmp_path)
    sweeping.join()

    (message,) = notes
    assert message.startswith("waiting: `mlx gc` (process ")


def test_an_error_gives_it_back(tmp_path: Path) -> None:
    shared = guard(tmp_path)
    with pytest.raises(ValueError, match="oh"), shared.held():
        raise ValueError("oh")
    assert is_free(tmp_path)


def test_who_comes_while_it_is_swept_is_told_by_whom(tmp_path: Path) -> None:
    with alone(tmp_path, doing="mlx gc", timeout=0):
        with pytest.raises(LockedError, match=rf"`mlx gc` \(process {os.getpid()}, since .*\) is clearing the cache"):
            guard(tmp_path).held().__enter__()
        with pytest.raises(LockedError, match="other mlx commands are at work"):
            alone(tmp_path, doing="mlx gc", timeout=0).__enter__()


def test_who_sweeps_waits_for_others_as_long_as_it_may(tmp_path: Path) -> None:
    shared = guard(tmp_path)
    holding = shared.held()
    holding.__enter__()
    timer = threading.Timer(0.1, lambda: holding.__exit__(None, None, None))
    timer.start()

    with alone(tmp_path, doing="mlx gc", timeout=30):
        pass

    timer.join()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    ready, tell = os.pipe()
    child = os.fork()
    if child == 0:
        with guard(tmp_path).held():
            os.write(tell, b".")
            signal.pause()
    os.read(ready, 1)
    assert not is_free(tmp_path)

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    assert is_free(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_to_needs_none(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with guard(tmp_path).held():
            assert not (tmp_path / NAME).exists()
    finally:
        tmp_path.chmod(0o755)


def test_a_refused_lock_file_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.open

    def refuse(path: object, flags: int, *rest: int) -> int:
        if str(path).endswith(NAME) and flags & os.O_CREAT:
            raise PermissionError(13, "Permission denied")
        return plain(path, flags, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with guard(tmp_path).held():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists open files")
def test_a_lock_file_that_was_replaced_meanwhile_does_not_count(tmp_path: Path) -> None:
    """Who waited for a file that somebody removed must wait for the one that is there now."""
    first, second = (alone(tmp_path, doing=f"mlx gc {number}", timeout=0) for number in (1, 2))
    first.__enter__()
    outcome: list[str] = []

    def wait() -> None:
        try:
            with Guard(tmp_path, timeout=1, entered=lambda: None).held():
                outcome.append("entered")
        except LockedError as error:
            outcome.append(error.message)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_for(lambda: len(opened(tmp_path / NAME)) >= 2)
    (tmp_path / NAME).unlink()
    second.__enter__()
    first.__exit__(None, None, None)
    thread.join()
    second.__exit__(None, None, None)

    assert len(outcome) == 1
    assert "mlx gc 2" in outcome[0]


def opened(path: Path) -> list[str]:
    """Return the descriptors of this process that have `path` open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/self/fd/{name}"), path.stat()):
                found.append(name)
    return found
