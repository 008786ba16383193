"""Hints about paths that a shell would take apart: their commands can be typed as they are told."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from mlops_cli.errors import MlxError
from mlops_cli.store.checkup import Scope
from mlops_cli.words import spelled, word
from mlops_cli.workspace.add import add
from mlops_cli.workspace.integrity import examine
from mlops_cli.workspace.mending import how_to_mend
from mlops_cli.workspace.pushing import push
from tests.objects import lose_all
from tests.workspace.projects import Sandbox

NAME = "my data"


@pytest.fixture
def spaced(box: Sandbox) -> Sandbox:
    """Return a project with a tracked folder and a remote that has nothing of it."""
    box.remote().mkdir()
    box.write(f"{NAME}/a b", "a")
    box.add(NAME)
    return box


def lost(box: Sandbox) -> None:
    lose_all(box.project().cache.root)


def gone(box: Sandbox) -> None:
    box.git("clean", "-qfdX", "--", NAME)


@pytest.mark.parametrize(
    ("spoil", "act", "command"),
    [
        ((), lambda box: box.checkout(f"{NAME}/none"), "mlx ls"),
        ((gone, lost), lambda box: box.checkout(NAME), "mlx pull"),
        ((gone,), lambda box: add(box.project(), [f"{NAME}/a b"]), "mlx pull"),
        ((gone, lost), lambda box: push(box.project()), "mlx add"),
    ],
)
def test_commands_of_hints_name_the_path_as_one_word(
    spoil: tuple[Callable[[Sandbox], None], ...], act: Callable[[Sandbox], object], command: str, spaced: Sandbox
) -> None:
    for step in spoil:
        step(spaced)

    with pytest.raises(MlxError) as caught:
        act(spaced)

    commands = [shlex.split(line) for line in (caught.value.hint or "").split("`")[1::2]]
    assert [words for words in commands if words[:2] == command.split() and NAME in words], caught.value.hint


def test_what_mends_a_false_record_names_its_path_as_one_word(spaced: Sandbox) -> None:
    spaced.write(f"{NAME}.mlx", spaced.read(f"{NAME}.mlx").replace("size: 1", "size: 2"))

    (error,) = examine(spaced.project(), Scope(100, None)).false

    assert f"`mlx add {shlex.quote(NAME)}`" in str(error.hint)


def test_a_record_whose_name_has_a_space_is_taken_back_from_git(spaced: Sandbox) -> None:
    spaced.commit()
    spaced.write(f"{NAME}.mlx", "mlx: 1\n")

    with pytest.raises(MlxError) as caught:
        spaced.checkout()

    command = f"git restore {shlex.quote(f'{NAME}.mlx')}"
    hint = how_to_mend(caught.value, spaced.root) or ""
    assert spelled(hint) == f"mend it there, or `{command}` takes back the committed one"


def test_hints_of_errors_are_marked_and_told_from_the_root(spaced: Sandbox) -> None:
    gone(spaced)
    lost(spaced)

    with pytest.raises(MlxError) as caught:
        spaced.checkout(NAME)

    assert caught.value.marked_hint == f"`mlx pull {word(NAME)}` brings it from a remote"
    assert caught.value.hint == f"`mlx pull '{NAME}'` brings it from a remote"
