"""The tutorial does what it says: every command in it is run, in order, and its output is as shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial" / "first-project.md"
BLOCK = re.compile(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def steps(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield ("write", file, content) and ("run", command, expected output) as the page has them."""
    for file, language, body in BLOCK.findall(text):
        if file:
            yield "write", file, body
        elif language == "console":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, expected = part.partition("\n")
                yield "run", command, expected


def assert_as_shown(command: str, shown: str, said: str) -> None:
    """Compare, widths of columns apart; `…` in what is shown stands for anything."""
    pattern, text = (re.sub(r" +|─+", " ", side.strip()) for side in (shown, said))
    matches = re.fullmatch(re.escape(pattern).replace("…", ".*?"), text, flags=re.DOTALL)
    assert matches, f"$ {command}\nshown:\n{shown}\nsaid:\n{said}"


@pytest.fixture
def program_first(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which `mlx` and `python` are the ones under test."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, words in (("mlx", [sys.executable, "-m", "mlops_cli"]), ("python", [sys.executable])):
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (programs / name).chmod(0o755)
    return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def test_the_tutorial_works_as_shown(tmp_path: Path, program_first: dict[str, str]) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    ran = 0
    for kind, what, text in steps(TUTORIAL.read_text(encoding="utf-8")):
        if kind == "write":
            (folder / what).write_text(text, encoding="utf-8")
        elif what.startswith("cd "):
            folder = (folder / what.removeprefix("cd ")).resolve()
        else:
            done = subprocess.run(
                ["/bin/sh", "-c", what],
                cwd=folder,
                env=program_first,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"$ {what}\n{done.stdout}"
            assert_as_shown(what, text, done.stdout)
            ran += 1
    assert ran > 25
