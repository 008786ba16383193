"""The normal form of a notebook: equal for two that differ in outputs and in what Jupyter keeps for itself only.

What counts is the cells in their order, each with its kind, source, tags and attachments, and the name of the kernel.
What does not is outputs, execution counts, ids of cells, and all other metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlops_cli.documents.document import located
from mlops_cli.errors import RecordError

_HEAD = b"notebook 1\n"
_FORMAT = 4


def notebook_form(data: bytes, name: str) -> bytes:
    """Return the normal form of the notebook called `name`; RecordError when it is no notebook of format 4."""
    try:
        notebook = json.loads(data)
    except json.JSONDecodeError as error:
        raise located(name, error.lineno, f"not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise located(name, 1, "not valid JSON") from error
    if not isinstance(notebook, dict) or notebook.get("nbformat") != _FORMAT:
        raise located(name, 1, f"not a notebook of format {_FORMAT}")
    cells = notebook.get("cells")
    if not isinstance(cells, list):
        raise located(name, 1, "a notebook without a list of cells")
    kept = {"kernel": _kernel(notebook), "cells": [_cell(cell, number, name) for number, cell in enumerate(cells, 1)]}
    try:
        return _HEAD + json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
    except RecursionError as error:
        raise located(name, 1, "not readable as a notebook: nested too deeply") from error


def _kernel(notebook: Mapping[str, object]) -> object:
    for key in ("metadata", "kernelspec"):
        inner = notebook.get(key)
        notebook = inner if isinstance(inner, dict) else {}
    return notebook.get("name")


def _cell(cell: object, number: int, name: str) -> dict[str, object]:
    if not isinstance(cell, dict) or not isinstance(cell.get("cell_type"), str):
        raise _wrong(number, name)
    source, metadata = cell.get("source"), cell.get("metadata")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        raise _wrong(number, name)
    kept: dict[str, object] = {"type": cell["cell_type"], "source": source}
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    if isinstance(tags, list) and tags:
        kept["tags"] = sorted(str(tag) for tag in tags)
    if cell.get("attachments"):
        kept["attachments"] = cell["attachments"]
    return kept


def _wrong(number: int, name: str) -> RecordError:
    return located(name, 1, f"cell {number} has no kind or no source")
