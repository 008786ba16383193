"""The marker of a remote, `mlx.json`: that the place is one, and of which layout."""

from __future__ import annotations

import json

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import AbsentKey, Bucket

MARKER = "mlx.json"
LAYOUT = 2
WITHOUT_INDEX = 1
_LARGEST_MARKER = 4096


class UnreadableMarker(RemoteError):
    """What is where the marker of a remote should be is none, of whatever version."""


def read_layout(bucket: Bucket) -> int:
    """Return the layout of the remote in `bucket`, 0 where there is none yet; RemoteError when it is not understood."""
    try:
        return layout_of(bucket.get(MARKER, 0, _LARGEST_MARKER), bucket.label)
    except AbsentKey:
        return 0


def write_marker(bucket: Bucket) -> None:
    """Make the place a remote of the layout that this code writes."""
    bucket.put(MARKER, json.dumps({"mlx": LAYOUT}).encode() + b"\n")


def layout_of(data: bytes, label: str) -> int:
    """Return the layout that a marker names; RemoteError when this code does not understand it."""
    try:
        layout = json.loads(data)["mlx"]
    except (ValueError, KeyError, TypeError, RecursionError):
        hint = "check that its URL names a remote of mlx; if it does, `mlx push --repair` writes that file anew"
        raise UnreadableMarker(f"{label} holds a `{MARKER}` that mlx cannot read", hint=hint) from None
    if type(layout) is not int or layout not in (WITHOUT_INDEX, LAYOUT):
        message = f"{label} has layout version {layout}, and this mlx understands {LAYOUT}"
        raise RemoteError(message, hint="upgrade mlx: `pip install --upgrade mlops-cli`")
    return int(layout)
