"""Azurite, which speaks Azure's blob protocol, in a process of its own, with its values in memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers.processes import free_port, running

CONTAINER = "storage"
_ACCOUNT = "devstoreaccount1"
# The key that every Azurite has, as its documentation says.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

AZURITE = shutil.which("azurite-blob", path=os.pathsep.join([os.environ.get("AZURITE", ""), os.environ["PATH"]]))
needs_azurite = pytest.mark.skipif(AZURITE is None, reason="no Azurite here: `npm install --global azurite`")


def connection_string(port: int) -> str:
    """Return what a client needs to know to reach a server at `port`."""
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint={endpoint};"


@contextmanager
def azure_server(folder: Path) -> Iterator[int]:
    """Run the server with an empty container `CONTAINER`, and yield its port."""
    from azure.storage.blob import BlobServiceClient

    assert AZURITE is not None
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    with running([AZURITE, *options, "--skipApiVersionCheck"], port, cwd=folder):
        with BlobServiceClient.from_connection_string(connection_string(port)) as client:
            client.create_container(CONTAINER)
        yield port
