"""The marker of a remote, `mlx.json`: that the place is one, and of which layout; and a note here that it was seen."""

from __future__ import annotations

import json
import os
from contextlib import suppress

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import AbsentKey, Bucket

MARKER = "mlx.json"
LAYOUT = 2
WITHOUT_INDEX = 1
_LARGEST_MARKER = 4096
_SEEN = "seen"  # in the folder of a clone for what it knows of a remote


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


def was_seen(kept: str) -> bool:
    """Say whether this clone, whose folder for the remote is `kept`, has ever met a marker there, or written it."""
    return os.path.exists(f"{kept}/{_SEEN}")


def note_seen(kept: str) -> None:
    """Remember that there is a marker."""
    if not was_seen(kept):
        with suppress(OSError):  # a clone may be only to read
            os.makedirs(kept, exist_ok=True)
            os.close(os.open(f"{kept}/{_SEEN}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


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
