"""What a stage says of its inputs besides their names: that they may be absent, that it runs only sometimes, and so on."""

from __future__ import annotations

import pytest

from mlops_cli.errors import RecordError
from tests.workspace.projects import Sandbox

# Optional dependencies ------------------------------------------------------------------------------------------------


def optional(box: Sandbox, *deps: str, more: str = "") -> None:
    items = "".join(f"      - {dep}\n" for dep in deps)
    box.pipeline(
        f"stages:\n  s:\n    cmd: cat conf/* 2> /dev/null > out; true\n    deps:\n{items}    outs: [out]\n{more}"
    )


def test_an_optional_dependency_that_comes_and_goes(box: Sandbox):
    box.write("code", "1")
    optional(box, "code", "conf/local: {optional: true}")
    assert box.run() == {"s": "run"}
    assert box.read("mlx.lock/s.yaml").endswith("without:\n  - conf/local\n")
    assert box.actions() == {"s": "skip"}

    box.write("conf/local", "mine")
    assert box.reasons("s") == ("`conf/local` is there now, and was not when the stage ran",)
    assert box.run() == {"s": "run"}
    assert "without" not in box.read("mlx.lock/s.yaml")
    box.write("conf/local", "yours!")
    assert box.reasons("s") == ("`conf/local` changed: 4 → 6 bytes",)

    (box.root / "conf/local").unlink()
    assert box.reasons("s") == ("`conf/local` is gone, which the stage ran with", "an earlier run had the same inputs")
    assert box.run() == {"s": "restore"}
    assert box.read("out") == ""
    assert box.actions() == {"s": "skip"}


def test_an_optional_glob_may_match_nothing(box: Sandbox):
    optional(box, '"conf/*": {optional: true}')
    assert box.run() == {"s": "run"}
    assert box.actions() == {"s": "skip"}
    box.write("conf/a", "a")
    assert box.reasons("s") == ("`conf/a` is a new dependency",)


def test_declaring_an_optional_dependency_is_a_change(box: Sandbox):
    box.write("code", "1")
    optional(box, "code")
    box.run()
    optional(box, "code", "x: {optional: true}")
    assert box.reasons("s") == ("`x` is a new dependency, which is not there",)
    box.run()
    optional(box, "code")
    assert box.reasons("s")[0] == "`x` is no longer a dependency"


def test_an_optional_dependency_that_a_record_names_is_needed(box: Sandbox):
    box.write("conf/local", "mine")
    box.add("conf/local")
    optional(box, "conf/local: {optional: true}")
    box.run()
    (box.root / "conf/local").unlink()
    assert box.actions() == {"s": "skip"}


@pytest.mark.parametrize(
    ("deps", "message"),
    [
        (("x", "x: {optional: true}"), "mlx.yaml:7: `x` is in `deps` twice, with other options"),
        (("x: {optional: 1}",), "mlx.yaml:6: `optional` must be `true` or `false`, not the number `1`"),
        (("x: {option: true}",), "mlx.yaml:6: unknown key `option` in `x`"),
        (("x: true",), "mlx.yaml:6: `x` must be a mapping (`key: value`), not `true`"),
    ],
)
def test_wrong_options_are_refused(box: Sandbox, deps: tuple[str, ...], message: str):
    optional(box, *deps)
    with pytest.raises(RecordError) as caught:
        box.plan()
    assert caught.value.message == message
