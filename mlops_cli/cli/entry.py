"""The door of the program: `mlx --version` is answered before anything is loaded, everything else by `main`."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress

from mlops_cli import __version__

MERGE_FILE = "merge-file"


def entry() -> None:
    """Be the `mlx` program."""
    if sys.argv[1:] == ["--version"]:
        with suppress(OSError, AttributeError):  # a stream that is closed or full: `main` knows what to say
            os.write(sys.stdout.fileno(), f"mlx {__version__}\n".encode())
            return
    from mlops_cli.cli.interrupts import end, take_signals

    take_signals(end)  # until `main` does
    if sys.argv[1:2] == [MERGE_FILE]:  # Git's question, once for each file that both sides of a merge changed
        from mlops_cli.cli.merge_file import answer

        answer(sys.argv[2:])
    # What a command makes it keeps until its end: looking for garbage every 700 objects finds none, and takes a tenth
    # of the time of the short commands.
    gc.set_threshold(50_000, 20, 100)
    try:
        from mlops_cli.cli.main import run

        run()
    except KeyboardInterrupt:
        end()
