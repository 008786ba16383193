"""`mlx fsck --remote`: whether a remote holds what belongs to it, every byte as it was pushed.

The remote is read first, by its own index alone. Then the workspace's records say which tracked path each damaged
object belongs to, and which objects are not there at all. Nothing is changed, here or there: `mlx push --repair` is
what mends a remote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from mlops_cli.errors import CorruptObject
from mlops_cli.hashing import Digest
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.checkup import Checkup, Scope
from mlops_cli.store.objects import AbsentObjects
from mlops_cli.store.remote_checkup import Fault as RemoteFault
from mlops_cli.words import NAMED, word
from mlops_cli.workspace.destinations import Destinations
from mlops_cli.workspace.integrity import Examination, Fault, find_files
from mlops_cli.workspace.listings import Listings
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.project_remote import open_project_remote
from mlops_cli.workspace.reach import reach
from mlops_cli.workspace.run_records import RunRecords
from mlops_cli.workspace.snapshot import Tracked, workspace_snapshot


def examine_remote(project: Project, name: str, scope: Scope, *, reporter: Reporter = SILENT) -> Examination:
    """Read what a remote holds, as much as `scope` says, and tell what is damaged or absent, and whose it is.

    UsageError for a remote that there is none of; RemoteError.
    """
    _, store = open_project_remote(project, name, reporter)
    readable, unread = workspace_snapshot(project).readable()
    pushed = [(entry, "") for entry in readable if not entry.git and entry.push]
    own = [entry for entry, _ in Destinations(project).divide(pushed, name, sending=True).shares[name]]
    found = store.survey(scope, jobs=project.config.core_jobs, reporter=reporter)
    reporter.start("looking for what the records need", None, "paths")
    lost = {fault.digest: fault for fault in found.faults}
    trees = Listings(project.cache, store)
    owners: dict[Digest, list[Tracked]] = {}
    absent: set[Digest] = set()
    for entry in own:
        reporter.advance(1)
        with suppress(CorruptObject):  # its bytes are its own, but it is no tree: `mlx fsck` tells that
            needed = reach(trees, [(entry, "")])
            absent |= store.missing(needed.owners) - lost.keys()
            for digest in needed.owners:
                owners.setdefault(digest, []).append(entry)
    lost |= {fault.digest: fault for fault in found.chunks if fault.digest in owners}
    needing = [entry for digest in (*lost, *absent) for entry in owners.get(digest, ())]
    places = find_files(trees, needing, {*lost, *absent})

    def told(digest: Digest, why: str) -> Fault:
        entries = owners.get(digest, [])
        stage = entries[0].stage if entries else ""
        return Fault(digest, why, tuple(e.path for e in entries), stage, files=tuple(places.get(digest, ())))

    faults = [(_is_absent(fault), told(digest, fault.error.message)) for digest, fault in lost.items()]
    never = [told(digest, f"{store.label} does not have it") for digest in absent]
    return Examination(
        Checkup(found.units, found.of_units, found.objects, found.bytes, (), found.files, 0, ()),
        tuple(sorted((fault for gone, fault in faults if not gone), key=_order)),
        tuple(sorted([*(fault for gone, fault in faults if gone), *never], key=_order)),
        RunRecords(0, 0, ()),
        remotes=(name,),
        examined=name,
        unread=unread,
        promised=any(gone for gone, _ in faults),
    )


def _is_absent(fault: RemoteFault) -> bool:
    return isinstance(fault.error, AbsentObjects)


def _order(fault: Fault) -> tuple[str, str]:
    return fault.path, fault.digest


def remote_remedies(found: Examination, *, is_cache: bool = False) -> Iterator[str]:
    """Yield what mends a remote, or the cache behind a URL; the paths that need what it lacks are marked."""
    lost = [*found.damaged, *found.absent]
    if not lost and not found.checkup.files:
        return
    repair = " --repair" if found.damaged or found.checkup.files or found.promised else ""
    concerned = list(dict.fromkeys(path for fault in lost for path in fault.paths))
    paths = [word(path) for path in concerned] if len(concerned) <= NAMED else []  # of more, the command for all
    if is_cache:
        if repair:
            yield f"`mlx push --repair --remote {found.examined}` forgets what is damaged there"
        yield f"`mlx add {' '.join(paths) or 'PATH'}`, where the files are in the workspace, stores them again"
        return
    push = " ".join([f"mlx push{repair} --remote {found.examined}", *paths])
    yield f"`{push}`, in a clone that has the data, sends it again"
    if any(not fault.paths for fault in lost):
        yield "what no record of this commit names is mended by `mlx push --repair --rev REV` of a commit that does"
