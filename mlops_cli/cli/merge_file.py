"""`merge-file`, which Git calls and nobody types: a command without options, help or typer, so that it is quick.

    mlx merge-file BASE OURS THEIRS MARKER_SIZE PATH

The first three are files, the last is the path from the top of the working tree, where Git calls it. It exits with 0
when OURS holds the merge, with 3 when that is a conflict: other codes say that it never came to merging.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mlops_cli.cli.streams import open_closed_streams, write_error
from mlops_cli.cli.text import printable
from mlops_cli.errors import MlxError, UsageError

CONFLICT = 3
_ARGUMENTS = 5


def answer(arguments: Sequence[str]) -> NoReturn:
    """Be the merge driver for one file."""
    open_closed_streams()
    # The interpreter would take apart what it has loaded, which is a part of the time.
    os._exit(merge(arguments))


def merge(arguments: Sequence[str]) -> int:
    """Merge as the arguments say; returns the exit code. Whatever goes wrong is a conflict, and told."""
    from mlops_cli.workspace.merge_driver import Call, drive

    path = arguments[-1] if arguments else ""
    try:
        if len(arguments) != _ARGUMENTS or not arguments[3].isdecimal():
            raise UsageError("this is what Git calls when it merges; `mlx resolve` is for people")
        base, ours, theirs, size, path = arguments
        clean, told = drive(Call(base, ours, theirs, int(size), path, Path.cwd()), os.environ)
    except MlxError as error:
        clean, told = False, error.message
    except Exception as error:  # noqa: BLE001 - Git goes on whatever happens, so nothing may end here unsaid
        clean, told = False, f"`{path}`: {type(error).__name__}: {error}; `mlx resolve` tells more"
    if told:
        write_error(f"mlx: {printable(told)}\n")
    return 0 if clean else CONFLICT
