from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.records.matrix import combine, each_of
from mlops_cli.records.templates import TemplateError

AXES: dict[str, list[object]] = {"model": ["rf", "gb"], "seed": [0, 1]}


def made(*args: Any) -> dict[str, Any]:
    return {instance.suffix: instance.values for instance in combine(*args)}


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


# Exclude and include


@pytest.mark.parametrize(
    ("exclude", "suffixes"),
    [
        ([{"model": "rf", "seed": 1}], ["rf-0", "gb-0", "gb-1"]),
        ([{"model": "rf"}], ["gb-0", "gb-1"]),
        ([{"model": "rf"}, {"seed": 1}, {"seed": 1, "model": "gb"}], ["gb-0"]),
    ],
)
def test_exclude_takes_what_it_matches_in_part(exclude: list[object], suffixes: list[str]) -> None:
    assert list(made(AXES, exclude)) == suffixes


def test_a_mapping_is_matched_in_part_too() -> None:
    axes: dict[str, list[object]] = {"model": [{"name": "rf", "trees": 5}, {"name": "gb"}], "sizes": [[1, 2], [1]]}

    assert list(made(axes, [{"model": {"name": "rf"}, "sizes": [1]}])) == [
        "model0-sizes0",
        "model1-sizes0",
        "model1-sizes1",
    ]


def test_include_means_what_it_means_to_github() -> None:
    # The example of "Expanding or adding matrix configurations" in GitHub's documentation.
    axes: dict[str, list[object]] = {"fruit": ["apple", "pear"], "animal": ["cat", "dog"]}
    include: list[object] = [
        {"color": "green"},
        {"color": "pink", "animal": "cat"},
        {"fruit": "apple", "shape": "circle"},
        {"fruit": "banana"},
        {"fruit": "banana", "animal": "cat"},
    ]

    assert made(axes, [], include) == {
        "apple-cat": {"fruit": "apple", "animal": "cat", "color": "pink", "shape": "circle"},
        "apple-dog": {"fruit": "apple", "animal": "dog", "color": "green", "shape": "circle"},
        "pear-cat": {"fruit": "pear", "animal": "cat", "color": "pink"},
        "pear-dog": {"fruit": "pear", "animal": "dog", "color": "green"},
        "banana": {"fruit": "banana"},
        "banana-cat": {"fruit": "banana", "animal": "cat"},
    }


def test_combinations_of_include_are_named_by_their_values_axes_first() -> None:
    include: list[object] = [{"kernel": "rbf", "empty": "", "seed": 7, "model": "svm"}, {"model": {"name": "x"}}]

    assert list(made(AXES, [{"model": "rf"}, {"seed": 1}], include)) == ["gb-0", "svm-7-rbf", "model3"]
    assert list(made({}, [], [{"site": "a"}, {"site": "b", "url": ["x"]}])) == ["a", "b-url1"]
    assert list(made(AXES, [{"seed": 1}], [{"model": "rf", "seed": 1}])) == ["rf-0", "gb-0", "rf-1"]


@pytest.mark.parametrize(
    ("exclude", "include", "message", "hint", "at"),
    [
        (["rf"], [], "`exclude[0]` must be a mapping from axes to values, not text", "such as `exclude: [", ("exclude", 0)),
        ([], [{}], "`include[0]` is empty", "name the values", ("include", 0)),
        ([], ["a"], "`include[0]` must be a mapping from axes to values, not text", "such as", ("include", 0)),
        ([], [{"a b": 1}], "`a b` in `include[0]` cannot be a name", "use letters", ("include", 0, "a b")),
        ([{"modle": "rf"}], [], "`exclude[0]` names `modle`, which is no axis", "did you mean `model`?", ("exclude", 0, "modle")),
        ([{"x": 1}], [], "`exclude[0]` names `x`, which is no axis", "the axes are `model`, `seed`", ("exclude", 0, "x")),
        ([{"model": "gbm"}], [], "`exclude[0]` matches nothing: axis `model` has no value `gbm`", "did you mean `gb`?", ("exclude", 0, "model")),
        ([{"seed": "1"}], [], "`exclude[0]` matches nothing: axis `seed` has no value `1`", "there it is the number `1`, here text", ("exclude", 0, "seed")),
        ([{"seed": True}], [], "`exclude[0]` matches nothing: axis `seed` has no value `true`", "it has `0`, `1`", ("exclude", 0, "seed")),
        ([{"seed": 0}, {"seed": 1}], [], "`exclude` leaves no combination", "exclude fewer", ("exclude",)),
        ([], [{"model": None}], "`include[0]` has no value to name a stage by", "add one", ("include", 0)),
        ([], [{"model": "x"}] * 2, "`model=x` and `model=x` would both be named `@x`", "make the values differ", ()),
        ([], [{"model": str(i)} for i in range(9_997)], "`matrix` makes 10,001 stages, more than 10,000", "use fewer", ()),
        ([{"seed": 0}] * 500_000, [{"seed": 0}] * 800_000, "`matrix` makes 800,000 stages", "use fewer", ()),
        ([{"seed": 0}] * 2_000_000, [], "`exclude` and `include` have too many items for this matrix", "say the same", ()),
        ([], [{"gpu": 1}] * 10_000, None, None, None),
    ],
)  # fmt: skip
def test_items_that_mean_nothing_are_refused(
    exclude: list[object], include: list[object], message: str | None, hint: str, at: tuple[object, ...]
) -> None:
    if message is None:
        assert len(combine(AXES, exclude, include)) == 4
        return
    with pytest.raises(TemplateError) as caught:
        combine(AXES, exclude, include)

    assert str(caught.value).startswith(message)
    assert (caught.value.hint or "").startswith(hint)
    assert caught.value.at == at


def test_exclude_of_what_only_include_has_is_refused() -> None:
    with pytest.raises(TemplateError, match="no axis") as caught:
        combine({}, [{"site": "a"}], [{"site": "a"}])

    assert caught.value.hint == "`include` comes after `exclude`: leave out what is not to be there"


# Foreach


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["rf", "a/b"], {"rf": ("rf", "rf"), "a_b": ("a_b", "a/b")}),
        ([{"n": 1}, 7], {"0": ("0", {"n": 1}), "1": ("1", 7)}),
        ({"rf": {"n": 1}, "x y": None}, {"rf": ("rf", {"n": 1}), "x_y": ("x y", None)}),
    ],
)
def test_foreach_names_by_item_position_or_key(items: Any, expected: dict[str, tuple[object, object]]) -> None:
    found = {instance.suffix: (instance.values["key"], instance.values["item"]) for instance in each_of(items)}

    assert found == expected


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "`foreach` is empty"),
        ({}, "`foreach` is empty"),
        ([""], "`foreach` holds an empty value"),
        (["a", "a"], "`key=a, item=a` and `key=a, item=a` would both be named `@a`"),
        (list(range(10_001)), "`foreach` makes 10,001 stages, more than 10,000"),
    ],
)
def test_foreach_that_cannot_be_named_is_refused(items: Any, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        each_of(items)

    assert str(caught.value) == message
    assert caught.value.hint
