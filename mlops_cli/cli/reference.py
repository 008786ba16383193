"""The reference of the command line, written from the command tree: `docs/reference/cli.md`.

`python -m mlops_cli.cli.reference > docs/reference/cli.md` writes it anew; a test fails when it is stale. The text is
the help itself, at a fixed width, so it is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from typer.core import TyperGroup

from mlops_cli.cli.main import root_command
from mlops_cli.cli.tree import SECTIONS

if TYPE_CHECKING:
    from typer._click import Command as AnyCommand
    from typer._click import Context

WIDTH = 78  # what help takes in a terminal of 80 columns

_INTRODUCTION = """\
# The command line

<!-- Written by `python -m mlops_cli.cli.reference > docs/reference/cli.md`: do not edit it. -->

What `--help` says, for every command.
The answer goes to standard output, everything else to standard error.

- [What each exit code means](exit-codes.md)
- [The documents that `--json` prints](json.md)
- [The environment variables that count](environment.md)
- [The words used here](glossary.md)
- [Everything else in the reference](README.md)

## Options of every command

They come before the command: `mlx -C elsewhere -q status`.
"""


def reference() -> str:
    """Return the page."""
    root = root_command()
    context = _context(root, "mlx", None)
    lines = [_INTRODUCTION, *_help(root, context)]
    for section, names in SECTIONS.items():
        lines += ["", f"## {section}"]
        for name in names:
            command = root.get_command(context, name)
            assert command is not None
            lines += _entry(command, _context(command, name, context))
    return "\n".join(lines) + "\n"


def _entry(command: AnyCommand, context: Context) -> Iterator[str]:
    """Yield the lines on a command, or on a group and then its commands."""
    path = context.command_path
    yield from ("", f"### {path}", "", *_help(command, context))
    if isinstance(command, TyperGroup):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _entry(inner, _context(inner, name, context))
        return
    kind = path.removeprefix("mlx ").replace(" ", "-")
    yield from ("", f"`--json` prints [`mlx/{kind}/v1`](../../mlops_cli/schemas/{kind}.v1.json).")


def _help(command: AnyCommand, context: Context) -> Iterator[str]:
    yield "```text"
    yield from (line.rstrip() for line in command.get_help(context).splitlines())
    yield "```"


def _context(command: AnyCommand, name: str, parent: Context | None) -> Context:
    return command.make_context(name, [], parent, resilient_parsing=True, terminal_width=WIDTH)


if __name__ == "__main__":
    print(reference(), end="")
