"""The values in an `mlx.yaml`, as they are meant: every `${name}` filled in, every path relative to the project.

What has been filled in is marked, so that text which came out of a value is never filled again. Each error names the
line, and the key as people write it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mlops_cli.documents import Document, Fields, Place, describe, quote_hint
from mlops_cli.documents.writing import dump_text
from mlops_cli.errors import RecordError
from mlops_cli.records.paths import path_below, project_path
from mlops_cli.records.stages import has_magic
from mlops_cli.records.templates import TemplateError, expand_deep, expand_text, expand_value, expand_whole, render

VALUE_SUFFIXES = (".yaml", ".yml", ".json", ".toml")
PARAMS_SUFFIXES = (*VALUE_SUFFIXES, ".py")

Expand = Callable[[str, Mapping[str, object]], str]


@dataclass(frozen=True, slots=True)
class ValueReader:
    """Turns raw values into text and paths: the names that `${}` may use, and the folder paths start from.

    `params` reads the parameters that conditions may use beside the names.
    """

    document: Document
    folder: str
    names: Mapping[str, object]
    params: Callable[[], Mapping[str, object]] = dict
    instance: str = ""  # the stage, when it is one of several
    partial: frozenset[str] = frozenset()  # what only other instances have

    def text(self, value: object, at: Place, expand: Expand = expand_text) -> str:
        """Return `value` filled in, without the final newlines that block text has."""
        if not isinstance(value, str):
            raise self.document.error(f"{spell_place(at)} must be text, not {describe(value)}", at, quote_hint(value))
        try:
            filled = expand(value, self.names).rstrip("\n")
        except TemplateError as error:
            raise self.fault(error, at) from error
        if "\0" in filled:
            raise self.document.error(f"{spell_place(at)} holds a NUL character", at)
        return filled

    def value(self, value: object, at: Place) -> object:
        """Return what a text that is exactly one `${name}` stands for; other values as they are."""
        if not isinstance(value, str):
            return value
        try:
            return expand_value(value, self.names)
        except TemplateError as error:
            raise self.fault(error, at) from error

    def whole(self, value: object, at: Place) -> object:
        """Return what a text that is exactly one `${name}` stands for; other values, and other text, as they are."""
        if not isinstance(value, str):
            return value
        try:
            return expand_whole(value, self.names)
        except TemplateError as error:
            raise self.fault(error, at) from error

    def deep(self, value: object, at: Place) -> object:
        """Return a value with every text in it filled in."""
        try:
            return expand_deep(value, self.names)
        except TemplateError as error:
            raise self.fault(error, at) from error

    def fault(self, error: TemplateError, at: Place) -> RecordError:
        """Return what to raise for text at `at` that cannot be filled."""
        if error.missing not in self.partial:
            return self.document.error(str(error), at, self._hint(error))
        hint = f"give it in the items of `include`, or a default: `${{{error.missing} ?? VALUE}}`"
        return self.document.error(f"{error} for `{self.instance}`", at, hint)

    def _hint(self, error: TemplateError) -> str | None:
        if error.missing and error.missing not in self.names and error.missing in self.params():
            return f"the parameter is `${{params.{error.missing}}}`"
        return error.hint

    def listed(self, fields: Fields, key: str, expand: Expand = expand_text) -> Iterator[tuple[str, Place]]:
        """Yield the filled texts of the list at `key`, and where each is."""
        for item, at in self.items(fields, key):
            yield self.text(item, at, expand) if not isinstance(item, Filled) else item, at

    def items(self, fields: Fields, key: str) -> Iterator[tuple[object, Place]]:
        """Yield the items of the list at `key`; a `${name}` that is a list, for the whole or an item, is spliced in."""
        at = (*fields.at, key)
        raw = fields.raw(key, [])
        value = self.whole(raw, at)
        if not isinstance(value, list):
            raise self.document.error(
                f"{spell_place(at)} must be a list (`[a, b]`), not {describe(value)}", at, _list_hint(key, raw)
            )
        if value is not raw:
            yield from self._spliced(value, at)
            return
        for index, item in enumerate(value):
            place = (*at, index)
            found = self.whole(item, place)
            if isinstance(item, str) and isinstance(found, list):
                yield from self._spliced(found, place)
            else:
                yield item, place

    def _spliced(self, values: list[object], at: Place) -> Iterator[tuple[object, Place]]:
        for value in values:
            try:
                yield Filled(render(value, f"an item of {spell_place(at)}")), at
            except TemplateError as error:
                raise self.fault(error, at) from error

    def optional_text(self, fields: Fields, key: str) -> str:
        """Return the filled text at `key`, empty when there is none."""
        return self.text(fields.raw(key), (*fields.at, key)) if fields.has(key) else ""

    def single(self, item: object, at: Place, form: str) -> tuple[str, object]:
        """Return the key and value of an item that is a mapping with one key."""
        if not isinstance(item, dict):
            raise self.document.error(
                f"{spell_place(at)} must be text or {form}, not {describe(item)}", at, quote_hint(item)
            )
        if len(item) != 1:
            names = ", ".join(f"`{key}`" for key in item) or "nothing"
            hint = "indent what belongs to the path further, and begin each path with `- `"
            raise self.document.error(f"{spell_place(at)} must hold one path, and holds {names}", at, hint)
        key, value = next(iter(item.items()))
        return key, value

    def path(self, text: str, at: Place, resolve: Callable[[str, str], str]) -> str:
        """Return the path in the project that `resolve` makes of `text`, written in this folder."""
        try:
            return resolve(text, self.folder)
        except ValueError as error:
            raise self.document.error(f"{spell_place(at)}: {error}", at) from error

    def output(self, text: str, at: Place) -> str:
        """Return the path of something that is written: at or below this folder, and never a pattern."""
        path = self.path(text, at, path_below)
        if has_magic(path):
            raise self.document.error(
                f"{spell_place(at)}: `{text}` is a pattern, and only `deps` may hold patterns",
                at,
                "name the file, or the folder that holds the files",
            )
        return path

    def value_file(self, text: str, at: Place, *, written: bool = False) -> str:
        """Return the path of a file of values (YAML, JSON or TOML), which is read or `written`."""
        path = self.output(text, at) if written else self.path(text, at, project_path)
        if not path.lower().endswith(VALUE_SUFFIXES):
            raise self.document.error(f"`{text}` is not a file of values", at, "use a `.yaml`, `.json` or `.toml` file")
        return path

    def params_file(self, text: str, at: Place) -> str:
        """Return the path of a file of parameters: of values, or Python whose literals are read."""
        path = self.path(text, at, project_path)
        return path if path.lower().endswith(PARAMS_SUFFIXES) else self.value_file(text, at)


class Filled(str):
    """Text that came out of a value, and is not filled again."""

    __slots__ = ()


def spell_place(at: Place) -> str:
    """Name a place for a message, as in `deps[0]`, without the stage's name."""
    inner = at[2:] if at[:1] == ("stages",) and len(at) > 2 else at
    return "`" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner).removeprefix(".") + "`"


def _list_hint(key: str, value: object) -> str | None:
    """Return how to write the one item that stands in place of a list."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    spelled = dump_text([str(value)], inline=True).rstrip("\n")
    return None if "\n" in spelled else f"write `{key}: {spelled}`"
