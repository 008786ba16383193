"""Conditions: what holds, and what is refused with which words."""

from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError
from mlops_cli.records.conditions import decide_when
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.templates import TemplateError

NAMES = {
    "on": True,
    "off": False,
    "model": "rf",
    "lr": 0.5,
    "n": 3,
    "none": None,
    "list": ["rf", "gb", 3],
    "train": {"enabled": True, "date": "2026-01-02"},
}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("true", True),
        ("${train.missing ?? false}", False),
        ("${missing ?? 3} < 4", True),
        ("${on}", True),
        ("${ off }", False),
        ("not ${off}", True),
        ("not not ${on}", True),
        ("${train.enabled}", True),
        ("${on} and ${off}", False),
        ("${off} or ${on}", True),
        ("${on} or ${on} and ${off}", True),
        ("(${on} or ${on}) and ${off}", False),
        ("not ${off} and ${on}", True),
        ("${model} == rf", True),
        ("${model}!='r f'", True),
        ('${model} == "rf"', True),
        ("${n} == 3.0", True),
        ("${n} < 4 and ${n} <= 3 and ${n} > -1 and ${n} >= 3", True),
        ("${lr} > 5e-1", False),
        ("${train.date} >= '2026-01-01'", True),
        ("${on} == true", True),
        ("${none} == null", True),
        ("${model} != null", True),
        ("${none} == 3", False),
        ("${model} in [rf, gb]", True),
        ("${model} not in [gb]", True),
        ("${n} in ${list}", True),
        ("${n} in [rf, '3', true]", False),
        ("1 in [true]", False),
        ("${model} in []", False),
        ('not ${model} in [rf] or "and" == "and"', True),
    ],
)
def test_what_holds(text: str, holds: bool) -> None:
    assert decide_when(text, NAMES).holds is holds


def test_the_values_that_decided_are_told() -> None:
    found = decide_when("${off} and ${train.enabled} or ${off}", NAMES)
    assert found.values == (("off", False), ("train.enabled", True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${model}", "`${model}` is text, not true or false"),
        ("3", "`3` is the number `3`, not true or false"),
        ("yes", "`yes` is text, not true or false"),
        ("${n} == '3'", "`==` compares the number `3` with text"),
        ("${on} == 1", "`==` compares `true` with the number `1`"),
        ("${on} < true", "`<` compares numbers or texts, not `true`"),
        ("${none} < 3", "`<` compares empty with the number `3`"),
        ("${list} == ${list}", "`==` compares no lists and mappings"),
        ("${train} != null", "`!=` compares no lists and mappings"),
        ("rf in ${model}", "`in` looks in a list, not in text"),
        ("${on} or ${nowhere}", "`${nowhere}` is not defined"),
        ("${off} and ${model} > 3", "`>` compares text with the number `3`"),
        ("${model} = rf", "`= rf` is nothing that a condition can hold"),
        ("__import__('os')", "`__import__` is text, not true or false"),
        ("${on} ${on}", "`${on}` is not expected there"),
        ("1 < ${n} < 5", "`<` is not expected there"),
        ("${model} ==", "the condition ends where a value belongs"),
        ("and", "`and` stands where a value belongs"),
        ("(${on}", "`)` is missing before `the end`"),
        ("${n} in [1 2]", "`,` is missing before `2`"),
        ("${n} in [[1]]", "a list holds no lists"),
        ("", "the condition ends where a value belongs"),
        ("${on", "`${on` is nothing that a condition can hold"),
        ("(" * 500, "nested more than 20 levels deep"),
        ("not " * 200 + "true", "nested more than 20 levels deep"),
        ("${on} and " * 200, "a condition of more than 1,000 characters"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        decide_when(text, NAMES)
    assert str(caught.value) == message


def read(when: str, params: bytes = b"train: {enabled: false}\nmodel: none\n") -> list[bool]:
    data = (
        f"mlx: 1\nvars: {{deep: true}}\nstages:\n  s:\n    matrix: {{model: [rf, gb]}}\n    when: {when}\n    cmd: x\n"
    )
    stages = read_pipeline(data.encode(), "mlx.yaml", folder="", read_file={"params.yaml": params}.get).stages
    return [stage.is_off for stage in stages]


def test_names_are_of_matrix_vars_and_parameters() -> None:
    assert read("${model} == rf") == [False, True]
    assert read("${deep} and ${train.enabled}") == [True, True]
    assert read("false") == [True, True]


def test_what_is_wrong_names_its_line() -> None:
    with pytest.raises(RecordError) as caught:
        read("${train.enable}")
    assert caught.value.message == "mlx.yaml:6: `when`: `${train.enable}` is not defined"
    assert caught.value.hint == "did you mean `${train.enabled}`?"
    with pytest.raises(RecordError) as caught:
        read("${quite.else}")
    assert caught.value.hint == "define it in `params.yaml`, `vars` or `matrix`"
    with pytest.raises(RecordError, match=r"mlx.yaml:6: `when` must be text, not the number `3`"):
        read("3")
