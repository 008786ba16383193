"""What a plain YAML scalar means: what `yaml.safe_load` makes of it, by the same expressions, but dates stay text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

from mlops_cli.documents.document import LONG_NUMBER, MAX_BITS

N = TypeVar("N", int, float)

TAG = "tag:yaml.org,2002:"


def _to_bool(text: str) -> bool:
    return text.lower() in ("true", "yes", "on")


def _to_int(text: str) -> int:
    if len(text) > MAX_BITS:
        raise ValueError(LONG_NUMBER)
    number = _read_digits(text)
    if number.bit_length() > MAX_BITS:
        raise ValueError(LONG_NUMBER)
    return number


def _read_digits(text: str) -> int:
    digits = text.replace("_", "").lower()
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("+-")
    try:
        if digits.startswith("0b"):
            return sign * int(digits, 2)
        if digits.startswith("0x"):
            return sign * int(digits, 16)
        if ":" in digits:
            return sign * _sexagesimal(digits, int)
        return sign * int(digits, 8 if digits.startswith("0") else 10)
    except ValueError:
        raise ValueError(f"`{text}` is not a whole number") from None


def _to_float(text: str) -> float:
    digits = text.replace("_", "").lower()
    number = math.inf
    if not digits.endswith(("inf", "nan")):
        try:
            number = _sexagesimal(digits, float) if ":" in digits else float(digits)
        except ValueError:
            raise ValueError(f"`{text[:80]}` is not a number") from None
    if not math.isfinite(number):
        raise ValueError(f"`{text[:80]}` is not a finite number")
    return number


def _sexagesimal(digits: str, number: Callable[[str], N]) -> N:
    """Read `1:30` as 90, as YAML 1.1 does."""
    total = number("0")
    for part in digits.lstrip("+-").split(":"):
        total = total * 60 + number(part)
    return -total if digits.startswith("-") else total


CONVERTERS: dict[str, Callable[[str], object]] = {
    f"{TAG}null": lambda _: None,
    f"{TAG}bool": _to_bool,
    f"{TAG}int": _to_int,
    f"{TAG}float": _to_float,
    f"{TAG}str": str,
}


@cache
def _resolvers() -> Mapping[str, tuple[tuple[Any, Callable[[str], object]], ...]]:
    import yaml

    return {
        first: tuple((pattern.match, CONVERTERS[tag]) for tag, pattern in entries if tag in CONVERTERS)
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse_scalar(text: str) -> object:
    """Return what `text` means as a plain scalar; ValueError for NaN, infinity and absurdly long numbers."""
    for match, convert in _resolvers().get(text[:1], ()):
        if match(text):
            return convert(text)
    return text
