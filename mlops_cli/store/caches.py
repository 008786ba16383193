"""Which cache a setting names: a folder of this machine, or a place behind a URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mlops_cli.errors import UsageError
from mlops_cli.store.bucket import Bucket
from mlops_cli.store.cache import Cache
from mlops_cli.store.links import LinkMode
from mlops_cli.store.objects import Durability

_OF_A_FOLDER = ("file://", "local://")


def is_url(place: str | None) -> bool:
    """Say whether `cache.dir` names a place behind a URL."""
    return place is not None and "://" in place


def open_cache(
    place: str | None,
    *,
    name: str,
    root: Path,
    inside: Path,
    kept: Path,
    link: LinkMode,
    link_origin: str,
    durability: Durability,
    announce: Callable[[Bucket, str], None],
) -> Cache:
    """Return the cache at `place`: a URL, a folder (relative ones start from `root`), or when None the folder `inside`.

    A cache behind a URL is called `name`; what it keeps here is `inside`, what is known of its index below `kept`;
    `announce` is called before anything goes there. UsageError for links to what is not on this machine (`link_origin`
    is the layer of the settings that wants them), and for places that keep nothing or hold the project.
    """
    if place is None or not is_url(place):
        return Cache(inside if place is None else root / Path(place).expanduser(), link=link, durability=durability)
    if link in (LinkMode.HARDLINK, LinkMode.SYMLINK):
        raise UsageError(
            f"`cache.link` is `{link}`, and the cache is not on this machine (`{place}`)",
            hint=f"{_copying(link_origin)}, or a folder as `cache.dir`",
        )
    if place.lower().startswith("memory://"):
        raise UsageError(
            f"`cache.dir` is `{place}`: what is in the memory of a command is gone when it ends",
            hint="name a bucket, as `s3://team-bucket/cache`, or a folder",
        )
    # What speaks over a network loads more than a command on a folder needs.
    from mlops_cli.store.buckets import folder_of, open_bucket  # noqa: PLC0415
    from mlops_cli.store.url_cache import UrlCache  # noqa: PLC0415

    if place.startswith(_OF_A_FOLDER):  # relative ones would be others in a worktree elsewhere
        folder = folder_of(place, root).absolute()
        if root.is_relative_to(os.path.normpath(folder)):
            raise UsageError(
                f"`cache.dir` is `{place}`, a folder that holds the project",
                hint="name a folder of its own: `file://../cache`",
            )
        place = folder.as_uri()
    bucket = open_bucket(name, place, root, durability=durability)
    return UrlCache(inside, bucket, str(kept), durability=durability, announce=announce)


def _copying(origin: str) -> str:
    """Return what makes `cache.link` be `copy`, where its value comes from the layer `origin`."""
    level = origin.partition(" ")[0]
    if level == "environment":
        return "`unset MLX_CACHE_LINK`"
    option = f"--{level} " if level in ("clone", "user") else ""
    return f"`mlx config set {option}cache.link copy`"
