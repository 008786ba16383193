"""A plain web server for one folder, that knows byte ranges, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import free_port, running

_PROGRAM = """
import os, sys
from email.utils import formatdate
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def send_head(self):
        path = self.translate_path(self.path)
        if not os.path.isfile(path):
            return self.send_error(404)
        size = os.path.getsize(path)
        start, end, status = 0, size, 200
        if wanted := self.headers.get("Range", "").removeprefix("bytes="):
            first, _, last = wanted.partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else size, size), 206
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", formatdate(os.path.getmtime(path), usegmt=True))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        file = open(path, "rb")
        file.seek(start)
        self.left = end - start
        return file

    def copyfile(self, source, outputfile):
        while self.left and (data := source.read(min(self.left, 1 << 16))):
            self.left -= len(data)
            outputfile.write(data)

    def log_message(self, *args):
        pass

os.chdir(sys.argv[1])
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@contextmanager
def web_server(folder: Path) -> Iterator[int]:
    """Serve the files of a folder and yield the port of loopback."""
    port = free_port()
    with running([sys.executable, "-c", _PROGRAM, str(folder), str(port)], port):
        yield port
