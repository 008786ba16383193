"""The door of the program: `mlx --version` is answered before anything is loaded, everything else by `main`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from mlops_cli import __version__


def entry() -> None:
    """Be the `mlx` program."""
    if sys.argv[1:] == ["--version"]:
        with suppress(OSError, AttributeError):  # a stream that is closed or full: `main` knows what to say
            os.write(sys.stdout.fileno(), f"mlx {__version__}\n".encode())
            return
    from mlops_cli.cli.main import run

    run()
