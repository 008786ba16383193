"""Lists and mappings within a command: what `${name}` brings there as words of the shell.

A list becomes its items, a mapping the flags `--key value`, each word quoted for the shell. Pure functions.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping

from mlops_cli.documents import MAX_DEPTH
from mlops_cli.records.templates import TemplateError, expand_text, render

MAX_WORDS = 10_000  # and keys without one


def expand_command(text: str, names: Mapping[str, object]) -> str:
    """Return what `expand_text` does, with lists and mappings spelled as words; other values stay as they are."""
    return expand_text(text, names, _spell)


def _spell(value: object, what: str) -> str:
    if not isinstance(value, list | dict):
        return render(value, what)
    found = _items(value, what) if isinstance(value, list) else _flags(value, what, ())
    words = list(itertools.islice(found, MAX_WORDS + 1))
    if len(words) > MAX_WORDS:
        raise TemplateError(f"{what} makes more than {MAX_WORDS:,} words of a command", "put them into a file")
    return " ".join(shlex.quote(word) for word in words if word is not None)


def _items(values: list[object], what: str) -> Iterator[str]:
    for value in values:
        yield render(value, f"an item of {what}")


def _flags(values: Mapping[str, object], what: str, above: tuple[str, ...]) -> Iterator[str | None]:
    """Yield `--key`, `value` of each; `--key` alone for true, None for false and empty, `--a.b` for nested ones."""
    if len(above) > MAX_DEPTH:
        raise TemplateError(f"{what} is nested more than {MAX_DEPTH} levels deep", "name one value in it")
    for key, value in values.items():
        if isinstance(value, dict):
            yield None  # so that what holds no word counts, too
            yield from _flags(value, what, (*above, key))
        elif value is None or value is False:
            yield None
        else:
            yield f"--{'.'.join((*above, key))}"
            if isinstance(value, list):
                yield from _items(value, f"`{key}` of {what}")
            elif value is not True:
                yield render(value, what)
