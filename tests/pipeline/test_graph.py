"""The graph of stages: pure, so stages are values here and no file exists."""

from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError
from mlops_cli.pipeline.graph import Graph, build_graph, makers_of
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stages import Output, Stage


def stages(text: str, folder: str = "") -> tuple[Stage, ...]:
    """Return the stages of a short form: one stage a line, `name: dep dep -> out out`."""
    lines = ["mlx: 1", "stages:"]
    for line in text.strip().splitlines():
        name, _, rest = line.strip().partition(":")
        deps, _, outs = rest.partition("->")
        lines.append(f"  {name}:")
        lines.append("    cmd: echo")
        lines.append(f"    deps: [{', '.join(map(repr, deps.split()))}]")
        lines.append(f"    outs: [{', '.join(map(repr, outs.split()))}]")
    name = f"{folder}/mlx.yaml" if folder else "mlx.yaml"
    return read_pipeline("\n".join(lines).encode(), name, folder=folder, read_file=lambda path: None).stages


def graph(text: str, pointers: tuple[str, ...] = ()) -> Graph:
    return build_graph(stages(text), pointers)


def refused(text: str, pointers: tuple[str, ...] = ()) -> RecordError:
    with pytest.raises(RecordError) as caught:
        graph(text, pointers)
    assert caught.value.hint
    return caught.value


def test_no_stages():
    assert graph("").stages == {}


def test_order_is_by_need():
    found = graph(
        """
        report: model.bin metrics -> report.html
        train: prepared code.py -> model.bin
        unrelated: -> x
        prepare: raw -> prepared
        measure: model.bin -> metrics
        """
    )
    order = list(found.stages)
    assert order == ["prepare", "unrelated", "train", "measure", "report"]
    assert found.upstream["report"] == ("train", "measure")
    assert found.above(["measure"]) == ("prepare", "train", "measure")
    assert found.above(["report", "unrelated"]) == tuple(order)


@pytest.mark.parametrize(
    ("dep", "out", "needs"),
    [
        ("data", "data", True),
        ("data/x", "data", True),
        ("data", "data/x", True),
        ("data", "data2", False),
        ("data2", "data", False),
        ("data/x", "data/x2", False),
        ("data-x", "data/x", False),
        ("a/b/c", "a", True),
        ("a", "a/b/c", True),
        ("*.csv", "a.csv", True),
        ("*.csv", "sub/a.csv", False),
        ("**/*.csv", "sub/a.csv", True),
        ("**/*.csv", "a.csv", True),
        ("data/**", "data/x/y", True),
        ("data/*.csv", "data", True),  # the folder is made, and what is in it matches
        ("data/x/*.csv", "data", True),
        ("data/**/*.csv", "data/prepared", True),
        ("data/*/*.csv", "data/prepared", True),
        ("data/*.csv", "data/prepared", False),
        ("data/**/*.csv", "data/model.bin", False),  # by its name a file, and no `.csv`
        ("data/**/*.csv", "other", False),
        ("*/*.csv", "prepared", True),
        ("a?/*.csv", "ab", True),
        ("a?/*.csv", "abc", False),
        ("[ab]/x", "a", True),
        ("data.v1/*", "data.v1", True),
        ("**/*.csv", ".hidden", False),
    ],
)
def test_who_makes_a_dependency(dep: str, out: str, needs: bool):
    assert makers_of(dep, {out: "maker"}, [out]) == (("maker",) if needs else ())
    found = graph(f"a: -> {out}\nb: {dep} -> elsewhere/b.bin")
    assert found.upstream["b"] == (("a",) if needs else ())


def test_parameter_files_count():
    pipeline = read_pipeline(
        b"mlx: 1\nstages:\n  b:\n    cmd: echo\n    params: [{best.json: [lr]}]\n    outs: [b]\n"
        b"  a:\n    cmd: echo\n    outs: [best.json]\n",
        "mlx.yaml",
        folder="",
        read_file=lambda path: None,
    )
    assert list(build_graph(pipeline.stages).stages) == ["a", "b"]


def test_cycle_names_everyone():
    error = refused("a: c -> a\nb: a -> b\nc: b -> c")
    assert error.message == "mlx.yaml:3: stages wait for one another: `a` → `c` → `b` → `a`"
    assert error.hint == "`a` and `c` each need what the other makes: drop one of the dependencies"


def test_cycle_of_two():
    error = refused("a: y -> x\nb: x -> y")
    assert error.message == "mlx.yaml:3: stages wait for one another: `a` → `b` → `a`"


@pytest.mark.parametrize(("dep", "out"), [("data", "data/x"), ("data/x", "data"), ("data", "data")])
def test_stage_that_reads_what_it_makes(dep: str, out: str):
    error = refused(f"a: {dep} -> {out}")
    assert error.message == f"mlx.yaml:3: stage `a` depends on `{dep}` and makes `{out}`: it would wait for itself"
    assert error.hint == (
        "name only what it reads, or write the output elsewhere"
        if dep != out
        else "with `data: {persist: true}` in `outs`, and not in `deps`, it goes on from what is there"
    )


def test_glob_that_matches_its_own_output_is_fine():
    assert graph("a: data/**/*.csv -> data/out.csv data/prepared").upstream["a"] == ()


def test_two_stages_with_one_output():
    error = refused("a: -> x\nb: -> x")
    assert error.message == "mlx.yaml:7: stages `a` and `b` both make `x`"
    assert error.hint == "an output belongs to one stage: take it out at mlx.yaml:3 or mlx.yaml:7"


def test_output_inside_another():
    error = refused("a: -> data\nb: -> data/deep/x")
    assert error.message == "mlx.yaml:7: output `data/deep/x` of stage `b` lies inside output `data` of stage `a`"
    assert "output `data/x` of stage `a` lies inside output `data`" in refused("a: -> data/x\nb: -> data").message
    assert error.hint == (
        "stages may share a folder when each names its own files: in `outs` of `a` (mlx.yaml:3) name the files that it "
        "writes to `data`, instead of the folder"
    )
    error = refused("a: -> data data/x")
    assert "output `data/x` of stage `a` lies inside output `data` of stage `a`" in error.message
    assert error.hint == "take `data/x` out: it comes with `data`"


def test_metrics_inside_an_output():
    found = Output("data", git=False), Output("data/m.json", git=True)
    with pytest.raises(RecordError, match="lies inside output") as caught:
        build_graph([stages("a: -> data")[0]._replace(outs=found)])
    assert caught.value.hint == (
        "Git keeps `data/m.json`, and not `data`: write it elsewhere, or name the files of `data` one by one"
    )


def test_output_and_pointer():
    error = refused("a: -> data", ("data",))
    assert error.message == "mlx.yaml:3: output `data` of stage `a` is also tracked by `data.mlx`"
    assert error.hint == "`mlx remove data` leaves it to the stage"
    error = refused("a: -> data/x", ("data",))
    assert error.message == "mlx.yaml:3: output `data/x` of stage `a` lies inside `data`, which `data.mlx` tracks"
    error = refused("a: -> data", ("data/raw", "other"))
    assert error.message == "mlx.yaml:3: output `data` of stage `a` holds `data/raw`, which `data/raw.mlx` tracks"
    assert graph("a: data -> data2", ("data", "data2x"))


def test_one_address_twice():
    with pytest.raises(RecordError, match="stage `a` is declared twice"):
        build_graph([*stages("a: -> x"), *stages("a: -> y")])


def test_stages_of_several_files():
    root, sub = stages("all: sub/out -> report"), stages("make: ../raw -> out\nuse: out ../report -> last", "sub")
    found = build_graph([*root, *sub])
    assert list(found.stages) == ["sub:make", "all", "sub:use"]
    assert found.upstream["sub:use"] == ("sub:make", "all")
    assert found.below(["sub:make"]) == {"sub:make", "all", "sub:use"}
    assert found.below(["all"]) == {"all", "sub:use"}


def test_large_graphs_are_quick():
    chain = "\n".join(f"s{number}: {f'o{number - 1}' if number else ''} -> o{number}" for number in range(1500))
    found = graph(chain)
    assert len(found.above(["s1499"])) == 1500
