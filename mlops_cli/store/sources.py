"""Reading a user's file while somebody may be writing to it.

The one idea: the file is stat-ed before and after it is read, and read again when the two differ; a file that keeps
changing is an error that names it, never an object that mixes two versions.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import sys
from typing import NamedTuple

from mlops_cli.errors import MlxError, UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.hashing import Digest, hash_descriptor

# O_NONBLOCK: opening a pipe by mistake must not hang. It means nothing to regular files.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Stat(NamedTuple):
    """What of an `os.stat_result` tells one version of a file from another; it can travel between processes."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int
    st_dev: int

    @classmethod
    def of(cls, stat: os.stat_result | Stat) -> Stat:
        """Return that part of `stat`."""
        return cls(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev)


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """Open a file that must be a regular one, and stat it; OSError passes through."""
    descriptor = os.open(path, _FLAGS)
    info = os.fstat(descriptor)
    if not stat.S_ISREG(info.st_mode):
        os.close(descriptor)
        raise UsageError(f"`{path}` is not a regular file", hint="remove it, or list it in `.mlxignore`")
    return descriptor, info


def read_stable(path: str, size: int, seen: os.stat_result | None = None) -> tuple[bytes, os.stat_result, bool]:
    """Read a small file whose stat is the same before and after, trying twice.

    When it is still what it was when it was `seen`, that was before. With it comes whether somebody is known to have it
    open for writing, as `is_open_for_writing` says.
    """
    try:
        if seen is not None and (found := _read_as_seen(path, size, seen)) is not None:
            return found
        for _ in range(2):
            descriptor, before = open_regular(path)
            try:
                # Asked before the bytes are read: who opens it later changes its times.
                written = _is_written(descriptor)
                data = os.read(descriptor, size + 1)
                while 0 < len(data) < size and (more := os.read(descriptor, size + 1 - len(data))):
                    data += more
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if len(data) == size and is_unchanged(after, before):
                return data, after, written
    except OSError as error:
        raise unreadable(error, path) from error
    raise changed(path)


def _read_as_seen(path: str, size: int, seen: os.stat_result) -> tuple[bytes, os.stat_result, bool] | None:
    """Read a regular file at once; None when that did not do, or it is not what was seen."""
    descriptor = os.open(path, _FLAGS)
    try:
        written = _is_written(descriptor)
        data = os.read(descriptor, size + 1)
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    return (data, after, written) if is_it(after, seen) and len(data) == size else None


def hash_stable(path: str, size: int) -> tuple[Digest, os.stat_result]:
    """Hash a file whose stat is the same before and after, trying twice."""
    try:
        for _ in range(2):
            descriptor, before = open_regular(path)
            try:
                digest = hash_descriptor(descriptor)
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if after.st_size == size and is_unchanged(after, before):
                return digest, after
    except OSError as error:
        raise unreadable(error, path) from error
    raise changed(path)


def is_open_for_writing(path: str) -> bool:
    """Say whether somebody is known to have a file open for writing, or mapped into memory to be written.

    Only Linux can be asked, for files of one's own (root: for all), on file systems that grant leases.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # whoever reads the file will tell
        return False
    try:
        return _is_written(descriptor)
    finally:
        os.close(descriptor)


def _is_written(descriptor: int) -> bool:
    """Ask for an open file, by a lease that is given back at once: while it is held, who wants to write has to wait."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        # Should somebody open it just then, we are told: by SIGIO, which would end the process, unless by a signal
        # that is ignored.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def is_unchanged(after: os.stat_result, before: os.stat_result) -> bool:
    """Whether nothing wrote to an open file between two stats, as far as they can tell."""
    return (
        after.st_mtime_ns == before.st_mtime_ns
        and after.st_ctime_ns == before.st_ctime_ns
        and after.st_size == before.st_size
    )


def is_it(found: os.stat_result, seen: os.stat_result) -> bool:
    """Whether an open file is the one that was seen, as it was then."""
    return found.st_ino == seen.st_ino and found.st_mode == seen.st_mode and is_unchanged(found, seen)


def is_same_file(now: os.stat_result, before: os.stat_result | Stat) -> bool:
    """Whether this is the file that was hashed, with its bytes; ctime does not count, since our own link changes it."""
    return (now.st_ino, now.st_size, now.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def changed(path: str) -> UsageError:
    """Return what to raise for a file that does not hold still."""
    hint = "wait until nothing writes to it, and run the command again"
    return UsageError(f"`{path}` changed while it was added", hint=hint)


def unreadable(error: OSError, path: str) -> MlxError:
    """Return what to raise for a file that the system does not let us read."""
    if error.errno == errno.ELOOP:
        return UsageError(f"`{path}` is a symbolic link, not a file", hint="add what it points to")
    return translate_os_error(error, f"read `{path}`")
