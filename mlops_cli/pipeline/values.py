"""What a parameter file says of the keys that a stage declares."""

from __future__ import annotations

from mlops_cli.documents import nearest, parse_values
from mlops_cli.errors import RecordError
from mlops_cli.records.stages import ParamsFile, Stage


def read_params(data: bytes, file: ParamsFile, stage: Stage) -> dict[str, object]:
    """Return the values of the declared keys (nested as in the file); RecordError for a key that is not there."""
    values = parse_values(data, file.path).value
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecordError(f"{file.path}:1: a parameter file holds a mapping", hint="write `key: value` lines")
    if not file.keys:
        return values
    picked: dict[str, object] = {}
    for key in file.keys:
        picked[key] = _pick(values, key, file, stage)
    return picked


def _pick(values: dict[str, object], key: str, file: ParamsFile, stage: Stage) -> object:
    here: object = values
    for depth, part in enumerate(key.split("."), start=1):
        if not isinstance(here, dict) or part not in here:
            near = nearest(part, here) if isinstance(here, dict) else None
            above = "".join(f"{name}." for name in key.split(".")[: depth - 1])
            meant = f"{above}{near}" if near else ""
            raise RecordError(
                f"{stage.file}:{stage.line}: stage `{stage.address}` needs the parameter `{key}` of `{file.path}`, "
                "which is not there",
                hint=f"did you mean `{meant}`?" if meant else f"add `{key}` to `{file.path}`",
            )
        here = here[part]
    return here
