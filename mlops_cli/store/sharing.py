"""Who may use a store: where its root folder lets a group write, so does everything in it.

The one idea: the root's permissions and group decide, not the umask and the group of whoever happens to write. A store
whose root only its owner may write to is left to the umask.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

_OTHERS_WRITE = 0o022


def make_folder(path: str, root: str | os.PathLike[str]) -> None:
    """Make a folder of the store at `root`, and those above it; in a shared store each grants what the root does.

    One that is there already stays as it is. OSError passes through.
    """
    try:
        os.mkdir(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_folder(os.path.dirname(path), root)
        with suppress(FileExistsError):
            os.mkdir(path)
    grant([path], root, 0o7777)


def grant(files: Iterable[int | str], root: str | os.PathLike[str], bits: int) -> None:
    """Let whoever may use the shared store at `root` do with `files` what is among `bits`; elsewhere do nothing."""
    try:
        info = os.stat(root)
    except FileNotFoundError:
        return
    if not info.st_mode & _OTHERS_WRITE:
        return
    mode = stat.S_IMODE(info.st_mode) & bits
    for file in files:
        with suppress(PermissionError):  # somebody else's, who has granted it; or a group that we are not in
            if os.stat(file).st_gid != info.st_gid:
                os.chown(file, -1, info.st_gid)
        with suppress(PermissionError):
            os.chmod(file, mode)
