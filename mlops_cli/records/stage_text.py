"""Adding a stage to the text of an `mlx.yaml` that people wrote, without touching what is there.

The parser says where `stages` begins and ends; the new lines go in at its end, in the file's own indentation. The
result is parsed again, and must say what the old file said plus the stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mlops_cli.documents import Document, Fields, Inline, InlineList, check_version, parse_yaml
from mlops_cli.documents.writing import dump_text
from mlops_cli.errors import UsageError
from mlops_cli.records.stages import PARAMS_FILE, NewStage, Output, ParamsFile, Plot

_LONGEST_LINE = 100
_KEEPS_BLANK_LINES = re.compile(r"[|>]\d?\+")


def add_stage(data: bytes | None, name: str, stage: NewStage) -> bytes:
    """Return `data` (None: no file yet) with `stage` at the end of `stages`; every byte that was there stays.

    Only the braces of an empty `stages: {}` go. UsageError when the stage is there already, RecordError when the file
    called `name` is not valid. Whether the stage itself makes sense is for `read_pipeline` to say of the result.
    """
    text = _begin(data or b"", name)
    document = parse_yaml(text.encode(), name)
    fields = Fields(document, what=f"`{name}`")
    check_version(fields)
    stages = fields.mapping("stages") if fields.raw("stages") is not None else None
    known = stages.values if stages is not None else {}
    if stage.name in known:
        hint = "edit it there, or choose another name"
        raise UsageError(f"stage `{stage.name}` is in `{name}` already, on line {_line(document, stage)}", hint=hint)
    values = stage_values(stage)
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    result = (mark + _insert(text.removeprefix(mark), stage.name, values)).encode()
    wanted = {**fields.values, "stages": {**known, stage.name: values}}
    if _without_final_newlines(parse_yaml(result, name).value) != _without_final_newlines(wanted):
        raise UsageError(f"`{stage.name}` cannot be added without changing what is in `{name}`", hint=f"edit `{name}`")
    return result


def _begin(data: bytes, name: str) -> str:
    """Return the text of the file, with its first key when there is nothing in it but comments."""
    if parse_yaml(data, name).value is not None:
        return data.decode()
    text = data.decode()
    return text + ("\n" if text and not text.endswith("\n") else "") + "mlx: 1\n"


def _without_final_newlines(value: object) -> object:
    """Return `value` as `read_pipeline` sees it: block text that ended the file gained a newline, which is nothing."""
    if isinstance(value, str):
        return value.rstrip("\n")
    if isinstance(value, list):
        return [_without_final_newlines(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_final_newlines(item) for key, item in value.items()}
    return value


def _line(document: Document, stage: NewStage) -> int:
    return document.line(("stages", stage.name))


def stage_values(stage: NewStage) -> dict[str, object]:
    """Return a stage as the mapping that `mlx.yaml` holds under its name, empty keys left out."""
    values: dict[str, object] = {
        "desc": stage.desc,
        "cmd": stage.cmd[0] if len(stage.cmd) == 1 else list(stage.cmd),
        "wdir": stage.wdir,
        "deps": [*stage.deps, *({path: Inline({"optional": True})} for path in stage.optional)],
        "params": [item for params in stage.params for item in _params_items(params)],
        "outs": [_output_item(out) for out in stage.outs],
        "metrics": list(stage.metrics),
        "plots": [_plot_item(plot) for plot in stage.plots],
        "env": dict(stage.env),
        "pass_env": list(stage.pass_env),
        "when": {"true": True, "false": False}.get(stage.when, stage.when),
    }
    return {key: value for key, value in values.items() if value or value is False}


def _params_items(params: ParamsFile) -> list[object]:
    if params.path == PARAMS_FILE and params.keys:
        return list(params.keys)
    return [{params.path: list(params.keys) or None}]


def _output_item(out: Output) -> object:
    about: dict[str, object] = ({} if out.push else {"push": False}) | ({"desc": out.desc} if out.desc else {})
    about |= {"persist": True} if out.persist else {}
    return {out.path: Inline(about)} if about else out.path


def _plot_item(plot: Plot) -> object:
    about = {key: value for key, value in (("x", plot.x), ("y", plot.y), ("title", plot.title)) if value}
    return {plot.path: Inline(about)} if about else plot.path


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a file is indented: the column of its keys and of its stages, and how much deeper a stage's keys are."""

    top: int
    stages: int
    step: int


def _insert(text: str, name: str, values: dict[str, object]) -> str:
    """Return `text` with the stage in it, as the style of `stages` asks for."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events: list[Any] = list(yaml.parse(text, Loader=loader))
    top = 2  # after the starts of the stream and the document
    found = next(((key, value, end) for key, value, end in _pairs(events, top) if events[key].value == "stages"), None)
    column = _column(events[top + 1])
    if found is None:
        layout = _find_layout(events, top, column, None)
        lines = ["", " " * column + "stages:", *_stage_lines(name, values, layout)]
        return _splice(text, _end_of_document(text, events[-2]), lines)
    key, value, end = found
    if isinstance(events[value], yaml.AliasEvent):
        return text  # what it stands for is written elsewhere; the caller sees that nothing was added
    if _is_flow_mapping(events[value]) and (end > value + 1 or "#" in text[_start(events[value]) : _stop(events[end])]):
        return _insert_inline(text, events, value, name, values)
    layout = _find_layout(events, top, column, value)
    if not _is_block_mapping(events[value]):  # `stages:` or `stages: {}`
        a, b = _start(events[value]), _stop(events[end])
        text = text[: len(text[:a].rstrip(" ")) if a < b else a] + text[b:]
        offset = _end_of_line(text, _stop(events[key]))
    else:
        offset = _end_of_content(text, events[_last_content(events, value, end)])
    offset = _after_comments(text, offset, layout.stages)
    lines = _stage_lines(name, values, layout)
    return _splice(text, offset, ["", *lines] if _are_spaced(text, events, value) else lines)


def _pairs(events: list[Any], start: int) -> Iterator[tuple[int, int, int]]:
    """Yield where the key, the value and the value's end are for each pair of the mapping that begins at `start`."""
    key = start + 1
    while not isinstance(events[key], yaml.MappingEndEvent):
        value = _end(events, key) + 1
        end = _end(events, value)
        yield key, value, end
        key = end + 1


def _end(events: list[Any], index: int) -> int:
    depth = 0
    while True:
        if isinstance(events[index], yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(events[index], yaml.CollectionEndEvent):
            depth -= 1
        if depth == 0:
            return index
        index += 1


def _is_block_mapping(event: object) -> bool:
    return isinstance(event, yaml.MappingStartEvent) and not event.flow_style


def _is_flow_mapping(event: object) -> bool:
    return isinstance(event, yaml.MappingStartEvent) and bool(event.flow_style)


def _find_layout(events: list[Any], top: int, column: int, stages: int | None) -> _Layout:
    """Take the indentation from the stages there are, else from the file's other mappings, else two spaces."""
    nested = [value for _, value, _ in _pairs(events, top) if _is_block_mapping(events[value])]
    step = _column(events[nested[0] + 1]) - column if nested else 2
    if stages is None or not _is_block_mapping(events[stages]):
        return _Layout(column, column + step, step)
    indent = _column(events[stages + 1])
    bodies = [value for _, value, _ in _pairs(events, stages) if _is_block_mapping(events[value])]
    return _Layout(column, indent, _column(events[bodies[0] + 1]) - indent if bodies else indent - column)


def _last_content(events: list[Any], start: int, end: int) -> int:
    """Return the last event of a block that stands for characters: the ends of blocks stand for none."""
    for index in range(end, start, -1):
        event = events[index]
        ends_block = isinstance(event, yaml.CollectionEndEvent) and _start(event) == _stop(event)
        if not ends_block:
            return index
    return start


def _start(event: yaml.Event) -> int:
    mark: Any = event.start_mark
    return int(mark.index)


def _stop(event: yaml.Event) -> int:
    mark: Any = event.end_mark
    return int(mark.index)


def _column(event: yaml.Event) -> int:
    mark: Any = event.start_mark
    return int(mark.column)


def _end_of_content(text: str, event: yaml.Event) -> int:
    """Return where the line after the one that holds the end of `event` begins."""
    offset = _stop(event)
    if getattr(event, "style", None) in ("|", ">"):
        # The parser counts blank lines after block text to it, which only matters when it keeps them.
        header = text[_start(event) :].partition("\n")[0]
        if _KEEPS_BLANK_LINES.match(header):
            return offset
        offset = _start(event) + len(text[_start(event) : offset].rstrip())
    return _end_of_line(text, offset)


def _end_of_line(text: str, offset: int) -> int:
    return text.find("\n", offset) + 1 or len(text)


def _end_of_document(text: str, event: yaml.DocumentEndEvent) -> int:
    return text.rfind("\n", 0, _start(event)) + 1 if event.explicit else len(text)


def _after_comments(text: str, offset: int, indent: int) -> int:
    """Move `offset` past the comments that are indented like stages or deeper, so they stay with the one above."""
    position = offset
    while position < len(text):
        end = _end_of_line(text, position)
        line = text[position:end].rstrip()
        if line and not (line.lstrip(" ").startswith("#") and len(line) - len(line.lstrip(" ")) >= indent):
            break
        position = end
        offset = end if line else offset
    return offset


def _are_spaced(text: str, events: list[Any], stages: int) -> bool:
    """Whether a blank line stands above the last of several stages (above its comments, if it has any)."""
    if not _is_block_mapping(events[stages]):
        return False
    keys = [key for key, _, _ in _pairs(events, stages)]
    above = text[: _start(events[keys[-1]])].split("\n")[:-1]
    while above and above[-1].lstrip().startswith("#"):
        above.pop()
    return len(keys) > 1 and bool(above) and not above[-1].strip()


def _stage_lines(name: str, values: dict[str, object], layout: _Layout) -> list[str]:
    """Return the stage as indented lines, lists on one line where they fit."""
    indent = layout.stages + layout.step
    shaped = {key: _shape(key, value, indent) for key, value in values.items()}
    text = dump_text({name: shaped}, step=layout.step)
    return [" " * layout.stages + line if line else "" for line in text.splitlines()]


def _shape(key: str, value: object, indent: int) -> object:
    spelled = _on_one_line(value)
    fits = indent + len(key) + 2 + len(spelled) <= _LONGEST_LINE and "\\n" not in spelled
    if isinstance(value, list) and fits:
        return InlineList(value)
    return Inline(value) if isinstance(value, dict) and fits else value


def _on_one_line(value: object) -> str:
    return dump_text(value, inline=True).removesuffix("\n")


def _splice(text: str, offset: int, lines: list[str]) -> str:
    """Return `text` with whole lines put in at `offset`, in the file's own kind of line ends."""
    newline = "\r\n" if "\r\n" in text[: text.find("\n") + 1] else "\n"
    before = text[:offset]
    if before and not before.endswith("\n"):
        before += newline
    if lines[0] == "" and before.endswith(("\n\n", "\n\r\n")):
        lines = lines[1:]
    return before + "".join(line + newline for line in lines) + text[offset:]


def _insert_inline(text: str, events: list[Any], start: int, name: str, values: dict[str, object]) -> str:
    """Return `text` with the stage as one more entry of `stages: {...}`."""
    entry = _on_one_line({name: values})[1:-1]
    last = [final for _, _, final in _pairs(events, start)]
    if not last:
        offset = _stop(events[start])
        return text[:offset] + entry + text[offset:]
    offset = _stop(events[last[-1]])
    return f"{text[:offset]}, {entry}{text[offset:]}"


def mark_stage(data: bytes, name: str, stage: str, key: str, *, on: bool) -> bytes:
    """Return `data`, a valid file called `name`, with `key: true` in the stage, or without; every other byte stays.

    UsageError where that cannot be done, as when the stage is written elsewhere and only referred to.
    """
    document = parse_yaml(data, name)
    stages = Fields(document).mapping("stages")
    old = stages.values[stage] if stages is not None and stages.has(stage) else None
    if not isinstance(old, dict) or stages is None or bool(old.get(key)) == on:
        return data
    text = data.decode()
    bare = text.removeprefix("\ufeff")
    result = (text[: len(text) - len(bare)] + _mark(bare, stage, key, on=on)).encode()
    now = parse_yaml(result, name).value
    marked = {**old, key: True} if on else {other: value for other, value in old.items() if other != key}
    wanted = {**Fields(document).values, "stages": {**stages.values, stage: marked}}
    switched = {**wanted, "stages": {**stages.values, stage: {**old, key: on}}}
    if _without_final_newlines(now) not in (_without_final_newlines(wanted), _without_final_newlines(switched)):
        raise UsageError(
            f"`{key}` cannot be changed without changing more of `{name}`",
            hint=f"edit it: {name}:{document.line(('stages', stage))}",
        )
    return result


def _mark(text: str, stage: str, key: str, *, on: bool) -> str:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events: list[Any] = list(yaml.parse(text, Loader=loader))
    found = _inside(events, _inside(events, (0, 2, 0), "stages"), stage)
    if found is None or not (_is_block_mapping(events[found[1]]) or _is_flow_mapping(events[found[1]])):
        return text
    _, body, end = found
    there = _inside(events, found, key)
    if there is not None:
        a, b = _start(events[there[1]]), _stop(events[there[2]])
        line, after = text.rfind("\n", 0, _start(events[there[0]])) + 1, _end_of_line(text, b)
        alone = not text[line : _start(events[there[0]])].strip() and not text[b:after].partition("#")[0].strip()
        if not on and alone and _is_block_mapping(events[body]):
            return text[:line] + text[after:]
        return text[:a] + ("true" if on else "false") + text[b:]
    if _is_flow_mapping(events[body]):
        last = [final for _, _, final in _pairs(events, body)]
        offset = _stop(events[last[-1]]) if last else _stop(events[body])
        return f"{text[:offset]}{', ' if last else ''}{key}: true{text[offset:]}"
    offset = _end_of_content(text, events[_last_content(events, body, end)])
    return _splice(text, offset, [f"{' ' * _column(events[body + 1])}{key}: true"])


def _inside(events: list[Any], place: tuple[int, int, int] | None, key: str) -> tuple[int, int, int] | None:
    """Return where a key, its value and the value's end are in the mapping that is the value at `place`."""
    if place is None or not isinstance(events[place[1]], yaml.MappingStartEvent):
        return None
    return next((pair for pair in _pairs(events, place[1]) if getattr(events[pair[0]], "value", None) == key), None)
