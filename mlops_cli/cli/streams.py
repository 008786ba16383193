"""The two streams, as bytes: a JSON document in UTF-8 whatever the terminal speaks, and the conversation beside it."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from threading import Lock
from typing import Any, TextIO

CLOSED = errno.EBADF
_ANSWER, _ERROR = 1, 2
_ONE_AT_A_TIME = Lock()  # commands that run at once are shown by a thread each


def open_closed_streams() -> None:
    """Give this process streams where the shell closed them (`>&-`), for which Python has none.

    Writing to standard output fails then as it would in any program, with the error `CLOSED`; what is said on standard
    error is lost. Their descriptors are taken, that of standard input too, so that no file that is opened later gets
    them: what is written to them by number must not end up in somebody's data.
    """
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_WRONLY if descriptor == _ERROR else os.O_RDONLY)  # gets the lowest one that is free
    if sys.stdout is None:
        sys.stdout = os.fdopen(_ANSWER, "w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = os.fdopen(_ERROR, "w", encoding="utf-8")


def write_json(stream: TextIO, document: dict[str, Any], *, indent: int | None = None) -> None:
    """Write a document and a newline.

    Bytes of names that are not UTF-8 come out as the escapes of half surrogate pairs, as `os.fsdecode` spells them.
    """
    import json

    text = json.dumps(document, ensure_ascii=False, indent=indent, allow_nan=False)
    _write(stream, text.encode("utf-8", "backslashreplace") + b"\n")


def write_error(data: bytes | str) -> None:
    """Write to standard error; work goes on when nobody reads it any more."""
    try:
        _write(sys.stderr, data if isinstance(data, bytes) else data.encode("utf-8", "backslashreplace"))
    except OSError:
        return


def error_width() -> int | None:
    """Return how many columns the terminal on standard error has; None when it is none, and no line is too long."""
    try:
        if not sys.stderr.isatty():
            return None
        given = os.environ.get("COLUMNS", "")
        return (int(given) if given.isdecimal() else os.get_terminal_size(sys.stderr.fileno()).columns) or 80
    except (OSError, ValueError):  # closed, or not of the operating system
        return None


def error_size() -> tuple[int, int]:
    """Return how many columns and lines the terminal on standard error has, as far as it says."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        return 80, 24
    return error_width() or size.columns or 80, size.lines or 24


def _write(stream: TextIO, data: bytes) -> None:
    with _ONE_AT_A_TIME:
        stream.flush()
        rest = memoryview(data)
        while rest:
            written = stream.buffer.write(rest)
            if not written:  # it is not to be waited for, and takes nothing now
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            rest = rest[written:]  # a stream without a buffer (`python -u`) may take a part
        stream.buffer.flush()
