"""Errors a user can act on: one sentence, a next step, an exit code.

    MlxError
    ├── CheckFailed       1  the answer is no: outputs differ, `--check` found changes
    │   └── StageFailed   1  a stage's command failed, or did not keep its promises
    ├── UsageError        2  a path, flag or setting that cannot be right; no project here
    │   └── RecordError   2  a committed file that does not hold what it must
    ├── Inconclusive      3  a question that cannot be judged with what is here
    ├── MissingObject     4  the bytes are not here
    ├── CorruptObject     5  bytes do not match their digest
    └── OutsideError      6  something outside mlx failed: disk, permissions
        ├── RemoteError   6  a remote is unreachable, refuses, or is not configured as it must be
        └── LockedError   6  another mlx is at work on the same thing

A message is lower case, names the thing in backticks and has no full stop; the hint is the next command or edit, with
the project paths in its commands marked (`words`).
"""

from __future__ import annotations

from collections.abc import Mapping

from mlops_cli.words import spelled


class MlxError(Exception):
    """Something the user can act on; `exit_code` is what the process returns.

    `marked_hint` is the hint with its paths marked: what another error takes over, and what is told.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.marked_hint = hint

    @property
    def hint(self) -> str | None:
        """The next step, as it is typed at the root of the project."""
        return None if self.marked_hint is None else spelled(self.marked_hint)

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between processes, however a subclass is made."""
        return _revive, (type(self), self.args, self.__dict__)


def _revive(kind: type[MlxError], args: tuple[object, ...], state: Mapping[str, object]) -> MlxError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class CheckFailed(MlxError):
    """The question was answered, and the answer is no."""


class StageFailed(CheckFailed):
    """A stage's command failed, or it did not write what it declares."""


class UsageError(MlxError):
    """What was asked for cannot be right here."""

    exit_code = 2


class RecordError(UsageError):
    """A committed file is invalid; the message begins with `file:line`, or names a file that is no record at all."""


class Inconclusive(MlxError):
    """What is needed to judge is not there."""

    exit_code = 3


class MissingObject(MlxError):
    """Bytes that a record names are absent from the store that was asked."""

    exit_code = 4


class CorruptObject(MlxError):
    """Bytes do not hash to the digest that names them."""

    exit_code = 5


class OutsideError(MlxError):
    """The operating system or another service refused."""

    exit_code = 6


class RemoteError(OutsideError):
    """A remote cannot be reached or used."""


class LockedError(OutsideError):
    """Another process holds what this one needs."""
