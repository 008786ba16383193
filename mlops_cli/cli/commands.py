"""What a command is, and how typer's form of it is made.

A module of this package holds bodies and one mapping, `COMMANDS`, of names to them. Typer reads a body's signature to
make its parser, which costs more than all else at start: it is done for the command that was named, not for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from mlops_cli.cli.usage import Refusal, refuse_empty
from mlops_cli.errors import UsageError

if TYPE_CHECKING:
    from typer._click import Command as AnyCommand
    from typer._click import Context
    from typer.core import TyperOption

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Command(NamedTuple):
    """A command: the function that is called, whose docstring is its help, and the examples that end the help."""

    body: Callable[..., None]
    examples: tuple[str, ...]

    @property
    def help(self) -> str:
        """The help text: one line that says it all, then perhaps paragraphs."""
        return inspect.getdoc(self.body) or ""


class Group(NamedTuple):
    """A noun and its commands, as `mlx remote`."""

    help: str
    commands: Mapping[str, Command]


def command(body: Callable[..., None], *examples: str) -> Command:
    """Return the command that calls `body`; `examples` are one or more lines for a shell."""
    return Command(body, examples)


def build(name: str, entry: Command | Group) -> TyperCommand | TyperGroup:
    """Return typer's form of a command, or of a group with its commands."""
    if isinstance(entry, Group):
        app = make_app(name, PlainGroup, entry.help)
        for inner_name, inner in entry.commands.items():
            _register(app, inner_name, inner)
        return typer.main.get_group(app)
    app = make_app(None, PlainGroup, "")
    _register(app, name, entry)
    built = typer.main.get_command(app)
    assert isinstance(built, TyperCommand)
    return built


def make_app(name: str | None, cls: type[PlainGroup], help_text: str, *, completion: bool = False) -> typer.Typer:
    """Return an empty application: help in plain text, errors left to the caller."""
    return typer.Typer(
        name=name,
        cls=cls,
        help=help_text,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        suggest_commands=False,
        context_settings=SETTINGS,
        add_completion=completion,
    )


def _register(app: typer.Typer, name: str, entry: Command) -> None:
    heading = "Example:" if len(entry.examples) == 1 else "Examples:"
    epilog = "\b\n" + "\n".join([heading, *(f"  {example}" for example in entry.examples)])
    app.command(name, cls=PlainCommand, epilog=epilog, context_settings=SETTINGS)(entry.body)


class PlainCommand(TyperCommand):
    """A command whose usage line and help option are in the style of the rest."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Read the command line; a refusal says which command it is about."""
        try:
            rest = super().parse_args(ctx, args)
        except Refusal as error:
            error.ctx = error.ctx or ctx
            raise
        if not ctx.resilient_parsing:
            refuse_empty(ctx)
        return rest

    def collect_usage_pieces(self, ctx: Context) -> list[str]:
        """Return the parts of the usage line, without typer's braces around what must be given."""
        return [piece.removeprefix("{").removesuffix("}") for piece in super().collect_usage_pieces(ctx)]

    def get_help_option(self, ctx: Context) -> TyperOption | None:
        """Return the option `--help`."""
        return _worded(super().get_help_option(ctx))


class PlainGroup(TyperGroup):
    """A group in the style of the rest, that answers an unknown name with the nearest one."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Read the options that come before the command."""
        rest = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:
            refuse_empty(ctx)
        return rest

    def get_help_option(self, ctx: Context) -> TyperOption | None:
        """Return the option `--help`."""
        return _worded(super().get_help_option(ctx))

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, AnyCommand | None, list[str]]:
        """Return the command that `args` begin with, and the rest; UsageError when there is none of that name."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            from mlops_cli.documents import nearest

            near = nearest(args[0], self.list_commands(ctx))
            path = ctx.command_path
            named = f"{path} {args[0]}"
            if named in _GUESSED:
                raise UsageError(f"there is no command `{named}`", hint=_GUESSED[named])
            hint = f"did you mean `{path} {near}`?" if near else f"`{path} --help` lists the commands"
            raise UsageError(f"there is no command `{path} {args[0]}`", hint=hint)
        return super().resolve_command(ctx, args)


_GUESSED = {
    "mlx remote rm": "`mlx remote remove NAME`",
    "mlx remote set-url": "`mlx remote add NAME URL --force`",
    "mlx remote rename": "`mlx remote add NEW URL`, then `mlx remote remove OLD`",
}  # what Git calls commands that are called otherwise here


def _worded(option: TyperOption | None) -> TyperOption | None:
    if option is not None:
        option.help = "Show this help"
    return option
