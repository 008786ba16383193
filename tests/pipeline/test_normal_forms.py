"""Normal forms: what they pass over, what they never pass over, and what of them decides in a pipeline."""

from __future__ import annotations

import ast
import io
import json
import keyword
import tokenize
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_cli.errors import RecordError
from mlops_cli.hashing import hash_bytes
from mlops_cli.pipeline import normal_forms
from mlops_cli.pipeline.notebook_form import notebook_form
from mlops_cli.pipeline.python_form import python_form
from mlops_cli.workspace.move import move
from tests.workspace.projects import Sandbox, clone

SOURCE = '''\
"""What it does."""
from __future__ import annotations
import os, sys as system

GREETING = "it's" + 'x' f"{os.name!r:>{10}} and {sys.path=} {{}}"
BIG, SMALL, RAW = 1_000_000, -1.5e-3, b"raw\\x00"

@decorate(1, *others, key=True, **more)
class Model(Base, metaclass=Meta):
    depth: int = 8
    async def fit(self, /, x, *args, y=None, **kwargs) -> "Model":
        """Fit."""
        async with self.lock as lock, other:
            return [i async for i in x if i if not i.done] or {**kwargs, "a": ...}

def f(a, *, b=2j):
    global GREETING
    try:
        while a < b <= 3:
            a += 1; b @= 2
            if a: continue
            elif b is not None: break
            else: pass
        else:
            del a
    except (ValueError, TypeError) as error:
        raise RuntimeError("no") from error
    except* OSError:
        yield from (lambda q, /: (q := 2))(1)
    finally:
        assert a, "message"
    match a:
        case {"k": [1, *rest], **more} | None if rest: return a[1:2, ::3]
        case Point(x=0) as p: nonlocal_ = p
'''.replace("    except* OSError:\n        yield from (lambda q, /: (q := 2))(1)\n", "")


def form(source: str) -> bytes:
    return python_form(source.encode(), "x.py")


def reformatted(source: str) -> list[str]:
    """Return the source as other people would have written it."""
    return [
        ast.unparse(ast.parse(source)),
        f"# a comment\n\n{source}\n\n# the end",
        source.replace("\n", "\r\n"),
        source.replace("    ", "\t"),
        source.replace("1_000_000", "0xF4240").replace('b"raw', "b'raw").replace('x00"', "x00'"),
        source.replace("import os, sys as system", "import os, \\\n    sys as system  # both"),
        source.replace("(a, *, b=2j)", "(\n    a,\n    *,\n    b=2j,  # imaginary\n)").replace(
            "[1, *rest]", "[1, *rest,]"
        ),
    ]


def test_formatting_is_passed_over() -> None:
    assert {form(text) for text in reformatted(SOURCE)} == {form(SOURCE)}
    assert form("x = f'{a:}'") == form('x = f"{a}"')
    assert form("x = f'a' 'b' f'{c}'") == form("x = f'ab{c}'")
    assert form("x = u'a'") == form("x = 'a'")
    assert form("") == form("# nothing\n")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 0", "x = None"),
        ("x = 0", "x = False"),
        ("x = 0.0", "x = -0.0"),
        ("x = 'a'", "x = b'a'"),
        ("x = ''", "x = None"),
        ("x = 1j", "x = 1"),
        ("x = b')'", "x = b''"),
        ("x = 'a', 'b'", "x = 'a' 'b'"),
        ("x = f'a'", "x = 'a'"),
        ("x = f'{a}'", "x = f'{a!s}'"),
        ("x = f'{a}'", "x = f'{a:>}'"),
        ("x = [1], 2", "x = [1, 2]"),
        ("def f(a, b=None): 1", "def f(a, *, b=None): 1"),
        ("def f(*, a, b=1): 1", "def f(*, a=1, b): 1"),
        ("def f(): 'doc'", "def f(): 'Doc'"),
        ("import a.b", "import a.c"),
        ("from . import a", "from .. import a"),
        ("from . import a", "from x import a"),
        ("{**a, 'b': c}", "{'b': c, **a}"),
        ("del x", "x"),
        ("a < b < c", "a < b <= c"),
        ("match a:\n case None: 1", "match a:\n case False: 1"),
        ("if a:\n  b\nc", "if a:\n  b\n  c"),
        ("#!/bin/python", "#!/bin/python -O"),
        ("# /// script\n# dependencies = []\n# ///\n", "# /// script\n# dependencies = ['x']\n# ///\n"),
        ("x = '\\ud800'", "x = '\\ud801'"),
    ],
)
def test_what_makes_a_difference_is_not_passed_over(one: str, other: str) -> None:
    assert form(one) != form(other)


TOKENS = [
    token
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline)
    if token.type in (tokenize.NAME, tokenize.NUMBER) and token.string not in {*keyword.kwlist, *keyword.softkwlist}
]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(TOKENS), st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0\f"), max_size=9))
def test_a_changed_token_always_shows_and_a_comment_never_does(token: tokenize.TokenInfo, text: str) -> None:
    row, column = token.start
    lines = SOURCE.split("\n")
    line = lines[row - 1]
    other = "7" if token.type == tokenize.NUMBER else "quite_another"
    lines[row - 1] = line[:column] + other + line[column + len(token.string) :]
    assert form("\n".join(lines)) != form(SOURCE)
    lines[row - 1] = f"{line}  # {text}"
    assert form("\n".join(lines)) == form(SOURCE)


def test_the_form_is_the_same_on_every_version() -> None:
    """A golden digest: a lock written under one version of Python is read under others."""
    assert hash_bytes(form(SOURCE))[:23] == "blake3:173ebd2392b3b525"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"x = (", "x.py:1: not valid Python: '(' was never closed"),
        (b"x = '\xff'", "x.py:1: not valid Python"),
        (b"x = " + b"-" * 200_000 + b"1", "x.py:1: not readable as Python: nested too deeply"),
    ],
)
def test_what_cannot_be_parsed(source: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        python_form(source, "x.py")
    assert caught.value.message.startswith(message)


# Notebooks ------------------------------------------------------------------------------------------------------------


def notebook(**changes: Any) -> dict[str, Any]:
    code = {
        "cell_type": "code",
        "id": "1a",
        "execution_count": 1,
        "metadata": {"tags": ["parameters"], "ExecuteTime": {}},
        "outputs": [{"text": "1"}],
        "source": ["x = 1\n", "x"],
        **changes,
    }
    words = {"cell_type": "markdown", "metadata": {}, "source": "# Title"}
    metadata = {"kernelspec": {"name": "python3", "display_name": "P"}, "language_info": {"version": "3.11"}}
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": [words, code]}


def form_of(value: object) -> bytes:
    return notebook_form(json.dumps(value).encode(), "x.ipynb")


def test_outputs_and_metadata_of_notebooks_are_passed_over() -> None:
    same = form_of(notebook())
    for changes in (
        {"execution_count": None, "outputs": []},
        {"id": "2b"},
        {"source": "x = 1\nx"},
        {"metadata": {"tags": ["parameters"], "scrolled": True}},
    ):
        assert form_of(notebook(**changes)) == same
    assert form_of({**notebook(), "nbformat_minor": 4, "metadata": {"kernelspec": {"name": "python3"}}}) == same
    assert notebook_form(json.dumps(notebook(), indent=4, sort_keys=True).encode(), "x") == same
    for changes in ({"source": "x = 2"}, {"cell_type": "raw"}, {"metadata": {}}, {"attachments": {"a": 1}}):
        assert form_of(notebook(**changes)) != same
    assert form_of({**notebook(), "metadata": {"kernelspec": {"name": "ir"}}}) != same
    assert form_of({**notebook(), "cells": notebook()["cells"][::-1]}) != same


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{\n]", "x.ipynb:2: not valid JSON: "),
        (b"\xff\xfe\xff", "x.ipynb:1: not valid JSON"),
        (b"[" * 100_000, "x.ipynb:1: not valid JSON"),
        (b"[]", "x.ipynb:1: not a notebook of format 4"),
        (b'{"nbformat": 3}', "x.ipynb:1: not a notebook of format 4"),
        (b'{"nbformat": 4}', "x.ipynb:1: a notebook without a list of cells"),
        (b'{"nbformat": 4, "cells": [1]}', "x.ipynb:1: cell 1 has no kind or no source"),
        (b'{"nbformat": 4, "cells": [{"cell_type": "code"}]}', "x.ipynb:1: cell 1 has no kind or no source"),
    ],
)
def test_what_is_no_notebook(data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        notebook_form(data, "x.ipynb")
    assert caught.value.message.startswith(message)


# In a pipeline --------------------------------------------------------------------------------------------------------


def stage(box: Sandbox, dep: str, cmd: str = "cat x.py > out; true") -> None:
    box.pipeline(f"stages:\n  s:\n    cmd: {cmd}\n    deps:\n      - {dep}\n    outs: [out]\n")


PYTHON = "{normalize: python-ast}"


def test_an_edited_comment_is_no_reason(box: Sandbox):
    box.write("x.py", "x = 1\n")
    stage(box, f"x.py: {PYTHON}")
    box.run()
    lock = box.read("mlx.lock/s.yaml")
    assert f"blob: {hash_bytes(b'x = 1' + bytes([10]))}, size: 6, normal: blake3:" in lock
    box.commit()
    box.write("x.py", "x=1 # one\n")
    assert box.plan()["s"].action.value == "skip"
    assert box.reasons("s") == ("nothing changed", "`x.py` differs in comments and formatting only")
    assert box.run() == {"s": "skip"}
    assert box.read("mlx.lock/s.yaml") == lock
    box.write("x.py", "x = 2\n")
    assert box.reasons("s")[0].startswith("`x.py` changed in more than comments and formatting: same size, blake3:")
    box.write("x.py", "x = (\n")
    assert box.reasons("s")[0].endswith("(its bytes count: line 1: not valid Python: '(' was never closed)")
    assert box.run() == {"s": "run"}
    assert "normal" not in box.read("mlx.lock/s.yaml")
    box.write("x.py", "x = (1)  # again\n")  # as the first, which the run cache remembers by what counts
    assert box.run() == {"s": "restore"}
    assert box.read("out") == "x = 1\n"
    assert "normal: blake3:" in box.read("mlx.lock/s.yaml")


def test_a_comment_that_is_edited_while_the_stage_runs(box: Sandbox):
    box.write("x.py", "x = 1\n")
    stage(box, f"x.py: {PYTHON}", cmd="cp x.py out; echo '# more' >> x.py")
    box.run()
    assert "changed_during_run" not in box.read("mlx.lock/s.yaml")
    assert box.actions() == {"s": "skip"}


@pytest.mark.parametrize("dep", ["src", '"src/**"'])
def test_folders_and_globs(box: Sandbox, dep: str):
    box.write("src/a.py", "x = 1")
    box.write("src/sub/b.py", "y = 1")
    box.write("src/data", "# 1")
    stage(box, f"{dep}: {PYTHON}", cmd="echo > out")
    box.run()
    box.write("src/sub/b.py", "y = 1  # one")
    assert box.actions() == {"s": "skip"}
    box.write("src/data", "# 22")
    assert box.actions() == {"s": "run"}
    box.write("src/data", "# 1")
    box.write("src/sub/b.py", "y = 2")
    assert "in more than comments and formatting" in box.reasons("s")[0]
    box.write("src/sub/b.py", "y = (")
    assert "(its bytes count: " in box.reasons("s")[0]


def test_of_what_is_named_twice_the_bytes_count(box: Sandbox):
    box.write("x.py", "x = 1")
    stage(box, f'"*.py": {PYTHON}\n      - x.py')
    box.run()
    box.write("x.py", "x=1")
    assert box.reasons("s") == ("`x.py` changed: 5 → 3 bytes",)


def test_a_notebook_that_was_run_again(box: Sandbox):
    box.write("x.ipynb", json.dumps(notebook()))
    box.add("x.ipynb")
    stage(box, "x.ipynb: {normalize: notebook}", cmd="echo > out")
    box.run()
    box.write("x.ipynb", json.dumps(notebook(outputs=[], execution_count=7)))
    assert box.reasons("s")[1] == "`x.ipynb` differs in outputs and metadata only"
    (box.root / "x.ipynb").unlink()  # then it counts as recorded, and the cache has that
    assert box.actions() == {"s": "skip"}


def test_what_did_not_change_is_not_parsed_again(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    parsed: list[str] = []

    def counted(data: bytes, name: str) -> bytes:
        parsed.append(name)
        return python_form(data, name)

    monkeypatch.setattr(normal_forms, "python_form", counted)
    box.write("src/a.py", "x = 1")
    box.write("src/b.py", "y = (")
    stage(box, f"src: {PYTHON}", cmd="echo > out")
    box.run()
    parsed.clear()
    assert box.actions() == {"s": "skip"}
    assert parsed == []
    box.write("src/a.py", "x = 2")
    box.plan()
    assert parsed == ["src/a.py"]
    (memory,) = box.project().local.glob("normal-forms-*.json")
    memory.write_bytes(memory.read_bytes().replace(b"blake3:", b"blake3;"))
    assert box.actions() == {"s": "run"}
    assert sorted(parsed[1:]) == ["src/a.py", "src/b.py"]


def test_a_lock_from_before_the_normaliser(box: Sandbox):
    box.write("x.py", "x = 1")
    stage(box, "x.py")
    box.run()
    stage(box, f"x.py: {PYTHON}")
    assert box.actions() == {"s": "skip"}
    box.write("x.py", "x = 1  # one")
    assert box.reasons("s") == ("`x.py` changed: 5 → 12 bytes (its bytes count: no normal form is known)",)
    stage(box, "x.py: {normalize: black}")
    with pytest.raises(RecordError, match=r"mlx.yaml:6: `normalize`: `black` is none of `python-ast`, `notebook`"):
        box.plan()


def test_bytes_that_are_not_here_keep_the_form_that_is_recorded(box: Sandbox, tmp_path: Path):
    box.write("x.ipynb", json.dumps(notebook()))
    box.add("x.ipynb")
    stage(box, "x.ipynb: {normalize: notebook}", cmd="echo > out")
    box.run()
    box.commit()
    other = clone(box, tmp_path / "other")
    (decision,) = other.plan().values()
    assert decision.key == box.plan()["s"].key
    assert decision.wanted.deps == box.plan()["s"].wanted.deps


def test_a_commit_with_another_comment_is_reproduced(box: Sandbox):
    box.write("x.py", "x = 1\n")
    stage(box, f"x.py: {PYTHON}\n      - y: {{optional: true}}", cmd="echo > out")
    box.run()
    box.write("x.py", "x = 1  # one\n")
    box.commit()
    assert box.reproduce().same


def test_a_dependency_with_options_is_moved(box: Sandbox):
    box.write("data/x.py", "x = 1\n")
    box.add("data/x.py")
    stage(box, f"data/x.py: {PYTHON}", cmd="echo > out")
    moved = move(box.project(), "data/x.py", "data/y.py")
    assert moved.stages == ("s",)
    assert box.exists("data/y.py.mlx")
