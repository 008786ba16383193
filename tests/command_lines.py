"""Whether a line in a text is something that `mlx` understands: the command exists, and so do its flags."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from mlops_cli.cli.main import root_command

OPERATORS = {"|", "||", "&", "&&", ";", ">", ">>", "<", "(", ")"}


def calls(line: str) -> Iterator[list[str]]:
    """Yield the words after each `mlx` that a shell line runs."""
    lexer = shlex.shlex(line.replace("\\\n", " "), posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word not in OPERATORS:
            words.append(word)
            continue
        while words and "=" in words[0]:  # NAME=VALUE before the program
            del words[0]
        if words and words[0].rpartition("/")[2] == "mlx":
            yield words[1:]
        words = []


def fault(words: list[str]) -> str | None:
    """Say what is wrong with the words after `mlx`: an unknown command, group or flag; None when nothing is."""
    command: Any = root_command()
    path = "mlx"
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if word.startswith("-") and len(word) > 1:
            option = find_option(command, word)
            if option is None:
                return f"`{path}` has no option `{word}`"
            if not option.is_flag and not option.count and "=" not in word and waiting:
                waiting.pop(0)
        elif hasattr(command, "list_commands"):
            inner = command.get_command(None, word)
            if inner is None:
                return f"there is no command `{path} {word}`"
            command, path = inner, f"{path} {word}"
    return None


def find_option(command: Any, word: str) -> Any:
    """Return the option that `word` names, or None."""
    name = word.partition("=")[0]
    known = {
        spelling: parameter for parameter in command.params for spelling in parameter.opts + parameter.secondary_opts
    }
    known.update(dict.fromkeys(("-h", "--help"), Help))
    return known.get(name) or (known.get(name[:2]) if not name.startswith("--") else None)


class Help:
    """What every command has and no list of parameters."""

    is_flag = True
    count = False
