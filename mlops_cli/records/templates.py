"""`${name}` in `mlx.yaml`: looking names up, filling text, and the instances of a matrix. Pure functions over values.

Text is filled once: what a value brings in is not searched for further `${`. `$${` is a literal `${`, and `$HOME` or
`$(...)` pass through untouched, since only the shell knows them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mlops_cli.documents import nearest

MAX_INSTANCES = 10_000
NAME = r"[A-Za-z_][\w-]*"

_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}|\$\{")
_WHOLE = re.compile(r"\$\{([^{}]*)\}\Z")
_DOTTED = re.compile(rf"{NAME}(?:\.[\w-]+)*\Z")
_NOT_IN_SUFFIX = re.compile(r"[^A-Za-z0-9_.+-]")


class TemplateError(ValueError):
    """Text that cannot be filled: a sentence without a place, and a hint."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class Instance(NamedTuple):
    """One combination of a matrix: `suffix` follows the `@` in the stage's name."""

    suffix: str
    values: Mapping[str, object]


def expand_text(text: str, names: Mapping[str, object]) -> str:
    """Return `text` with every `${name}` replaced by its value; TemplateError for an unknown name, list or mapping."""
    if "${" not in text:
        return text
    return _REFERENCE.sub(lambda match: _fill(match, names), text)


def expand_value(text: str, names: Mapping[str, object]) -> object:
    """Return the value itself, whatever its type, when `text` is exactly one `${name}`; else the filled text."""
    match = _WHOLE.match(text)
    return look_up(match[1], names) if match else expand_text(text, names)


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
    """Return what `name.sub` names; TemplateError with the nearest name when there is no such thing."""
    reference = reference.strip()
    if not _DOTTED.match(reference):
        raise TemplateError(f"`${{{reference}}}` is not a name", _for_shell(reference))
    value: object = names
    for part in reference.split("."):
        if not isinstance(value, Mapping) or part not in value:
            near = nearest(reference, _all_names(names))
            hint = f"did you mean `${{{near}}}`?" if near else f"define it under `vars`, or {_for_shell(reference)}"
            raise TemplateError(f"`${{{reference}}}` is not defined", hint)
        value = value[part]
    return value


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


def _fill(match: re.Match[str], names: Mapping[str, object]) -> str:
    if match.group() == "$${":
        return "${"
    if match[1] is None:
        raise TemplateError("`${` is not closed", "end it with `}`, or write `$${` for a literal `${`")
    return render(look_up(match[1], names), f"`{match.group()}`")


def _for_shell(reference: str) -> str:
    return f"write `$${{{reference}}}` to leave it to the shell"


def _all_names(names: Mapping[str, object], prefix: str = "", depth: int = 3) -> Iterator[str]:
    for name, value in itertools.islice(names.items(), 1000):
        yield prefix + name
        if isinstance(value, Mapping) and depth:
            yield from _all_names(value, f"{prefix}{name}.", depth - 1)


def combine(axes: Mapping[str, Sequence[object]]) -> tuple[Instance, ...]:
    """Return every combination of the axes' values, the last axis varying fastest, each with a suffix of its own.

    TemplateError for an axis without values, more than `MAX_INSTANCES`, an empty value, or two equal suffixes.
    """
    if not axes:
        raise TemplateError("`matrix` has no axes", "add one: `model: [a, b]`")
    for axis, values in axes.items():
        if not values:
            raise TemplateError(f"axis `{axis}` has no values", "give it at least one")
    count = math.prod(len(values) for values in axes.values())
    if count > MAX_INSTANCES:
        raise TemplateError(f"`matrix` makes {count:,} stages, more than {MAX_INSTANCES:,}", "use fewer values")
    labelled = [[(_label(axis, i, value), value) for i, value in enumerate(axes[axis])] for axis in axes]
    found: dict[str, Instance] = {}
    for choice in itertools.product(*labelled):
        instance = Instance(
            "-".join(label for label, _ in choice), dict(zip(axes, (v for _, v in choice), strict=True))
        )
        if instance.suffix in found:
            raise _clash(found[instance.suffix], instance)
        found[instance.suffix] = instance
    return tuple(found.values())


def _label(axis: str, index: int, value: object) -> str:
    """Return a value's part of the stage's name; a list or mapping goes by its axis and position."""
    if isinstance(value, list | dict):
        return f"{axis}{index}"
    if value is None or value == "":
        raise TemplateError(f"axis `{axis}` holds an empty value", "give it a value, or take it out")
    return _NOT_IN_SUFFIX.sub("_", render(value, f"axis `{axis}`"))


def _clash(one: Instance, other: Instance) -> TemplateError:
    spelled = [", ".join(f"{axis}={value}" for axis, value in instance.values.items()) for instance in (one, other)]
    return TemplateError(
        f"`{spelled[0]}` and `{spelled[1]}` would both be named `@{one.suffix}`",
        "make the values differ in letters, digits, `.`, `_`, `+` or `-`",
    )
