"""Links are made in one step, never over something, and probing leaves no trace."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mlops_cli.store import links
from mlops_cli.store.links import LinkMode, reflink, rename_new, supported_modes
from tests.disks import small_disk


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folders(tmp_path):
    for name in ("cache", "work"):
        (tmp_path / name).mkdir()
    return tmp_path / "cache", tmp_path / "work"


def test_probing_tells_what_works_and_leaves_nothing(folders):
    modes = supported_modes(*folders)

    assert modes[0] is LinkMode.COPY
    assert {LinkMode.HARDLINK, LinkMode.SYMLINK} <= set(modes)
    assert [names(folder) for folder in folders] == [[], []]


def test_only_symlinks_and_copies_go_to_another_file_system(folders, tmp_path):
    with small_disk(tmp_path) as disk:
        assert supported_modes(folders[0], disk) == (LinkMode.COPY, LinkMode.SYMLINK)
        assert names(disk) == []


def test_a_clone_is_made_or_leaves_nothing(folders):
    cache, work = folders
    (cache / "source").write_bytes(b"bytes")

    if LinkMode.REFLINK in supported_modes(cache, work):
        reflink(str(cache / "source"), str(work / "target"))
        assert (work / "target").read_bytes() == b"bytes"
        return

    with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
        reflink(str(cache / "source"), str(work / "target"))

    assert caught.value.errno in links.UNSUPPORTED
    assert names(work) == []


def test_a_clone_is_never_made_over_something(folders):
    cache, work = folders
    (cache / "source").write_bytes(b"bytes")
    (work / "target").write_bytes(b"precious")

    with pytest.raises(FileExistsError):
        reflink(str(cache / "source"), str(work / "target"))

    assert (work / "target").read_bytes() == b"precious"


@pytest.fixture(params=["renameat2", "no such call", "file system without it", "no hard links either"])
def renaming(request, monkeypatch):
    """Go through each of the ways in which `rename_new` may have to work."""
    if request.param == "renameat2":
        return

    class Without:
        call = None

    class Refusing:
        @staticmethod
        def call(*_):
            return -1

        @staticmethod
        def get_errno():
            return errno.EINVAL

    def refuse(*_, **__):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(links, "_new_rename", [Without() if request.param == "no such call" else Refusing()])
    if request.param == "no hard links either":
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("renaming")
def test_a_rename_moves(tmp_path):
    (tmp_path / "old").write_bytes(b"bytes")

    rename_new(str(tmp_path / "old"), str(tmp_path / "new"))

    assert names(tmp_path) == ["new"]
    assert (tmp_path / "new").read_bytes() == b"bytes"


@pytest.mark.usefixtures("renaming")
@pytest.mark.parametrize("kind", ["file", "folder", "dangling symlink"])
def test_a_rename_never_replaces(tmp_path, kind):
    (tmp_path / "old").write_bytes(b"bytes")
    target = tmp_path / "new"
    if kind == "file":
        target.write_bytes(b"precious")
    elif kind == "folder":
        target.mkdir()
    else:
        target.symlink_to("nowhere")

    with pytest.raises(FileExistsError):
        rename_new(str(tmp_path / "old"), str(target))

    assert names(tmp_path) == ["new", "old"]


@pytest.mark.usefixtures("renaming")
def test_a_rename_is_relative_to_an_open_folder(tmp_path):
    (tmp_path / "old").write_bytes(b"bytes")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        rename_new("old", "new", dir_fd=folder)
        with pytest.raises(FileNotFoundError):
            rename_new("gone", "newer", dir_fd=folder)
    finally:
        os.close(folder)

    assert names(tmp_path) == ["new"]


def test_any_other_refusal_passes_through(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, "broken")

    class Refusing:
        call = staticmethod(lambda *_: -1)
        get_errno = staticmethod(lambda: errno.EIO)

    monkeypatch.setattr(links, "_new_rename", [Refusing()])
    with pytest.raises(OSError, match="Input/output error"):
        rename_new(str(tmp_path / "old"), str(tmp_path / "new"))

    Refusing.get_errno = staticmethod(lambda: errno.EINVAL)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(OSError, match="broken"):
        rename_new(str(tmp_path / "old"), str(tmp_path / "new"))
