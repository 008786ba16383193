"""Moto's S3 server in a process of its own."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.servers.processes import free_port, running

# What a client must have in its environment; the proxy's or the server's address is added as AWS_ENDPOINT_URL.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class S3Server:
    """Where a server listens; `environ` is what a client needs."""

    port: int

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environ(self) -> dict[str, str]:
        """The variables with which any AWS client finds this server."""
        return {**ENVIRONMENT, "AWS_ENDPOINT_URL": self.url}

    def make_bucket(self, name: str) -> str:
        """Create an empty bucket and return its URL for mlx."""
        scope = "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"
        headers = {"Authorization": f"{scope}, SignedHeaders=host, Signature=0"}
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT", headers=headers)
        urllib.request.urlopen(request, timeout=30).close()
        return f"s3://{name}"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Run moto's S3 server, which keeps what it is given in its memory (large values: in temporary files)."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with running(command, port, {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(1 << 20)}):
        yield S3Server(port)
