"""Stages whose command is a notebook, run by a real kernel."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from mlops_cli.errors import StageFailed, UsageError
from mlops_cli.pipeline import notebooks
from mlops_cli.pipeline.execution import run_commands
from mlops_cli.pipeline.executor import Cancelled
from tests.workspace.projects import Sandbox, is_alive

STAGE = """
stages:
  train:
    cmd: train.ipynb -o report.ipynb --model ${params.model}
    params: [lr, net.depth]
    outs: [out.txt]
"""


def cell(source: str, *tags: str, kind: str = "code") -> dict[str, Any]:
    more = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"c{abs(hash(source))}"[:9], "metadata": {"tags": tags}, "source": source, **more}


def notebook(*cells: dict[str, Any], kernel: str = "python3") -> str:
    metadata = {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}}
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def project(box: Sandbox) -> Sandbox:
    box.pipeline(STAGE)
    box.write("params.yaml", "model: rf\nlr: 0.5\nnet: {depth: 2, width: 8}\n")
    return box


def test_a_notebook_runs_with_its_parameters_and_stays_as_it_is(project: Sandbox) -> None:
    project.write("mine.py", "X = 5\n")
    source = notebook(
        cell("# Title", kind="markdown"),
        cell("lr = 0; model = ''; net = {}", "parameters"),
        cell("lr = 7", "injected-parameters"),
        cell("import mine\nopen('out.txt', 'w').write(f'{lr} {model} {net} {mine.X}')\nprint('said')"),
    )
    project.write("train.ipynb", source)

    assert project.run() == {"train": "run"}
    assert project.read("out.txt") == "0.5 rf {'depth': 2} 5"
    assert b"said" in project.heard.output
    assert project.read("train.ipynb") == source
    made = json.loads(project.read("report.ipynb"))
    assert [made["metadata"]["tags"] for made in made["cells"]] == [[], ["parameters"], ["injected-parameters"], []]
    assert made["cells"][-1]["outputs"][0]["text"] == ["said\n"]

    project.write("train.ipynb", source.replace('"execution_count": null', '"execution_count": 5'))  # run by hand, say
    assert project.actions() == {"train": "skip"}
    project.write("train.ipynb", source.replace("said", "says"))
    assert project.reasons("train")[0].startswith("`train.ipynb` changed")


def test_a_failing_cell_is_told_with_its_number_and_place(project: Sandbox) -> None:
    project.write("train.ipynb", notebook(cell("x = 1"), cell("print('before')"), cell("1 / 0\n")))

    with pytest.raises(StageFailed) as caught:
        project.run()

    assert caught.value.message == (
        "stage `train` failed: code cell 3 of `train.ipynb` raised ZeroDivisionError: division by zero"
    )
    assert b"before" in project.heard.output
    assert b"\x1b" not in project.heard.output
    found = re.search(r", the notebook as far as it came in `([^`]+)`$", caught.value.marked_hint or "")
    assert found
    assert (
        json.loads(Path(found[1]).read_text(encoding="utf-8"))["cells"][-1]["outputs"][0]["ename"]
        == "ZeroDivisionError"
    )


def test_a_cancelled_notebook_leaves_no_kernel(project: Sandbox) -> None:
    project.write(
        "train.ipynb", notebook(cell("import os, time\nprint('pid', os.getpid(), flush=True)\ntime.sleep(600)"))
    )
    cancelled, heard = threading.Event(), bytearray()

    def output(data: bytes) -> None:
        heard.extend(data)
        if b"pid" in heard and heard.endswith(b"\n"):
            cancelled.set()

    stage = project.snapshot().stages[0]
    with pytest.raises(Cancelled):
        run_commands(
            project.project(),
            stage,
            project.surroundings(),
            output=output,
            started=lambda group: None,
            note=lambda message: None,
            cancelled=cancelled,
        )

    found = re.search(rb"pid (\d+)", heard)
    assert found
    assert not is_alive(int(found[1]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (notebook(kernel="nowhere"), "`train.ipynb` wants the kernel `nowhere`, which is not installed"),
        (notebook().replace('{"name"', '3, "x": {"name"'), "`train.ipynb` is not a notebook: 3 is not of type"),
    ],
)
def test_a_notebook_that_cannot_begin_is_told(project: Sandbox, source: str, message: str) -> None:
    project.write("train.ipynb", source)

    with pytest.raises(StageFailed, match=re.escape(message)):
        project.run()


def test_what_is_not_installed_is_named_before_anything_happens(
    project: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("train.ipynb", notebook())
    project.write("out.txt", "kept")
    monkeypatch.setattr(notebooks, "LIBRARIES", ("nowhere_at_all",))

    with pytest.raises(UsageError, match="which needs nbclient") as caught:
        project.run()

    assert caught.value.hint == "`pip install 'mlops-cli[notebook]'`"
    assert project.read("out.txt") == "kept"
    assert not project.heard.notes
