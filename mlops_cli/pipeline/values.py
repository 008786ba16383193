"""What a parameter file says of the keys that a stage declares."""

from __future__ import annotations

from collections.abc import Sequence

from mlops_cli.documents import nearest, parse_values
from mlops_cli.documents.python_values import Opaque, is_python, parse_python
from mlops_cli.errors import RecordError
from mlops_cli.records.stages import ParamsFile, Stage


def read_params(data: bytes, file: ParamsFile, stage: Stage) -> dict[str, object]:
    """Return the values of the declared keys (nested as in the file); RecordError for a key that is not there."""
    values = _read_python(data, file) if is_python(file.path) else parse_values(data, file.path).value
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


def _read_python(data: bytes, file: ParamsFile) -> dict[str, object]:
    """Return the values of a Python file; RecordError for one that counts and that only running the file would tell."""
    found = parse_python(data, file.path)
    for name, opaque in found.opaque.items():
        if _counts(name, opaque, file.keys):
            raise RecordError(
                f"{file.path}:{opaque.line}: `{name}` {opaque.why}, so it is no parameter",
                hint="mlx runs no Python to read parameters: write the value itself, such as `lr = 0.1`"
                if file.keys
                else f"name the keys that the stage uses, as in `{file.path}: [lr]`, if it does not use this one",
            )
    return found.values


def _counts(name: str, opaque: Opaque, keys: Sequence[str]) -> bool:
    """Say whether a name without a value is among what a stage uses: `keys`, none for the whole file."""
    if any(key == name or key.startswith(f"{name}.") for key in keys):
        return True
    return opaque.is_value and (not keys or any(name.startswith(f"{key}.") for key in keys))


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
