"""What keeps commands that write to a cache, and `mlx gc` that clears it, apart.

A command holds the guard, shared with all others, from before it asks what the cache has until the record is written
that names it. `mlx gc` holds it alone while it decides and sweeps, so what it does not find named by then, nobody is
about to name. It is `flock` on `<cache>/gc.lock`: a killed process holds nothing. A cache that cannot be written to
needs no guard.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlops_cli.errors import LockedError
from mlops_cli.files import POLL_SECONDS, is_named, read_holder, translate_os_error, write_holder
from mlops_cli.store.sharing import grant

NAME = "gc.lock"
# Who gave way to a sweep has work in hand that must not be lost for a wait.
RETURN_SECONDS = 3600.0
TELL_SECONDS = 5.0  # of waiting, before somebody is told
_READ_ONLY = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS})


class Guard:
    """One command's share of the guard of the cache at `root`; may be taken again while it is held.

    `entered` is called each time the lock has been taken: what was known of the cache may be out of date by then.
    """

    def __init__(self, root: Path, *, timeout: float, entered: Callable[[], None]) -> None:
        self._path = root / NAME
        self._timeout = timeout
        self._entered = entered
        self._depth = 0
        self._descriptor = -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep `mlx gc` out for the length of the block; LockedError when it is at work for too long."""
        if self._depth == 0:
            self._take(self._timeout)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._give()

    @contextmanager
    def released(self, note: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Let `mlx gc` in for the length of the block, in which nothing may be stored that no record names.

        `note` is told for whom this waits afterwards, when that takes long.
        """
        if self._depth == 0:
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take(RETURN_SECONDS, note)

    def _take(self, timeout: float, note: Callable[[str], None] = lambda _: None) -> None:
        try:
            descriptor = _acquire(self._path, timeout, note)
        except OSError as error:
            raise translate_os_error(error, f"lock `{self._path}`") from error
        self._descriptor = -1 if descriptor is None else descriptor
        self._entered()

    def _give(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@contextmanager
def alone(root: Path, *, doing: str, timeout: float) -> Iterator[None]:
    """Hold the guard of the cache at `root` against everybody; LockedError while others are at work for too long.

    OutsideError where the cache cannot be written to, or its file system cannot lock.
    """
    path = root / NAME
    try:
        descriptor = _acquire_alone(path, doing, timeout)
    except OSError as error:
        raise translate_os_error(error, f"lock `{path}`") from error
    try:
        write_holder(descriptor, doing)
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, timeout: float, note: Callable[[str], None]) -> int | None:
    """Return a descriptor that shares the lock; None where nobody could ever lock it. LockedError."""
    deadline = time.monotonic() + timeout
    telling = min(deadline, time.monotonic() + TELL_SECONDS)
    while True:
        descriptor = _open(path)
        if descriptor is None:
            return None
        try:
            if telling < deadline and not _lock(descriptor, fcntl.LOCK_SH, telling):
                note(f"waiting: {_swept(path, descriptor).message}")
                telling = deadline
            if not _lock(descriptor, fcntl.LOCK_SH, deadline):
                raise _swept(path, descriptor)
            if is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _acquire_alone(path: Path, doing: str, timeout: float) -> int:
    """Return a descriptor that holds the lock alone; LockedError."""
    deadline = time.monotonic() + timeout
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            grant([descriptor], path.parent, 0o666)
            if not _lock(descriptor, fcntl.LOCK_EX, deadline, needed=True):
                raise LockedError(
                    f"other mlx commands are at work on the cache `{path.parent}`",
                    hint=f"wait for them to finish, then run `{doing}` again",
                )
            if is_named(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open(path: Path) -> int | None:
    """Return a descriptor of the lock's file; None where nobody could ever lock it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in _READ_ONLY:
            raise
    else:
        grant([descriptor], path.parent, 0o666)
        return descriptor
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # not ours to write, but others may, and collect
    except OSError:
        return None


def _lock(descriptor: int, kind: int, deadline: float, *, needed: bool = False) -> bool:
    """Lock, or return False at the `deadline`; where locks are unknown, that is an error only if `needed`."""
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_SECONDS)
        except OSError as error:
            if needed or error.errno not in _NO_LOCKS:
                raise
            return True
        else:
            return True


def _swept(path: Path, descriptor: int) -> LockedError:
    who = read_holder(descriptor, "`mlx gc`")
    return LockedError(f"{who} is clearing the cache `{path.parent}`", hint="wait for it to finish, or stop it")
