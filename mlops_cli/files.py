"""Writing files so that a crash leaves the old bytes or the new, never a mix; locks; safe relative paths.

The one idea: bytes are made durable under a temporary name in the folder they belong to, and a rename makes them
visible. POSIX only: `flock` for locks, directory handles for durability. What is written, and where, is decided above.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mlops_cli.errors import LockedError, MlxError, OutsideError

# What a killed process may leave behind begins with this; scans of the workspace skip such names.
TEMPORARY_PREFIX = ".mlx-tmp-"
FEW_FILES = 32
POLL_SECONDS = 0.05

# Code points that HFS+ ignores in names: `.g<U+200C>it` is `.git` there.
_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
_DRIVE = re.compile("[A-Za-z]:")


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Make `path` hold exactly `data`, creating its folder when needed; a crash leaves the old file or the new one.

    With `durable`, the bytes and the name survive a power cut once this returns. A symlink at `path` is replaced, not
    followed. OutsideError when the disk is full or refuses; nothing is left behind then.
    """
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_new(temporary, data, mode, durable)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        raise translate_os_error(error, f"write `{path}`") from error


def _write_new(path: Path, data: bytes, mode: int, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of `data`: `os.write` may stop early, above all when the disk is nearly full."""
    written = os.write(descriptor, data)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        written += os.write(descriptor, view[written:])


def check_relative(text: str) -> str:
    """Return `text` when it is a relative posix path that stays below its folder and out of `.git`.

    ValueError with a sentence otherwise. The path is not looked up: symlinks on the way are the opener's concern.
    """
    if not text:
        raise ValueError("a path must not be empty")
    if "\0" in text:
        raise ValueError(f"path {text!r} holds a NUL character")
    if text.startswith("/") or _DRIVE.match(text):
        raise ValueError(f"path `{text}` must be relative")
    if os.sep == "\\" and "\\" in text:
        raise ValueError(f"path `{text}` must use `/`, not `\\`")
    for part in text.split("/"):
        if part in ("", ".", ".."):
            raise ValueError(f"path `{text}` must not hold empty parts, `.` or `..`")
        if is_git_folder(part):
            raise ValueError(f"path `{text}` reaches into `{part}`, which belongs to Git")
    return text


def folders_above(path: str) -> list[str]:
    """Return the folders on the way to a relative path, outermost first, without the path itself: `a`, `a/b`."""
    return [path[:end] for end, character in enumerate(path) if character == "/"]


def is_git_folder(name: str) -> bool:
    """Whether some file system takes `name` for `.git`: other case, trailing dots, NTFS short names and streams."""
    if "git" not in name.lower() and name.isascii():
        return False
    plain = _IGNORED.sub("", name).partition(":")[0].rstrip(" .").casefold()
    return plain in (".git", "git~1")


def sync_folder(path: str | Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; their renames are durable or beyond our reach.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Make everything written to the file system that holds `path` durable."""
    if not sys.platform.startswith("linux"):
        os.sync()
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syncfs(descriptor) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
    finally:
        os.close(descriptor)


def sync_paths(paths: Sequence[str], near: Path) -> None:
    """Make files durable: one by one when few, else by one sync of the file system that holds `near`.

    A sync per file costs 0.2 ms to several ms each; one for the file system costs about as much as a handful.
    """
    if len(paths) > FEW_FILES:
        sync_filesystem(near)
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def list_folder(folder: str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, sorted by name; nothing when there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def hold_lock(path: Path, *, doing: str, timeout: float) -> Iterator[None]:
    """Hold the exclusive lock at `path` for the length of the `with` block.

    `doing` is what others are told is going on (`mlx add`). LockedError, naming the holder, after `timeout` seconds.
    The lock goes with the process, so `kill -9` frees it; the file itself stays, since removing it would let two
    processes each lock a file of that name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, time.monotonic() + timeout)
    except OSError as error:
        raise translate_os_error(error, f"lock `{path}`") from error
    try:
        write_holder(descriptor, doing)
        yield
    finally:
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _acquire(path: Path, deadline: float) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _locked(path, descriptor) from None
                time.sleep(POLL_SECONDS)
            else:
                if is_named(descriptor, path):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_named(descriptor: int, path: Path) -> bool:
    """Say whether `path` still names the open file: a lock on one that somebody removed meanwhile keeps nobody out."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_holder(descriptor: int, doing: str) -> None:
    """Write into the file of a lock that this process has it, for `doing` (`mlx add`)."""
    holder = {"pid": os.getpid(), "command": doing, "started": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # on a full disk the lock holds all the same; only the message is poorer
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def read_holder(descriptor: int, unknown: str) -> str:
    """Return who has a lock, for a message: what `write_holder` wrote into its file, or `unknown`."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"`{holder['command']}` (process {holder['pid']}, since {holder['started']})"
    except (ValueError, KeyError, TypeError):
        return unknown


def _locked(path: Path, descriptor: int) -> LockedError:
    who = read_holder(descriptor, "another mlx process")
    return LockedError(f"{who} is at work and holds `{path}`", hint="wait for it to finish, or stop it")


_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space and run the command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or raise the quota, and run the command again"),
    errno.EACCES: ("permission denied", "check who owns it and its permissions"),
    errno.EPERM: ("the operation is not permitted", "check who owns it and its permissions"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or use a folder elsewhere"),
    errno.EMFILE: ("too many open files", "raise the limit: `ulimit -n 4096`"),
    errno.ENFILE: ("too many open files on this machine", "close other programs, or raise the system's limit"),
    errno.ENOMEM: ("there is not enough memory", "close other programs and run the command again"),
    errno.EIO: ("input/output error", "the disk may be failing; look at the system's log"),
    errno.ENAMETOOLONG: ("the name is too long for this file system", "use shorter names"),
    errno.EILSEQ: ("this file system cannot spell the name", "use letters, digits, `-`, `_` and `.`"),
    errno.EFBIG: ("the file is larger than allowed here", "use another file system, or raise the limit: `ulimit -f`"),
    errno.ENOENT: ("no such file or folder", "check that it exists and was not removed meanwhile"),
    errno.ENOTDIR: ("a part of its path is not a folder", "move that away, or use another path"),
    errno.EISDIR: ("it is a folder, not a file", "move it away, or use another path"),
    errno.EEXIST: ("something else is in its way", "move that away, or use another path"),
    errno.ENOTEMPTY: ("the folder is not empty", "look at what is in it, and run the command again"),
    errno.ELOOP: ("a symbolic link is in the way, or links lead in a circle", "`ls -l` tells which; remove or mend it"),
    errno.EBUSY: ("it is in use", "close what uses it, and run the command again"),
    errno.ETXTBSY: ("it is a program that is running", "stop it, and run the command again"),
    errno.ENOLCK: ("this file system cannot lock files", "mount it with locking, or use a disk of this machine"),
    errno.ENOTSUP: ("this file system cannot do that", "use another file system"),
    errno.ESTALE: ("the file server no longer knows it", "run the command again; if that fails, mount it anew"),
    errno.ENOTCONN: ("the file system is no longer connected", "mount it anew, and run the command again"),
    errno.ETIMEDOUT: ("no answer came in time", "check the network, and run the command again"),
    errno.E2BIG: ("the command or its environment is too long", "put the command in a script"),
    errno.EAGAIN: ("the system cannot do it right now", "run the command again; `ulimit -a` shows its limits"),
}


def translate_os_error(error: OSError, doing: str) -> MlxError:
    """Return the error a user can act on; `doing` completes "cannot ...", as in ``write `x` ``."""
    plain = (error.strerror or str(error)).lower()
    reason, hint = _REASONS.get(error.errno or 0, (plain, "look at what the system says about it"))
    return OutsideError(f"cannot {doing}: {reason}", hint=hint)
