"""Sharing bytes between the cache and the workspace: reflinks, hard links, symlinks.

A reflink is two files over the same blocks until one is written: safe for both sides, and instant, where file systems
have it. Hard links and symlinks are one file under two names: an edit in place through either changes both, so they are
by choice only. Which mode a project uses is decided above; this module knows how each is made and how to probe for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from mlops_cli.files import TEMPORARY_PREFIX
from mlops_cli.hashing import Digest, parse_digest

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_RENAME_NOREPLACE = 1  # linux/fs.h
_AT_FDCWD = -100
_OBJECT = re.compile(rb"/.*/objects/([0-9a-f]{2})/([0-9a-f]{62})", re.DOTALL)

# What a file system answers when it cannot link this way, as opposed to failing at it.
UNSUPPORTED = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EMLINK}
)


class LinkMode(StrEnum):
    """How files are shared between cache and workspace; what cannot be shared that way is copied."""

    COPY = "copy"
    REFLINK = "reflink"
    HARDLINK = "hardlink"
    SYMLINK = "symlink"


def object_at(target: bytes) -> Digest | None:
    """Return which object a symlink to `target` stands for, in any cache; None when it is a user's own link.

    That is what the name says: the bytes there, if any, must still be verified.
    """
    found = _OBJECT.fullmatch(target)
    return None if found is None else parse_digest("blake3:" + (found[1] + found[2]).decode())


def reflink(source: str, target: str, *, mode: int = 0o666, dir_fd: int | None = None) -> None:
    """Make `target`, which must not exist, a clone of `source`; OSError where the file system cannot."""
    if sys.platform == "darwin":
        _clonefile(source, target, mode, dir_fd)
    elif sys.platform.startswith("linux"):
        _ficlone(source, target, mode, dir_fd)
    else:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), target)


def _ficlone(source: str, target: str, mode: int, dir_fd: int | None) -> None:
    from_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        to_fd = os.open(target, flags, mode, dir_fd=dir_fd)
        try:
            fcntl.ioctl(to_fd, _FICLONE, from_fd)
        except OSError:
            with suppress(OSError):
                os.unlink(target, dir_fd=dir_fd)
            raise
        finally:
            os.close(to_fd)
    finally:
        os.close(from_fd)


def _clonefile(source: str, target: str, mode: int, dir_fd: int | None) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    at_fdcwd = -2  # <sys/fcntl.h> on macOS
    folder = at_fdcwd if dir_fd is None else dir_fd
    if libc.clonefileat(at_fdcwd, os.fsencode(source), folder, os.fsencode(target), 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)
    os.chmod(target, mode & 0o755, dir_fd=dir_fd)


class _NewRename:
    """`renameat2` with RENAME_NOREPLACE, looked up once; None where the system lacks it."""

    def __init__(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self.get_errno = ctypes.get_errno
        self.call = getattr(libc, "renameat2", None) if sys.platform.startswith("linux") else None
        if self.call is not None:
            self.call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


_new_rename: list[_NewRename] = []


def rename_new(source: str, target: str, *, dir_fd: int | None = None) -> None:
    """Rename within a folder; FileExistsError, with nothing changed, when `target` exists.

    Where the file system cannot promise that in one step, a hard link stands in, and where there are none a check.
    """
    if not _new_rename:
        _new_rename.append(_NewRename())  # a process-wide table entry, not state: the C library does not change
    rename = _new_rename[0]
    if rename.call is not None:
        folder = _AT_FDCWD if dir_fd is None else dir_fd
        if rename.call(folder, os.fsencode(source), folder, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        code = rename.get_errno()
        if code not in UNSUPPORTED:
            raise OSError(code, os.strerror(code), target)
    _link_then_unlink(source, target, dir_fd)


def _link_then_unlink(source: str, target: str, dir_fd: int | None) -> None:
    try:
        os.link(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        with suppress(FileNotFoundError):
            os.stat(target, dir_fd=dir_fd, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from None
        os.rename(source, target, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    else:
        os.unlink(source, dir_fd=dir_fd)


def supported_modes(cache_dir: Path, workspace_dir: Path) -> tuple[LinkMode, ...]:
    """Return the modes that work between two existing folders, found by trying each with a file removed afterwards."""
    token = f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}"
    source = cache_dir / token
    target = workspace_dir / f"{token}-linked"
    found = [LinkMode.COPY]
    try:
        source.write_bytes(b"probe")
        for mode in (LinkMode.REFLINK, LinkMode.HARDLINK, LinkMode.SYMLINK):
            with suppress(OSError):
                _make(mode, source, target)
                found.append(mode)
            target.unlink(missing_ok=True)
    finally:
        source.unlink(missing_ok=True)
    return tuple(found)


def _make(mode: LinkMode, source: Path, target: Path) -> None:
    if mode is LinkMode.REFLINK:
        reflink(str(source), str(target))
    elif mode is LinkMode.HARDLINK:
        target.hardlink_to(source)
    else:
        target.symlink_to(source)
