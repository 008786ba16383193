"""The command tree: which commands there are, in the order help shows them, and the module that has each.

A module is imported when one of its commands is named; help and completion import them all. A name here is a key of its
module's `COMMANDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlops_cli.cli.commands import Command, Group, PlainGroup, build

if TYPE_CHECKING:
    from typer._click import Command as AnyCommand
    from typer._click import Context, HelpFormatter

SECTIONS: Mapping[str, Mapping[str, str]] = {
    "Start": {
        "init": "data",
        "demo": "demo",
        "doctor": "settings",
        "config": "settings",
        "install": "merging",
    },
    "Data": {
        "add": "data",
        "status": "status",
        "checkout": "data",
        "unprotect": "data",
        "diff": "data",
        "resolve": "merging",
        "push": "transfers",
        "pull": "transfers",
        "fetch": "transfers",
        "remove": "data",
        "move": "data",
        "ls": "browse",
        "cat": "browse",
        "import": "imports",
        "update": "imports",
        "get": "imports",
        "du": "storage",
        "gc": "garbage",
        "evict": "garbage",
        "fsck": "storage",
    },
    "Remotes": {
        "remote": "remotes",
    },
    "Pipelines": {
        "run": "run",
        "logs": "logs",
        "stage": "stages",
        "graph": "pipeline",
        "why": "pipeline",
        "accept": "acceptance",
        "reproduce": "reproduction",
        "job": "jobs",
    },
    "Tracking": {
        "metrics": "tracking",
        "params": "tracking",
    },
}
_HOMES = {name: module for names in SECTIONS.values() for name, module in names.items()}

_OTHER_NAMES = {"mv": "move"}


def load_entry(name: str) -> Command | Group:
    """Return what `mlx NAME` is; KeyError when there is no such command."""
    module = importlib.import_module(f"mlops_cli.cli.{_HOMES[name]}")
    entry: Command | Group = module.COMMANDS[name]
    return entry


class CommandTree(PlainGroup):
    """The root, whose commands are made when they are asked for."""

    def list_commands(self, ctx: Context) -> list[str]:  # noqa: ARG002 - typer's signature
        """Return every name, in the order of help."""
        return list(_HOMES)

    def get_command(self, ctx: Context, cmd_name: str) -> AnyCommand | None:  # noqa: ARG002
        """Return the command of that name, or None; `mv` is `move`."""
        cmd_name = _OTHER_NAMES.get(cmd_name, cmd_name)
        if cmd_name not in self.commands and cmd_name in _HOMES:
            self.commands[cmd_name] = build(cmd_name, load_entry(cmd_name))
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:  # noqa: ARG002
        """Write the commands, section by section, in columns that line up."""
        widest = max(map(len, _HOMES))
        for section, names in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl([(name.ljust(widest), load_entry(name).help.partition("\n")[0]) for name in names])
