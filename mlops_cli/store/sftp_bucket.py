"""Remotes on machines that one can log in to: `ssh://user@host:port/folder`, over SFTP.

Who to log in as, and how the host is known, is what `ssh` itself would use: `~/.ssh/config`, the agent, keys and
`known_hosts`. A host that is not in `known_hosts` is refused. One logs in once, because that may ask for a finger on a
key; each thread that is at work has a channel of its own in that connection. One that fails is thrown away as a whole.

A value is written below `tmp/` and renamed. `~` as the first folder of the path is the home of the user there.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from mlops_cli.errors import RemoteError
from mlops_cli.store.bucket import Stored, Traffic
from mlops_cli.store.judgement import Fault, Judgement, first_line, judge_exception, safe_url
from mlops_cli.store.wire import CONNECT, PATIENCE, SILENCE, WireBucket

WINDOW = 4 << 20  # bytes asked for at once
PIECE = 1 << 15  # bytes in one packet: what every server takes
LOGIN = 15.0  # s for which a server may think about who we are
_ALIVE = 15  # s between signs of life, so that nothing on the way forgets the connection

# The URL may be in a record of somebody else, and `~/.ssh/config` may put the host into a command.
_HOST = re.compile(r"(?!-)[\w.:%-]+")
_HINT = "see that `ssh` itself gets there: it takes keys from the agent and `~/.ssh`, hosts from `~/.ssh/known_hosts`"


class SftpBucket(WireBucket):
    """A folder on a machine with an SSH server."""

    def __init__(self, name: str, url: str, *, patience: float = PATIENCE, silence: float = SILENCE) -> None:
        def connect(traffic: Traffic) -> _SftpWire:
            try:
                import paramiko  # noqa: F401
            except ImportError as error:
                message = f"remote `{name}` needs a package for `ssh://` that is missing"
                raise RemoteError(message, hint="`pip install 'mlops-cli[ssh]'`") from error
            parts = urlsplit(url)
            try:
                host, port = parts.hostname, parts.port
            except ValueError:
                host = port = None
            if not host or not _HOST.fullmatch(host):
                what = "a host that is none" if host else "no host"
                raise RemoteError(f"remote `{name}` (`{safe_url(url)}`) names {what}", hint="`ssh://HOST/FOLDER`")
            path = unquote(parts.path).rstrip("/")
            folder = path.removeprefix("/~/") if path.startswith("/~/") else "." if path == "/~" else path or "/"
            account = _Account(host, port, unquote(parts.username or ""), unquote(parts.password or ""))
            return _SftpWire(traffic, account, folder, silence)

        super().__init__(name, url, connect, refusal_hint=_HINT, patience=patience)


class _Account(NamedTuple):
    host: str
    port: int | None
    user: str
    password: str


class _SftpWire:
    def __init__(self, traffic: Traffic, account: _Account, folder: str, silence: float) -> None:
        self._traffic = traffic
        self._account = account
        self._folder = folder
        self._silence = silence
        self._free: LifoQueue[Any] = LifoQueue()
        self._lock = Lock()
        self._client: Any = None
        self._litter: list[str] = []  # temporary names; another attempt never takes one that may still be written to

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """Lend a session to this thread, a new one when all are at work; keep it unless the connection failed."""
        session = self._take()
        try:
            yield session
        except BaseException as error:
            if _kept(error):
                self._free.put(session)
            else:
                self._drop(session)
            raise
        self._free.put(session)

    def _take(self) -> Any:
        with suppress(Empty):
            while True:
                session = self._free.get_nowait()
                if not session.get_channel().closed:
                    return session
        with self._lock:
            if self._client is None or not self._client.get_transport().is_active():
                self._client = _log_in(self._account)
                self._traffic.count()
                weakref.finalize(self, self._client.close)
            client = self._client
        try:
            session = client.open_sftp()
        except Exception:
            client.close()
            raise
        self._traffic.count()
        session.get_channel().settimeout(self._silence)
        return session

    def _drop(self, session: Any) -> None:
        """Close a session that failed, and the connection with it: what failed was the way, not the question."""
        transport = session.get_channel().get_transport()
        with self._lock:
            if self._client is not None and self._client.get_transport() is transport:
                self._client = None
        with suppress(Exception):
            transport.close()

    def _path(self, key: str) -> str:
        return f"{self._folder.rstrip('/')}/{key}" if key else self._folder

    def get(self, key: str, start: int, end: int | None) -> bytes:
        with self._session() as session:
            return b"".join(self._read(session, key, start, end))

    def get_file(self, key: str, path: str) -> int:
        total = 0
        with self._session() as session:
            pieces = self._read(session, key, 0, None)
            first = next(pieces, b"")  # so that there is no file for what is not there
            with open(path, "wb") as file:
                total += file.write(first)
                for piece in pieces:
                    total += file.write(piece)
                    self._traffic.arrived(path, total)
        return total

    def _read(self, session: Any, key: str, start: int, end: int | None) -> Iterator[bytes]:
        self._traffic.count(requests=2)
        with session.open(self._path(key), "rb") as file:
            _hush(file)
            size = int(file.stat().st_size)
            end = size if end is None else min(end, size)
            for place in range(start, end, WINDOW):
                self._traffic.count()
                wanted = min(WINDOW, end - place)
                data = b"".join(file.readv([(place, wanted)]))
                if len(data) != wanted:
                    raise EOFError("the value ends before its end")
                yield data

    def put(self, key: str, data: bytes) -> None:
        view = memoryview(data)
        self._place(key, lambda: (bytes(view[place : place + PIECE]) for place in range(0, len(data), PIECE)))

    def put_file(self, key: str, path: str) -> int:
        def pieces() -> Iterator[bytes]:
            with open(path, "rb") as file:
                while data := file.read(PIECE):
                    yield data
                    self._traffic.departed(path, file.tell())

        self._place(key, pieces)
        return os.path.getsize(path)

    def _place(self, key: str, pieces: Callable[[], Iterator[bytes]]) -> None:
        temporary, goal = self._path(f"tmp/{os.urandom(16).hex()}"), self._path(key)
        with self._session() as session:
            try:
                with self._making(session, temporary, lambda: session.open(temporary, "wb")) as file:
                    file.set_pipelined(True)
                    size = 0
                    for piece in pieces():
                        file.write(piece)
                        size += len(piece)
                    self._traffic.count(requests=3)
                    if file.stat().st_size != size:
                        raise OSError(None, "the server did not keep all that was sent")
                self._traffic.count()
                self._making(session, goal, lambda: session.posix_rename(temporary, goal))
            except BaseException as error:
                self._litter.append(temporary)
                if _kept(error):
                    self._tidy(session)
                raise
            self._tidy(session)

    def _tidy(self, session: Any) -> None:
        """Remove what uploads left behind that did not end well."""
        while self._litter:
            with suppress(IndexError, FileNotFoundError):
                session.remove(self._litter.pop())

    def _making(self, session: Any, path: str, act: Callable[[], Any]) -> Any:
        """Do what needs the folder of `path`; make that when it is not there."""
        try:
            return act()
        except FileNotFoundError:
            self._make_folder(session, path.rpartition("/")[0])
            return act()

    def _make_folder(self, session: Any, folder: str) -> None:
        self._traffic.count()
        try:
            session.mkdir(folder)
        except FileNotFoundError:
            above = folder.rpartition("/")[0]
            if not above or above == folder:
                raise
            self._make_folder(session, above)
            self._make_folder(session, folder)
        except OSError:  # it may be there by now: servers do not tell that apart from other failures
            if not stat.S_ISDIR(session.stat(folder).st_mode or 0):
                raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder must be") from None

    def stat(self, key: str) -> Stored | None:
        self._traffic.count()
        with self._session() as session:
            found = session.stat(self._path(key))
        if not stat.S_ISREG(found.st_mode or 0):
            return None
        return Stored(key, int(found.st_size), float(found.st_mtime))

    def list(self, folder: str) -> Iterator[Stored]:
        waiting = [folder]
        with self._session() as session:
            while waiting:
                here = waiting.pop()
                self._traffic.count(requests=3)
                try:
                    entries = session.listdir_attr(self._path(here))
                except FileNotFoundError:
                    continue
                for entry in entries:
                    key = f"{here}/{entry.filename}" if here else entry.filename
                    if stat.S_ISDIR(entry.st_mode or 0):
                        if key != "tmp":
                            waiting.append(key)
                    elif stat.S_ISREG(entry.st_mode or 0):
                        yield Stored(key, int(entry.st_size), float(entry.st_mtime))

    def delete(self, keys: Sequence[str]) -> None:
        with self._session() as session:
            for key in keys:
                self._traffic.count()
                with suppress(FileNotFoundError):
                    session.remove(self._path(key))

    def judge(self, error: Exception) -> Judgement:
        import paramiko

        if isinstance(error, paramiko.BadHostKeyException):
            return Judgement(Fault.UNKNOWN_USER, "its host key is not the one in `known_hosts`")
        if isinstance(error, paramiko.AuthenticationException | paramiko.PasswordRequiredException):
            return Judgement(Fault.UNKNOWN_USER, "no key or password that it takes")
        if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
            return Judgement(Fault.UNREACHABLE, "no connection")
        if isinstance(error, paramiko.SSHException):
            words = first_line(error)
            if "known_hosts" in words:
                return Judgement(Fault.UNKNOWN_USER, "its host key is not in `known_hosts`")
            if "No authentication methods" in words or "not a valid" in words:
                return Judgement(Fault.UNKNOWN_USER, "no key or password to log in with")
            return Judgement(Fault.PASSING, f"the connection broke ({words})")
        if isinstance(error, NotADirectoryError):
            return Judgement(Fault.NO_PLACE, "a file stands where a folder must be")
        if type(error) is OSError and error.errno is None:
            closed = "closed" in str(error).lower()
            words = f"the server says: {first_line(error)}"
            return Judgement(Fault.PASSING, "the connection broke") if closed else Judgement(Fault.OTHER, words)
        return judge_exception(error)


def _hush(file: Any) -> None:
    """Let the thread that asks for the pieces of a file end in silence: whoever waits for them learns what happened."""
    ask = file._prefetch_thread  # noqa: SLF001 - else it prints its traceback on standard error

    def ask_quietly(*args: Any) -> None:
        with suppress(Exception):
            ask(*args)

    file._prefetch_thread = ask_quietly  # noqa: SLF001


def _kept(error: BaseException) -> bool:
    """Tell whether a session may be used again after an error: the server answered, and said no."""
    if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
        return True
    return type(error) is OSError and error.errno is None and "closed" not in str(error).lower()


def _log_in(account: _Account) -> Any:
    """Return a connection as `ssh` would open it."""
    import paramiko

    settings = _settings(account.host)
    host = str(settings.get("hostname", account.host))
    port = account.port or int(settings.get("port", 22))
    user = account.user or settings.get("user")
    logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it prints what it also raises
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    known = [*str(settings.get("userknownhostsfile", "~/.ssh/known_hosts")).split(), "/etc/ssh/ssh_known_hosts"]
    for path in known:
        with suppress(OSError):
            client.load_system_host_keys(os.path.expanduser(path))
    try:
        client.connect(
            host,
            port,
            username=user,
            password=account.password or None,
            key_filename=[os.path.expanduser(path) for path in settings.get("identityfile", [])] or None,
            timeout=CONNECT,
            banner_timeout=LOGIN,
            auth_timeout=LOGIN,
            sock=_way(settings, host, port),
        )
        transport = client.get_transport()
        transport.set_keepalive(_ALIVE)
        transport.channel_timeout = LOGIN
    except BaseException:
        client.close()
        raise
    return client


def _settings(host: str) -> dict[str, Any]:
    """Return what `~/.ssh/config` says of a host."""
    import paramiko

    try:
        return dict(paramiko.SSHConfig.from_path(os.path.expanduser("~/.ssh/config")).lookup(host))
    except FileNotFoundError:
        return {}


def _way(settings: dict[str, Any], host: str, port: int) -> Any:
    """Return what leads to a host that is reached through a command or another host, None for straight there."""
    import paramiko

    if command := settings.get("proxycommand"):
        return None if command == "none" else paramiko.ProxyCommand(command)
    jump = settings.get("proxyjump")
    if not jump or jump == "none":
        return None
    return paramiko.ProxyCommand(f"ssh -W {host}:{port} {jump}")
