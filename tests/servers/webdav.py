"""wsgidav on cheroot, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import free_port, running

_PROGRAM = """
import sys
from cheroot import wsgi
from wsgidav.fs_dav_provider import FilesystemProvider
from wsgidav.wsgidav_app import WsgiDAVApp

folder, port, user, password = sys.argv[1:]
users = {user: {"password": password}} if user else True
app = WsgiDAVApp({
    "provider_mapping": {"/": FilesystemProvider(folder)},
    "simple_dc": {"user_mapping": {"*": users}},
    "http_authenticator": {"accept_basic": True, "accept_digest": False, "default_to_digest": False},
    "verbose": 1,
})
wsgi.Server(("127.0.0.1", int(port)), app, numthreads=16).start()
"""


@contextmanager
def webdav_server(folder: Path, user: str = "", password: str = "") -> Iterator[int]:
    """Serve a folder, to everybody or to one user, and yield the port of loopback."""
    port = free_port()
    with running([sys.executable, "-c", _PROGRAM, str(folder), str(port), user, password], port):
        yield port
