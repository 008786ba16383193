"""The note that a repository leaves on each remote it pushes to, so that none collects another's data.

    projects/<id>.json    {"mlx": 1, "first": ["<commit>", …], "git": "<URL>"}

A repository is known by the commits that have no parent, which all its clones share. A clone notes itself once a week
and remembers that, so a push costs no request for it; a note that somebody took away comes back before data goes.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path

from mlops_cli.hashing import fingerprint
from mlops_cli.store.bucket import Bucket
from mlops_cli.workspace import repository
from mlops_cli.workspace.git import Checkout

FOLDER = "projects"
_AGAIN = 7 * 24 * 3600.0  # s after which a clone notes itself anew: half of the usual grace age
_LOGIN = re.compile(r"//[^/@]*@")


def leave_note(git: Checkout, local: Path, bucket: Bucket, url: str) -> None:
    """Leave the note of the repository of `git`, unless this clone, whose own things are `local`, did so lately.

    One that is shallow, or has no commit yet, cannot tell who it is: it leaves none.
    """
    done = local / "remotes" / fingerprint(url) / "announced"
    if _is_fresh(done) or repository.find_incomplete(git.common_dir) == "shallow":
        return
    first = repository.list_first_commits(git.git_dir)
    if not first:
        return  # nothing is committed yet: the next push tells
    value = {"mlx": 1, "first": first, "git": _origin(git)}
    bucket.put(f"{FOLDER}/{fingerprint(first)}.json", json.dumps(value).encode() + b"\n")
    with suppress(OSError):
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()


def _is_fresh(done: Path) -> bool:
    with suppress(OSError):
        return abs(time.time() - done.stat().st_mtime) < _AGAIN
    return False


def _origin(git: Checkout) -> str:
    """Return the URL of a Git remote of this clone, without who one is there; empty when there is none."""
    urls = repository.list_upstream_urls(git.common_dir)
    return _LOGIN.sub("//", urls[0]) if urls else ""
