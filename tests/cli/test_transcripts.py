"""Whole sessions, replayed: what a user types and reads, word for word.

A transcript has comments, commands (`$ `, continued on lines that begin with `> `), what they print (`| ` before
standard output, `! ` before standard error) and the exit code in brackets where it is not 0. `pytest tests/cli --pin`
writes what is printed now; read the difference before you commit it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import InProcess, Result, make_result

TRANSCRIPTS = Path(__file__).parent / "transcripts"
# What differs from run to run.
CHANGING = (
    (re.compile(r"\b(done|skipped \d+) in \d+\.?\d* s"), r"\1 in … s"),
    (re.compile(r"\b\d{8}-\d{6}-[0-9a-f]{6}\b"), "RUN"),
)


def commands_of(transcript: str) -> Iterator[str]:
    """Yield the comments and blank lines as they are, and each command with its continuation lines."""
    lines = transcript.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("$ "):
            following = iter(lines[number + 1 :])
            more = []
            while (next_line := next(following, "")).startswith(">"):
                more.append(next_line)
            yield "\n".join([line, *more])
        elif not line or line.startswith("#"):
            yield line


@dataclass
class Replay:
    """Runs a session's commands in a folder of its own, where `cd` may go elsewhere."""

    top: Path
    cwd: Path

    def answer(self, typed: str) -> Iterator[str]:
        """Yield the lines that a command leaves in the transcript after itself."""
        command = "\n".join(line[2:] for line in typed.splitlines())
        if command.startswith("cd "):
            self.cwd = (self.cwd / command.removeprefix("cd ")).resolve()
            return
        result = self.run(command)
        yield from self.marked("| ", result.stdout)
        yield from self.marked("! ", result.stderr)
        if result.code:
            yield f"[{result.code}]"

    def run(self, command: str) -> Result:
        home = {"HOME": str(self.top / "home"), "XDG_CONFIG_HOME": str(self.top / "home" / ".config")}
        if command.startswith("mlx "):
            return InProcess(self.cwd)(*shlex.split(command)[1:], env=home)
        done = subprocess.run(
            ["/bin/sh", "-c", command], cwd=self.cwd, env={**os.environ, **home}, capture_output=True, check=False
        )
        return make_result(done.returncode, done.stdout, done.stderr)

    def marked(self, mark: str, text: str) -> Iterator[str]:
        for pattern, name in CHANGING:
            text = pattern.sub(name, text)
        for line in text.replace(str(self.top), "/work").splitlines():
            yield f"{mark}{line}".rstrip()


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_the_session_goes_as_written(path: Path, tmp_path: Path, pin: bool) -> None:
    written = path.read_text(encoding="utf-8")
    top = tmp_path.resolve()
    (top / "home").mkdir()
    (top / "project").mkdir()
    replay = Replay(top, top / "project")

    lines: list[str] = []
    for part in commands_of(written):
        lines.append(part)
        if part.startswith("$ "):
            lines.extend(replay.answer(part))
    said = "\n".join(lines).rstrip() + "\n"

    if pin:
        path.write_text(said, encoding="utf-8")
    assert said == written or pin, "`pytest tests/cli --pin` writes what is said now"
