"""`${name}` in `mlx.yaml`: looking names up and filling text. Pure functions over values.

Text is filled once: what a value brings in is not searched for further `${`. `$${` is a literal `${`, and `$HOME` or
`$(...)` pass through untouched, since only the shell knows them. The part of a path may be another reference
(`${train.${model}.lr}`), and after `??` stands what is taken when there is no such value.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from mlops_cli.documents import Place, nearest, parse_scalar

NAME = r"[A-Za-z_][\w-]*"
PARAMS = "params"  # the name that stands for `params.yaml`
MAX_FILLED = 128 * 1024  # characters; Linux takes no longer argument of a command

_WITHIN = r"(?:[^{}$]|\$(?!\{)|\$\{[^{}]*\})*+"
_REFERENCE = re.compile(rf"\$\$\{{|\$\{{({_WITHIN})\}}|\$\{{")
_WHOLE = re.compile(rf"\$\{{({_WITHIN})\}}\Z")
_DOTTED = re.compile(rf"{NAME}(?:\.[\w-]+)*\Z")
_PART = r"(?:[\w-]|\$\{[^{}]*\})++"
_RICH = re.compile(rf"((?=[A-Za-z_$]){_PART}(?:\.{_PART})*+)\s*(?:\?\?(.*))?\Z", re.DOTALL)
_PARTS = re.compile(_PART)
_INDEXED = re.compile(r"\[(\d+)\]")
_MISSING = object()


class TemplateError(ValueError):
    """Text that cannot be filled: a sentence, a hint, and where below the thing that was asked about.

    `missing` is the first part of a name that nothing defines.
    """

    def __init__(self, message: str, hint: str | None = None, at: Place = (), missing: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.at = at
        self.missing = missing


class _Reference(NamedTuple):
    """What stands between `${` and `}`: the parts of the path, filled in, and the default as it is written."""

    parts: list[str]
    default: str | None


def expand_text(text: str, names: Mapping[str, object], show: Callable[[object, str], str] | None = None) -> str:
    """Return `text` with every `${name}` replaced by its value as `show` spells it (by default: `render`).

    TemplateError for an unknown name, for what cannot be spelled, and for a result of more than `MAX_FILLED`.
    """
    if "${" not in text:
        return text
    spell, size = show or render, 0

    def fill(match: re.Match[str]) -> str:
        nonlocal size
        inner = match[1]
        value = names[inner] if inner in names and inner.isidentifier() else None
        # Most are such values, and a matrix may fill a million of them.
        filled = str(value) if type(value) in (str, int) else _fill(match, names, spell)
        size += len(filled)
        if size > MAX_FILLED:
            raise TemplateError(f"the filled text is longer than {MAX_FILLED:,} characters", "put it into a file")
        return filled

    return _REFERENCE.sub(fill, text)


def expand_value(text: str, names: Mapping[str, object]) -> object:
    """Return the value itself, whatever its type, when `text` is exactly one `${name}`; else the filled text."""
    match = _WHOLE.match(text)
    return look_up(match[1], names) if match else expand_text(text, names)


def expand_whole(text: str, names: Mapping[str, object]) -> object:
    """Return the value itself when `text` is exactly one `${name}`; else the text as it is."""
    match = _WHOLE.match(text)
    return look_up(match[1], names) if match else text


def expand_deep(value: object, names: Mapping[str, object]) -> object:
    """Return `value` with every text in it expanded as `expand_value` does."""
    if isinstance(value, str):
        return expand_value(value, names)
    if isinstance(value, list):
        return [expand_deep(item, names) for item in value]
    if isinstance(value, dict):
        return {key: expand_deep(item, names) for key, item in value.items()}
    return value


def look_up(reference: str, names: Mapping[str, object]) -> object:
    """Return what `name.sub` names, or its default; TemplateError with the nearest name when there is neither."""
    found, default = _resolve(reference.strip(), names)
    return found if default is None else _read_default(default, names)


def render(value: object, what: str) -> str:
    """Return a value as text for a command or path: `true`/`false`, numbers as Python spells them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return repr(value)
    kind = "empty" if value is None else "a list" if isinstance(value, list) else "a mapping"
    hint = (
        "give it a value" if value is None else "name one value in it (`${name.key}`), or make it an axis of `matrix`"
    )
    raise TemplateError(f"{what} is {kind}, which cannot stand within text", hint)


def _fill(match: re.Match[str], names: Mapping[str, object], spell: Callable[[object, str], str]) -> str:
    if match.group() == "$${":
        return "${"
    if match[1] is None:
        raise TemplateError("`${` is not closed", "end it with `}`, or write `$${` for a literal `${`")
    found, default = _resolve(match[1].strip(), names)
    if default is not None and "${" not in default:
        return _unquote(default)  # as it is written: `1e-3` stays that
    value = found if default is None else _read_default(default, names)
    return spell(value, f"`{match.group()}`")


def _resolve(reference: str, names: Mapping[str, object]) -> tuple[object, str | None]:
    """Return the value and None, or None and the default that is to be taken instead."""
    if _DOTTED.match(reference):
        path, default = reference.split("."), None
    else:
        path, default = _parse(reference, names)
    found = _find(path, names)
    if default is not None and (found is _MISSING or found is None):
        return None, default
    if found is _MISSING:
        raise _not_defined(".".join(path), names)
    return found, None


def _parse(reference: str, names: Mapping[str, object]) -> _Reference:
    match = _RICH.match(reference)
    if match is None:
        raise TemplateError(f"`${{{reference}}}` is not a name", _right_form(reference))
    parts = [expand_text(part, names) for part in _PARTS.findall(match[1])]
    return _Reference(parts, None if match[2] is None else match[2].strip())


def _find(parts: list[str], names: Mapping[str, object]) -> object:
    value: object = names
    for part in parts:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and len(part) < 7 and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def _read_default(text: str, names: Mapping[str, object]) -> object:
    if "${" in text:
        return expand_value(text, names)
    if text == "[]":
        return []
    plain = _unquote(text)
    try:
        return parse_scalar(text) if plain == text else plain
    except ValueError as error:
        raise TemplateError(f"default `{text}`: {error}", "put it in quotes to have it as text") from error


def _unquote(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _not_defined(reference: str, names: Mapping[str, object]) -> TemplateError:
    first = reference.partition(".")[0]
    near = nearest(reference, _all_names(names))
    if first == PARAMS and PARAMS not in names:
        hint = "it stands for `params.yaml` beside this file, which is not there: create it"
    elif near:
        hint = f"did you mean `${{{near}}}`?"
    else:
        hint = f"define it under `vars`, or {_for_shell(reference)}"
    return TemplateError(f"`${{{reference}}}` is not defined", hint, missing=first)


def _right_form(reference: str) -> str:
    """Return how to write what other tools write otherwise: an item of a list, a default."""
    dotted = _INDEXED.sub(r".\1", reference)
    if dotted != reference and _DOTTED.match(dotted):
        return f"an item of a list is `${{{dotted}}}`"
    name, mark, default = reference.partition(":-")
    if mark and _DOTTED.match(name):
        return f"{_for_shell(reference)}, or `${{{name} ?? {default}}}` for a default here"
    return _for_shell(reference)


def _for_shell(reference: str) -> str:
    return f"write `$${{{reference}}}` to leave it to the shell"


def _all_names(names: Mapping[str, object], prefix: str = "", depth: int = 3) -> Iterator[str]:
    for name, value in itertools.islice(names.items(), 1000):
        yield prefix + name
        if isinstance(value, Mapping) and depth:
            yield from _all_names(value, f"{prefix}{name}.", depth - 1)
