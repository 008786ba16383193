from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import RecordError
from mlops_cli.records.names import Parsed
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stages import Dependency, Output, ParamsFile, Pipeline, Plot, Stage, glob_pattern, has_magic

EXAMPLE = b"""mlx: 1
vars: {seeds: [0, 1]}
stages:
  prepare:
    cmd: python prepare.py
    deps: [prepare.py, data/raw, "src/**/*.py"]
    params: [split, other.toml: [a.b]]
    outs: [data/prepared]
  train:
    matrix: {model: [rf, gb], seed: "${seeds}"}
    cmd: python train.py --model ${model} --seed ${seed}
    deps: [train.py, data/prepared]
    params: [train]
    outs: [{"models/${model}-${seed}.joblib": {push: true, desc: "fitted model"}}]
    metrics: ["metrics/${model}-${seed}.json"]
    plots: ["plots/${model}-${seed}.csv": {x: epoch, y: loss}]
    env: {OMP_NUM_THREADS: "2"}
"""


def read(data: bytes | str, folder: str = "", files: Mapping[str, bytes] | None = None) -> Pipeline:
    name = f"{folder}/mlx.yaml" if folder else "mlx.yaml"
    data = data.encode() if isinstance(data, str) else data
    return read_pipeline(data, name, folder=folder, read_file=(files or {}).get)


def stage(body: str, folder: str = "", variables: str = "{}") -> Stage:
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    return read(f"mlx: 1\nvars: {variables}\nstages:\n  s:\n{lines}", folder).stages[0]


def test_the_example_of_the_formats_is_read() -> None:
    pipeline = read(EXAMPLE)

    assert pipeline.file == "mlx.yaml"
    assert pipeline.metrics == ()
    assert [stage.name for stage in pipeline.stages] == [
        "prepare",
        "train@rf-0",
        "train@rf-1",
        "train@gb-0",
        "train@gb-1",
    ]
    assert pipeline.stages[0] == Stage(
        address="prepare",
        name="prepare",
        folder="",
        group="prepare",
        cmd=("python prepare.py",),
        deps=tuple(map(Dependency, ("prepare.py", "data/raw", "src/**/*.py"))),
        params=(ParamsFile("params.yaml", ("split",)), ParamsFile("other.toml", ("a.b",))),
        outs=(Output("data/prepared"),),
        metrics=(),
        plots=(),
        env=(),
        wdir="",
        desc="",
        line=4,
        file="mlx.yaml",
    )
    assert pipeline.stages[2] == Stage(
        address="train@rf-1",
        name="train@rf-1",
        folder="",
        group="train",
        cmd=("python train.py --model rf --seed 1",),
        deps=(Dependency("train.py"), Dependency("data/prepared")),
        params=(ParamsFile("params.yaml", ("train",)),),
        outs=(
            Output("models/rf-1.joblib", desc="fitted model"),
            Output("metrics/rf-1.json", git=True),
            Output("plots/rf-1.csv", git=True),
        ),
        metrics=("metrics/rf-1.json",),
        plots=(Plot("plots/rf-1.csv", x="epoch", y="loss"),),
        env=(("OMP_NUM_THREADS", "2"),),
        wdir="",
        desc="",
        line=9,
        file="mlx.yaml",
    )


def test_paths_in_a_folder_are_relative_to_the_project() -> None:
    found = stage(
        "cmd: [a, b]\nwdir: src\ndeps: [../shared/x.py, ./y/, '**/*.csv']\nparams: [lr, ../p.json: ]\n"
        "outs: [out/]\nmetrics: [m.json]\nplots: [p.csv]",
        folder="sub/dir",
    )

    assert found.address == "sub/dir:s"
    assert found.folder == "sub/dir"
    assert found.file == "sub/dir/mlx.yaml"
    assert found.cmd == ("a", "b")
    assert found.wdir == "sub/dir/src"
    assert tuple(dep.path for dep in found.deps) == ("sub/shared/x.py", "sub/dir/y", "sub/dir/**/*.csv")
    assert found.params == (ParamsFile("sub/dir/params.yaml", ("lr",)), ParamsFile("sub/p.json"))
    assert [out.path for out in found.outs] == ["sub/dir/out", "sub/dir/m.json", "sub/dir/p.csv"]
    assert stage("cmd: a", folder="sub").wdir == "sub"
    assert stage("cmd: a\nwdir: ..", folder="sub").wdir == ""


def test_a_file_without_stages_is_read() -> None:
    assert read("mlx: 1\n") == Pipeline((), (), "mlx.yaml")
    assert read("mlx: 1\nstages:\n").stages == ()
    assert read("mlx: 1\nmetrics: [m.json, x/n.yaml]\n", "sub").metrics == ("sub/m.json", "sub/x/n.yaml")


def test_block_text_loses_its_final_newlines() -> None:
    assert stage("cmd: |\n  a\n  b\ndesc: >\n  one\n  two\n").cmd == ("a\nb",)


def test_dependencies_named_twice_count_once() -> None:
    assert stage("cmd: a\ndeps: [x, ./x, y]").reads == ("x", "y")


def test_keys_of_one_parameter_file_come_together() -> None:
    found = stage("cmd: a\nparams: [a, params.yaml: [b, a], x.yaml: [c], c, x.yaml: ]")

    assert found.params == (ParamsFile("params.yaml", ("a", "b", "c")), ParamsFile("x.yaml"))


def test_environment_variables_are_sorted_and_filled() -> None:
    assert stage("cmd: a\nenv: {B: '${x}', A: 'yes'}", variables="{x: 2}").env == (("A", "yes"), ("B", "2"))


def test_outputs_carry_what_is_said_about_them() -> None:
    found = stage("cmd: a\nouts: [a, b: , c: {push: false}, d: {desc: 'x ${v}'}]", variables="{v: 1}")

    assert found.outs == (Output("a"), Output("b"), Output("c", push=False), Output("d", desc="x 1"))


# Templates


def test_variables_come_from_mappings_and_files() -> None:
    data = (
        "mlx: 1\nvars: [base.yaml, {b: '${a.x}', c: '${list}'}, deep.toml]\n"
        "stages: {s: {cmd: '${a.x} ${b} ${d.e}', deps: '${c}'}}\n"
    )
    files = {"sub/base.yaml": b"a: {x: 1}\nlist: [p, q]\n", "sub/deep.toml": b"[d]\ne = '${kept}'\n"}

    found = read(data, "sub", files).stages[0]

    assert found.cmd == ("1 1 ${kept}",)
    assert found.reads == ("sub/p", "sub/q")


def test_lists_are_spliced() -> None:
    found = stage(
        "cmd: '${cmds}'\ndeps: [x, '${files}', z]\nparams: '${keys}'\nouts: ['${files}']\nmetrics: ['${m}']\n"
        "plots: ['${p}']",
        variables="{cmds: [a 1, b], files: [f, 2], keys: [k.l], m: [m.json], p: [p.csv]}",
    )

    assert found.cmd == ("a 1", "b")
    assert tuple(dep.path for dep in found.deps) == ("x", "f", "2", "z")
    assert found.params == (ParamsFile("params.yaml", ("k.l",)),)
    assert [out.path for out in found.outs] == ["f", "2", "m.json", "p.csv"]


def test_a_value_that_was_brought_in_is_not_filled_again() -> None:
    data = "mlx: 1\nvars: [v.json]\nstages: {s: {cmd: '${a}', deps: ['${l}']}}\n"

    found = read(data, files={"v.json": b'{"a": "${b}", "l": ["${b}"]}'}).stages[0]

    assert (found.cmd, found.reads) == (("${b}",), ("${b}",))


def test_an_axis_may_hide_a_variable() -> None:
    found = read("mlx: 1\nvars: {m: [a, b]}\nstages: {s: {matrix: {m: '${m}'}, cmd: x, outs: ['${m}']}}\n").stages

    assert [out.path for each in found for out in each.outs] == ["a", "b"]
    assert [each.group for each in found] == ["s", "s"]


def test_axes_may_hold_mappings_and_references() -> None:
    data = """mlx: 1
vars: {deep: {n: 7}}
stages:
  s:
    matrix:
      model:
        - {name: rf, trees: "${deep.n}"}
        - {name: gb, trees: 3}
      lr: [0.1, "${deep.n}"]
    cmd: "${model.name} ${model.trees} ${lr}"
"""

    found = read(data).stages

    assert [(each.name, each.cmd[0]) for each in found] == [
        ("s@model0-0.1", "rf 7 0.1"),
        ("s@model0-7", "rf 7 7"),
        ("s@model1-0.1", "gb 3 0.1"),
        ("s@model1-7", "gb 3 7"),
    ]


def test_a_matrix_leaves_out_and_adds() -> None:
    data = """mlx: 1
vars: {more: [{model: svm, seed: 0, kernel: rbf}]}
stages:
  s:
    matrix:
      model: [rf, gb]
      seed: [0, 1]
      exclude: [{model: gb, seed: 1}]
      include: "${more}"
    cmd: x ${model} ${seed} ${kernel ?? none}
    outs: ["${model}-${seed}"]
"""

    assert [(each.name, each.cmd[0]) for each in read(data).stages] == [
        ("s@rf-0", "x rf 0 none"),
        ("s@rf-1", "x rf 1 none"),
        ("s@gb-0", "x gb 0 none"),
        ("s@svm-0-rbf", "x svm 0 rbf"),
    ]


def test_foreach_makes_a_stage_of_each_item() -> None:
    data = """mlx: 1
vars: {base: 10, models: {rf: {trees: 5}, gb: {trees: 7}}}
stages:
  list: {foreach: [a, "${base}"], cmd: "x ${item} ${key}"}
  maps: {foreach: [{n: 1}, {n: "${base}"}], cmd: "x ${item.n} ${key}"}
  map: {foreach: {rf: {trees: "${base}"}}, cmd: "x ${key} ${item.trees}", params: ["${key}"]}
  named: {foreach: "${models}", cmd: "x ${key} ${item}"}
"""

    found = read(data).stages

    assert [(each.name, each.cmd[0]) for each in found] == [
        ("list@a", "x a a"),
        ("list@10", "x 10 10"),
        ("maps@0", "x 1 0"),
        ("maps@1", "x 10 1"),
        ("map@rf", "x rf 10"),
        ("named@rf", "x rf --trees 5"),
        ("named@gb", "x gb --trees 7"),
    ]
    assert found[4].params[0].keys == ("rf",)
    assert {each.group for each in found} == {"list", "maps", "map", "named"}


def test_params_stand_for_the_parameters_beside_the_file() -> None:
    data = "mlx: 1\nvars: {own: [a]}\nstages:\n  s:\n    matrix: {m: '${params.models}'}\n"
    data += "    cmd: x ${params.train.${m}.lr} ${ params.none ?? 5 }\n    outs: ['${params.out}/${m}']\n"
    values = b"models: [rf, gb]\nout: o\ntrain: {rf: {lr: 0.1}, gb: {lr: 0.2}}\n"

    found = read(data, "sub", {"sub/params.yaml": values}).stages

    assert [each.cmd[0] for each in found] == ["x 0.1 5", "x 0.2 5"]
    assert [out.path for each in found for out in each.outs] == ["sub/o/rf", "sub/o/gb"]


def test_params_are_read_only_when_they_are_used_and_vars_may_have_the_name() -> None:
    plain = "mlx: 1\nvars: {params: {a: 1}}\nstages: {s: {cmd: 'x ${params.a}'}}\n"

    assert read(plain, files={"params.yaml": b"["}).stages[0].cmd == ("x 1",)
    assert read("mlx: 1\nstages: {s: {cmd: x}}\n", files={"params.yaml": b"["}).stages[0].cmd == ("x",)
    assert read("mlx: 1\nstages: {s: {cmd: 'x ${params.a ?? 1}'}}\n", files={"params.yaml": b""}).stages[0].cmd == (
        "x 1",
    )
    with pytest.raises(RecordError, match=r"^params\.yaml:1: "):
        read("mlx: 1\nstages: {s: {cmd: 'x ${params.a}'}}\n", files={"params.yaml": b"[a]"})


def test_a_bare_parameter_is_told_how_it_is_written() -> None:
    with pytest.raises(RecordError, match=r"^mlx\.yaml:2: `\${train\.lr}` is not defined") as caught:
        read("mlx: 1\nstages: {s: {cmd: 'x ${train.lr}'}}\n", files={"params.yaml": b"train: {lr: 1}"})

    assert caught.value.hint == "the parameter is `${params.train}`"


def test_a_file_of_vars_is_read_once_for_all_folders() -> None:
    asked: list[str] = []

    def read_file(path: str) -> bytes | None:
        asked.append(path)
        return b"shared: 1"

    parsed: Parsed = {}
    data = b"mlx: 1\nvars: [../vars.yaml]\nstages: {s: {cmd: 'x ${shared}', outs: [o]}}\n"
    found = [read_pipeline(data, "mlx.yaml", folder=f, read_file=read_file, parsed=parsed) for f in ("a", "b")]

    assert asked == ["vars.yaml"]
    assert [pipeline.stages[0].outs[0].path for pipeline in found] == ["a/o", "b/o"]


def test_lists_are_words_in_commands_and_items_elsewhere() -> None:
    found = stage(
        "cmd: ['cat ${files}', 'x ${flags}']\ndeps: ['${files}']",
        variables="{files: [a b, c], flags: {n: 1, go: true}}",
    )

    assert found.cmd == ("cat 'a b' c", "x --n 1 --go")
    assert found.reads == ("a b", "c")


def test_vars_that_multiply_are_refused() -> None:
    lines = ["a0: [x, x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"a{n}: [{', '.join(f'${{a{n - 1}}}' for _ in range(10))}]".replace("$", "'$").replace("}", "}'")
        for n in range(1, 8)
    ]

    with pytest.raises(RecordError, match=r"^mlx\.yaml:8: `vars` comes to more than 200,000 values, or 32 levels"):
        read("mlx: 1\nvars:\n  " + "\n  ".join(lines) + "\n")


def test_the_shell_keeps_what_is_its_own() -> None:
    assert stage("cmd: echo $HOME $(ls) $${HOME:-x}").cmd == ("echo $HOME $(ls) ${HOME:-x}",)


# Bad input

S = "mlx: 1\nstages:\n  s:\n    cmd: x\n"


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        ("mlx: 1\nstagse: {}\n", "2: unknown key `stagse` in `mlx.yaml`", "did you mean `stages`?"),
        (S + "    dep: [x]\n", "5: unknown key `dep` in stage `s`", "did you mean `deps`?"),
        ("mlx: 1\nstages: []\n", "2: `stages` must be a mapping", None),
        ("mlx: 1\nstages:\n  s: python x.py\n", "3: stage `s` must be a mapping (`key: value`), not text", None),
        ("mlx: 1\nstages:\n  -s: {cmd: x}\n", "3: `-s` cannot be the name of a stage", "use letters"),
        ("mlx: 1\nstages:\n  a@b: {cmd: x}\n", "3: `a@b` cannot be the name of a stage", "use letters"),
        ("mlx: 1\nstages:\n  a/b: {cmd: x}\n", "3: `a/b` cannot be the name of a stage", "use letters"),
        (f"mlx: 1\nstages:\n  {'a' * 201}: {{cmd: x}}\n", f"3: stage name `{'a' * 40}…` is longer than 200", None),
        ("mlx: 1\nstages:\n  s:\n    deps: []\n", "3: `cmd` is missing in stage `s`", None),
        ("mlx: 1\nstages:\n  s:\n    cmmd: x\n", "4: unknown key `cmmd` in stage `s`", "did you mean `cmd`?"),
        ("mlx: 1\nstages:\n  s:\n    cmd: ' '\n", "4: `cmd` must not be empty", "write the command"),
        ("mlx: 1\nstages:\n  s:\n    cmd: []\n", "4: `cmd` must not be empty", None),
        (
            "mlx: 1\nstages:\n  s:\n    cmd: [a, 3]\n",
            "4: `cmd[1]` must be text, not the number `3`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        ("mlx: 1\nstages:\n  s:\n    cmd: {a: b}\n", "4: `cmd` must be text, not a mapping", "flags follow"),
        ('mlx: 1\nstages:\n  s:\n    cmd: "a\\0"\n', "4: `cmd` holds a NUL character", None),
        ("mlx: 1\nstages:\n  s:\n    cmd: x ${lr}\n", "4: `${lr}` is not defined", "define it under `vars`"),
        (
            "mlx: 1\nvars: {lrate: 1}\nstages: {s: {cmd: '${lrat}'}}\n",
            "3: `${lrat}` is not defined",
            "did you mean `${lrate}`?",
        ),
        (
            "mlx: 1\nvars: {l: [1]}\nstages: {s: {cmd: x, wdir: 'x ${l}'}}\n",
            "3: `${l}` is a list, which cannot stand within",
            "name one",
        ),
        (
            "mlx: 1\nvars: {l: }\nstages: {s: {cmd: 'x ${l}'}}\n",
            "3: `${l}` is empty, which cannot stand within",
            "give it",
        ),
        (S + "    deps: x\n", "5: `deps` must be a list (`[a, b]`), not text", None),
        (S + "    deps: '${y}'\n", "5: `${y}` is not defined", None),
        (
            S + "    deps:\n      - x\n      - 3\n",
            "7: `deps[1]` must be text, not the number `3`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        (S + "    deps: [/abs]\n", "5: `deps[0]`: path `/abs` must be relative", None),
        (S + "    deps: [../x]\n", "5: `deps[0]`: path `../x` leaves the project", None),
        (S + "    deps: [.git/config]\n", "5: `deps[0]`: path `.git/config` reaches into `.git`", None),
        (S + "    deps: [.]\n", "5: `deps[0]`: path `.` is the whole project", None),
        (S + "    deps: ['']\n", "5: `deps[0]`: a path must not be empty", None),
        (S + "    outs: [../x]\n", "5: `outs[0]`: path `../x` must not hold `..`", None),
        (S + "    outs: [x, ./x]\n", "3: stage `s` names output `x` twice", "name it once"),
        (S + "    outs: [m.json]\n    metrics: [m.json]\n", "3: stage `s` names output `m.json` twice", "name it once"),
        (S + "    outs: [a/mlx.yaml]\n", "3: output `a/mlx.yaml` is a name that mlx uses itself", "write it elsewhere"),
        (S + "    outs: [.gitignore]\n", "3: output `.gitignore` is a name that mlx uses itself", None),
        (S + "    outs: [x.mlx]\n", "3: output `x.mlx` is a name that mlx uses itself", None),
        (S + "    outs: [mlx.lock/x]\n", "3: output `mlx.lock/x` is a name that mlx uses itself", None),
        (S + "    outs: [x: {psh: true}]\n", "5: unknown key `psh` in `x`", "did you mean `push`?"),
        (S + "    outs: [x: {push: 'no'}]\n", "5: `push` must be `true` or `false`, not text", None),
        (
            S + "    outs:\n      - x:\n        push: false\n",
            "6: `outs[0]` must hold one path, and holds `x`, `push`",
            "indent what",
        ),
        (S + "    outs: [{}]\n", "5: `outs[0]` must hold one path, and holds nothing", None),
        (S + "    outs: [[x]]\n", "5: `outs[0]` must be text or `path: {push: false}`, not a list", None),
        (
            S + "    outs: [true]\n",
            "5: `outs[0]` must be text or",
            "put it in quotes, as it is written there: without them it is true or false",
        ),
        (S + "    metrics: [m.csv]\n", "5: `m.csv` is not a file of values", "use a `.yaml`, `.json` or `.toml` file"),
        (S + "    plots: [p.csv: {z: a}]\n", "5: unknown key `z` in `p.csv`", "the keys here are"),
        (S + "    plots: [p.csv: {x: 3}]\n", "5: `plots[0].p.csv.x` must be text, not the number `3`", None),
        (
            S + "    params: [config.yaml]\n",
            "5: `config.yaml` looks like a file",
            "a file is written `config.yaml: [key]`",
        ),
        (S + "    params: [x.csv: [a]]\n", "5: `x.csv` is not a file of values", None),
        (S + "    params: [x.yaml: a]\n", "5: `params[0].x.yaml` must be a list", None),
        (S + "    params: [x.yaml: []]\n", "5: `x.yaml` has no keys", "write `x.yaml:` alone"),
        (S + "    params: [a..b]\n", "5: `a..b` is not a key: it has an empty part", None),
        (
            S + "    params: [3]\n",
            "5: `params[0]` must be text or `file: [keys]`, not the number `3`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        (S + "    env: [A]\n", "5: `env` must be a mapping", None),
        (
            S + "    env: {A: 2}\n",
            "5: `env.A` must be text, not the number `2`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        (S + "    env: {A=B: x}\n", "5: `A=B` cannot be the name of an environment variable", None),
        (S + "    wdir: ..\n", "5: `wdir`: path `..` leaves the project", None),
        (S + "    wdir: /tmp\n", "5: `wdir`: path `/tmp` must be relative", None),
        (S + "    desc: 3\n", "5: `desc` must be text, not the number `3`", None),
        (S + "    matrix: {}\n", "5: `matrix` has no axes", "add one"),
        (S + "    matrix: [a]\n", "5: `matrix` must be a mapping", None),
        (S + "    matrix: {a: b}\n", "5: axis `a` must be a list (`[a, b]`), not text", None),
        (S + "    matrix: {a: '${b}'}\n", "5: `${b}` is not defined", None),
        (S + "    matrix: {a: ['${b}']}\n", "5: `${b}` is not defined", None),
        (S + "    matrix: {'a b': [1]}\n", "5: `a b` cannot be the name of an axis", None),
        (
            S + "    matrix: {a: [x y, x_y]}\n",
            "5: `a=x y` and `a=x_y` would both be named `@x_y`",
            "make the values differ",
        ),
        (
            S + "    matrix: {a: [1], include: [x]}\n",
            "5: `include[0]` must be a mapping from axes",
            "such as `include:",
        ),
        (S + "    matrix: {a: [1], exclude: x}\n", "5: `exclude` must be a list (`[a, b]`), not text", None),
        (
            S + "    matrix:\n      a: [b, c]\n      exclude:\n        - {a: b}\n        - {a: d}\n",
            "9: `exclude[1]` matches nothing: axis `a` has no value `d`",
            "it has `b`, `c`",
        ),
        (S + "    matrix: {a: [1], include: [{b: '${c}'}]}\n", "5: `${c}` is not defined", None),
        (
            "mlx: 1\nstages:\n  s:\n    cmd: x ${b}\n    matrix: {a: [1], include: [{b: 2}, {a: 3}]}\n",
            "4: `${b}` is not defined for `s@3`",
            "give it in the items of `include`, or a default: `${b ?? VALUE}`",
        ),
        (
            S + "    outs: [o]\n    matrix: {a: [1], include: [{b: 2}, {a: 3}]}\n",
            "3: stages `s@1` and `s@3` both make `o`",
            "put `${a}` and `${b}` in it",
        ),
        (S + "    outs: [o]\n    foreach: [1, 2]\n", "3: stages `s@1` and `s@2` both make `o`", "put `${key}` in it"),
        (S + "    foreach: x\n", "5: `foreach` must be a list (`[a, b]`) or a mapping, not text", "`foreach: ${name}`"),
        (S + "    foreach: ['${y}']\n", "5: `${y}` is not defined", None),
        (S + "    foreach: {a: {b: '${y}'}}\n", "5: `${y}` is not defined", None),
        (S + "    foreach: []\n", "5: `foreach` is empty", "give it"),
        (S + "    foreach: [1]\n    matrix: {a: [1]}\n", "5: stage `s` has `matrix` and `foreach`", "make the items"),
        (
            "mlx: 1\nstages:\n  s:\n    foreach: [1]\n    do: {cmd: x}\n",
            "5: `do` has no place in stage `s`",
            "write what is under it beside `foreach`, without `do:`",
        ),
        (S + "    deps: ['${params.x}']\n", "5: `${params.x}` is not defined", "it stands for `params.yaml`"),
        (S + "    outs: ['o${a ?? [}']\n    deps: ['${a ?? .nan}']\n", "6: default `.nan`: ", "put it in quotes"),
        ("mlx: 1\nvars: x.yaml\n", "2: `vars` must be a mapping, or a list of files and mappings, not text", None),
        ("mlx: 1\nvars: [3]\n", "2: `vars[0]` must be text, not the number `3`", None),
        ("mlx: 1\nvars: [no.yaml]\n", "2: `no.yaml`, named in `vars`, does not exist", "create it"),
        ("mlx: 1\nvars: [../no.yaml]\n", "2: `vars[0]`: path `../no.yaml` leaves the project", None),
        ("mlx: 1\nvars: [v.txt]\n", "2: `v.txt` is not a file of values", None),
        ("mlx: 1\nvars: [{a: 1}, {a: 2}]\n", "2: `a` is defined twice in `vars`", "rename one of them"),
        ("mlx: 1\nvars: [v.yaml, w.yaml]\n", "2: `a`, from `w.yaml`, is defined twice in `vars`", "rename one of them"),
        ("mlx: 1\nvars: {a: '${b}', b: 1}\n", "2: `${b}` is not defined", None),
        ("mlx: 1\nmetrics: [../m.json]\n", "2: `metrics[0]`: path `../m.json` must not hold", None),
        ("mlx: 1\nmetrics: m.json\n", "2: `metrics` must be a list", None),
    ],
)
def test_a_wrong_pipeline_is_refused(data: str, message: str, hint: str | None) -> None:
    with pytest.raises(RecordError) as caught:
        read(data, files={"v.yaml": b"a: 1\n", "w.yaml": b"a: 1\n"})

    assert caught.value.message.startswith(f"mlx.yaml:{message}")
    assert hint is None or (caught.value.hint or "").startswith(hint)


def test_a_wrong_file_of_variables_is_named() -> None:
    with pytest.raises(RecordError, match=r"^sub/v\.yaml:2: key `a` is here twice"):
        read("mlx: 1\nvars: [v.yaml]\n", "sub", {"sub/v.yaml": b"a: 1\na: 2\n"})
    with pytest.raises(RecordError, match=r"^v\.json:1: a file of `vars` must hold a mapping, not a list"):
        read("mlx: 1\nvars: [v.json]\n", "", {"v.json": b"[1]"})


def test_a_matrix_of_too_many_stages_is_refused() -> None:
    axes = ", ".join(f"a{number}: [{', '.join(map(str, range(50)))}]" for number in range(20))

    with pytest.raises(RecordError, match="more than 10,000"):
        read(f"mlx: 1\nstages: {{s: {{cmd: x, matrix: {{{axes}}}}}}}\n")


# Globs


def test_globs_are_recognised() -> None:
    assert [path for path in ("a", "a*", "a?", "a[b]", "**/x", "a{b}", "$x") if has_magic(path)] == [
        "a*",
        "a?",
        "a[b]",
        "**/x",
    ]


TREE = [
    *("a.py", "b.txt", ".hidden.py", "[x].py", "src/a.py", "src/b/c.py", "src/b/.h/d.py", "src/.e/f.py"),
    *("src/b/c/d/e.txt", "sr", "a-b/c^d", "x]y", "A.py", "src/1.py", "src/10.py"),
]


@pytest.mark.parametrize(
    "pattern",
    [
        *("*", "*.py", "**/*.py", "src/**/*.py", "src/**", "**", "src/*/c.py", "src/?.py", "src/[0-9].py", "[!a]*"),
        *("[[]x[]].py", "**/b/**", ".*", "**/.*", "src/.*/*", "[ab]*", "x]*", "?-b/*", "s*", "src/[0-9][0-9].py"),
        *("[z-a]*", "a[", "[", "**/**/*.py", "a**", "*/*", "[!]*", "[]]*", "a-b/c[^]d", "src/b/c/**/e.txt"),
    ],
)
def test_a_glob_matches_as_the_glob_module_does(pattern: str, tmp_path: Path) -> None:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    every = [*TREE, *{parent.as_posix() for name in TREE for parent in PurePosixPath(name).parents if parent.name}]
    names = glob.glob(pattern, root_dir=tmp_path, recursive=True)  # Path.glob finds hidden files
    found = {name.rstrip("/") for name in names} - {""}

    assert {name for name in every if glob_pattern(pattern).fullmatch(name)} == found


@given(st.text(st.sampled_from("ab*?[]!^-./\\|"), max_size=10), st.text(st.sampled_from("ab/.-"), max_size=8))
def test_any_text_is_a_glob(pattern: str, path: str) -> None:
    glob_pattern(pattern).fullmatch(path)
