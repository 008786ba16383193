"""A remote of a project, opened."""

from __future__ import annotations

from mlops_cli.hashing import fingerprint
from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.buckets import open_bucket
from mlops_cli.store.remote import Remote
from mlops_cli.workspace.project import Project
from mlops_cli.workspace.remotes import choose_remote


def open_project_remote(project: Project, name: str | None, reporter: Reporter = SILENT) -> tuple[str, Remote]:
    """Return the remote `name`, or the default one, with its name; UsageError when there is none of that name.

    Nothing is contacted before the first verb; the reporter hears when it does not answer for a while. RemoteError when
    the URL's protocol is unknown or its package is not installed.
    """
    chosen = choose_remote(project, name)
    url = project.config.remotes[chosen].url
    bucket = open_bucket(chosen, url, project.root, durability=project.cache.durability)
    bucket.traffic.listener = reporter.note
    return chosen, Remote(bucket, str(project.local / "remotes" / fingerprint(url)))
