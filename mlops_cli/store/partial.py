"""Large files that an interrupted fetch left unfinished: `<store>/partial/<64 hex>`, until the rest of them comes.

The one idea: what is in one is believed as little as what comes from anywhere else (`assembly`). So nothing is synced,
a kill at any point leaves a file to go on with, and one that holds anything else costs no more than reading it. Whoever
fills it holds a lock on it; another who wants the same file makes it elsewhere. It is its owner's alone to write to:
in a store that is shared, others make their own.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from time import time

from mlops_cli.files import list_folder
from mlops_cli.hashing import PREFIX, Digest, parse_digest
from mlops_cli.store.contents import changed_at
from mlops_cli.store.loose import LooseStore
from mlops_cli.store.sharing import make_folder

KEPT_FOR = 14 * 86400  # seconds that nobody went on with one, after which it goes
FOLDER = "partial"
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe must not be waited for
_MODE = 0o644


class Partial:
    """One unfinished file, and the lock on it; `path` is where it is until it is published or removed."""

    def __init__(self, path: str, lock: int) -> None:
        self.path = path
        self._lock = lock

    def finish(self) -> None:
        """Let nobody write to the file any more: it is whole."""
        os.fchmod(self._lock, stat.S_IMODE(os.fstat(self._lock).st_mode) & 0o444)

    def remove(self) -> None:
        """Remove the file; `close` is still to come. OSError is passed over: it is removed later."""
        with suppress(OSError):
            os.unlink(self.path)

    def close(self) -> None:
        """Give the lock back; the file stays where it is by now."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def open_partial(store: LooseStore, digest: Digest) -> Partial | None:
    """Return the unfinished file of an object, or a new one without bytes, locked.

    None when somebody else is at it or owns it, and where files cannot be made or locked: then it is made elsewhere.
    """
    path = f"{store.root}/{FOLDER}/{digest.removeprefix(PREFIX)}"
    try:
        make_folder(os.path.dirname(path), store.root)
        lock = _locked(path, os.O_CREAT)
    except OSError:
        return None
    if lock is None:
        return None
    try:
        info = os.fstat(lock)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink != 1:
            raise PermissionError
        if info.st_mode & 0o222 != 0o200:  # it was whole already, or is not as we make them
            os.fchmod(lock, info.st_mode & 0o444 | 0o200)
    except OSError:
        os.close(lock)
        return None
    return Partial(path, lock)


def remove_leftovers(store: LooseStore, before: float | None = None) -> None:
    """Remove unfinished files that nobody is at: those last written to before `before` (s), and of objects that came.

    None: those of `KEPT_FOR` ago. What cannot be removed is passed over.
    """
    for path in find_leftovers(store, before):
        with suppress(OSError):
            lock = _locked(path)
            if lock is not None:
                try:
                    os.unlink(path)
                finally:
                    os.close(lock)


def find_leftovers(store: LooseStore, before: float | None = None) -> Iterator[str]:
    """Yield the paths of the unfinished files that are too old, or whose objects are here; some may be in use."""
    before = time() - KEPT_FOR if before is None else before
    for entry in list_folder(f"{store.root}/{FOLDER}"):
        with suppress(OSError):
            if changed_at(entry.stat(follow_symlinks=False)) < before or _has_come(store, entry.name):
                yield entry.path


def _has_come(store: LooseStore, name: str) -> bool:
    try:
        return not store.missing([parse_digest(PREFIX + name)])
    except ValueError:
        return False


def _locked(path: str, flags: int = 0) -> int | None:
    """Return a descriptor that holds the lock of the file at `path`; None when somebody else does, or it has moved."""
    try:
        descriptor = os.open(path, os.O_RDWR | flags | _FLAGS, _MODE)
    except PermissionError:  # a whole one that was not published any more
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
