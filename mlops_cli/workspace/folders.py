"""Folders of the workspace, opened one name at a time, never through a link.

Whoever writes into the workspace does it relative to such a handle: a link that somebody puts in a folder's place
meanwhile leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from mlops_cli.errors import UsageError
from mlops_cli.files import translate_os_error
from mlops_cli.workspace.project import Project

OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Gone already, or kept by what is left out in it: no reason to stop.
_NOT_REMOVED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY})


class Folders:
    """Opens folders below the project's root one name at a time, never through a link; the last one stays open."""

    def __init__(self, project: Project) -> None:
        self._root = os.fsencode(project.root)
        self._path: bytes | None = None
        self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: bytes) -> int:
        """Return a descriptor of the folder `path`, made when it is not there; valid until the next call."""
        if path != self._path:
            self.close()
            self._descriptor, self._path = self._walk(path, create=True), path
        return self._descriptor

    def delete(self, path: bytes, spare: Callable[[int], None] = lambda _: None) -> None:
        """Delete a file, link or empty folder, then the folders above it that this leaves empty.

        `spare` may raise once the folder that holds it is open: then it stays.
        """
        remove = _remove
        while path:
            parent, _, name = path.rpartition(b"/")
            try:
                with self._opened(parent) as descriptor:
                    if remove is _remove:
                        spare(descriptor)
                    remove(name, descriptor)
            except OSError as error:
                if error.errno in _NOT_REMOVED:
                    return
                raise translate_os_error(error, f"delete `{os.fsdecode(path)}`") from error
            path, remove = parent, _remove_folder

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        descriptor = self._walk(path, create=False)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _walk(self, path: bytes, *, create: bool) -> int:
        descriptor = os.open(self._root, OPEN_FOLDER)
        names = path.split(b"/") if path else []
        for depth, name in enumerate(names, start=1):
            try:
                if create:
                    _make_folder(name, descriptor)
                below = os.open(name, OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=descriptor)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise not_a_folder(b"/".join(names[:depth])) from error
                raise
            finally:
                os.close(descriptor)
            descriptor = below
        return descriptor

    def close(self) -> None:
        """Close the folder that is open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._path = -1, None


def not_a_folder(path: bytes) -> UsageError:
    """Return what to raise for a link or a file where a folder must be."""
    return UsageError(
        f"`{os.fsdecode(path)}` is not a folder but a link or a file",
        hint="mlx does not write through links: move it away",
    )


def _make_folder(name: bytes, parent: int) -> None:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        return


def _remove(name: bytes, folder: int) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        _remove_folder(name, folder)
    else:
        os.unlink(name, dir_fd=folder)


def _remove_folder(name: bytes, folder: int) -> None:
    os.rmdir(name, dir_fd=folder)
