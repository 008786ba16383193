"""Work that is shared out to processes: all of it is done, what goes wrong is told, and nobody is left behind."""

from __future__ import annotations

import os
import signal
import threading
from itertools import chain
from pathlib import Path

import pytest

from mlops_cli import workers
from mlops_cli.errors import CorruptObject, OutsideError
from mlops_cli.store.objects import DamagedObjects
from mlops_cli.workers import END, MOST_TASKS, Piece, carried_out, crew_size, cut_into_tasks


class Squares:
    """Squares numbers; in the end it says who did how many."""

    def __init__(self) -> None:
        self.worker = -1
        self.done = 0

    def begin(self, worker: int) -> None:
        self.worker = worker

    def do(self, task: int) -> object:
        self.done += 1
        return task * task, b"\xff" * task

    def end(self) -> object:
        return self.worker, self.done, os.getpid()


@pytest.mark.parametrize("crew", [0, 1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 7, 600])
def test_every_task_is_done_once(crew: int, tasks: int):
    outcomes = list(carried_out(Squares(), tasks, crew))
    assert sorted(outcome for outcome in outcomes if outcome.task != END) == [
        (task, (task * task, b"\xff" * task)) for task in range(tasks)
    ]
    crew = min(crew, tasks) if tasks > 1 else 0  # nobody is called for one task
    said = [value for task, value in outcomes if task == END]
    assert sum(done for _, done, _ in said) == tasks
    assert sorted(worker for worker, _, _ in said) == (list(range(crew)) if crew else [-1])
    assert len({pid for _, _, pid in said} - {os.getpid()}) == crew


def test_too_many_tasks_are_refused():
    with pytest.raises(ValueError, match="more than"):
        list(carried_out(Squares(), MOST_TASKS + 1, 2))
    assert len(list(carried_out(Squares(), MOST_TASKS, 2))) == MOST_TASKS + 2


def cut(*groups: tuple[int, bool]) -> list[list[Piece]]:
    """Return the tasks that groups come to, each given by its size and whether it is to stay in one piece."""
    return cut_into_tasks([size for size, _ in groups], [uncut for _, uncut in groups])


def test_small_groups_share_a_task():
    assert cut((100, False), (0, False), (200, True), (5, False)) == [
        [Piece(0, 0, 100, whole=True), Piece(1, 0, 0, whole=True), Piece(2, 0, 200, whole=True)],
        [Piece(3, 0, 5, whole=True)],
    ]


def test_a_large_group_is_cut_unless_it_is_to_stay_whole():
    assert cut((300, False), (600, True), (256, False)) == [
        [Piece(0, 0, 256, whole=False)],
        [Piece(0, 256, 300, whole=False), Piece(1, 0, 600, whole=True)],
        [Piece(2, 0, 256, whole=True)],
    ]


@pytest.mark.parametrize("sizes", [[], [0], [1] * 600_000, [3_000_000], [255] * 20_000, [0] * 20_000, [700_000, 1]])
def test_however_many_items_there_are_each_is_in_one_of_not_too_many_tasks(sizes: list[int]):
    tasks = cut_into_tasks(sizes, [False] * len(sizes))
    assert len(tasks) <= MOST_TASKS
    assert all(tasks)
    ends = [0] * len(sizes)
    for piece in chain.from_iterable(tasks):
        assert piece.start == ends[piece.group]
        assert piece.whole == (piece.end - piece.start == sizes[piece.group])
        ends[piece.group] = piece.end
    assert ends == sizes
    assert {piece.group for piece in chain.from_iterable(tasks)} == set(range(len(sizes)))


class Failing(Squares):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def do(self, task: int) -> object:
        if task == 3:
            raise self.error
        return super().do(task)


@pytest.mark.parametrize(
    "error",
    [
        CorruptObject("`x` is bad", hint="mend it"),
        DamagedObjects(["blake3:00"], "`y` is bad", hint="pull"),  # type: ignore[list-item]
        FileNotFoundError(2, "No such file", "name"),
        KeyboardInterrupt(),
    ],
)
@pytest.mark.parametrize("crew", [0, 2])
def test_what_a_worker_raises_is_raised_here(error: BaseException, crew: int):
    with pytest.raises(type(error)) as raised:
        list(carried_out(Failing(error), 10, crew))
    assert raised.value.args == error.args
    assert vars(raised.value) == vars(error)
    assert nobody_is_left()


class Dying(Squares):
    def do(self, task: int) -> object:
        if task == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().do(task)


def test_worker_that_is_killed_is_missed():
    with pytest.raises(OutsideError, match="was killed") as raised:
        list(carried_out(Dying(), 10, 2))
    assert raised.value.hint is not None
    assert nobody_is_left()


class Cleaning(Squares):
    """Waits in its only task until it is stopped, and then leaves a note."""

    def __init__(self, started: int, note: Path) -> None:
        super().__init__()
        self.started = started
        self.note = note

    def do(self, task: int) -> object:
        if task == 0:
            return "free"
        os.write(self.started, b"x")
        try:
            signal.pause()
        finally:
            self.note.write_text("cleaned up")
        return "never"


def test_leaving_early_lets_workers_clean_up(tmp_path: Path):
    heard, started = os.pipe()
    results = carried_out(Cleaning(started, tmp_path / "note"), 2, 2)
    assert next(results) == (0, "free")
    os.read(heard, 1)
    results.close()  # type: ignore[attr-defined]
    assert (tmp_path / "note").read_text() == "cleaned up"
    assert nobody_is_left()
    os.close(heard)
    os.close(started)


def test_workers_end_when_their_parent_is_killed():
    """The pipe ends for its reader when no process has its other end any more."""
    alive, held = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(alive)

        class Telling(Squares):
            def do(self, task: int) -> object:
                if task == 100:
                    os.kill(os.getppid(), signal.SIGKILL)
                return super().do(task)

        for _ in carried_out(Telling(), 4000, 2):
            pass
        os._exit(0)
    os.close(held)
    _, status = os.waitpid(parent, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert os.read(alive, 1) == b""
    os.close(alive)


def test_no_crew_beside_threads(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    go = threading.Event()
    alone = threading.active_count() == 1
    assert crew_size() == (4 if alone else 0)
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        assert crew_size() == 0
    finally:
        go.set()
        thread.join()


@pytest.mark.parametrize(("cores", "crew"), [(1, 0), (2, 2), (64, 8)])
def test_crew_is_as_large_as_the_machine(monkeypatch: pytest.MonkeyPatch, cores: int, crew: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    assert crew_size() == crew


def test_no_crew_where_a_fork_breaks_libraries(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers.sys, "platform", "darwin")
    assert crew_size() == 0


def nobody_is_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


class Deaf(Squares):
    """Hears no signal, and does not come back from its second task."""

    def __init__(self, started: int) -> None:
        super().__init__()
        self.started = started

    def do(self, task: int) -> object:
        if task == 0:
            return "free"
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        os.write(self.started, b"x")
        signal.pause()
        return "never"


def test_worker_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "_PATIENCE_SECONDS", 0.01)
    heard, started = os.pipe()
    results = carried_out(Deaf(started), 2, 2)
    assert next(results) == (0, "free")
    os.read(heard, 1)
    results.close()  # type: ignore[attr-defined]
    assert nobody_is_left()
    os.close(heard)
    os.close(started)


def test_worker_that_does_not_listen_ends_with_its_parent():
    alive, held = os.pipe()
    heard, started = os.pipe()
    parent = os.fork()
    if parent == 0:
        os.close(alive)
        for _ in carried_out(Deaf(started), 2, 2):
            pass
        os._exit(0)
    os.close(held)
    os.read(heard, 1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(alive, 1) == b""
    for descriptor in (alive, heard, started):
        os.close(descriptor)


@pytest.mark.parametrize("can", [0, 1])
def test_where_no_more_processes_can_be_made_those_do_that_there_are(monkeypatch: pytest.MonkeyPatch, can: int):
    real, made = os.fork, []

    def fork() -> int:
        if len(made) == can:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        made.append(True)
        return real()

    monkeypatch.setattr(os, "fork", fork)
    outcomes = list(carried_out(Squares(), 9, 4))
    assert sorted(task for task, _ in outcomes if task != END) == list(range(9))
    assert nobody_is_left()


def test_signal_in_the_first_moment_of_a_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Whatever the caller has to do afterwards is done by the caller alone."""
    real = os.fork

    def fork() -> int:
        pid = real()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return pid

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    monkeypatch.setattr(os, "fork", fork)
    note = tmp_path / "note"

    def work() -> None:
        try:
            list(carried_out(Squares(), 9, 2))
        finally:
            with note.open("a") as stream:
                stream.write(f"{os.getpid()}\n")

    try:
        with pytest.raises(OutsideError, match="was killed"):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert note.read_text() == f"{os.getpid()}\n"
    assert nobody_is_left()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
