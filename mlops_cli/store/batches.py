"""Opening the batch that fits a cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mlops_cli.progress import SILENT, Reporter
from mlops_cli.store.batch import Batch
from mlops_cli.store.cache import Cache


@contextmanager
def open_batch(cache: Cache, reporter: Reporter = SILENT) -> Iterator[Batch]:
    """Collect objects that become durable and then visible when the block ends.

    When the block raises, none of them does, and nothing is left behind. The reporter hears of what goes to a cache
    behind a URL; of one that is a folder, who fills the batch tells it.
    """
    batch = _batch(cache, reporter)
    try:
        yield batch
        batch.publish()
    finally:
        batch.close()


def _batch(cache: Cache, reporter: Reporter) -> Batch:
    if cache.url is None:
        return Batch(cache)
    # What speaks over a network loads more than a command on a folder needs.
    from mlops_cli.store.url_batch import UrlBatch  # noqa: PLC0415
    from mlops_cli.store.url_cache import UrlCache  # noqa: PLC0415

    assert isinstance(cache, UrlCache)
    return UrlBatch(cache, reporter)
