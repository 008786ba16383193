"""Metrics and parameters of a snapshot, and how those of two snapshots differ.

Metrics come from the locks (what the runs gave), parameters from the files that stages name; both are in Git, so
neither needs a byte of data. Nested names are joined with dots.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from mlops_cli.documents import flatten, parse_values
from mlops_cli.documents.python_values import is_python, parse_python
from mlops_cli.errors import RecordError
from mlops_cli.workspace.snapshot import Snapshot

Values = Mapping[str, Mapping[str, object]]  # file → dotted name → value


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs; `old` or `new` is None where it is absent.

    `change` is new - old for numbers, of the decimals that people read: 0.3 - 0.1 is 0.2.
    """

    file: str
    name: str
    old: object
    new: object
    change: float | None


def collect_metrics(snapshot: Snapshot) -> dict[str, dict[str, object]]:
    """Return the metrics that the locks recorded, and those of the files that `mlx.yaml` lists under `metrics`."""
    found: dict[str, dict[str, object]] = {}
    for stage in snapshot.stages:
        lock = snapshot.lock(stage)
        for path in stage.metrics if lock else ():
            if lock is not None and path in lock.metrics:
                found[path] = flatten(lock.metrics[path])
    for pipeline in snapshot.pipelines:
        for path in pipeline.metrics:
            found[path] = _read(snapshot, path)
    return dict(sorted(found.items()))


def collect_params(snapshot: Snapshot) -> dict[str, dict[str, object]]:
    """Return every value of the parameter files that stages name, whether a stage uses that key or not."""
    files = sorted({file.path for stage in snapshot.stages for file in stage.params})
    if not files and snapshot.files.read("params.yaml") is not None:
        files = ["params.yaml"]
    return {path: _read(snapshot, path) for path in files}


def _read(snapshot: Snapshot, path: str) -> dict[str, object]:
    data = snapshot.files.read(path)
    if data is None:
        return {}
    with snapshot.reading():
        values = parse_python(data, path).values if is_python(path) else parse_values(data, path).value
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise RecordError(f"{path}:1: it must hold a mapping of names to values", hint="write `name: value` lines")
        return flatten(values)


def compare(old: Values, new: Values, *, everything: bool = False) -> tuple[Change, ...]:
    """Return the values that differ (or, with `everything`, all), sorted by file and name; 1, 1.0 and true differ."""
    changes = []
    for file in sorted(old.keys() | new.keys()):
        before, after = old.get(file, {}), new.get(file, {})
        for name in sorted(before.keys() | after.keys()):
            equal = name in before and name in after and _text(before[name]) == _text(after[name])
            if equal and not everything:
                continue
            changes.append(Change(file, name, before.get(name), after.get(name), _difference(before, after, name)))
    return tuple(changes)


def _difference(before: Mapping[str, object], after: Mapping[str, object], name: str) -> float | None:
    old, new = before.get(name), after.get(name)
    if isinstance(old, bool) or isinstance(new, bool):
        return None
    if isinstance(old, int) and isinstance(new, int):
        return new - old
    if isinstance(old, int | float) and isinstance(new, int | float):
        return float(Decimal(str(new)) - Decimal(str(old)))
    return None


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)
