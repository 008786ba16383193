"""Everyday commands load little: what they import is compared with a list, which cannot flake as a stopwatch does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# What may be loaded that is neither ours nor Python's: by `--help`, and by a command that works on a project. A new
# name here is a decision: measure what it costs first.
START = frozenset({"annotated_doc", "shellingham", "typer"})
ALLOWED = START | {"_yaml", "blake3", "cython_runtime", "xxhash", "yaml"}

# Parts of Python that cost tens of milliseconds between them, and libraries whose names deserve a message of their own.
HEAVY = frozenset({"asyncio", "email", "http.client", "importlib.metadata", "multiprocessing", "ssl", "urllib.request"})
HEAVY |= {"fsspec", "git", "jsonschema", "numpy", "pandas", "pydantic", "rich", "sklearn"}

RUNNER = """
import json, sys
before = set(sys.modules)
from mlops_cli.cli.main import main
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "modules": sorted(set(sys.modules) - before)}, file)
"""

PIPELINE = """\
mlx: 1
stages:
  copy:
    cmd: cp raw/a.txt out.txt
    deps: [raw]
    params: [lr]
    outs: [out.txt]
"""


def loaded(args: Sequence[str], *, cwd: Path, report: Path) -> set[str]:
    """Return the modules that `mlx ARGS` loads beyond those of a bare interpreter; the command must succeed."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, report, *args], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(report.read_text(encoding="utf-8"))
    assert result["code"] == 0, done.stderr
    return set(result["modules"])


def check_light(modules: set[str], allowed: frozenset[str]) -> None:
    """Fail when something heavy, or something nobody has allowed, is among `modules`."""
    # PyYAML's C part makes a module named after the version of Cython that compiled it.
    libraries = {name.partition(".")[0] for name in modules if not name.startswith("_cython_")}

    assert modules & HEAVY == set()
    assert libraries - sys.stdlib_module_names - {"mlops_cli"} - allowed == set()


@pytest.mark.parametrize("args", [["--help"], ["--version"]])
def test_help_and_version_load_little(args: list[str], tmp_path: Path) -> None:
    modules = loaded(args, cwd=tmp_path, report=tmp_path / "report.json")

    check_light(modules, START)
    assert modules & {"sqlite3", "tomllib"} == set()
    assert {name for name in modules if name.startswith(("mlops_cli.pipeline", "mlops_cli.workspace"))} == set()


@pytest.fixture
def project(mlx: Any, git: Any, repo: Path) -> Path:
    """Return a committed project with data and a stage, where there is nothing to do."""
    (repo / "raw").mkdir()
    (repo / "raw" / "a.txt").write_text("a\n", encoding="utf-8")
    (repo / "params.yaml").write_text("lr: 0.1\n", encoding="utf-8")
    (repo / "mlx.yaml").write_text(PIPELINE, encoding="utf-8")
    for args in (["init"], ["add", "raw"], ["run"]):
        result = mlx(*args)
        assert result.code == 0, result.stderr
    git("add", ".")
    git("commit", "--message=first")
    return repo


@pytest.mark.parametrize("args", [["status"], ["status", "--json"], ["run"], ["add", "raw"]])
def test_a_command_with_nothing_to_do_loads_little(args: list[str], project: Path, tmp_path: Path) -> None:
    check_light(loaded(args, cwd=project, report=tmp_path / "report.json"), ALLOWED)


@pytest.mark.parametrize("args", [["status"], ["add", "raw"]])
def test_data_without_stages_needs_no_yaml(args: list[str], mlx: Any, repo: Path, tmp_path: Path) -> None:
    (repo / "raw").mkdir()
    (repo / "raw" / "a.txt").write_text("a\n", encoding="utf-8")
    for setup in (["init"], ["remote", "add", "store", "s3://bucket/data", "--default"], ["add", "raw"]):
        result = mlx(*setup)
        assert result.code == 0, result.stderr
    (repo / "raw" / "a.txt").write_text("b\n", encoding="utf-8")

    check_light(loaded(args, cwd=repo, report=tmp_path / "report.json"), ALLOWED - {"yaml", "_yaml"})


@pytest.mark.parametrize("modules", [{"pandas", "pandas.core"}, {"email"}, {"unheard_of"}])
def test_the_check_can_fail(modules: set[str]) -> None:
    with pytest.raises(AssertionError):
        check_light(modules, ALLOWED)
