"""Reading what a stage makes: its `outs`, `metrics` and `plots`."""

from __future__ import annotations

from collections.abc import Sequence

from mlops_cli.documents import Fields, Place
from mlops_cli.records.filling import Filled, ValueReader
from mlops_cli.records.paths import OWN_FOLDERS, OWN_NAMES
from mlops_cli.records.stages import Output, Plot


def read_metrics_files(reader: ValueReader, fields: Fields) -> tuple[str, ...]:
    """Return the files at `metrics`, which somebody writes."""
    return tuple(reader.value_file(text, at, written=True) for text, at in reader.listed(fields, "metrics"))


def read_plots(reader: ValueReader, fields: Fields) -> tuple[Plot, ...]:
    """Return the files at `plots`, and how each is to be drawn."""
    return tuple(_read_plot(reader, item, at) for item, at in reader.items(fields, "plots"))


def read_repetition(fields: Fields) -> tuple[bool, bool]:
    """Return whether the stage is run `always`, and whether it is `frozen`."""
    always, frozen = fields.boolean("always", default=False), fields.boolean("frozen", default=False)
    if always and frozen:
        hint = "drop one of the two: `frozen` keeps what there is"
        raise fields.error(f"{fields.what} cannot be run always and be frozen", "frozen", hint)
    return always, frozen


def read_outputs(reader: ValueReader, fields: Fields, in_git: Sequence[str]) -> tuple[Output, ...]:
    """Return all outputs of the stage: those at `outs`, and the metrics and plots, which are `in_git`."""
    outs = [_read_output(reader, item, at) for item, at in reader.items(fields, "outs")]
    outs.extend(Output(path, git=True) for path in in_git)
    _check_outputs(fields, outs)
    return tuple(outs)


def _read_described(reader: ValueReader, item: object, at: Place, form: str) -> tuple[str, Fields | None]:
    """Return the path of an item, and a reader of what is said about it."""
    if isinstance(item, str):
        text = item if isinstance(item, Filled) else reader.text(item, at)
        return reader.output(text, at), None
    raw, value = reader.single(item, at, form)
    path = reader.output(reader.text(raw, at), at)
    return path, None if value is None else Fields(reader.document, (*at, raw))


def _read_output(reader: ValueReader, item: object, at: Place) -> Output:
    path, about = _read_described(reader, item, at, "`path: {push: false}`")
    if about is None:
        return Output(path)
    about.only(("push", "desc", "persist"))
    return Output(
        path,
        push=about.boolean("push", default=True),
        desc=reader.optional_text(about, "desc"),
        persist=about.boolean("persist", default=False),
    )


def _read_plot(reader: ValueReader, item: object, at: Place) -> Plot:
    path, about = _read_described(reader, item, at, "`path: {x: column}`")
    if about is None:
        return Plot(path)
    about.only(("x", "y", "title"))
    x, y, title = (reader.optional_text(about, key) for key in ("x", "y", "title"))
    return Plot(path, x, y, title)


def _check_outputs(fields: Fields, outs: list[Output]) -> None:
    seen: set[str] = set()
    for out in outs:
        if out.path in seen:
            raise fields.error(f"{fields.what} names output `{out.path}` twice", hint="name it once")
        seen.add(out.path)
        parts = out.path.split("/")
        if not OWN_FOLDERS.isdisjoint(parts) or parts[-1] in OWN_NAMES or parts[-1].endswith(".mlx"):
            raise fields.error(f"output `{out.path}` is a name that mlx uses itself", hint="write it elsewhere")
