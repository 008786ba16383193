"""Killing a process at each of its calls to the operating system, one after the other.

`killed_at` forks; the child dies by SIGKILL just before its call number `at` that could change a file. When that is a
`write`, half of its bytes are written first. A test loops until the child survives: every point in between has been a
crash once.
"""

from __future__ import annotations

import os
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator

CALLS = (
    "chmod",
    "close",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "open",
    "readv",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "unlink",
    "write",
)


def killed_at(work: Callable[[], object], at: int) -> bool:
    """Run `work` in a child that dies before its call number `at`; return whether it died, or ended before that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads about: the child only makes calls
        child = os.fork()
    if child == 0:
        code = 1
        try:
            _arm(at)
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


def crashes(work: Callable[[], object], *, limit: int = 2000) -> Iterator[int]:
    """Run `work` in one child per point at which it can be killed; yield after each crash, for the test to look."""
    for at in range(limit):
        if not killed_at(work, at):
            return
        yield at
    raise AssertionError(f"still not through after {limit} calls")


def _arm(at: int) -> None:
    done = 0

    def armed(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal done
            if done == at:
                if name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])  # type: ignore[index, arg-type]
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1
            return call(*args, **options)

        return run

    for name in CALLS:
        setattr(os, name, armed(name, getattr(os, name)))
