from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.records.templates import (
    TemplateError,
    combine,
    expand_deep,
    expand_text,
    expand_value,
    look_up,
    render,
)

NAMES = {
    "lr": 0.1,
    "tiny": 1e-05,
    "model": "rf",
    "seeds": [0, 1],
    "train": {"epochs": 3, "deep": {"flag": True}},
    "nothing": None,
    "raw": "${lr}",
    "a-b": "dash",
}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("${model}", "rf"),
        ("--lr ${lr} --tiny ${ tiny }", "--lr 0.1 --tiny 1e-05"),
        ("${train.epochs}${train.deep.flag}", "3true"),
        ("$${model}", "${model}"),
        ("$$${model}", "$${model}"),
        ("$HOME $(ls) $$ $1", "$HOME $(ls) $$ $1"),
        ("${raw}", "${lr}"),
        ("${a-b}", "dash"),
    ],
)
def test_text_is_filled(text: str, filled: str) -> None:
    assert expand_text(text, NAMES) == filled


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("x ${modle}", "`${modle}` is not defined", "did you mean `${model}`?"),
        ("${train.epoch}", "`${train.epoch}` is not defined", "did you mean `${train.epochs}`?"),
        ("${model.x}", "`${model.x}` is not defined", "did you mean `${model}`?"),
        ("${HOME}", "`${HOME}` is not defined", "define it under `vars`, or write `$${HOME}` to leave it to the shell"),
        ("${X:-1}", "`${X:-1}` is not a name", "write `$${X:-1}` to leave it to the shell"),
        ("${}", "`${}` is not a name", "write `$${}` to leave it to the shell"),
        ("a ${b", "`${` is not closed", "end it with `}`, or write `$${` for a literal `${`"),
        ("a ${seeds}", "`${seeds}` is a list, which cannot stand within text", "name one value in it"),
        ("a ${train}", "`${train}` is a mapping, which cannot stand within text", "name one value in it"),
        ("a ${nothing}", "`${nothing}` is empty, which cannot stand within text", "give it a value"),
    ],
)
def test_text_that_cannot_be_filled_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        expand_text(text, NAMES)

    assert str(caught.value) == message
    assert (caught.value.hint or "").startswith(hint)


def test_a_lone_reference_keeps_its_type() -> None:
    assert expand_value("${seeds}", NAMES) == [0, 1]
    assert expand_value("${train.deep}", NAMES) == {"flag": True}
    assert expand_value("${lr} ", NAMES) == "0.1 "
    assert expand_value("$${lr}", NAMES) == "${lr}"
    assert expand_deep({"a": ["${lr}", {"b": "x${model}"}], "c": 1}, NAMES) == {"a": [0.1, {"b": "xrf"}], "c": 1}


@given(st.text())
def test_text_without_references_is_left_alone(text: str) -> None:
    if "${" not in text:
        assert expand_text(text, {}) == text


@given(st.text())
def test_any_text_can_be_escaped(text: str) -> None:
    escaped = text.replace("${", "$${")

    assert expand_text(escaped, {}) == text


@given(st.text(st.sampled_from("${}a.-"), max_size=12))
def test_any_text_is_filled_or_refused(text: str) -> None:
    try:
        expand_text(text, {"a": {"a": "x"}})
    except TemplateError:
        assert "${" in text


def test_values_are_rendered_for_a_shell() -> None:
    assert [render(value, "x") for value in (True, False, 1, -2.5, "a b")] == ["true", "false", "1", "-2.5", "a b"]


def test_names_are_looked_up_through_mappings() -> None:
    assert look_up(" train.deep.flag ", NAMES) is True


# Matrices


def test_a_matrix_gives_every_combination_in_order() -> None:
    instances = combine({"model": ["rf", "gb"], "seed": [0, 1]})

    assert [instance.suffix for instance in instances] == ["rf-0", "rf-1", "gb-0", "gb-1"]
    assert instances[1].values == {"model": "rf", "seed": 1}


@pytest.mark.parametrize(
    ("values", "suffixes"),
    [
        ([0.1, 1e-05, True, "a/b c", "x+1"], ["0.1", "1e-05", "true", "a_b_c", "x+1"]),
        ([{"d": 1}, [1, 2], "z"], ["axis0", "axis1", "z"]),
        (["é"], ["_"]),
    ],
)
def test_suffixes_are_file_names(values: list[object], suffixes: list[str]) -> None:
    assert [instance.suffix for instance in combine({"axis": values})] == suffixes


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({}, "`matrix` has no axes"),
        ({"a": []}, "axis `a` has no values"),
        ({"a": [None]}, "axis `a` holds an empty value"),
        ({"a": [""]}, "axis `a` holds an empty value"),
        ({"a": ["x/y", "x y"]}, "`a=x/y` and `a=x y` would both be named `@x_y`"),
        ({"a": ["x"] * 2}, "`a=x` and `a=x` would both be named `@x`"),
        ({"a": ["1-2", 1], "b": ["3", "2-3"]}, "`a=1-2, b=3` and `a=1, b=2-3` would both be named `@1-2-3`"),
        ({"a": [1, "1"]}, "`a=1` and `a=1` would both be named `@1`"),
        ({"a": list(range(101)), "b": list(range(100))}, "`matrix` makes 10,100 stages, more than 10,000"),
        ({str(axis): [0, 1] for axis in range(600)}, "`matrix` makes "),
    ],
)
def test_a_matrix_that_cannot_be_named_is_refused(axes: dict[str, list[object]], message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        combine(axes)

    assert str(caught.value).startswith(message)
    assert caught.value.hint


@given(
    st.dictionaries(
        st.sampled_from("abc"), st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True), min_size=1
    )
)
def test_distinct_numbers_never_clash(axes: dict[str, list[int]]) -> None:
    instances = combine(axes)

    assert len({instance.suffix for instance in instances}) == len(instances)
    assert all(set(instance.values) == set(axes) for instance in instances)
