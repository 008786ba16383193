"""OpenSSH's server as the user who runs the tests, with keys of its own: Debian's package `openssh-server`."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.servers.processes import free_port, running

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")

_PLACES = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/libexec/sftp-server")
_SFTP = next((place for place in _PLACES if Path(place).exists()), "internal-sftp")


@dataclass(frozen=True)
class SshServer:
    """Where a server listens; with `home` as HOME a client has a key, the server's key, and a config for `mlx-test`."""

    port: int
    folder: Path
    home: Path

    def url(self, folder: Path, port: int = 0) -> str:
        """Return the URL of a folder of this machine, through this server or a proxy's `port`."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{port or self.port}{folder}"

    def trust(self, port: int) -> None:
        """Let clients know this server's key under another port of loopback, such as a proxy's."""
        key = (self.folder / "host.pub").read_text()
        with (self.home / ".ssh/known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{port} {key}")


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run a server that keeps its keys in `folder`."""
    assert SSHD, "no sshd here: install `openssh-server`"
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for key in (folder / "host", home / ".ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    shutil.copy(home / ".ssh/id_ed25519.pub", folder / "authorized")
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(f"""\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host
AuthorizedKeysFile {folder}/authorized
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
Subsystem sftp {_SFTP}
""")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with running([SSHD, "-D", "-e", "-f", str(config)], port):
        server = SshServer(port, folder, home)
        server.trust(port)
        yield server
