"""What typer's parser refuses, and should, worded like every other error: one sentence, a hint with the right thing.

Typer holds its own copy of click and exports few of its errors; this is the one module that reaches for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from typer._click import exceptions as click
from typer.core import TyperOption

from mlops_cli.errors import UsageError

if TYPE_CHECKING:
    from typer._click import Context

Refusal = click.UsageError
HelpWanted = click.NoArgsIsHelpError

_NEAR = 0.75  # `force` is not meant by `forget` (0.73), nor `json` by `jobs` (0.5)
_FETCH = "`mlx fetch {}` brings it into the cache; a pull is of what is checked out"
_CHECKOUT = "`git checkout REV` brings the records of a revision, then `mlx checkout` its data"
_OTHERWISE = {
    **{("mlx pull", f"--{name}"): _FETCH.format(f"--{name}") for name in ("all-branches", "all-tags")},
    ("mlx pull", "--rev"): _FETCH.format("--rev REV"),
    ("mlx checkout", "--rev"): _CHECKOUT,
}  # options that another command has for what is wanted here
_QUOTED = re.compile(r"'([^']*)'")
_RANGE = re.compile(r"([^./:{\s][^:{\s]*?)\.{2,3}([^./:{\s][^:{\s]*)?\Z")
_EXTRA = re.compile(r"Got unexpected extra argument\(s\) \((.*)\)\Z", re.DOTALL)


def explain(error: Refusal) -> UsageError:
    """Return the error to show for what the parser refused."""
    path = error.ctx.command_path if error.ctx else "mlx"
    help_hint = f"`{path} --help` shows how to use it"
    if isinstance(error, click.NoSuchOption):
        return UsageError(f"`{path}` has no option `{error.option_name}`", hint=_nearest(error) or help_hint)
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = error.param.opts[0] if isinstance(error.param, TyperOption) else error.param.human_readable_name
        return UsageError(f"`{path}` needs `{name}`", hint=help_hint)
    extra = _EXTRA.match(error.message)
    if extra:
        return UsageError(f"`{path}` has no use for `{extra[1]}`", hint=help_hint)
    if isinstance(error, click.BadParameter) and isinstance(error.param, TyperOption):
        sentence = _quote(error.message).replace("is not a valid int range", "is not a whole number")
        return UsageError(f"`{error.param.opts[0]}`: {sentence}", hint=help_hint)
    if error.message == "Missing command.":
        return UsageError(f"`{path}` needs a command", hint=f"`{path} --help` lists them")
    sentence = _quote(error.format_message())
    return UsageError(sentence[:1].lower() + sentence[1:], hint=help_hint)


def refuse_empty(context: Context) -> None:
    """Refuse an empty word of the command line: most often an unset shell variable, and it would mean everything."""
    for parameter in context.command.params:
        name = parameter.name or ""
        value = context.params.get(name)
        is_empty = "" in value if isinstance(value, list | tuple) else value == ""
        source = context.get_parameter_source(name)
        if is_empty and source is not None and source.name == "COMMANDLINE":
            what = f"`{parameter.opts[0]}`" if isinstance(parameter, TyperOption) else "an argument"
            raise UsageError(
                f"{what} of `{context.command_path}` is empty",
                hint="give it a value, or leave it out; perhaps a variable of the shell is not set",
            )


def refuse_range(command: str, revisions: Iterable[str | None]) -> None:
    """Refuse `OLD..NEW` in place of two revisions; `command` is what to say instead."""
    for revision in revisions:
        found = _RANGE.match(revision or "")
        if found:
            old, new = found[1], found[2] or "HEAD"
            raise UsageError(f"`{revision}` is a range", hint=f"give two revisions: `mlx {command} {old} {new}`")


def _quote(text: str) -> str:
    return _QUOTED.sub(r"`\1`", text.strip().rstrip("."))


def _nearest(error: click.NoSuchOption) -> str | None:
    """Return a hint: the option that was meant, here or before the command."""
    if error.ctx is None:
        return None
    if re.match(r"-\.?\d", error.option_name):
        return f"a value that begins with `-` goes after `--`: `{error.ctx.command_path} … -- {error.option_name}`"
    if error.ctx.parent is not None:
        root = error.ctx.find_root()
        if any(error.option_name in parameter.opts for parameter in root.command.params):
            rest = error.ctx.command_path.removeprefix("mlx ")
            return f"it goes before the command: `mlx {error.option_name} {rest}`"
    elif error.option_name == "--json":
        return "it goes after a command: `mlx status --json`"
    path = error.ctx.command_path
    if (path, error.option_name) in _OTHERWISE:
        return _OTHERWISE[path, error.option_name]
    names = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
    near = _near(error.option_name, names)
    return f"did you mean `{near}`?" if near else None


def _near(option: str, names: Iterable[str]) -> str | None:
    """Return the long option that `option` is a slip of, or the beginning, or that is its beginning."""
    import difflib

    word = option.lstrip("-").lower()
    words = {name.removeprefix("--"): name for name in names if name.startswith("--")}
    begun = [name for name in words if len(word) > 2 and (name.startswith(word) or word.startswith(name))]
    found = begun or difflib.get_close_matches(word, words, n=1, cutoff=_NEAR)
    return words[found[0]] if found else None
