"""Commands in what is told, as they are typed where the user is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from mlops_cli.errors import MlxError, RecordError
from mlops_cli.words import has_paths, quoted, spelled

_COMMAND = re.compile(r"(?<=`)(?:mlx|git|rm|echo) [^`]+(?=`)|(?<=^next: )(?:mlx|git) .+")
_PLAIN = re.compile(r"(mlx|git) (?!-C )")


def advice(error: MlxError, cwd: Path | None = None) -> str | None:
    """Return what to do about an error, paths marked; of a record that cannot be read, how to mend it."""
    if error.marked_hint or not isinstance(error, RecordError):
        return error.marked_hint
    from mlops_cli.workspace.mending import how_to_mend

    return how_to_mend(error, cwd or Path.cwd())


class Spelling(NamedTuple):
    """Where commands are typed: `cwd` is where mlx works, `folder` what the user called it with `-C`."""

    cwd: Path
    folder: str = ""

    def spell(self, text: str) -> str:
        """Return `text` with the paths in its commands as seen from `cwd`, and its commands going to `folder`."""
        if has_paths(text):
            root = self._find_root()
            text = spelled(text, quoted if root is None else lambda path: self._word(root, path))
        return _COMMAND.sub(self._there, text) if self.folder else text

    def _word(self, root: Path, path: str) -> str:
        relative = os.path.relpath(root / path, self.cwd)
        return quoted(f"./{relative}" if relative.startswith("-") else relative)

    def _there(self, found: re.Match[str]) -> str:
        """Return a command that was to be typed in `folder` as it is typed where that was named."""
        command, folder = found[0], quoted(self.folder)
        plain = _PLAIN.match(command)
        if plain is None or "&&" in command:
            return f"cd {folder} && {command}"
        return f"{plain[1]} -C {folder} {command[plain.end() :]}"

    def _find_root(self) -> Path | None:
        """Return the root of the project that `cwd` is in; None when it is in none."""
        from mlops_cli.workspace.git import find_checkout
        from mlops_cli.workspace.project import find_root

        try:
            checkout = find_checkout(self.cwd)
        except MlxError:
            return None
        return None if checkout is None else find_root(self.cwd, checkout)
