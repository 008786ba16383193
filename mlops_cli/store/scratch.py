"""Temporary files of a store, in a folder of their writer's own that others know to be abandoned once it is gone.

    tmp/<pid>.<random>/      the files of one writer
    tmp/<pid>.<random>.lock  held while it lives

A process that ends without a word leaves its folder and a free lock; the next writer that comes takes both away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

from mlops_cli.files import list_folder, write_all
from mlops_cli.store.sharing import grant, make_folder

CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
OBJECT_MODE = 0o444


class Scratch:
    """Temporary files of one writer, below `tmp/`; made at first use, removed by `close`.

    One writer, possibly with several threads; never shared by processes.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._tmp = f"{root}/tmp"  # noqa: S108 - in the store, not the system's folder
        self._folder = ""
        self._made = False
        self._lock = -1
        self._numbers = count()
        self._making = threading.Lock()
        self._divisions = count()
        self._mark = ""

    def prepare(self) -> None:
        """Make the folder now; then copies of this process can write there too."""
        self.next_path()
        next(self._divisions)

    def divide(self, worker: int) -> None:
        """Go on in a copy of the process that owns the folder, under names that none of the others uses."""
        self._mark = f"{next(self._divisions)}-{worker}-"
        self._lock = -1  # the owner's to give back

    def next_path(self) -> str:
        """Return a path for a new temporary file; nothing is there yet."""
        if not self._made:
            with self._making:
                if not self._made:
                    self._make()
        return f"{self._folder}/{self._mark}{next(self._numbers)}"

    def write(self, data: bytes | memoryview) -> str:
        """Write an object's bytes under a temporary name and return that name."""
        path = self.next_path()
        descriptor = os.open(path, CREATE_FLAGS, OBJECT_MODE)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)
        return path

    def close(self) -> None:
        """Remove what is left and give the lock back."""
        if self._lock < 0:
            return
        if _remove_folder(self._folder):
            with suppress(OSError):
                os.unlink(f"{self._folder}.lock")
        os.close(self._lock)
        self._lock = -1
        self._made = False

    def _make(self) -> None:
        make_folder(self._tmp, self._root)
        remove_abandoned(self._tmp)
        while True:
            self._folder = f"{self._tmp}/{os.getpid()}.{os.urandom(6).hex()}"
            self._lock = os.open(f"{self._folder}.lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            grant([self._lock], self._root, 0o666)
            with suppress(OSError):  # no locks on this file system: then nobody can tell what is abandoned
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            if os.fstat(self._lock).st_nlink:
                break
            os.close(self._lock)  # a cleaner took it for abandoned between `open` and `flock`
        try:
            make_folder(self._folder, self._root)
        except OSError:
            self.close()
            raise
        self._made = True


def remove_abandoned(tmp: str) -> None:
    """Remove temporary folders whose process is gone, as its free lock tells."""
    with os.scandir(tmp) as entries:
        locks = [entry.path for entry in entries if entry.name.endswith(".lock")]
    for path in locks:
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _remove_folder(path.removesuffix(".lock")):
                    os.unlink(path)
            finally:
                os.close(descriptor)


def find_abandoned(folder: str) -> Iterator[str]:
    """Yield the temporary folders in `folder` whose process is gone, as their free locks tell."""
    for entry in list_folder(folder):
        if entry.name.endswith(".lock"):
            with suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                finally:
                    os.close(descriptor)
                yield entry.path.removesuffix(".lock")


def _remove_folder(folder: str) -> bool:
    """Remove a folder and what is in it; return whether it is gone now."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
