"""Work shared out to forked processes, for loops over so many small files that one core is too slow.

A worker is a copy of this process, made when it is needed: it inherits what is to be done, is told only the numbers of
tasks, and sends plain values back. What goes wrong in one is raised here, as if it had happened here. There are workers
on Linux only, since libraries of other systems do not survive a fork, and only while this process has no threads.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn, Protocol

from mlops_cli.errors import OutsideError

END = -1
MOST_TASKS = 4096  # their numbers wait in a pipe, which need not hold more than 16 KiB
_MOST_WORKERS = 8
_LENGTH = struct.Struct("<I")
_NUMBER = struct.Struct("<I")
_RESULT, _ENDED, _FAILED = 0, 1, 2
_CHUNK = 1 << 18


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


class _Worker(NamedTuple):
    pid: int
    results: int


def crew_size() -> int:
    """Return how many workers this process can have: one a core; 0 when it cannot, or would gain nothing."""
    if not sys.platform.startswith("linux"):
        return 0
    threading = sys.modules.get("threading")  # who has not loaded it has no threads
    if threading is not None and threading.active_count() > 1:
        return 0
    cores = min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
    return cores if cores > 1 else 0


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
        for number in range(crew):
            workers.append(_start(shift, number, numbers, workers))
        yield from _gather(workers)
    finally:
        os.close(numbers)
        _dismiss(workers)


def _start(shift: Shift, number: int, numbers: int, others: Sequence[_Worker]) -> _Worker:
    results, out = os.pipe()
    parent = os.getpid()
    try:
        with warnings.catch_warnings():
            # Threads of libraries (a linear algebra's, say) are of no matter: nothing that uses them runs in a worker.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
    except OSError:
        os.close(results)
        os.close(out)
        raise
    if pid == 0:
        for descriptor in (results, *(other.results for other in others)):
            os.close(descriptor)
        _be_worker(shift, number, numbers, out, parent)
    os.close(out)
    return _Worker(pid, results)


class _Stopped(BaseException):
    """The parent wants no more of this worker."""


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _be_worker(shift: Shift, number: int, numbers: int, out: int, parent: int) -> NoReturn:
    """Work until no task is left or the parent is gone; never returns, nor runs what the parent has to clean up."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, _stop)
        for ignored in (signal.SIGINT, signal.SIGHUP):  # sent to all of a terminal's processes: the parent decides
            signal.signal(ignored, signal.SIG_IGN)
        gc.disable()  # a collection would write to, and so copy, all the memory that is shared with the parent
        try:
            shift.begin(number)
            while number_of_task := os.read(numbers, _NUMBER.size):
                if os.getppid() != parent:
                    break
                (task,) = _NUMBER.unpack(number_of_task)
                _send(out, _RESULT, task, shift.do(task))
            _send(out, _ENDED, 0, shift.end())
            code = 0
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised again, by the parent
            import pickle  # noqa: PLC0415 - 3 ms that only a failure costs

            _send(out, _FAILED, 0, pickle.dumps(error))
    except BaseException:  # noqa: BLE001, S110 - the parent is gone, or sees that this worker is
        pass
    finally:
        os._exit(code)


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
    """End the workers that still work, and wait for all."""
    for worker in workers:
        os.close(worker.results)
        with suppress(ProcessLookupError):
            os.kill(worker.pid, signal.SIGTERM)
    for worker in workers:
        with suppress(ChildProcessError):
            os.waitpid(worker.pid, 0)
