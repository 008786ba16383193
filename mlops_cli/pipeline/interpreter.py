"""The `python` that commands find, its version, and which packages it has; nothing of it is imported here.

A virtual environment says its version in a file. Any other interpreter, and one that was replaced since, is asked in a
process, once. It is looked for on the user's own PATH, in absolute folders, never where a record says: whoever looks at
somebody else's repository must not run what is in there.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import UsageError

_NAMES = ("python", "python3")
_VERSION = re.compile(r"^version(?:_info)?\s*=\s*(\d+\.\d+\.\d+)", re.MULTILINE)
_SHARED = re.compile(r"^include-system-site-packages\s*=\s*true", re.MULTILINE | re.IGNORECASE)
_SECONDS = 20.0
_LONGEST = 1 << 16  # characters of a `pyvenv.cfg`
# Only what is built in is imported: in the folder of a project, `json` may be anything.
_QUESTION = "import sys; print('%d.%d.%d' % sys.version_info[:3], *filter(None, sys.path), sep='\\n')"


class _Found(NamedTuple):
    executable: str
    version: str
    folders: tuple[str, ...]  # where its packages are


class Python:
    """The interpreter on a search path (as in PATH), as commands in `folder` find it; looked for when first asked.

    UsageError from every method where there is none, or it does not answer.
    """

    def __init__(self, search_path: str | None, folder: Path) -> None:
        self._search_path = os.defpath if search_path is None else search_path
        self._folder = folder
        self._found: _Found | None = None
        self._file: tuple[Path, tuple[int, ...]] | None = None  # what was found, as it was
        self._is_old = True
        self._packages: dict[str, str | None] = {}

    def version(self) -> str:
        """Return its version, as in `3.12.1`."""
        return self._find().version

    def package(self, name: str) -> str | None:
        """Return the version of a package that is installed for it; None when it is not."""
        if name not in self._packages:
            self._packages[name] = _installed(name, self._find().folders)
        return self._packages[name]

    def __str__(self) -> str:
        """Name it for a message."""
        found = self._find()
        return f"`{found.executable}` ({found.version})"

    def look_anew(self) -> None:
        """Take whatever was seen for old: a command may have installed something."""
        self._is_old = True
        self._packages.clear()

    def _find(self) -> _Found:
        if self._found is None or self._is_old:
            executable = _which(self._search_path)
            if executable is None:
                raise UsageError(
                    "`environment` asks for the version of `python`, and there is none on PATH",
                    hint="activate the environment that the commands run in",
                )
            stat = executable.stat()
            file = executable, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            if self._found is None or file != self._file:
                self._found, self._file = _look_at_venv(executable) or _ask(executable, self._folder), file
            self._is_old = False
        return self._found


def _which(search_path: str) -> Path | None:
    folders = [folder for text in search_path.split(os.pathsep) if (folder := Path(text)).is_absolute()]
    for path in (folder / name for name in _NAMES for folder in folders):
        if os.access(path, os.X_OK) and path.is_file():
            return path
    return None


def _look_at_venv(executable: Path) -> _Found | None:
    """Return what a virtual environment says of itself; None when it is none, or only its interpreter can tell."""
    prefix = executable.parent.parent
    try:
        with (prefix / "pyvenv.cfg").open(encoding="utf-8") as file:
            text, made = file.read(_LONGEST), os.fstat(file.fileno()).st_mtime_ns
        replaced = executable.stat().st_ctime_ns > made
    except (OSError, UnicodeDecodeError):
        return None
    version = _VERSION.search(text)
    if version is None or replaced or _SHARED.search(text):
        return None
    inside = f"python{version[1].rpartition('.')[0]}/site-packages"
    folders = (str(prefix / lib / inside) for lib in ("lib", "lib64"))
    return _Found(str(executable), version[1], tuple(folders))


def _ask(executable: Path, folder: Path) -> _Found:
    # -E: what PYTHON* variables say is of commands that are run, not of the environment.
    try:
        done = subprocess.run(
            [executable, "-E", "-c", _QUESTION],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        hint = "activate the environment that the commands run in"
        raise UsageError(f"`{executable}` does not tell its version", hint=hint) from error
    version, *folders = os.fsdecode(done.stdout).splitlines() or [""]
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise UsageError(f"`{executable}` does not tell its version", hint="see what it is: it may not be Python")
    return _Found(str(executable), version, tuple(folders))


def _installed(name: str, folders: tuple[str, ...]) -> str | None:
    from importlib.metadata import Distribution  # noqa: PLC0415 - 25 ms that pipelines without packages save

    for found in Distribution.discover(name=name, path=list(folders)):
        version: str | None = found.metadata["Version"]
        if version:
            return version
    return None
