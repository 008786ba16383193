from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError
from mlops_cli.records.notebooks import NotebookRun, parse_notebook
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stages import Stage


def stage(lines: str, folder: str = "") -> Stage:
    text = "mlx: 1\nstages:\n  s:\n" + "".join(f"    {line}\n" for line in lines.splitlines())
    return read_pipeline(text.encode(), "mlx.yaml", folder=folder, read_file={}.get).stages[0]


@pytest.mark.parametrize(
    ("command", "run"),
    [
        ("python a.py --in x.ipynb", None),
        ("jupyter nbconvert --execute x.ipynb", None),
        ("cat 'x.ipynb", None),
        ("x.ipynb", NotebookRun("x.ipynb", "", "", {})),
        ("'a b/x.ipynb' -o out/y.ipynb -k ir", NotebookRun("a b/x.ipynb", "out/y.ipynb", "ir", {})),
        (
            "x.ipynb --lr 0.1 --steps=3 --name 'a b' --flag --sizes 1 2 --shift -1 --deep.n 1 --deep.m true -o y.ipynb --max-depth 4",
            NotebookRun(
                "x.ipynb",
                "y.ipynb",
                "",
                {
                    "lr": 0.1,
                    "steps": 3,
                    "name": "a b",
                    "flag": True,
                    "sizes": [1, 2],
                    "shift": -1,
                    "deep": {"n": 1, "m": True},
                    "max_depth": 4,
                },
            ),
        ),
    ],
)
def test_a_notebook_is_told_from_a_command_of_the_shell(command: str, run: NotebookRun | None) -> None:
    assert parse_notebook(command) == run


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("x.ipynb && echo", "`&&` has no place after a notebook"),
        ("x.ipynb -o", "`-o` takes one path, once"),
        ("x.ipynb -o a.ipynb -o b.ipynb", "`-o` takes one path, once"),
        ("x.ipynb -k a b", "`-k` takes one name, once"),
        ("x.ipynb -o y.html", "the executed copy `y.html` must end in `.ipynb`"),
        ("x.ipynb --1 2", "`1` cannot be a variable of a notebook"),
        ("x.ipynb --class 2", "`class` cannot be a variable of a notebook"),
        ("x.ipynb --", "`` cannot be a variable of a notebook"),
        ("x.ipynb -o x.ipynb", "the executed copy `sub/x.ipynb` would replace the notebook itself"),
        ("x.ipynb -o ../y.ipynb", "the executed copy `y.ipynb` is outside of `sub`"),
        ("/x.ipynb", "path `/x.ipynb` must be relative"),
        ("x.ipynb --lr .nan", "`.nan` is not a finite number"),
    ],
)
def test_what_is_no_run_of_a_notebook_is_refused(command: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        stage(f"cmd: {command}", "sub")

    assert caught.value.message.startswith(f"mlx.yaml:4: `cmd`: {message}")


def test_a_notebook_is_an_input_and_its_copy_an_output() -> None:
    found = stage("cmd: [echo a, train.ipynb -o out/train.ipynb]\nwdir: work\ndeps: [data]\nmetrics: [m.json]", "sub")

    assert found.reads == ("sub/data", "sub/work/train.ipynb")
    assert [out.path for out in found.outs] == ["sub/work/out/train.ipynb", "sub/m.json"]


def test_what_the_stage_declares_of_a_notebook_stays() -> None:
    found = stage("cmd: a.ipynb -o out/a.ipynb\ndeps: [a.ipynb]\nouts: [out: {push: false}]")

    assert found.reads == ("a.ipynb",)
    assert [(out.path, out.push) for out in found.outs] == [("out", False)]


def test_two_copies_in_one_place_are_refused() -> None:
    with pytest.raises(RecordError, match="two notebooks of stage `s` are copied to one place"):
        stage("cmd: [a.ipynb -o o.ipynb, b.ipynb -o o.ipynb]")
