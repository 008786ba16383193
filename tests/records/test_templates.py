from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.records.splices import expand_command
from mlops_cli.records.templates import (
    TemplateError,
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


@given(st.text(st.sampled_from("${}a.-? []0"), max_size=14))
def test_any_text_is_filled_or_refused(text: str) -> None:
    try:
        expand_text(text, {"a": {"a": "x"}})
    except TemplateError:
        assert "${" in text


def test_values_are_rendered_for_a_shell() -> None:
    assert [render(value, "x") for value in (True, False, 1, -2.5, "a b")] == ["true", "false", "1", "-2.5", "a b"]


def test_names_are_looked_up_through_mappings() -> None:
    assert look_up(" train.deep.flag ", NAMES) is True


# Names within names, items of lists, defaults


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("${seeds.1}", "1"),
        ("${models.${model}.trees}", "50"),
        ("${models.${model}.${ what }}", "50"),
        ("${dots.${dotted}}", "found"),
        ("${nowhere ?? 1e-3}", "1e-3"),
        ("${nowhere??x y}|", "x y|"),
        ("${train.nothing ?? 'a: b'}", "a: b"),
        ("${nothing ?? }|", "|"),
        ("${nowhere ?? ${model}}", "rf"),
        ("${lr ?? 5}", "0.1"),
        ("${models.${nowhere ?? rf}.trees}", "50"),
    ],
)
def test_rich_references_are_filled(text: str, filled: str) -> None:
    models = {"models": {"rf": {"trees": 50}}, "what": "trees", "dotted": "a.b", "dots": {"a.b": "found"}}

    assert expand_text(text, {**NAMES, **models}) == filled


def test_a_lone_default_has_a_type() -> None:
    assert [expand_value(f"${{no ?? {text}}}", {}) for text in ("3", "0.5", "true", "x", "'3'", "[]", "")] == [
        3,
        0.5,
        True,
        "x",
        "3",
        [],
        None,
    ]
    assert expand_value("${no ?? ${seeds}}", NAMES) == [0, 1]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("${seeds.2}", "`${seeds.2}` is not defined", "did you mean `${seeds}`?"),
        ("${seeds[0]}", "`${seeds[0]}` is not a name", "an item of a list is `${seeds.0}`"),
        (
            "${X:-1}",
            "`${X:-1}` is not a name",
            "write `$${X:-1}` to leave it to the shell, or `${X ?? 1}` for a default",
        ),
        ("${train.${model}}", "`${train.rf}` is not defined", "did you mean `${train}`?"),
        ("${train.${modle}}", "`${modle}` is not defined", "did you mean `${model}`?"),
        ("${train.${seeds}}", "`${seeds}` is a list, which cannot stand within text", "name one value"),
        ("${a.${b.${c}}}", "`${` is not closed", "end it with `}`"),
        ("${params.lr}", "`${params.lr}` is not defined", "it stands for `params.yaml` beside this file"),
        ("${no ?? .inf} x ${no ?? ${nope}}", "`${nope}` is not defined", "define it"),
        ("${long}" * 2, "the filled text is longer than 131,072 characters", "put it into a file"),
    ],
)
def test_rich_references_that_cannot_be_filled_are_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(TemplateError) as caught:
        expand_text(text, {**NAMES, "long": "x" * 100_000})

    assert str(caught.value) == message
    assert (caught.value.hint or "").startswith(hint)


# Commands


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("cat ${files} > all", "cat a.csv 'b c.csv' '$HOME' 3 true > all"),
        ("x ${none} y", "x  y"),
        ("x ${flags}", "x --lr 0.1 --name 'a b' --deep.n 1 --deep.er.on --sizes 1 2"),
        ("x ${seeds.0} ${lr}", "x 0 0.1"),
        ("x ${no ?? ${files}}", "x a.csv 'b c.csv' '$HOME' 3 true"),
    ],
)
def test_lists_and_mappings_become_words_of_a_command(text: str, command: str) -> None:
    deep = {"n": 1, "off": False, "er": {"on": True, "left_out": None}}
    flags = {"lr": 0.1, "name": "a b", "quiet": False, "deep": deep, "sizes": [1, 2]}
    names = {"files": ["a.csv", "b c.csv", "$HOME", 3, True], "none": [], "flags": flags}

    assert expand_command(text, {**NAMES, **names}) == command


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1]], "an item of `${v}` is a list, which cannot stand within text"),
        ([None], "an item of `${v}` is empty, which cannot stand within text"),
        ({"a": [{}]}, "an item of `a` of `${v}` is a mapping, which cannot stand within text"),
        ([1] * 10_001, "`${v}` makes more than 10,000 words of a command"),
        ({str(number): False for number in range(10_001)}, "`${v}` makes more than 10,000 words of a command"),
        (functools.reduce(lambda inner, _: {"a": inner}, range(50), 1), "`${v}` is nested more than 32 levels deep"),
    ],
)
def test_what_makes_no_words_is_refused(value: object, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        expand_command("x ${v}", {"v": value})

    assert str(caught.value) == message
    assert caught.value.hint
