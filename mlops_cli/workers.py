"""Work shared out to forked processes, for loops over so many small files that one core is too slow.

A worker is a copy of this process, made when it is needed: it inherits what is to be done, is told only the numbers of
tasks, and sends plain values back. What goes wrong in one is raised here, as if it had happened here. There are workers
on Linux only, since libraries of other systems do not survive a fork, and only while this process has no threads. They
end with it, however it ends, so that a lock that it held is free.
"""

from __future__ import annotations

import fcntl
import gc
import marshal
import os
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, Protocol

from mlops_cli.errors import OutsideError

END = -1
MOST_TASKS = 4096  # their numbers wait in a pipe, which need not hold more than 16 KiB
_LEAST_ITEMS = 256  # of a task, unless no more are left: less is sooner done than said
_MOST_WORKERS = 8
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<I")
_RESULT, _ENDED, _FAILED = 0, 1, 2
_CHUNK = 1 << 18
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PATIENCE_SECONDS = 2.0  # for a worker to leave things in order


class Shift(Protocol):
    """Work in numbered tasks, by this process or by several copies of it.

    What it says is what `marshal` can write: numbers, text, bytes, None, and tuples and lists of them.
    """

    def begin(self, worker: int) -> None:
        """Go on as worker number `worker`, in a process of its own."""

    def do(self, task: int) -> object:
        """Carry out one task."""

    def end(self) -> object:
        """Say what there is to say once no task is left."""


class Outcome(NamedTuple):
    """What a task came to; `task` is `END` for what was said in the end, by each worker."""

    task: int
    value: Any


class Piece(NamedTuple):
    """Some of the items of one group, by numbers; `whole` when these are all."""

    group: int
    start: int
    end: int
    whole: bool


class _Worker(NamedTuple):
    pid: int
    results: int
    life: int


def crew_size() -> int:
    """Return how many workers this process can have: one a core; 0 when it cannot, or would gain nothing."""
    if not sys.platform.startswith("linux"):
        return 0
    threading = sys.modules.get("threading")  # who has not loaded it has no threads
    if threading is not None and threading.active_count() > 1:
        return 0
    cores = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    return cores if cores > 1 else 0


def cut_into_tasks(sizes: Sequence[int], uncut: Sequence[bool], *, least: int = _LEAST_ITEMS) -> list[list[Piece]]:
    """Put groups of so many small items each into tasks, in their order: of at least `least` items, and not too many.

    A group stays in one piece where `uncut` says so; an empty one has a piece too.
    """
    least = max(least, sum(sizes) // (MOST_TASKS // 2))
    tasks: list[list[Piece]] = []
    filled = least
    for group, (size, whole) in enumerate(zip(sizes, uncut, strict=True)):
        most = size if whole or size <= least else least
        for start in range(0, max(size, 1), max(most, 1)):
            end = min(start + most, size)
            if filled >= least:
                tasks.append([])
                filled = 0
            tasks[-1].append(Piece(group, start, end, whole=most == size))
            filled += end - start
    return tasks


def carried_out(shift: Shift, tasks: int, crew: int) -> Iterator[Outcome]:
    """Have tasks 0 to `tasks` carried out by `crew` workers, by this process when that is 0; yield what they come to.

    That is in no order, but what a worker says in the end comes after its tasks. What a worker raises is raised here,
    and ends the others; so does leaving the loop early. OutsideError when a worker is killed.
    """
    if crew and tasks > 1:
        yield from _share_out(shift, tasks, min(crew, tasks))
        return
    for task in range(tasks):
        yield Outcome(task, shift.do(task))
    yield Outcome(END, shift.end())


def _share_out(shift: Shift, tasks: int, crew: int) -> Iterator[Outcome]:
    if tasks > MOST_TASKS:
        raise ValueError(f"{tasks} tasks are more than {MOST_TASKS}")
    numbers, given = os.pipe()
    os.write(given, b"".join(map(_NUMBER.pack, range(tasks))))
    os.close(given)
    workers: list[_Worker] = []
    try:
        with suppress(OSError):  # no more processes, or open files, for the time being: then those do that there are
            for number in range(crew):
                _start(shift, number, numbers, workers)
        yield from _gather(workers) if workers else carried_out(shift, tasks, 0)
    finally:
        os.close(numbers)
        _dismiss(workers)


def _start(shift: Shift, number: int, numbers: int, workers: list[_Worker]) -> None:
    """Add a worker to `workers`; OSError when none can be made."""
    results, out = os.pipe()
    try:
        watched, life = os.pipe()
    except OSError:
        os.close(results)
        os.close(out)
        raise
    parent = os.getpid()
    # A signal between the fork and the worker's own handlers would have it do what the parent does then.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with warnings.catch_warnings():
            # Threads of libraries (a linear algebra's, say) are of no matter: nothing that uses them runs in a worker.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            try:
                for descriptor in (results, life, *(end for other in workers for end in (other.results, other.life))):
                    os.close(descriptor)
                _end_with_parent(watched, parent)
                _be_worker(shift, number, numbers, out, mask)
            finally:
                os._exit(1)
        workers.append(_Worker(pid, results, life))  # before a signal that waits can be heard
    except OSError:
        os.close(results)
        os.close(life)
        raise
    finally:
        os.close(out)
        os.close(watched)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent(watched: int, parent: int) -> None:
    """Have the system kill this process when nobody holds the other end of the pipe `watched` any more.

    That is told where no handler would be run: in the middle of a long call.
    """
    fcntl.fcntl(watched, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(watched, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(watched, fcntl.F_SETFL, os.O_ASYNC)
    if os.getppid() != parent:
        os._exit(1)


class _Stopped(BaseException):
    """The parent wants no more of this worker."""


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _be_worker(shift: Shift, number: int, numbers: int, out: int, mask: Iterable[int]) -> None:
    """Work until no task is left, in a process that never does what the parent has to do afterwards."""
    signal.signal(signal.SIGTERM, _stop)
    for ignored in (signal.SIGINT, signal.SIGHUP):  # sent to all of a terminal's processes: the parent decides
        signal.signal(ignored, signal.SIG_IGN)
    gc.disable()  # a collection would write to, and so copy, all the memory that is shared with the parent
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        shift.begin(number)
        while number_of_task := os.read(numbers, _NUMBER.size):
            (task,) = _NUMBER.unpack(number_of_task)
            _send(out, _RESULT, task, shift.do(task))
        _send(out, _ENDED, 0, shift.end())
    except _Stopped:
        pass
    except BaseException as error:  # noqa: BLE001 - it is raised again, by the parent
        import pickle  # noqa: PLC0415 - 3 ms that only a failure costs

        _send(out, _FAILED, 0, pickle.dumps(error))


def _send(out: int, kind: int, task: int, value: object) -> None:
    data = marshal.dumps((kind, task, value))  # type: ignore[arg-type]
    view = memoryview(_LENGTH.pack(len(data)) + data)
    while view:
        view = view[os.write(out, view) :]


def _gather(workers: Sequence[_Worker]) -> Iterator[Outcome]:
    """Yield what the workers send until each has ended."""
    poll = select.poll()
    waiting = {worker.results: bytearray() for worker in workers}
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    while waiting:
        for descriptor, _ in poll.poll():
            received = os.read(descriptor, _CHUNK)
            if not received:
                raise _lost(next(worker for worker in workers if worker.results == descriptor))
            waiting[descriptor] += received
            for kind, task, value in _messages(waiting[descriptor]):
                if kind == _FAILED:
                    import pickle  # noqa: PLC0415

                    raise pickle.loads(value)  # noqa: S301 - our own process wrote it
                if kind == _ENDED:
                    poll.unregister(descriptor)
                    del waiting[descriptor]
                yield Outcome(END if kind == _ENDED else task, value)


def _messages(buffer: bytearray) -> Iterator[tuple[int, int, bytes]]:
    """Take the messages that are complete out of `buffer`."""
    start, size = 0, _LENGTH.size
    while len(buffer) - start >= size:
        end = start + size + _LENGTH.unpack_from(buffer, start)[0]
        if end > len(buffer):
            break
        yield marshal.loads(memoryview(buffer)[start + size : end].tobytes())  # noqa: S302 - our own process wrote it
        start = end
    del buffer[:start]


def _lost(worker: _Worker) -> OutsideError:
    """Return what to raise for a worker that ended without a word; it is waited for later."""
    return OutsideError(
        f"the process {worker.pid}, which did a part of the work, was killed",
        hint="see whether the machine has memory left, and run the command again",
    )


def _dismiss(workers: Sequence[_Worker]) -> None:
    """Ask the workers that still work to end, and see to it that they do."""
    poll = select.poll()
    left = {worker.results for worker in workers}
    try:
        for worker in workers:
            poll.register(worker.results, 0)  # what is told in any case is that the other end is closed
            os.kill(worker.pid, signal.SIGTERM)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while left and (seconds := deadline - time.monotonic()) > 0:
            for descriptor, _ in poll.poll(seconds * 1000):
                poll.unregister(descriptor)
                left.discard(descriptor)
    finally:
        for worker in workers:
            os.close(worker.life)  # which kills it if it is still there
            os.close(worker.results)
        for worker in workers:
            with suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
