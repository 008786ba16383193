"""Reading YAML without trusting it.

Values are built from parse events, never by `yaml.load`: libyaml's loader overflows the C stack on deep nesting, keeps
the last of two equal keys without a word, and lets aliases grow without bound. What a scalar means is `scalars`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from mlops_cli.documents.document import (
    MAX_DEPTH,
    MAX_NODES,
    Document,
    Place,
    decode,
    is_encodable,
    located,
    weigh_text,
)
from mlops_cli.documents.scalars import CONVERTERS, TAG, parse_scalar
from mlops_cli.errors import RecordError

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_PROBLEMS = {
    "mapping values are not allowed": (
        "a `:` stands where none can",
        "put text that holds `: ` in quotes, and check the indentation",
    ),
    "did not find expected key": (
        "this line does not fit the lines above it",
        "check the indentation, and put text that holds quotes in quotes",
    ),
    "did not find expected '-' indicator": ("this line does not fit the list above it", "check the indentation"),
    "',' or ']'": ("a list opened with `[` is not closed", "end it with `]`"),
    "',' or '}'": ("a mapping opened with `{` is not closed", "end it with `}`"),
    "expected <block end>": ("this line does not fit the lines above it", "check the indentation"),
    "could not find expected ':'": ("a key has no `:` after it", "write `key: value`"),
    "cannot start any token": ("text cannot begin with this character", "put the text in quotes"),
}


def parse_any_yaml(data: bytes, name: str, *, after_merge: str | None = None) -> Document:
    """Parse one YAML document, as `parse_yaml` does for what is not plain."""
    text = decode(data, name, after_merge=after_merge)
    builder = _Builder(name, _tabbed_lines(text))
    loader = None
    try:
        loader = _Loader(text)
        while (event := loader.get_event()) is not None and type(event) is not yaml.StreamEndEvent:
            _STEPS[type(event)](builder, event)
    except yaml.YAMLError as error:
        raise _translate(error, text, name) from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(name, builder.root, builder.lines)


def _tabbed_lines(text: str) -> frozenset[int]:
    """Return the 0-based lines whose indentation holds a tab; libyaml itself lets some of them pass."""
    if "\t" not in text:
        return frozenset()
    lines = enumerate(text.split("\n"))
    return frozenset(index for index, line in lines if "\t" in line[: len(line) - len(line.lstrip(" \t"))])


def _translate(error: yaml.YAMLError, text: str, name: str) -> RecordError:
    if not isinstance(error, yaml.MarkedYAMLError):
        position = getattr(error, "position", 0)  # a reader error: libyaml counts bytes
        line = text.encode().count(b"\n", 0, position) + 1
        return located(name, line, "a control character stands in the text", "remove it, or write it as an escape")
    mark, context = error.problem_mark, error.context_mark
    line = mark.line if mark is not None else 0
    problem = str(error.problem or error.context or "it cannot be parsed")
    if "quoted scalar" in str(error.context) and "end of stream" in problem and context is not None:
        return located(name, context.line + 1, "a quote is opened and never closed", "close it on the same line")
    lines = text.split("\n")
    column = mark.column if mark is not None else 0
    found = lines[line][column : column + 1] if line < len(lines) else ""
    if found == "\t" or "tab character" in problem:
        return _tab_error(name, line + 1)
    if found == "{" and lines[line][:column].endswith("$"):
        return located(name, line + 1, "text with `${` within `[ ]` or `{ }` needs quotes", 'such as `["${name}"]`')
    for known, (message, hint) in _PROBLEMS.items():
        if known in problem:
            return located(name, line + 1, message, hint)
    return located(name, line + 1, f"not valid YAML: {problem}")


def _tab_error(name: str, line: int) -> RecordError:
    return located(name, line, "a tab is used as indentation", "indent with spaces")


def _line(event: yaml.Event) -> int:
    mark: Any = event.start_mark
    line: int = mark.line
    return line + 1


_MERGE = object()
_NO_KEY = object()


class _Frame:
    """A collection that is still open."""

    __slots__ = ("anchor", "at", "before", "explicit", "height", "key", "line", "merges", "value")

    def __init__(self, value: dict[str, object] | list[object], at: Place, line: int, before: int) -> None:
        self.value: Any = value
        self.at = at
        self.line = line
        self.before = before  # nodes counted before it began
        self.height = 1
        self.key: object = _NO_KEY
        self.merges: list[tuple[object, int]] = []
        self.anchor: str | None = None


class _Builder:
    """Turns parse events into values, counting as it goes."""

    __slots__ = ("anchors", "documents", "lines", "name", "nodes", "root", "stack", "tabbed")

    def __init__(self, name: str, tabbed: frozenset[int]) -> None:
        self.name = name
        self.tabbed = tabbed
        self.root: object = None
        self.lines: dict[Place, int] = {}
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[object, int, int] | None] = {}
        self.nodes = 0
        self.documents = 0

    def pass_over(self, event: yaml.Event) -> None:
        """Events that say nothing."""

    def begin_document(self, event: yaml.Event) -> None:
        self.documents += 1
        if self.documents > 1:
            raise self.error(event, "a second document begins", "keep one document per file: remove the `---`")

    def scalar(self, event: yaml.ScalarEvent) -> None:
        text: str = event.value
        tag = event.tag
        self.count(event, weigh_text(text))
        if not is_encodable(text):
            raise self.error(event, "text holds half of a surrogate pair, which is not a character")
        value: object = text
        if tag is not None and tag != "!":
            value = self.convert(event, tag, text)
        elif event.implicit[0]:
            if text == "<<" and self.stack and self.stack[-1].key is _NO_KEY and type(self.stack[-1].value) is dict:
                value = _MERGE
            else:
                value = self.convert(event, None, text)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, weigh_text(text), 0)
        self.place(event, value, 0)

    def convert(self, event: yaml.Event, tag: str | None, text: str) -> object:
        try:
            if tag is None:
                return parse_scalar(text)
            convert = CONVERTERS.get(tag)
            if convert is not None:
                return convert(text)
        except ValueError as error:
            raise self.error(event, str(error), "write a finite number, or put text in quotes") from error
        raise self.tag_error(event, tag)

    def begin_mapping(self, event: yaml.MappingStartEvent) -> None:
        self.begin(event, {}, f"{TAG}map")

    def begin_sequence(self, event: yaml.SequenceStartEvent) -> None:
        self.begin(event, [], f"{TAG}seq")

    def begin(self, event: yaml.CollectionStartEvent, value: dict[str, object] | list[object], tag: str) -> None:
        if event.tag not in (None, "!", tag):
            raise self.tag_error(event, event.tag)
        line = _line(event)
        at: Place = ()
        if self.stack:
            parent = self.stack[-1]
            if type(parent.value) is dict:
                if parent.key is _NO_KEY:
                    raise self.key_error(event, value)
                at = (*parent.at, parent.key if isinstance(parent.key, str) else "<<")
            else:
                at = (*parent.at, len(parent.value))
        frame = _Frame(value, at, line, self.nodes)
        self.count(event, 1)
        if event.anchor is not None:
            frame.anchor = event.anchor
            self.anchors[event.anchor] = None
        self.stack.append(frame)
        if len(self.stack) > MAX_DEPTH:
            raise self.error(event, f"nested more than {MAX_DEPTH} levels deep")
        self.check_tab(event)

    def end(self, event: yaml.Event) -> None:
        frame = self.stack.pop()
        if frame.merges:
            self.merge(frame)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (frame.value, self.nodes - frame.before, frame.height)
        self.place(event, frame.value, frame.height, frame.line)

    def alias(self, event: yaml.AliasEvent) -> None:
        if event.anchor not in self.anchors:
            raise self.error(event, f"`*{event.anchor}` has no `&{event.anchor}` before it")
        found = self.anchors[event.anchor]
        if found is None:
            raise self.error(event, f"`*{event.anchor}` stands within what it refers to")
        value, nodes, height = found
        self.count(event, nodes)
        if len(self.stack) + height > MAX_DEPTH:
            raise self.error(event, f"nested more than {MAX_DEPTH} levels deep")
        self.place(event, value, height)

    def place(self, event: yaml.Event, value: object, height: int, line: int = 0) -> None:
        """Put a finished value (or key) where it belongs; `height` is how many levels of collections it has."""
        line = line or _line(event)
        if height == 0:
            self.check_tab(event)
        if not self.stack:
            self.root = value
            self.lines[()] = line
            return
        frame = self.stack[-1]
        frame.height = max(frame.height, height + 1)
        if type(frame.value) is list:
            self.lines[(*frame.at, len(frame.value))] = line
            frame.value.append(value)
        elif frame.key is _NO_KEY:
            self.begin_key(event, frame, value, line)
        elif frame.key is _MERGE:
            frame.merges.append((value, self.lines[(*frame.at, "<<")]))
            frame.key = _NO_KEY
        else:
            frame.value[frame.key] = value
            frame.key = _NO_KEY

    def begin_key(self, event: yaml.Event, frame: _Frame, key: object, line: int) -> None:
        spelled = "<<" if key is _MERGE else key
        if not isinstance(spelled, str):
            raise self.key_error(event, key)
        at = (*frame.at, spelled)
        if at in self.lines:
            first = self.lines[at]
            raise self.error(event, f"key `{spelled}` is here twice, first on line {first}", "keep one of them")
        self.lines[at] = line
        frame.key = key

    def merge(self, frame: _Frame) -> None:
        """Add the keys of `<<` that the mapping does not have itself; the first of several wins."""
        target = frame.value
        for value, line in frame.merges:
            sources = value if isinstance(value, list) else [value]
            for source in sources:
                if not isinstance(source, dict):
                    raise located(self.name, line, "`<<` takes a mapping, or a list of mappings")
                self.nodes += len(source)
                for key, inherited in source.items():
                    if key not in target:
                        target[key] = inherited
                        self.lines[(*frame.at, key)] = line

    def count(self, event: yaml.Event, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            raise self.error(event, f"the file holds more than {MAX_NODES:,} values, counting what `*` repeats")

    def check_tab(self, event: yaml.Event) -> None:
        if self.tabbed and _line(event) - 1 in self.tabbed:
            raise _tab_error(self.name, _line(event))

    def key_error(self, event: yaml.Event, key: object) -> RecordError:
        if isinstance(key, dict | list):
            return self.error(event, "a key must be text, not a list or mapping")
        spelled = event.value if isinstance(event, yaml.ScalarEvent) else key
        kind = "a true/false value" if isinstance(key, bool) else "empty" if key is None else "a number"
        return self.error(event, f"key `{spelled}` is {kind}, and must be text", f'write it in quotes: `"{spelled}":`')

    def tag_error(self, event: yaml.Event, tag: str) -> RecordError:
        spelled = "!!" + tag.removeprefix(TAG) if tag.startswith(TAG) else tag
        return self.error(event, f"tag `{spelled}` is not allowed", "write plain values without tags")

    def error(self, event: yaml.Event, message: str, hint: str | None = None) -> RecordError:
        return located(self.name, _line(event), message, hint)


_STEPS: dict[type, Callable[[_Builder, Any], None]] = {
    yaml.ScalarEvent: _Builder.scalar,
    yaml.MappingStartEvent: _Builder.begin_mapping,
    yaml.SequenceStartEvent: _Builder.begin_sequence,
    yaml.MappingEndEvent: _Builder.end,
    yaml.SequenceEndEvent: _Builder.end,
    yaml.AliasEvent: _Builder.alias,
    yaml.StreamStartEvent: _Builder.pass_over,
    yaml.DocumentStartEvent: _Builder.begin_document,
    yaml.DocumentEndEvent: _Builder.pass_over,
}
