"""Shapes of values: those that say how they want to be written, and flat ones, as parameters and metrics are."""

from __future__ import annotations

from collections.abc import Mapping


class Inline(dict[str, object]):
    """A mapping that is written on one line."""


class InlineList(list[object]):
    """A list that is written on one line."""


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one, keys joined by dots: {"a": {"b": 1}} → {"a.b": 1}; empty mappings are kept."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat
