"""How a stage is carried out, as `mlx.yaml` says it."""

from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError
from mlops_cli.records.conduct import PLAIN, Conduct
from mlops_cli.records.conduct_reading import merged, parse_amount
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.stages import Pipeline


def read(stage: str, top: str = "") -> Pipeline:
    text = f"mlx: 1\nvars: {{n: 2, all: [disk, net]}}\n{top}stages:\n  s:\n    cmd: x\n{stage}"
    return read_pipeline(text.encode(), "mlx.yaml", folder="", read_file={}.get)


def conduct(stage: str) -> Conduct:
    return read(stage).stages[0].conduct


def test_a_stage_that_says_nothing() -> None:
    assert conduct("") == PLAIN == Conduct((), (), None, 0, 0.0)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("resources: {cpus: 2, gpus: 0.5}", Conduct(resources=(("cpus", 2.0), ("gpus", 0.5)))),
        ('resources: {memory: "1.5 GiB"}', Conduct(resources=(("memory", 1.5 * 2**30),))),
        ("resources: {memory: 500MB}", Conduct(resources=(("memory", 5e8),))),
        ("resources: {memory: 2k}", Conduct(resources=(("memory", 2000.0),))),
        ("resources: {memory: 1234}", Conduct(resources=(("memory", 1234.0),))),
        ('resources: {licence: "${n}"}', Conduct(resources=(("licence", 2.0),))),
        ("mutex: disk", Conduct(mutex=("disk",))),
        ("mutex: [disk, net, disk]", Conduct(mutex=("disk", "net"))),
        ('mutex: "${all}"', Conduct(mutex=("disk", "net"))),
        ("timeout: 90", Conduct(timeout=90.0)),
        ("timeout: 2h", Conduct(timeout=7200.0)),
        ("timeout: 0.5", Conduct(timeout=0.5)),
        ("retries: 3", Conduct(retries=3)),
        ('retries: "${n}"', Conduct(retries=2)),
        ("retries: {times: 2, delay: 1m}", Conduct(retries=2, delay=60.0)),
        ("retries: {times: 2, delay: 0}", Conduct(retries=2)),
    ],
)
def test_what_is_said_is_meant(text: str, wanted: Conduct) -> None:
    assert conduct(f"    {text}\n") == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resources: [cpus]", "`resources` must be a mapping"),
        ("resources: {cpus: 0}", "`cpus` must be a number above 0, not the number `0`"),
        ("resources: {cpus: true}", "`cpus` must be a number above 0"),
        ("resources: {cpus: .inf}", "`.inf` is not a finite number"),
        ('resources: {cpus: "2"}', "`cpus` must be a number above 0"),
        ("resources: {memory: much}", "`memory` must be a size"),
        ("resources: {memory: -1}", "`memory` must be a size"),
        ('resources: {"a b": 1}', "`a b` cannot be the name of a resource"),
        ("mutex: {a: b}", "`mutex` must be a list"),
        ("timeout: soon", "`timeout` must be a time"),
        ("timeout: 0", "`timeout` must be a time"),
        ("timeout: true", "`timeout` must be a time"),
        ("timeout: [1]", "`timeout` must be a time"),
        ("retries: -1", "`retries` must be a whole number up to 100"),
        ("retries: 1.5", "`retries` must be a whole number up to 100"),
        ("retries: 101", "`retries` must be a whole number up to 100"),
        ("retries: {delay: 1s}", "`times` must be a whole number up to 100"),
        ("retries: {times: 1, wait: 1s}", "`wait`"),
        ("retries: {times: 1, delay: soon}", "`delay` must be a time"),
    ],
)
def test_what_cannot_be_meant_is_told_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        conduct(f"    {text}\n")
    assert caught.value.message.startswith("mlx.yaml:6: ")
    assert message in caught.value.message


def test_what_there_is() -> None:
    assert read("", "resources: {gpus: 2, memory: 1GiB}\n").resources == {"gpus": 2.0, "memory": 2.0**30}
    assert read("").resources == {}
    with pytest.raises(RecordError, match=r"mlx\.yaml:3: `gpus` must be a number above 0"):
        read("", "resources: {gpus: none}\n")


def test_of_two_pipelines_the_smaller_counts() -> None:
    assert merged({"a": 1.0, "b": 2.0}, {"b": 1.0, "c": 3.0}) == {"a": 1.0, "b": 1.0, "c": 3.0}


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [("gpus", "2", 2.0), ("cpus", "0.5", 0.5), ("memory", "2GiB", 2.0**31), ("memory", "1000", 1000.0)],
)
def test_amounts_of_the_command_line(name: str, text: str, wanted: float) -> None:
    assert parse_amount(name, text) == wanted


@pytest.mark.parametrize(("name", "text"), [("", "1"), ("a b", "1"), ("gpus", ""), ("gpus", "0"), ("gpus", "inf"), ("gpus", "1e999"), ("memory", "big")])  # fmt: skip
def test_words_that_are_no_amounts(name: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"name of a resource|not an amount"):
        parse_amount(name, text)
