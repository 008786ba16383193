"""What is imported stays an import, whatever is done to it here."""

from __future__ import annotations

from mlops_cli.records.pointers import read_pointer
from mlops_cli.records.sources import UrlSource
from mlops_cli.workspace.move import move
from tests.workspace.projects import Sandbox


def imported(box: Sandbox, path: str) -> UrlSource:
    """Let the record of a tracked path say that it was imported."""
    file = box.root / f"{path}.mlx"
    pointer = read_pointer(file.read_bytes(), f"{path}.mlx")
    source = UrlSource("https://host/data", "v1", pointer.digest)
    file.write_bytes(pointer._replace(source=source).to_bytes())
    return source


def source_at(box: Sandbox, path: str) -> object:
    pointer = box.snapshot().pointer(path)
    assert pointer is not None
    return pointer.source


def test_adding_it_again_keeps_its_source(box: Sandbox):
    box.write("data/a", "one")
    box.write("data/sub/b", "two")
    box.add("data")
    source = imported(box, "data")

    box.write("data/a", "changed")
    result = box.add("data")

    assert [item.changed for item in result.added] == [True]
    assert source_at(box, "data") == source
    assert not box.add("data").added[0].changed

    box.write("data/sub/c", "three")
    box.add("data/sub/c")

    assert source_at(box, "data") == source


def test_moving_it_keeps_its_source(box: Sandbox):
    box.write("data/a", "one")
    box.write("other/x", "x")
    box.add("data", "other")
    source = imported(box, "data")

    move(box.project(), "data", "images")

    assert source_at(box, "images") == source
    assert source_at(box, "other") is None


def test_moving_a_part_leaves_the_source_with_the_rest(box: Sandbox):
    box.write("data/a", "one")
    box.write("data/b", "two")
    box.add("data")
    source = imported(box, "data")

    move(box.project(), "data/a", "alone")

    assert source_at(box, "data") == source
    assert source_at(box, "alone") is None
