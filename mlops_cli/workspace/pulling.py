"""`mlx pull`: a fetch, and then a checkout of what came; what cannot be had keeps nothing else away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mlops_cli.errors import CorruptObject, MissingObject, MlxError
from mlops_cli.workspace.checkout import Restored, checkout, foresee
from mlops_cli.workspace.fetching import fetch, fetch_the_rest
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.shortfalls import Failed
from mlops_cli.workspace.transfers import PLAINLY, Fetching, SyncResult


class Pulled(NamedTuple):
    """What was fetched, which paths of the workspace differed, and what could not be brought there, and why not."""

    fetched: SyncResult
    restored: tuple[Restored, ...]
    failed: Failed


def pull(project: Project, targets: Sequence[str] = (), how: Fetching = PLAINLY, *, force: bool = False) -> Pulled:
    """Bring what the records of `targets` (none: all) name into the cache and the workspace; the checkout is held.

    MissingObject or CorruptObject for what cannot be had of `targets`; of everything, that is left and told. Otherwise
    it fails as `fetch` and `checkout` do.
    """
    failed: dict[str, MlxError] = {}
    try:
        fetched = fetch(project, targets, how)
    except (MissingObject, CorruptObject):
        if targets or how.dry_run:
            raise
        fetched, lost = fetch_the_rest(project, how)
        failed.update(lost)
    wanted = fetched.paths if fetched.left else targets
    if how.dry_run:
        done = foresee(project, wanted, force=force, reporter=how.reporter)
    else:
        done = checkout(project, wanted, force=force, partly=not targets, whole=True, reporter=how.reporter)
    return Pulled(fetched, done.restored, {**done.failed, **failed})
