"""Start a server as a process of its own, wait until it answers, end it."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

LONG = 60  # seconds that a server may take to start on a busy machine


def free_port() -> int:
    """Return a port of loopback on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], port: int, environ: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[subprocess.Popen]:
    """Run `command` until the block ends, from when `port` accepts connections; what it said is told if it does not."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env={**os.environ, **(environ or {})},
            cwd=cwd,
        )
        try:
            await_port(port, process, said)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def await_port(port: int, process: subprocess.Popen, said) -> None:
    end = time.monotonic() + LONG
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    said.seek(0)
    raise RuntimeError(f"{process.args} does not answer: {said.read().decode(errors='replace')[-2000:]}")
