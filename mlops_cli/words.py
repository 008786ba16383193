"""Paths as words of commands: what is below the command line marks them, and the command line spells them.

A hint such as `mlx pull data/raw` is typed where its reader is, which only the command line knows. So whoever words a
command writes its project paths with `word`, and the text goes on as any other text until it is told. A NUL marks such
a path at both ends: no path can hold one.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence

NAMED = 3  # paths that a command or a message names

_MARKED = re.compile("\0([^\0]*)\0")
_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}


def word(path: str) -> str:
    """Return a project path, marked, as a word of a command."""
    return f"\0{path}\0"


def words(paths: Iterable[str]) -> str:
    """Return project paths, marked, as words of a command."""
    return " ".join(map(word, paths))


def quoted(path: str) -> str:
    """Return `path` as a word for a shell; one with control characters in the `$'…'` form that bash and zsh read."""
    if path.isprintable():
        return shlex.quote(path)
    return "$'" + "".join(map(_quote_character, path)) + "'"


def spelled(text: str, spell: Callable[[str], str] = quoted) -> str:
    """Return `text` with each marked path as `spell` has it: without one, as it is typed at the project's root."""
    return _MARKED.sub(lambda found: spell(found[1]), text) if "\0" in text else text


def has_paths(text: str) -> bool:
    """Say whether `text` has paths that are marked."""
    return "\0" in text


def naming(paths: Sequence[str]) -> str:
    """Return the first of `paths` for a message, and how many more there are."""
    return ", ".join(f"`{path}`" for path in paths[:NAMED]) + and_more(paths)


def and_more(items: Sequence[object]) -> str:
    """Return how a list goes on that names the first of `items`."""
    return f" and {len(items) - NAMED:,} more" if len(items) > NAMED else ""


def so_for(left: Sequence[object]) -> str:
    """Return how a sentence ends whose command does not name what is `left`."""
    return f"; so for {len(left):,} more" if left else ""


def _quote_character(character: str) -> str:
    known = _ESCAPES.get(character)
    if known or character.isprintable():
        return known or character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
