"""A declared environment is an input: what it is now is found without importing anything of it."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from mlops_cli.errors import Inconclusive, RecordError, UsageError
from mlops_cli.pipeline.interpreter import Python
from mlops_cli.pipeline.jobs import make_job
from mlops_cli.pipeline.outside import Outside
from mlops_cli.pipeline.status import project_status
from mlops_cli.pipeline.turn import exclusive
from mlops_cli.pipeline.worker import Place, run_job
from mlops_cli.progress import SILENT
from mlops_cli.records.environment import Difference, EnvironmentRecord, PythonPart, differences
from mlops_cli.records.locks import Lock, inputs_of, read_lock
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stages import Stage
from tests.workspace.projects import Sandbox

OURS = "{}.{}.{}".format(*sys.version_info[:3])
STAGE = "environment: {%s}\nstages:\n  s:\n    cmd: date > out\n    outs: [out]\n"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a virtual environment, without a single package, whose `python` is the one on PATH."""
    folder = tmp_path / "elsewhere"
    venv.EnvBuilder(symlinks=True).create(folder)
    monkeypatch.setenv("PATH", f"{folder}/bin{os.pathsep}{os.environ['PATH']}")
    return folder


def install(environment: Path, name: str, version: str) -> None:
    """Put a package there, as far as its metadata tell."""
    site = environment / f"lib/python{OURS.rpartition('.')[0]}/site-packages"
    for old in site.glob(f"{name}-*.dist-info/METADATA"):
        old.unlink()
        old.parent.rmdir()
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def reasons(box: Sandbox) -> tuple[str, ...]:
    python = Python(os.environ["PATH"], box.root)
    return box.plan(outside=Outside(python=python))["s"].reasons


def test_a_package_that_was_upgraded_is_a_reason(box: Sandbox, elsewhere: Path):
    install(elsewhere, "Some_Package", "2.0")
    box.pipeline(STAGE % "python: true, packages: [some.package], image: registry/train@sha256:12")
    assert box.run() == {"s": "run"}
    assert box.run() == {"s": "skip"}
    recorded = (
        f'environment:\n  image: registry/train@sha256:12\n  packages:\n    some-package: "2.0"\n  python: {OURS}\n'
    )
    assert sorted(recorded.splitlines()) == sorted(box.read("mlx.lock/s.yaml").split("outs:")[0].splitlines()[2:])

    install(elsewhere, "Some_Package", "2.1")
    assert reasons(box) == ("`environment: packages.some-package` changed 2.0 → 2.1",)
    assert box.run() == {"s": "run"}
    install(elsewhere, "Some_Package", "2.0")
    assert box.run() == {"s": "restore"}

    box.pipeline(STAGE % "python: minor")
    assert reasons(box) == (
        "`environment: image` is gone: it was registry/train@sha256:12",
        "`environment: packages.some-package` is gone: it was 2.0",
        f"`environment: python` changed {OURS} → {OURS.rpartition('.')[0]}",
    )


def test_what_differs_from_a_record_is_listed(box: Sandbox, elsewhere: Path):
    install(elsewhere, "a", "2")
    recorded = EnvironmentRecord("3.1", (("a", "1"), ("b", "1")), "image")
    outside = Outside(python=Python(os.environ["PATH"], box.root))
    assert outside.differences(recorded) == [
        Difference("packages.a", "1", "2"),
        Difference("packages.b", "1", None),
        Difference("python", "3.1", OURS.rpartition(".")[0]),
    ]
    nowhere = Outside(python=Python("", box.root))
    assert nowhere.differences(EnvironmentRecord("3.1.2")) == [Difference("python", "3.1.2", None)]
    assert outside.differences(EnvironmentRecord(image="image")) == []


def test_a_job_runs_where_its_environment_is(box: Sandbox, elsewhere: Path, tmp_path: Path):
    install(elsewhere, "a", "1")
    box.remote()
    box.pipeline(STAGE % "packages: [a]")
    project = box.project()
    with exclusive(project, "test", box.heard):
        job = make_job(project, "s", outside=Outside(ask=True, python=Python(os.environ["PATH"], box.root))).job

    install(elsewhere, "a", "2")
    with pytest.raises(Inconclusive, match=r"`environment: packages.a` changed 1 → 2"):
        run_job(job, Place(tmp_path / "one", None, os.environ), output=lambda data: None, reporter=SILENT)
    install(elsewhere, "a", "1")
    done = run_job(job, Place(tmp_path / "two", None, os.environ), output=lambda data: None, reporter=SILENT)
    assert [out.path for out in done.outs] == ["out"]


def test_what_is_not_installed_is_said(box: Sandbox, elsewhere: Path):
    box.pipeline(STAGE % "packages: [numpy]")
    with pytest.raises(UsageError, match=r"`environment` names the package `numpy`, which `.*/elsewhere/bin/python`"):
        box.run()
    found = project_status(box.project(), outside=Outside(python=Python(os.environ["PATH"], box.root)))
    assert [problem.exit_code for problem in found.problems] == [2]
    with pytest.raises(UsageError, match="there is none on PATH"):
        Python("", box.root).version()
    with pytest.raises(UsageError, match="there is none on PATH"):
        Python(os.path.relpath(elsewhere / "bin"), box.root).version()


def test_a_file_of_the_environment_is_a_dependency_by_another_name(box: Sandbox):
    box.write("uv.lock", "a\n")
    box.pipeline(STAGE % "files: [uv.lock]")
    assert box.run() == {"s": "run"}
    assert "  - {path: uv.lock, blob: " in box.read("mlx.lock/s.yaml")
    box.write("uv.lock", "bc\n")
    assert reasons(box)[0].startswith("environment: `uv.lock` changed: ")
    (box.root / "uv.lock").unlink()
    assert reasons(box) == ("environment: `uv.lock` does not exist",)


def test_an_interpreter_says_its_version_when_its_environment_cannot(elsewhere: Path, tmp_path: Path):
    (tmp_path / "sys.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    (tmp_path / "json.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    path = f"{elsewhere}/bin"
    (elsewhere / "pyvenv.cfg").write_text("version = 2.7.1\n", encoding="utf-8")
    assert Python(path, tmp_path).version() == "2.7.1"  # it is believed

    os.utime(elsewhere / "pyvenv.cfg", (1, 1))  # the interpreter was put there later
    assert Python(path, tmp_path).version() == OURS
    install(elsewhere, "a", "1")
    assert Python(path, tmp_path).package("a") == "1"
    assert Python(path, tmp_path).package("b") is None

    (elsewhere / "bin/python").unlink()
    (elsewhere / "bin/python").write_text("#!/bin/sh\necho none\n", encoding="utf-8")
    (elsewhere / "bin/python").chmod(0o755)
    with pytest.raises(UsageError, match="does not tell its version"):
        Python(path, tmp_path).version()


def stages_of(text: str) -> tuple[Stage, ...]:
    return read_pipeline(f"mlx: 1\n{text}".encode(), "mlx.yaml", folder="sub", read_file={}.get).stages


def test_a_stage_goes_before_what_is_said_of_all():
    general = "environment: {files: [../uv.lock], python: true, packages: [torch]}\n"
    (plain, own) = stages_of(
        general + "stages:\n  a: {cmd: x}\n  b: {cmd: x, environment: {python: false, packages: [], image: i}}\n"
    )
    assert plain.environment == (("uv.lock",), PythonPart.FULL, ("torch",), None)
    assert own.environment == (("uv.lock",), PythonPart.NONE, (), "i")
    assert own.reads == ("uv.lock",)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("{python: 3.12}", "`python` must be `true`, `false` or `minor`, not the number `3.12`"),
        ("{packages: [torch==2]}", "cannot be the name of a package"),
        ("{packages: torch}", "must be a list"),
        ("{image: a b}", "`image`: it must not be empty, nor hold spaces"),
        ("{files: ['*.lock']}", "`*.lock` is a pattern"),
        ("{files: [../../x]}", "leaves the project"),
        ("{pythn: true}", "unknown key `pythn`"),
    ],
)
def test_what_no_environment_can_be(value: str, sentence: str):
    with pytest.raises(RecordError) as caught:
        stages_of(f"stages:\n  s:\n    cmd: x\n    environment: {value}\n")
    assert caught.value.message.startswith("mlx.yaml:5: ")
    assert sentence in caught.value.message


def test_environments_are_compared_by_name():
    old = EnvironmentRecord("3.11.2", (("numpy", "1"), ("python", "9")))
    new = EnvironmentRecord("3.12.1", (("python", "9"), ("torch", "2")), "i")
    assert differences(old, new) == [
        Difference("image", None, "i"),
        Difference("packages.numpy", "1", None),
        Difference("packages.torch", None, "2"),
        Difference("python", "3.11.2", "3.12.1"),
    ]
    lock = Lock(("x",), environment=new)
    assert read_lock(lock.to_bytes(""), "lock", "") == lock
    assert inputs_of(lock) != inputs_of(Lock(("x",), environment=old))
    assert "environment" not in inputs_of(Lock(("x",)))
