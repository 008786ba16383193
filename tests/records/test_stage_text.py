from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.documents import Inline, dump_yaml, parse_yaml
from mlops_cli.errors import RecordError, UsageError
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stage_text import add_stage, mark_stage, stage_values
from mlops_cli.records.stages import NewStage, Output, ParamsFile, Plot

STAGE = NewStage("new", ("python new.py",), deps=("new.py", "data/*.csv"))
BLOCK = "  new:\n    cmd: python new.py\n    deps: [new.py, data/*.csv]\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: x\n", "mlx: 1\nstages:\n  a:\n    cmd: x\n" + BLOCK, id="at the end"
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: x", "mlx: 1\nstages:\n  a:\n    cmd: x\n" + BLOCK, id="no newline"
        ),
        pytest.param("mlx: 1\n", "mlx: 1\n\nstages:\n" + BLOCK, id="no stages"),
        pytest.param("mlx: 1", "mlx: 1\n\nstages:\n" + BLOCK, id="no stages, no newline"),
        pytest.param("mlx: 1\n\n", "mlx: 1\n\nstages:\n" + BLOCK, id="no stages, blank line"),
        pytest.param("mlx: 1\nstages:\n", "mlx: 1\nstages:\n" + BLOCK, id="empty stages"),
        pytest.param("mlx: 1\nstages:", "mlx: 1\nstages:\n" + BLOCK, id="empty stages, no newline"),
        pytest.param("mlx: 1\nstages: {}\n# end\n", "mlx: 1\nstages:\n" + BLOCK + "# end\n", id="braces"),
        pytest.param(
            "mlx: 1\nstages: {}  # none yet\nmetrics: []\n",
            "mlx: 1\nstages:  # none yet\n" + BLOCK + "metrics: []\n",
            id="braces and comment",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  # stages go here\n\nmetrics: []\n",
            "mlx: 1\nstages:\n  # stages go here\n" + BLOCK + "\nmetrics: []\n",
            id="a comment in empty stages",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: x  # why\n    # tail of a\n\n  # tail\n\n# end\nmetrics: []\n",
            "mlx: 1\nstages:\n  a:\n    cmd: x  # why\n    # tail of a\n\n  # tail\n"
            + BLOCK
            + "\n# end\nmetrics: []\n",
            id="comments after the last stage",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: x\n\n  # about b\n  b:\n    cmd: y\n\nmetrics: []\n",
            "mlx: 1\nstages:\n  a:\n    cmd: x\n\n  # about b\n  b:\n    cmd: y\n\n" + BLOCK + "\nmetrics: []\n",
            id="blank lines between stages",
        ),
        pytest.param(
            "mlx: 1\nvars: {x: 1}\nstages:\n    a:\n        cmd: x\n        deps:\n        - y  # dash\nmetrics: []\n",
            "mlx: 1\nvars: {x: 1}\nstages:\n    a:\n        cmd: x\n        deps:\n        - y  # dash\n"
            "    new:\n        cmd: python new.py\n        deps: [new.py, data/*.csv]\nmetrics: []\n",
            id="four spaces",
        ),
        pytest.param(
            "mlx: 1\nvars:\n    x: 1\n",
            "mlx: 1\nvars:\n    x: 1\n\nstages:\n" + BLOCK.replace("  ", "    "),
            id="four spaces elsewhere",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    outs:\n      - y:\n    cmd: |\n      x\n      # not one\n\n\nmetrics: []\n",
            "mlx: 1\nstages:\n  a:\n    outs:\n      - y:\n    cmd: |\n      x\n      # not one\n"
            + BLOCK
            + "\n\nmetrics: []\n",
            id="block text at the end",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: |\n      x",
            "mlx: 1\nstages:\n  a:\n    cmd: |\n      x\n" + BLOCK,
            id="block text, no newline",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: x\n    desc: |+\n      y\n\n\nmetrics: []\n",
            "mlx: 1\nstages:\n  a:\n    cmd: x\n    desc: |+\n      y\n\n\n" + BLOCK + "metrics: []\n",
            id="block text that keeps its blank lines",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a:\n    cmd: x\n    outs:\n      - y:\n",
            "mlx: 1\nstages:\n  a:\n    cmd: x\n    outs:\n      - y:\n" + BLOCK,
            id="an empty value at the end",
        ),
        pytest.param(
            "mlx: 1\nstages:\n  a: {cmd: x,\n    deps: [y]}  # flow\nmetrics: []\n",
            "mlx: 1\nstages:\n  a: {cmd: x,\n    deps: [y]}  # flow\n" + BLOCK + "metrics: []\n",
            id="a stage in braces",
        ),
        pytest.param(
            "mlx: 1\nstages: {a: {cmd: x},}  # flow\n",
            "mlx: 1\nstages: {a: {cmd: x}, new: {cmd: python new.py, deps: [new.py, data/*.csv]},}  # flow\n",
            id="stages in braces",
        ),
        pytest.param(
            "mlx: 1\nstages: {\n  # none\n}\n",
            "mlx: 1\nstages: {new: {cmd: python new.py, deps: [new.py, data/*.csv]}\n  # none\n}\n",
            id="a comment in braces",
        ),
        pytest.param(
            "mlx: 1\r\nstages:\r\n  a:\r\n    cmd: x\r\n",
            "mlx: 1\r\nstages:\r\n  a:\r\n    cmd: x\r\n" + BLOCK.replace("\n", "\r\n"),
            id="Windows line ends",
        ),
        pytest.param(
            "\ufeffmlx: 1\nstages:\n  a:\n    cmd: x\n",
            "\ufeffmlx: 1\nstages:\n  a:\n    cmd: x\n" + BLOCK,
            id="byte order mark",
        ),
        pytest.param(
            "# é\U0001f600\nmlx: 1\nstages:\n  a:\n    cmd: é\U0001f600\n# z\n",
            "# é\U0001f600\nmlx: 1\nstages:\n  a:\n    cmd: é\U0001f600\n" + BLOCK + "# z\n",
            id="beyond ASCII",
        ),
        pytest.param("---\nmlx: 1\n...\n", "---\nmlx: 1\n\nstages:\n" + BLOCK + "...\n", id="document marks"),
        pytest.param(
            "mlx: 1\nstages:\n  a: &a\n    cmd: x\n  b:\n    <<: *a\n",
            "mlx: 1\nstages:\n  a: &a\n    cmd: x\n  b:\n    <<: *a\n" + BLOCK,
            id="anchors",
        ),
        pytest.param("# to come\n", "# to come\nmlx: 1\n\nstages:\n" + BLOCK, id="only a comment"),
        pytest.param("", "mlx: 1\n\nstages:\n" + BLOCK, id="an empty file"),
    ],
)
def test_a_stage_is_added_and_every_byte_stays(before: str, after: str) -> None:
    assert add_stage(before.encode(), "mlx.yaml", STAGE).decode() == after
    read_pipeline(after.encode(), "mlx.yaml", folder="", read_file=lambda _: None)


def test_a_file_is_made() -> None:
    assert add_stage(None, "mlx.yaml", STAGE).decode() == "mlx: 1\n\nstages:\n" + BLOCK


def test_everything_a_stage_may_have_is_written() -> None:
    stage = NewStage(
        "train",
        ("python a.py", "python b.py"),
        deps=tuple(f"some/folder/number-{number}.csv" for number in range(6)),
        params=(ParamsFile("params.yaml", ("a", "b.c")), ParamsFile("params.yaml"), ParamsFile("x.toml", ("d",))),
        outs=(Output("model"), Output("big", push=False, desc="not for others")),
        metrics=("m.json",),
        plots=(Plot("p.csv"), Plot("q.csv", x="epoch", y="loss", title="Loss: all")),
        env=(("A", "1"),),
        wdir="src",
        desc="fits ${model}",
    )

    data = add_stage(None, "mlx.yaml", stage)

    assert data.decode() == (
        "mlx: 1\n"
        "\n"
        "stages:\n"
        "  train:\n"
        "    desc: fits ${model}\n"
        "    cmd: [python a.py, python b.py]\n"
        "    wdir: src\n"
        "    deps:\n"
        + "".join(f"      - some/folder/number-{number}.csv\n" for number in range(6))
        + "    params: [a, b.c, {params.yaml: null}, {x.toml: [d]}]\n"
        "    outs: [model, {big: {push: false, desc: not for others}}]\n"
        "    metrics: [m.json]\n"
        '    plots: [p.csv, {q.csv: {x: epoch, y: loss, title: "Loss: all"}}]\n'
        '    env: {A: "1"}\n'
    )
    found = read_pipeline(
        data.replace(b"mlx: 1\n", b"mlx: 1\nvars: {model: rf}\n"), "mlx.yaml", folder="", read_file=lambda _: None
    ).stages[0]
    assert found.cmd == stage.cmd
    assert tuple(dep.path for dep in found.deps) == stage.deps
    assert found.params == (ParamsFile("params.yaml"), ParamsFile("x.toml", ("d",)))
    assert found.outs[:2] == stage.outs
    assert found.plots == stage.plots
    assert (found.wdir, found.env, found.desc) == ("src", stage.env, "fits rf")


def test_a_command_of_many_lines_is_block_text() -> None:
    data = add_stage(None, "mlx.yaml", NewStage("a", ("set -e\npython x.py\n",)))

    assert data.decode().endswith("  a:\n    cmd: |\n      set -e\n      python x.py\n")


@pytest.mark.parametrize(
    "data", [b"mlx: 1\nstages:\n  a: {cmd: x}\n  new: {cmd: y}\n", b"mlx: 1\nstages: {new: {cmd: y}}\n"]
)
def test_a_stage_that_is_there_is_not_added_again(data: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        add_stage(data, "mlx.yaml", STAGE)

    assert caught.value.message.startswith("stage `new` is in `mlx.yaml` already, on line ")
    assert caught.value.hint == "edit it there, or choose another name"


@pytest.mark.parametrize(
    "data",
    [
        b"mlx: 1\nvars: &a {}\nstages: *a\n",
        b"mlx: 1\nvars: &a {x: {cmd: y}}\nstages: *a\n",
        b"{mlx: 1}\n",
    ],
)
def test_a_file_that_cannot_be_edited_as_text_is_left_alone(data: bytes) -> None:
    with pytest.raises(UsageError) as caught:
        add_stage(data, "mlx.yaml", STAGE)

    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"stages: {}\n", "mlx.yaml:1: `mlx: 1` must come first"),
        (b"mlx: 2\n", "mlx.yaml:1: format version 2"),
        (b"mlx: 1\nstages: []\n", "mlx.yaml:2: `stages` must be a mapping"),
        (b"[1]\n", "mlx.yaml:1: `mlx.yaml` must be a mapping"),
        (b"mlx: 1\nmlx: 1\n", "mlx.yaml:2: key `mlx` is here twice"),
        (b"mlx: 1\n\xff\n", "mlx.yaml:2: byte 0xff is not UTF-8"),
    ],
)
def test_a_file_that_is_wrong_is_not_edited(data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        add_stage(data, "mlx.yaml", STAGE)

    assert caught.value.message.startswith(message)


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
COMMENTS = st.lists(st.sampled_from(["", "# top", "  # stage", "    # key", "      # deep", "   "]), max_size=4)
STAGES = st.builds(
    NewStage,
    NAMES,
    st.lists(TEXTS, min_size=1, max_size=2).map(tuple),
    deps=st.lists(TEXTS, max_size=3).map(tuple),
    params=st.lists(st.builds(ParamsFile, TEXTS, st.lists(TEXTS, max_size=2).map(tuple)), max_size=2).map(tuple),
    outs=st.lists(st.builds(Output, TEXTS, st.booleans(), TEXTS), max_size=2).map(tuple),
    env=st.dictionaries(TEXTS, TEXTS, max_size=2).map(lambda env: tuple(env.items())),
    desc=TEXTS,
)


@st.composite
def files(draw: st.DrawFn) -> str:
    """Draw an `mlx.yaml` with comments and blank lines in odd places."""
    lines = ["mlx: 1"]
    stages = draw(st.dictionaries(NAMES, st.fixed_dictionaries({"cmd": TEXTS, "deps": st.lists(TEXTS, max_size=2)})))
    before = draw(st.booleans())
    if before:
        lines.append("metrics: []")
    lines += draw(COMMENTS)
    if stages:
        lines.append("stages:")
        for name, values in stages.items():
            shaped = Inline(values) if draw(st.booleans()) else values
            lines += ["  " + line for line in dump_yaml({name: shaped}).decode().removesuffix("\n").split("\n")]
            lines += draw(COMMENTS)
    elif draw(st.booleans()):
        lines.append(draw(st.sampled_from(["stages:", "stages: {}", "stages: null"])))
        lines += draw(COMMENTS)
    if not before:
        lines += ["vars: {x: 1}"]
    return "\n".join(lines) + draw(st.sampled_from(["\n", "", "\n\n", "\n# end"]))


def subsequence(small: str, large: str) -> bool:
    characters: Iterator[str] = iter(large)
    return all(character in characters for character in small)


@given(files(), STAGES)
def test_adding_says_what_was_said_plus_the_stage(before: str, stage: NewStage) -> None:
    document = parse_yaml(before.encode(), "mlx.yaml").value
    assert isinstance(document, dict)
    known = document.get("stages") or {}
    if stage.name in known:
        return

    after = add_stage(before.encode(), "mlx.yaml", stage).decode()

    assert parse_yaml(after.encode(), "mlx.yaml").value == {
        **document,
        "stages": {**known, stage.name: stage_values(stage)},
    }
    kept = before.replace("stages: {}", "stages:").replace("stages: null", "stages:")
    start = next(i for i in range(len(kept) + 1) if i == len(kept) or kept[i] != after[i])
    rest = kept[start:]
    assert after.endswith(rest)
    assert subsequence(kept, after)


MARKED = [
    ("mlx: 1\nstages:\n  a:\n    cmd: x  # why\n  b: {cmd: y}\n", "mlx: 1\nstages:\n  a:\n    cmd: x  # why\n    frozen: true\n  b: {cmd: y}\n"),
    ("mlx: 1\nstages:\n  a: {cmd: x, outs: [o]} # c\n", "mlx: 1\nstages:\n  a: {cmd: x, outs: [o], frozen: true} # c\n"),
    ("mlx: 1\nstages: {a: {cmd: x}}", "mlx: 1\nstages: {a: {cmd: x, frozen: true}}"),
    ("mlx: 1\nstages:\n  a:\n    cmd: |\n      x\n      y\n\n\n  b: {cmd: y}\n", "mlx: 1\nstages:\n  a:\n    cmd: |\n      x\n      y\n    frozen: true\n\n\n  b: {cmd: y}\n"),
    ("mlx: 1\r\nstages:\r\n  a:\r\n    cmd: x", "mlx: 1\r\nstages:\r\n  a:\r\n    cmd: x\r\n    frozen: true\r\n"),
]  # fmt: skip


@pytest.mark.parametrize(("plain", "marked"), MARKED)
def test_marking_a_stage_touches_one_place(plain: str, marked: str):
    assert mark_stage(plain.encode(), "mlx.yaml", "a", "frozen", on=True).decode() == marked
    back = mark_stage(marked.encode(), "mlx.yaml", "a", "frozen", on=False).decode()
    assert back in (plain, plain + "\r\n", marked.replace("frozen: true", "frozen: false"))
    assert mark_stage(marked.encode(), "mlx.yaml", "a", "frozen", on=True).decode() == marked
    assert mark_stage(back.encode(), "mlx.yaml", "a", "frozen", on=True).decode() == marked


def test_a_stage_that_is_written_elsewhere_is_not_marked():
    data = b"mlx: 1\nvars: {x: &x {cmd: y}}\nstages: {a: *x, b: *x}\n"
    with pytest.raises(UsageError, match="cannot be changed without changing more") as caught:
        mark_stage(data, "mlx.yaml", "a", "frozen", on=True)
    assert caught.value.hint == "edit it: mlx.yaml:3"


def test_what_is_said_of_inputs_is_written() -> None:
    new = NewStage("s", ("x",), deps=("a",), optional=("b",), pass_env=("CUDA_*",), when="${go} and ${n} > 3")
    data = add_stage(b"mlx: 1\nvars: {go: true, n: 4}\n", "mlx.yaml", new)
    assert data.decode().endswith(
        "  s:\n    cmd: x\n    deps: [a, {b: {optional: true}}]\n    pass_env: [CUDA_*]\n    when: ${go} and ${n} > 3\n"
    )
    found = read_pipeline(data, "mlx.yaml", folder="", read_file=lambda _: None).stages[0]
    assert [dep.optional for dep in found.deps] == [False, True]
    assert (found.pass_env, found.is_off) == (("CUDA_*",), False)
    assert b"when: false\n" in add_stage(None, "mlx.yaml", NewStage("s", ("x",), when="false"))
