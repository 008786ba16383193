"""The run cache's records as they lie in a cache: locks that no stage goes with, and whether they can be read."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass

from mlops_cli.errors import RecordError
from mlops_cli.hashing import Digest
from mlops_cli.records.locks import Lock, read_lock
from mlops_cli.store.cache import Cache
from mlops_cli.store.damage import DamagedFile, quarantine_place

# Outputs of a run record may lie above the folder of its stage, which it does not name: any deep one will do.
_DEEP = "/".join(["x"] * 64)
_OTHER_VERSION = re.compile(rb"^mlx: (?!1\s)\d+\s", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class RunRecords:
    """How many run records there are, those whose outputs are not all here, and the damaged ones."""

    count: int
    unusable: int
    damaged: tuple[DamagedFile, ...]


def read_run_record(data: bytes, name: str) -> Lock:
    """Return the lock that a run record is; RecordError."""
    return read_lock(data, name, _DEEP)


def outs_as_written(lock: Lock) -> frozenset[str]:
    """Return the paths of the outputs of a lock that was read from a run record, as they are written there."""
    return frozenset(out.path.removeprefix(f"{_DEEP}/") for out in lock.outs)


def check_run_records(cache: Cache, *, dry_run: bool) -> RunRecords:
    """Read every run record; a damaged one goes to `quarantine/`, unless `dry_run`: its stage runs once more, then.

    A record of another version is passed over, as `mlx run` does. Of a folder, only the listing is looked for.
    """
    damaged: list[DamagedFile] = []
    needed: list[tuple[Digest, ...]] = []
    keys = sorted(key for key in cache.list_runs() if key.isascii())
    for key in keys:
        data = cache.read_run(key)
        if data is None or _OTHER_VERSION.search(data):
            continue
        try:
            needed.append(tuple(out.digest for out in read_run_record(data, f"runs/{key}.yaml").outs))
        except RecordError as error:
            why = error.message.removeprefix("runs/").removeprefix(f"{key}.yaml:")
            damaged.append(DamagedFile(f"runs/{key}.yaml", why.strip(), not dry_run and _put_away(cache, key)))
    absent = cache.missing({digest for outs in needed for digest in outs})
    return RunRecords(len(keys), sum(not absent.isdisjoint(outs) for outs in needed), tuple(damaged))


def _put_away(cache: Cache, key: str) -> bool:
    with suppress(OSError):
        os.rename(cache.root / "runs" / f"{key}.yaml", cache.root / quarantine_place(cache.root, f"{key}.yaml"))
        return True
    return False
