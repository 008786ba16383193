"""Judging what a past run came to, done again."""

from __future__ import annotations

import math

import pytest

from mlops_cli.errors import UsageError
from mlops_cli.pipeline.verdicts import Standard, Tolerance, parse_tolerances


@pytest.mark.parametrize(
    ("text", "recorded", "made", "near"),
    [
        ("auc=0.01", 0.9, 0.9099, True),
        ("auc=0.01", 0.9, 0.92, False),
        ("auc=1%", 200, 202, True),
        ("auc=1%", 200, 202.1, False),
        ("auc=1%", -200, -201, True),
        ("auc=1%", 0, 0.1, False),
        ("auc=0", 1, 1.0, True),
        ("auc=5", 1, None, False),
        ("auc=5", 1, math.nan, False),
        ("auc=5", 1, math.inf, False),
        ("auc=5", "1", 1, False),
        ("auc=5", True, 2, False),
        ("a*=5", 1, 2, True),
        ("m.json:auc=5", 1, 2, True),
        ("n.json:auc=5", 1, 2, False),
        ("loss=5", 1, 2, False),
    ],
)
def test_what_is_near_enough(text: str, recorded: object, made: object, near: bool) -> None:
    assert Standard(parse_tolerances([text])).allows("m.json", "auc", recorded, made) is near


def test_the_last_one_that_is_about_a_metric_counts() -> None:
    assert not Standard(parse_tolerances(["*=10", "auc=0.1"])).allows("m.json", "auc", 1, 2)


@pytest.mark.parametrize("text", ["auc", "=1", "auc=", "auc=x", "auc=-1", "auc=nan", "auc=inf", "auc=1%%", ""])
def test_what_is_no_tolerance(text: str) -> None:
    with pytest.raises(UsageError, match="is not NAME=AMOUNT"):
        parse_tolerances([text])


def test_it_is_told_as_it_is_typed() -> None:
    assert [str(each) for each in (Tolerance("auc", 1e-6), Tolerance("a:b", 0.015, relative=True))] == [
        "auc=1e-06",
        "a:b=1.5%",
    ]
