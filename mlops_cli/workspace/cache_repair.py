"""A cache behind a URL that lost bytes: what says so, and letting its index forget them.

Nothing can be sent again from the cache to itself. What is forgotten here is stored again by `mlx add` or `mlx run`,
where the files are, or by a pull from another remote.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlops_cli.errors import CorruptObject, MissingObject, MlxError, UsageError
from mlops_cli.progress import Reporter
from mlops_cli.records.config import CACHE_REMOTE
from mlops_cli.store.objects import AbsentObjects, DamagedObjects
from mlops_cli.store.url_cache import UrlCache
from mlops_cli.words import NAMED, naming, quoted, so_for, words
from mlops_cli.workspace.compare import same
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.reach import reach, trees_above
from mlops_cli.workspace.scan import open_scanner
from mlops_cli.workspace.snapshot import Tracked
from mlops_cli.workspace.transfers import Moved

_FORGET = f"`mlx push --repair --remote {CACHE_REMOTE}` lets its index forget that"


def cache_lost(paths: Sequence[str], error: AbsentObjects | DamagedObjects) -> MlxError:
    """Return what to raise when the cache behind a URL has not what its index says, which `paths` need."""
    hint = f"{_FORGET}, and says what stores it again"
    if isinstance(error, DamagedObjects):
        return CorruptObject(f"{naming(paths)}: {error.message}", hint=hint)
    count = len(error.digests)
    objects = f"{count:,} object{'' if count == 1 else 's'} of {naming(paths)}"
    return MissingObject(
        f"{error.where} lacks {objects}, though its index names {'it' if count == 1 else 'them'}", hint=hint
    )


def forget_lost(
    project: Project,
    cache: UrlCache,
    chosen: Sequence[tuple[Tracked, str]],
    *,
    dry_run: bool,
    jobs: int,
    reporter: Reporter,
) -> Moved:
    """Read all of the cache, and let its index forget what is gone or damaged there; nothing is sent.

    With what was forgotten it is told what stores that again, of the paths that `chosen` names.
    """
    store = cache.remote
    if not dry_run:
        for name in store.mend_index():
            reporter.note(f"`{name}` of {store.label} was damaged: what only that named is to be stored again")
    reporter.start("verifying", None, "bytes")
    faults = store.check(read=True, jobs=jobs, reporter=reporter)
    if faults:
        store.deny(trees_above(cache, reach(cache, chosen), {fault.digest for fault in faults}))
        if not dry_run:
            store.forget_faults()
    lost = [entry for entry, part in chosen if _lacks(cache, entry, part)]
    traffic = store.bucket.traffic
    return Moved(
        CACHE_REMOTE,
        store.url,
        tuple(sorted({entry.path for entry, _ in chosen})),
        requests=traffic.requests,
        transferred=traffic.sent + traffic.received,
        repaired=len(faults),
        remedies=tuple(_remedies(project, lost)),
    )


def _lacks(cache: UrlCache, entry: Tracked, part: str) -> bool:
    needed = reach(cache, [(entry, part)])
    return bool(needed.unread or cache.missing(needed.sizes))


def _remedies(project: Project, lost: Iterable[Tracked]) -> Iterator[str]:
    here: list[str] = []
    stages: list[str] = []
    others: list[str] = []
    with open_scanner(project) as scanner:
        for entry in lost:
            try:
                present = scanner.look(entry.path)
            except UsageError:  # something that cannot be stored is there
                present = None
            if present is not None and same(entry, present) and not entry.stage:
                here.append(entry.path)
            elif entry.stage:
                stages.append(entry.stage)
            else:
                others.append(entry.path)
    if here:
        yield f"`mlx add {words(here[:NAMED])}` stores the files again that are in the workspace{so_for(here[NAMED:])}"
    stages = list(dict.fromkeys(stages))
    if stages:
        named = " ".join(map(quoted, stages[:NAMED]))
        yield f"`mlx run --force {named}` makes the outputs again{so_for(stages[NAMED:])}"
    if others:
        elsewhere = next((name for name in project.config.remotes if name != CACHE_REMOTE), None)
        named = words(others[:NAMED])
        yield (
            f"`mlx pull --remote {quoted(elsewhere)} {named}` brings it from there{so_for(others[NAMED:])}"
            if elsewhere
            else f"`mlx add {named}` in a clone that has the files stores them again{so_for(others[NAMED:])}"
        )
