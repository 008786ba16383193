"""Documents: YAML, JSON and TOML in and out, deterministic, bounded, with errors that name `file:line`.

The one idea: every file that people or other machines may have written is read by one pass with limits on bytes, depth
and nodes, and comes back as plain values plus the line each key stands on. `Fields` then reads one mapping strictly.
What the values mean is for `records` to say.
"""

from __future__ import annotations

from mlops_cli.documents.document import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_NODES,
    Document,
    Place,
    has_conflict,
    nearest,
    suggest,
)
from mlops_cli.documents.fields import MAX_INTEGER, Fields, check_version, describe, quote_hint
from mlops_cli.documents.parsing import parse_json, parse_toml, parse_values, parse_yaml
from mlops_cli.documents.scalars import parse_scalar
from mlops_cli.documents.values import Inline, InlineList, flatten
from mlops_cli.documents.writing import dump_yaml

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_INTEGER",
    "MAX_NODES",
    "Document",
    "Fields",
    "Inline",
    "InlineList",
    "Place",
    "check_version",
    "describe",
    "dump_yaml",
    "flatten",
    "has_conflict",
    "nearest",
    "parse_json",
    "parse_scalar",
    "parse_toml",
    "parse_values",
    "parse_yaml",
    "quote_hint",
    "suggest",
]
