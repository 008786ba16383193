"""Letting the system refuse: the call number `at`, and perhaps all that follow, fails with an error of its kind.

`refusing` works in this process, on the calls that `mlops_cli` makes through `os`; what it does with a refusal is the
test's to look at.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.crashing import CALLS

_MADE = os.O_CREAT | os.O_TRUNC
# What takes no room works on a full disk.
ROOMY = frozenset(CALLS) - {"chmod", "fchmod", "rename", "replace", "rmdir", "unlink", "utime"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Calls that fail with `code`: one of them, or, when it is `lasting`, all from then on."""

    code: int
    calls: Collection[str]
    lasting: bool = False
    reading: bool = False  # whether opening for reading counts

    def __str__(self) -> str:
        return errno.errorcode[self.code]


FULL = Refusal(errno.ENOSPC, ROOMY, lasting=True)
QUOTA = Refusal(errno.EDQUOT, ROOMY, lasting=True)
BROKEN = Refusal(errno.EIO, frozenset(CALLS) - {"rmdir", "unlink"})  # what is left can be removed
TOO_MANY = Refusal(errno.EMFILE, frozenset({"open"}), reading=True)


@dataclass(slots=True)
class Count:
    """How many calls were refused."""

    refused: int = 0


@contextmanager
def refusing(refusal: Refusal, at: int) -> Iterator[Count]:
    """Refuse call number `at`, for the length of the block."""
    count = Count()
    done = 0

    def refuse(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            nonlocal done
            if _passes(refusal, name, args):
                return call(*args, **options)
            done += 1
            if done == at + 1 or (refusal.lasting and done > at):
                if name == "write" and not count.refused and len(args[1]) > 1:  # type: ignore[arg-type]
                    call(args[0], args[1][: len(args[1]) // 2])  # type: ignore[index, arg-type]
                count.refused += 1
                raise OSError(refusal.code, os.strerror(refusal.code), None if isinstance(args[0], int) else args[0])
            return call(*args, **options)

        return run

    real = {name: getattr(os, name) for name in refusal.calls if hasattr(os, name)}
    for name, call in real.items():
        setattr(os, name, refuse(name, call))
    try:
        yield count
    finally:
        for name, call in real.items():
            setattr(os, name, call)


def _passes(refusal: Refusal, name: str, args: tuple[object, ...]) -> bool:
    """Say whether a call is no concern of the disk: it only reads, or writes to a pipe."""
    if name == "open":
        return not (refusal.reading or args[1] & _MADE)  # type: ignore[operator]
    return isinstance(args[0], int) and not stat.S_ISREG(os.fstat(args[0]).st_mode) and name in ("write", "writev")
