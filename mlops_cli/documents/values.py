"""Shapes of plain values, as parameters and metrics hold them."""

from __future__ import annotations

from collections.abc import Mapping


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
