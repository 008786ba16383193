"""The earlier runs that the local run cache remembers, by what they made.

An entry does not name its stage: those that may be a stage's are known by the first output that they list, and only
these are parsed. It stays quick whatever the cache holds: only the newest entries are looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from mlops_cli.errors import MlxError, RecordError
from mlops_cli.pipeline.nearest import Nearest, find_nearest
from mlops_cli.pipeline.plan import Action, Decision
from mlops_cli.records.locks import Lock, read_lock
from mlops_cli.records.paths import written_path
from mlops_cli.records.pointers import SomeObject
from mlops_cli.records.stages import Stage
from mlops_cli.store.cache import Cache
from mlops_cli.workspace.compare import describe_change
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.scan import open_scanner
from mlops_cli.workspace.snapshot import Snapshot

_LOOKED_AT = 5000  # entries of the run cache
_PARSED = 100  # of them for one stage
_FIRST_OUT = re.compile(rb"^outs:\n *- \{path: ([^\s,'\"{}\[\]]+),", re.MULTILINE)


def nearest_runs(project: Project, snapshot: Snapshot, decisions: Iterable[Decision]) -> dict[str, Nearest]:
    """Return, by address, the earlier run that came nearest to each stage that is to run, where it says something new.

    Nothing is said of a stage whose inputs are not all known yet.
    """
    due = [decision for decision in decisions if decision.action is Action.RUN and decision.key is not None]
    if not due:
        return {}
    entries = _entries(project.cache)
    found: dict[str, Nearest] = {}
    with open_scanner(project) as trees:

        def describe(old: SomeObject, new: SomeObject) -> str:
            return describe_change(trees, old, new)

        for decision in due:
            stage, lock = decision.stage, snapshot.lock(decision.stage)
            nearest = find_nearest(stage, decision.wanted, lock, _runs_of(stage, entries), describe)
            if nearest is not None:
                found[stage.address] = nearest
    return found


def _entries(cache: Cache) -> Mapping[bytes, list[bytes]]:
    """Return the newest entries of the run cache, the newest first, by the first output that each lists."""
    ages: list[tuple[float, str]] = []
    for key in cache.list_runs():
        with suppress(OSError):
            ages.append(((cache.root / "runs" / f"{key}.yaml").stat().st_mtime, key))
    found: dict[bytes, list[bytes]] = {}
    for _, key in sorted(ages, reverse=True)[:_LOOKED_AT]:
        with suppress(MlxError, ValueError):
            data = cache.read_run(key) or b""
            if out := _FIRST_OUT.search(data):
                found.setdefault(out[1], []).append(data)
    return found


def _runs_of(stage: Stage, entries: Mapping[bytes, list[bytes]]) -> Iterator[Lock]:
    """Yield the locks among `entries` that may be a stage's."""
    first = min((written_path(out.path, stage.folder) for out in stage.outs), default="")
    for data in entries.get(os.fsencode(first), ())[:_PARSED]:
        with suppress(RecordError):  # of another version, or damaged
            yield read_lock(data, "run cache entry", stage.folder)
