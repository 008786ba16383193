"""Files that a command may write to in place: none of them the cache's own.

By a hard link or a symlink a file of the workspace is the cache's, and an edit in place would change an object. Which
files share their bytes with something is told by the number of their names: whoever has the others, the command gets a
copy.
"""

from __future__ import annotations

import os
import shutil
import stat as st
from collections.abc import Iterable, Iterator

from mlops_cli.files import TEMPORARY_PREFIX, translate_os_error
from mlops_cli.store.links import object_at
from mlops_cli.workspace.folders import Folders
from mlops_cli.workspace.project import Project


def own_files(project: Project, paths: Iterable[str]) -> None:
    """Make every file at or below `paths` one of the workspace's own, and writable, one atomic rename each.

    A link of the user's that leads elsewhere stays. OutsideError when the system refuses.
    """
    with Folders(project) as folders:
        for path in paths:
            try:
                for name in list(_shared(os.fsencode(project.root), os.fsencode(path))):
                    _own(folders, name)
            except OSError as error:
                raise translate_os_error(error, f"write to `{path}`") from error


def _shared(root: bytes, path: bytes) -> Iterator[bytes]:
    """Yield the files at or below `path`, relative to `root`, that have another name, or that nobody may write to."""
    waiting = [path]
    while waiting:
        path = waiting.pop()
        place = root + b"/" + path
        info = os.lstat(place)
        if st.S_ISDIR(info.st_mode):
            waiting += [path + b"/" + name for name in os.listdir(place)]
        elif st.S_ISLNK(info.st_mode):
            if object_at(os.readlink(place)) is not None:
                yield path
        elif st.S_ISREG(info.st_mode) and (info.st_nlink > 1 or not info.st_mode & st.S_IWUSR):
            yield path


def _own(folders: Folders, path: bytes) -> None:
    """Replace a file by a writable copy of it."""
    parent, _, name = path.rpartition(b"/")
    folder = folders.open(parent)
    temporary = os.fsencode(f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(6).hex()}")
    source = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=folder)
    try:
        mode = st.S_IMODE(os.fstat(source).st_mode) | st.S_IWUSR
        target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode, dir_fd=folder)
        try:
            with open(source, "rb", closefd=False) as old, open(target, "wb") as new:
                shutil.copyfileobj(old, new, 1 << 20)
                os.fchmod(new.fileno(), mode)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        os.close(source)
