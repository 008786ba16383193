"""Where words go: the answer to standard output, the conversation to standard error.

A command builds one JSON-shaped value and the lines of one text of the same facts; `--json` decides which is printed.
Text is made safe for a terminal here, line by line; JSON holds names as they are. Under `--json` standard error is kept
for an error: notes go into the document, and what only accompanies the work is not said.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from mlops_cli.cli.bars import TerminalReporter
from mlops_cli.cli.spelling import Spelling, advice
from mlops_cli.cli.streams import error_width, write_error, write_json
from mlops_cli.cli.text import Line, Style, Styled, draw, printable, wrapped
from mlops_cli.errors import MlxError

_NEXT = "next: "


class Colors(NamedTuple):
    """Which streams may carry colour."""

    stdout: bool = False
    stderr: bool = False


class Output(NamedTuple):
    """How one command speaks; `notes` gathers what the user should know, `spelling` knows where commands are typed."""

    json: bool
    quiet: bool
    colors: Colors
    notes: list[str]
    spelling: Spelling

    def result(self, kind: str, value: dict[str, Any], lines: Iterable[Line]) -> None:
        """Print the answer: under `--json` `value` with its schema's name in front, else `lines`."""
        if self.json:
            write_json(sys.stdout, self.document(kind, value), indent=2)
            return
        for line in lines:
            print(draw(line, color=self.colors.stdout))
        sys.stdout.flush()  # before what is said next on the other stream

    def document(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        """Return what `--json` prints: `value` after its schema's name, then the notes if there are any."""
        return {"schema": f"mlx/{kind}/v1", **value, **({"notes": self.notes} if self.notes else {})}

    def hint(self, error: MlxError) -> str | None:
        """Return what to do about an error, as it is typed where the user is."""
        hint = advice(error, self.spelling.cwd)
        return None if hint is None else self.spelling.spell(hint)

    def fault(self, error: MlxError) -> dict[str, str | None]:
        """Return how a document tells an error that did not end its command."""
        return {"message": error.message, "hint": self.hint(error)}

    def say(self, message: str) -> None:
        """Tell what happened or what to do next."""
        if not (self.quiet or self.json):
            text = printable(self.spelling.spell(message))
            if text.startswith(_NEXT) and "`" in text:  # without it, what follows is one command as it is typed
                text = _NEXT + wrapped(text.removeprefix(_NEXT), error_width(), len(_NEXT))
            write_error(f"{text}\n")

    def note(self, message: str) -> None:
        """Tell something the user should know; only `--quiet` silences it."""
        message = self.spelling.spell(message)
        self.notes.append(message)
        if not (self.quiet or self.json):
            self.label("note", message, Style.YELLOW)

    def label(self, label: str, message: str, style: Style) -> None:
        """Write a sentence to standard error after a label in colour, wrapped where it goes to a terminal."""
        text = wrapped(printable(message), error_width(), len(label) + 2)
        write_error(f"{draw(Styled(f'{label}:', style), color=self.colors.stderr)} {text}\n")

    def pass_on(self, data: bytes) -> None:
        """Show what a program that was started wrote, as it is."""
        if not (self.quiet or self.json):
            write_error(data)

    def reporter(self) -> TerminalReporter:
        """Return a reporter of progress for this command."""
        return TerminalReporter(self.note, silent=self.quiet or self.json, color=self.colors.stderr)
