"""Reading one mapping of a document strictly: every key known, every type right, every error with `file:line`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, TypeVar, overload

from mlops_cli.documents.document import Document, Place, nearest, suggest
from mlops_cli.errors import RecordError

T = TypeVar("T")

FORMAT_VERSION = 1
MAX_INTEGER = (1 << 63) - 1
_REQUIRED: Any = object()


class Fields:
    """A strict reader of the mapping at `at`; RecordError from every method, with the nearest valid key as a hint.

    Call `done` after the last key was read (or `only` before the first): what was not asked for is an error.
    """

    __slots__ = ("_asked", "at", "document", "values", "what")

    def __init__(self, document: Document, at: Place = (), *, what: str = "") -> None:
        """Read the mapping at `at`; `what` names it in messages (default: its key, or `the file`)."""
        self.document = document
        self.at = at
        self.what = what or (f"`{at[-1]}`" if at else "the file")
        self._asked: dict[str, None] = {}
        value: Any = document.value
        for step in at:
            value = value[step]
        if not isinstance(value, dict):
            raise document.error(f"{self.what} must be a mapping (`key: value`), not {describe(value)}", at)
        self.values: dict[str, object] = value

    def has(self, key: str) -> bool:
        """Whether `key` is there; counts as asking for it."""
        self._asked[key] = None
        return key in self.values

    def raw(self, key: str, default: object = None) -> object:
        """Return the value of `key` whatever it is, or `default` when it is absent."""
        return self.values[key] if self.has(key) else default

    @overload
    def text(self, key: str) -> str: ...
    @overload
    def text(self, key: str, default: T) -> str | T: ...
    def text(self, key: str, default: object = _REQUIRED) -> object:
        """Return the text at `key`, which holds no NUL character."""
        if not self._present(key, default):
            return default
        return self.check_text(self.values[key], key)

    @overload
    def integer(self, key: str, minimum: int = 0, maximum: int = MAX_INTEGER) -> int: ...
    @overload
    def integer(self, key: str, minimum: int = 0, maximum: int = MAX_INTEGER, *, default: T) -> int | T: ...
    def integer(self, key: str, minimum: int = 0, maximum: int = MAX_INTEGER, *, default: object = _REQUIRED) -> object:
        """Return the whole number at `key`, from `minimum` to `maximum`."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        if type(value) is not int:
            raise self._wrong(key, "a whole number", value)
        if not minimum <= value <= maximum:
            raise self.error(f"`{key}` must be from {minimum} to {maximum}, not {value}", key)
        return value

    @overload
    def number(self, key: str, minimum: float = -math.inf) -> int | float: ...
    @overload
    def number(self, key: str, minimum: float = -math.inf, *, default: T) -> int | float | T: ...
    def number(self, key: str, minimum: float = -math.inf, *, default: object = _REQUIRED) -> object:
        """Return the number at `key`, at least `minimum`."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if value < minimum:
            raise self.error(f"`{key}` must be at least {minimum:g}, not {value}", key)
        return value

    @overload
    def boolean(self, key: str) -> bool: ...
    @overload
    def boolean(self, key: str, default: T) -> bool | T: ...
    def boolean(self, key: str, default: object = _REQUIRED) -> object:
        """Return the `true` or `false` at `key`."""
        if not self._present(key, default):
            return default
        value = self.values[key]
        if not isinstance(value, bool):
            raise self._wrong(key, "`true` or `false`", value)
        return value

    @overload
    def texts(self, key: str) -> tuple[str, ...]: ...
    @overload
    def texts(self, key: str, default: T) -> tuple[str, ...] | T: ...
    def texts(self, key: str, default: object = _REQUIRED) -> object:
        """Return the list of texts at `key`."""
        if not self._present(key, default):
            return default
        return tuple(self.check_text(item, key, index) for index, item in enumerate(self.items(key)))

    def items(self, key: str) -> tuple[object, ...]:
        """Return the raw items of the list at `key`, empty when it is absent; item `i` is at `(*at, key, i)`."""
        if not self.has(key):
            return ()
        value = self.values[key]
        if not isinstance(value, list):
            raise self._wrong(key, "a list (`[a, b]`)", value)
        return tuple(value)

    def mapping(self, key: str) -> Fields | None:
        """Return a reader of the mapping at `key`, or None when it is absent."""
        return Fields(self.document, (*self.at, key)) if self.has(key) else None

    def parsed(self, key: str, parse: Callable[[str], T]) -> T:
        """Return what `parse` makes of the text at `key`; its ValueError becomes the error about the key."""
        text = self.text(key)
        try:
            return parse(text)
        except ValueError as error:
            raise self.error(f"`{key}`: {error}", key) from error

    def check_text(self, value: object, key: str, index: int | None = None) -> str:
        """Return `value`, found at `key` (item `index`), when it is text without NUL characters."""
        name = key if index is None else f"{key}[{index}]"
        if not isinstance(value, str):
            raise self.error(f"`{name}` must be text, not {describe(value)}", key, quote_hint(value), index=index)
        if "\0" in value:
            raise self.error(f"`{name}` holds a NUL character", key, index=index)
        return value

    def only(self, keys: Collection[str]) -> None:
        """Refuse every key that is not one of `keys`."""
        for key in self.values:
            if key not in keys:
                hint = suggest(key, keys, "the keys here are")
                raise self.error(f"unknown key `{key}` in {self.what}", key, hint)

    def error(
        self, message: str, key: str | None = None, hint: str | None = None, *, index: int | None = None
    ) -> RecordError:
        """Return the error, to be raised, about this mapping, or its `key`, or item `index` of the list there."""
        at = self.at if key is None else (*self.at, key) if index is None else (*self.at, key, index)
        return self.document.error(message, at, hint)

    def _present(self, key: str, default: object) -> bool:
        if self.has(key):
            return True
        if default is _REQUIRED:
            near = nearest(key, (other for other in self.values if other not in self._asked))
            hint = f"`{near}` looks like it" if near else None
            raise self.error(f"`{key}` is missing in {self.what}", hint=hint)
        return False

    def _wrong(self, key: str, wanted: str, value: object) -> RecordError:
        return self.error(f"`{key}` must be {wanted}, not {describe(value)}", key)


def describe(value: object) -> str:
    """Return the kind of a value in words, for messages: `text`, `a list`, ..."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return f"`{_spell(value)}`"
    if isinstance(value, int | float):
        return f"the number `{value}`"
    if isinstance(value, str):
        return "text"
    return "a list" if isinstance(value, list | tuple) else "a mapping"


def quote_hint(value: object) -> str | None:
    """Return how to write a value that was meant as text; None when that is not known.

    It is not spelled: `on` is `true` here, and `0x10` is 16.
    """
    kind = "true or false" if isinstance(value, bool) else "a number" if isinstance(value, int | float) else None
    return kind and f"put it in quotes, as it is written there: without them it is {kind}"


def _spell(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_version(fields: Fields) -> None:
    """Return when the file begins with `mlx: 1`; RecordError for another version, or when it is not the first key."""
    if not fields.has("mlx") or next(iter(fields.values)) != "mlx":
        raise fields.error(
            f"`mlx: {FORMAT_VERSION}` must come first: it says which version of the format this is",
            "mlx" if "mlx" in fields.values else None,
            f"make `mlx: {FORMAT_VERSION}` the first line",
        )
    version = fields.values["mlx"]
    if type(version) is not int or version < FORMAT_VERSION:
        raise fields.error(
            f"`mlx` must be {FORMAT_VERSION}, the version of the format, not {describe(version)}",
            "mlx",
            f"write `mlx: {FORMAT_VERSION}`",
        )
    if version > FORMAT_VERSION:
        raise fields.error(
            f"format version {version} is newer than this mlx understands",
            "mlx",
            "upgrade: `pip install --upgrade mlops-cli`",
        )
