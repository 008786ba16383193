"""Being interrupted: which signals mean it, and what is told, also before the rest of the program is loaded."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

INTERRUPTED = 130
MESSAGE = "interrupted"
HINT = "the same command again goes on from here"


def take_signals(answer: Callable[[int, object], None]) -> None:
    """Have `answer` called for the signals that end the program, but for those that it was started without."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # under `nohup`, work outlives its terminal
            signal.signal(number, answer)


def end(number: int = 0, frame: object = None) -> NoReturn:
    """Say that the program was interrupted and be gone, when nothing was begun yet, or all is done."""
    if wants_json(sys.argv[1:]):
        told = f'{{"schema": "mlx/error/v1", "message": "{MESSAGE}", "hint": "{HINT}", "exit_code": {INTERRUPTED}}}\n'
    else:
        told = f"error: {MESSAGE}\nhint: {HINT}\n"
    with suppress(OSError):
        os.write(2, told.encode())
    os._exit(INTERRUPTED)


def wants_json(arguments: Sequence[str]) -> bool:
    """Say whether a command line asks for JSON, whatever else is wrong with it."""
    words = list(arguments)
    return "--json" in (words[: words.index("--")] if "--" in words else words)
