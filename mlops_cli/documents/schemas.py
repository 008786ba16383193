"""The published JSON Schemas, and checking a value against one.

Everyday commands read records with `Fields`, whose errors name the line; the schemas are the contract that editors and
other tools rely on, and `mlx doctor` holds the records of a project against them.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any


@cache
def load_schema(kind: str) -> Any:
    """Return the schema of a file kind (`pointer`) or of a `--json` result (`status`), version 1."""
    return json.loads(resources.files("mlops_cli").joinpath("schemas", f"{kind}.v1.json").read_text(encoding="utf-8"))


def find_violations(value: object, kind: str) -> list[str]:
    """Return what in `value` breaks the schema of `kind`, one sentence each, empty when nothing does."""
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(load_schema(kind)).iter_errors(value)
    return [f"{error.json_path.removeprefix('$').lstrip('.') or 'the file'}: {error.message}" for error in errors]
