"""Killing a process at each of its calls that change what is on disk, one after the other.

`killed_at` forks; the child dies by SIGKILL just before its call number `at` that could change a file. When that is a
`write`, half of its bytes are written first. A test loops until the child survives: every state that a crash could
leave has been there once. Calls that only read are no points: a crash before one leaves what a crash after it does. A
sync is one, but is not carried out in the child: what it is good for is asked by `powercut`.
"""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator

_MADE = os.O_CREAT | os.O_TRUNC
_SYNCS = ("fsync", "fdatasync")
_WRITES = ("write", "pwrite")
CALLS = (
    *_SYNCS,
    *_WRITES,
    "chmod",
    "copy_file_range",
    "fchmod",
    "ftruncate",
    "link",
    "mkdir",
    "open",
    "posix_fallocate",
    "rename",
    "replace",
    "rmdir",
    "sendfile",
    "symlink",
    "truncate",
    "unlink",
    "utime",
    "writev",
)


def killed_at(work: Callable[[], object], at: int) -> bool:
    """Run `work` in a child that dies before its call number `at`; return whether it died, or ended before that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about: the child only makes calls
        child = os.fork()
    if child == 0:
        code = 1
        try:
            arm(at)
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the parent is told by the exit code
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed instead of being killed"
    return False


def crashes(work: Callable[[], object], *, limit: int = 2000, every: int = 1) -> Iterator[int]:
    """Run `work` in one child per point at which it can be killed; yield after each crash, for the test to look."""
    for at in range(0, limit, every):
        if not killed_at(work, at):
            return
        yield at
    raise AssertionError(f"still not through after {limit} calls")


def arm(at: int) -> None:
    """Let this process die before its call number `at`."""
    done = 0

    def armed(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal done
            if name == "open" and not args[1] & _MADE:  # type: ignore[operator]
                return call(*args, **options)
            if done == at:
                if name in _WRITES:
                    call(args[0], args[1][: len(args[1]) // 2], *args[2:])  # type: ignore[index, arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return None if name in _SYNCS else call(*args, **options)

        return run

    for name in CALLS:
        if hasattr(os, name):
            setattr(os, name, armed(name, getattr(os, name)))
