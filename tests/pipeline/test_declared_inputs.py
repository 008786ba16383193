"""What a stage says of its inputs besides their names: that they may be absent, that it runs only sometimes, and so on."""

from __future__ import annotations

import os

import pytest

from mlops_cli.errors import Inconclusive, MissingObject, RecordError
from mlops_cli.pipeline.declare import describe_stage
from tests.conftest import InProcess
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


# Conditions -----------------------------------------------------------------------------------------------------------

SWITCHED = """\
stages:
  get:
    cmd: echo $((1 + $(cat times 2> /dev/null || echo 0))) > times; cp times raw
    deps: [source]
    outs: [raw]
    when: ${get.enabled}
  use:
    cmd: cat raw > out; true
    deps: [raw]
    outs: [out]
"""


def switch(box: Sandbox, on: bool) -> None:
    box.write("params.yaml", f"get: {{enabled: {str(on).lower()}}}\n")


def test_a_stage_that_is_off_keeps_what_it_made(box: Sandbox):
    box.pipeline(SWITCHED)
    box.write("source", "1")
    switch(box, on=True)
    assert box.run() == {"get": "run", "use": "run"}
    box.commit()
    switch(box, on=False)
    box.write("source", "22")
    assert box.run(force=True) == {"get": "skip", "use": "run"}
    assert box.reasons("get") == ("off: its `when` is `${get.enabled}`, and `get.enabled` is false",)
    assert box.clean()
    assert box.changed_in_git() == ["params.yaml", "source"]

    box.write("raw", "edited")
    assert box.reasons("use") == ("`raw` changed: 2 → 6 bytes",)
    (box.root / "raw").unlink()
    assert box.actions() == {"get": "skip", "use": "skip"}  # what the lock records counts
    with pytest.raises(MissingObject):
        box.run("use", force=True)
    box.checkout("raw")

    switch(box, on=True)
    assert box.actions() == {"get": "run", "use": "run"}


def test_what_a_stage_that_is_off_never_made(box: Sandbox):
    box.pipeline(SWITCHED)
    switch(box, on=False)  # and its dependency is not there: nothing is asked of it
    assert box.plan()["use"].reasons[-1] == "`raw` does not exist: stage `get`, which makes it, is off"
    with pytest.raises(RecordError) as caught:
        box.run()
    assert caught.value.message == "mlx.yaml:8: dependency `raw` of stage `use` does not exist"
    assert caught.value.hint == "`when` of stage `get`, which makes it, is false: mend it, or make this `optional`"
    box.pipeline(SWITCHED.replace("[raw]\n    outs: [out]", "[{raw: {optional: true}}]\n    outs: [out]"))
    assert box.run() == {"get": "skip", "use": "run"}
    assert box.actions() == {"get": "skip", "use": "skip"}
    switch(box, on=True)
    box.write("source", "1")
    assert box.plan()["use"].reasons == ("`raw` may change: stage `get` runs first",)


def test_a_stage_that_is_off_needs_nothing(box: Sandbox):
    box.pipeline(SWITCHED + "    when: false\n")
    switch(box, on=True)
    assert box.run("use") == {"use": "skip"}
    box.commit()
    with pytest.raises(Inconclusive, match="all that was asked for is off in revision `HEAD`"):
        box.reproduce(targets=["use"])


def test_being_off_is_told(box: Sandbox, mlx_in_process: InProcess):
    box.pipeline(SWITCHED)
    switch(box, on=False)
    box.write("raw", "by hand")
    told = mlx_in_process("run", cwd=box.root)
    assert told.code == 0
    assert "skip get: off: its `when` is `${get.enabled}`, and `get.enabled` is false\n" in told.stderr
    assert mlx_in_process("run", cwd=box.root).stdout == "nothing to do: 1 stage up to date, 1 off\n"
    shown = mlx_in_process("stage", "show", "get", "--json", cwd=box.root).json()["stages"][0]
    assert shown["when"] == {"text": "${get.enabled}", "holds": False, "values": {"get.enabled": False}}


# Parameters in Python -------------------------------------------------------------------------------------------------

CONFIG = "import os\nLR = 0.1\nclass Model:\n    depth: int = 8\n    home = os.environ['HOME']\nOTHER = LR * 2\n"


def test_parameters_in_python(box: Sandbox, mlx_in_process: InProcess):
    box.write("config.py", CONFIG)
    box.pipeline("stages:\n  s:\n    cmd: x=1\n    params: [{config.py: [LR, Model.depth]}]\n")
    box.run()
    assert "params:\n  config.py:\n    LR: 0.1\n    Model.depth: 8\n" in box.read("mlx.lock/s.yaml")
    box.commit()
    box.write("config.py", f"# a comment\n{CONFIG}".replace("OTHER = LR", "OTHER = 3 * LR"))
    assert box.actions() == {"s": "skip"}
    box.write("config.py", CONFIG.replace("8", "9"))
    assert box.reasons("s") == ("`config.py: Model.depth` changed 8 → 9",)
    shown = mlx_in_process("params", "show", "--csv", cwd=box.root)
    assert shown.stdout == "file,name,value\nconfig.py,LR,0.1\nconfig.py,Model.depth,9\n"
    assert "config.py,Model.depth,8,9,+1" in mlx_in_process("params", "diff", "--csv", cwd=box.root).stdout


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("[OTHER]", "config.py:6: `OTHER` is not a literal, so it is no parameter"),
        ("[OTHER.x]", "config.py:6: `OTHER` is not a literal, so it is no parameter"),
        ("[Model]", "config.py:5: `Model.home` is not a literal, so it is no parameter"),
        ("[os]", "config.py:1: `os` is imported, so it is no parameter"),
        ("", "config.py:5: `Model.home` is not a literal, so it is no parameter"),
        ("[RL]", "mlx.yaml:3: stage `s` needs the parameter `RL` of `config.py`, which is not there"),
    ],
)
def test_what_only_running_would_tell_is_no_parameter(box: Sandbox, keys: str, message: str):
    box.write("config.py", CONFIG)
    box.pipeline(f"stages:\n  s:\n    cmd: x=1\n    params: [{{config.py: {keys}}}]\n")
    with pytest.raises(RecordError) as caught:
        box.plan()
    assert caught.value.message == message
    assert caught.value.hint


# The environment ------------------------------------------------------------------------------------------------------


def test_a_command_inherits_what_its_stage_names(box: Sandbox, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    body = "    cmd: env | cut -d= -f1 | sort > out\n    outs: [out]\n    env: {A: '1'}\n"
    box.pipeline(f"stages:\n  s:\n{body}")
    box.run()
    assert {"A", "TOKEN", "CUDA_VISIBLE_DEVICES", "TERM", "PATH"} <= set(box.read("out").split())
    lock = box.read("mlx.lock/s.yaml")
    box.pipeline(f"stages:\n  s:\n{body}    pass_env: ['CUDA_*', UNSET]\n")
    assert box.actions() == {"s": "skip"}
    box.run("s", force=True)
    shell = {"PWD", "SHLVL", "_", "OLDPWD"}  # which the shell sets itself
    assert set(box.read("out").split()) - shell == {
        *("A", "CUDA_VISIBLE_DEVICES", "HOME", "LC_ALL", "PATH", "PYTHONUNBUFFERED", "TZ"),
        *({"TMPDIR", "USER", "LOGNAME", "LANG", "LANGUAGE"} & set(os.environ)),
    }
    assert "CUDA" not in box.read("mlx.lock/s.yaml")
    assert "CUDA" not in lock
    box.pipeline(f"stages:\n  s:\n{body}    pass_env: []\n")
    assert describe_stage(box.snapshot().stages[0])["pass_env"] == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[A=1]", "mlx.yaml:5: `A=1` cannot be the name of an environment variable"),
        ("A", "mlx.yaml:5: `pass_env` must be a list (`[a, b]`), not text"),
        ("[1]", "mlx.yaml:5: `pass_env[0]` must be text, not the number `1`"),
    ],
)
def test_what_cannot_be_passed(box: Sandbox, value: str, message: str):
    box.pipeline(f"stages:\n  s:\n    cmd: x\n    pass_env: {value}\n")
    with pytest.raises(RecordError) as caught:
        box.snapshot().stages  # noqa: B018 - reading is what is tested
    assert caught.value.message == message
