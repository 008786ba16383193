"""A server that speaks Google's storage protocol, in a process of its own, with its values in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.servers.processes import free_port, running

BUCKET = "storage"


@contextmanager
def gcs_server() -> Iterator[int]:
    """Run the server with an empty bucket `BUCKET`, and yield its port."""
    port = free_port()
    start = "from gcp_storage_emulator.__main__ import main; main()"
    options = ["start", "--host", "127.0.0.1", "--port", str(port), "--in-memory", "--default-bucket", BUCKET]
    with running([sys.executable, "-W", "ignore", "-c", start, *options], port):
        yield port
