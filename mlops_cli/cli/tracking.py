"""Commands on what runs gave: `metrics show/diff`, `params show/diff`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlops_cli.cli.commands import Group, command
from mlops_cli.cli.options import Json
from mlops_cli.cli.output import Output
from mlops_cli.cli.session import Session, session_of
from mlops_cli.cli.text import Line, comma_separated, markdown, table
from mlops_cli.cli.usage import refuse_range
from mlops_cli.errors import UsageError

if TYPE_CHECKING:
    from mlops_cli.tracking.values import Values
    from mlops_cli.workspace.snapshot import Snapshot

Rev = Annotated[str | None, typer.Argument(metavar="[REV]", help="A Git revision (default: the workspace)")]
Old = Annotated[str, typer.Argument(metavar="[OLD]", show_default=False, help="A Git revision (default: HEAD)")]
New = Annotated[str | None, typer.Argument(metavar="[NEW]", help="Another (default: the workspace)")]
Markdown = Annotated[bool, typer.Option("--md", help="Print a Markdown table")]
Csv = Annotated[bool, typer.Option("--csv", help="Print comma-separated values")]
All = Annotated[bool, typer.Option("--all", help="List equal values too")]


def metrics_show(
    context: typer.Context, revision: Rev = None, md: Markdown = False, csv: Csv = False, as_json: Json = False
) -> None:
    """Show the metrics that the last runs gave

    They are in the locks, so no data is needed, whatever the revision.
    """
    _show(context, "metrics", revision, _drawing(md, csv), as_json)


def params_show(
    context: typer.Context, revision: Rev = None, md: Markdown = False, csv: Csv = False, as_json: Json = False
) -> None:
    """Show the parameters in the files that stages name"""
    _show(context, "params", revision, _drawing(md, csv), as_json)


def metrics_diff(
    context: typer.Context,
    old: Old = "HEAD",
    new: New = None,
    everything: All = False,
    md: Markdown = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Compare the metrics of two revisions

    One revision is compared with the workspace, none means HEAD.
    """
    _diff(context, "metrics", (old, new), everything, _drawing(md, csv), as_json)


def params_diff(
    context: typer.Context,
    old: Old = "HEAD",
    new: New = None,
    everything: All = False,
    md: Markdown = False,
    csv: Csv = False,
    as_json: Json = False,
) -> None:
    """Compare the parameters of two revisions

    One revision is compared with the workspace, none means HEAD.
    """
    _diff(context, "params", (old, new), everything, _drawing(md, csv), as_json)


Drawing = Callable[[Sequence[str], Sequence[Sequence[str]]], list[Line]]


def _drawing(md: bool, csv: bool) -> Drawing:
    if md and csv:
        raise UsageError("`--md` and `--csv` are two forms of one table", hint="choose one of them")
    return markdown if md else comma_separated if csv else table


def _collect(kind: str, snapshot: Snapshot) -> dict[str, dict[str, object]]:
    from mlops_cli.tracking.values import collect_metrics, collect_params

    return collect_metrics(snapshot) if kind == "metrics" else collect_params(snapshot)


def _at(session: Session, kind: str, revision: str | None) -> dict[str, dict[str, object]]:
    from mlops_cli.workspace.snapshot import open_snapshot

    with open_snapshot(session.project(), revision) as snapshot:
        return _collect(kind, snapshot)


def _show(context: typer.Context, kind: str, revision: str | None, draw: Drawing, as_json: bool) -> None:
    session = session_of(context)
    output = session.output(as_json)
    values = _at(session, kind, revision)
    entries = [{"file": f, "name": n, "value": v} for f, named in values.items() for n, v in named.items()]
    rows = [(file, name, _text(value)) for file, named in values.items() for name, value in named.items()]
    output.result(f"{kind}-show", {"revision": revision, kind: entries}, draw(("file", "name", "value"), rows))
    _say_empty(output, kind, values)


def _diff(
    context: typer.Context, kind: str, sides: tuple[str, str | None], everything: bool, draw: Drawing, as_json: bool
) -> None:
    from mlops_cli.tracking.values import compare

    session = session_of(context)
    output = session.output(as_json)
    refuse_range(f"{kind} diff", sides)
    old, new = (_at(session, kind, side) for side in sides)
    changes = compare(old, new, everything=everything)
    value = {"old": sides[0], "new": sides[1], kind: [asdict(change) for change in changes]}
    rows = [(c.file, c.name, _text(c.old), _text(c.new), _signed(c.change)) for c in changes]
    headers = ("file", "name", sides[0], sides[1] or "workspace", "change")
    output.result(f"{kind}-diff", value, draw(headers, rows))
    if not rows:
        output.say(f"no {kind} differ")


def _say_empty(output: Output, kind: str, values: Values | Mapping[str, Any]) -> None:
    if not any(values.values()):
        where = "`mlx run` records them" if kind == "metrics" else "name them under `params` of a stage"
        output.say(f"no {kind}: {where}")


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return f"{value:.6g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _signed(change: float | None) -> str:
    return "" if change is None else f"{change:+.6g}"


COMMANDS = {
    "metrics": Group(
        "Look at metrics, at any revision",
        {
            "show": command(metrics_show, "mlx metrics show", "mlx metrics show HEAD~1 --md"),
            "diff": command(metrics_diff, "mlx metrics diff HEAD~1", "mlx metrics diff HEAD~1 main --md"),
        },
    ),
    "params": Group(
        "Look at parameters, at any revision",
        {
            "show": command(params_show, "mlx params show"),
            "diff": command(params_diff, "mlx params diff HEAD~1"),
        },
    ),
}
