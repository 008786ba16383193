"""What is added comes back exactly as it was, in every link mode, and Git sees only pointers and `.gitignore` files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.objects import LARGE, large
from tests.workspace.projects import Sandbox, clone, listing

pytestmark = pytest.mark.usefixtures("crew")

LINKS = ("copy", "reflink", "hardlink", "symlink")

NASTY = (
    b"plain.txt",
    b"with space.txt",
    b" leading and trailing ",
    b"two\nlines",
    b"carriage\rreturn",
    b"tab\there",
    b"-rf",
    b"--force",
    b"#comment",
    b"!negated",
    b"*.png",
    b"a?b",
    b"[abc]",
    b"back\\slash",
    b"back\\",
    b"quote'and\"quote",
    b"dollar$HOME`id`",
    "Ünïcödé-日本語-🎈".encode(),
    "e\u0301 decomposed".encode(),
    "line\u2028separator\x85next".encode(),
    b"..hidden",
    b"...",
    b"%41%2F",
    b"colon:name",
    b"raw.mlx",
    b"mlx.yaml",
    b".mlx",
    b".gitignore",
)
NOT_TEXT = (b"latin-\xe9\xff", b"\x80\x81")


def fill(folder: Path) -> None:
    """Make a folder with everything that a folder may hold."""
    folder.mkdir(parents=True)
    place = os.fsencode(folder)
    for number, name in enumerate((*NASTY, *NOT_TEXT)):
        with open(os.path.join(place, name), "wb") as stream:
            stream.write(b"content %d\n" % number)
    (folder / "empty file").touch()
    (folder / "empty folder").mkdir()
    (folder / "nested" / "empty" / "folders").mkdir(parents=True)
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "large").write_bytes(os.urandom(1 << 21))
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "file").write_text("deep")
    (folder / "deep" / "same as plain").write_bytes(b"content 0\n")
    (folder / "to file").symlink_to("plain.txt")
    (folder / "to folder").symlink_to("deep")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "absolute").symlink_to("/etc/hostname")
    (folder / "upwards").symlink_to("../../..")
    os.symlink(b"caf\xe9\n", os.path.join(place, b"to bytes"))


@pytest.mark.parametrize("link", LINKS)
def test_folder_comes_back_exactly(box: Sandbox, link: str):
    box.configure("cache.link", link)
    fill(box.root / "data/raw")
    before = listing(box.root / "data/raw")
    box.add("data/raw")
    if link == "symlink":  # the files have become links to the cache
        assert (box.root / "data/raw/plain.txt").read_bytes() == before[b"plain.txt"][1]
    else:
        assert listing(box.root / "data/raw") == before
    assert box.states() == {"data/raw": "ok"}
    after_add = listing(box.root / "data/raw")

    shutil.rmtree(box.root / "data/raw")
    assert box.states() == {"data/raw": "missing"}
    box.checkout()
    back = listing(box.root / "data/raw")
    if link == "symlink":
        assert back.keys() == before.keys()
        ours = os.fsencode(box.project().cache.root)
        for name, (kind, content) in before.items():
            if kind == "file" and len(content) >= LARGE:
                assert back[name][0] == "symlink"
                assert back[name][1].startswith(ours)
                assert (
                    Path(os.fsdecode(os.path.join(os.fsencode(box.root), b"data/raw", name)))
                ).read_bytes() == content
            else:
                assert back[name] == (kind, content)
        assert after_add.keys() == back.keys()
    else:
        assert back == before
    assert box.states() == {"data/raw": "ok"}
    assert box.checkout().restored == ()


@pytest.mark.parametrize("size", [1000, LARGE])
@pytest.mark.parametrize("link", LINKS)
def test_lone_files_come_back_exactly(box: Sandbox, link: str, size: int):
    box.configure("cache.link", link)
    box.write("plain.bin", b"\x00\xff" * size)
    box.write("empty")
    box.write("tool", "#!/bin/sh\nexit 0\n" + "#" * size, mode=0o755)
    box.add("plain.bin", "empty", "tool")
    assert "executable: true" in box.read("tool.mlx")
    for name in ("plain.bin", "empty", "tool"):
        (box.root / name).unlink()
    box.checkout()
    assert (box.root / "plain.bin").read_bytes() == b"\x00\xff" * size
    assert (box.root / "empty").read_bytes() == b""
    assert os.stat(box.root / "tool").st_mode & 0o111 == 0o111
    assert not (box.root / "tool").is_symlink()
    assert set(box.states().values()) == {"ok"}


@pytest.mark.parametrize("link", LINKS)
def test_edit_of_an_executable_does_not_reach_the_cache(box: Sandbox, link: str):
    box.configure("cache.link", link)
    box.write("tool", large("one\n"), mode=0o755)
    box.add("tool")
    (box.root / "tool").unlink()
    box.checkout()
    with (box.root / "tool").open("a") as stream:
        stream.write("two\n")
    assert box.states() == {"tool": "modified"}
    box.checkout(force=True)
    assert box.read("tool") == large("one\n")


@pytest.mark.parametrize("link", LINKS)
def test_a_file_that_turns_executable_is_modified_and_comes_back(box: Sandbox, link: str):
    box.configure("cache.link", link)
    box.write("tool", large("one\n"))
    box.write("folder/tool", large("one\n"))
    box.add("tool", "folder")
    for path in ("tool", "folder/tool"):
        place = box.root / path
        place.unlink()
        place.write_text(large("one\n"))
        place.chmod(0o755)
    assert box.states() == {"folder": "modified", "tool": "modified"}
    box.checkout()
    assert box.states() == {"folder": "ok", "tool": "ok"}
    assert not os.access(box.root / "tool", os.X_OK)


def test_git_sees_pointers_only(box: Sandbox):
    box.commit("start")
    fill(box.root / "data/raw")
    box.write("data/labels.csv", "a,b\n")
    box.add("data/raw", "data/labels.csv")
    expected = ["data/.gitignore", "data/labels.csv.mlx", "data/raw.mlx"]
    assert box.changed_in_git() == expected
    box.commit("data")
    assert box.git("ls-files").split("\n") == [".mlx/config.yaml", *expected]
    assert box.changed_in_git() == []


def test_git_ignores_lone_files_with_nasty_names(box: Sandbox):
    box.commit("start")
    names = [name.decode() for name in NASTY if not name.endswith(b".mlx") and name not in (b"mlx.yaml", b".gitignore")]
    for name in names:
        box.write(f"data/{name}", f"content of {name}")
        box.write(f"top-{name}", "x")
    box.add(*(f"data/{name}" for name in names), *(f"top-{name}" for name in names))
    pointers = [f"{prefix}{name}.mlx" for prefix in ("data/", "top-") for name in names]
    assert box.changed_in_git() == sorted([".gitignore", "data/.gitignore", *pointers])
    ignored = (box.root / "data/.gitignore").read_bytes()
    box.add(*(f"data/{name}" for name in names))
    assert (box.root / "data/.gitignore").read_bytes() == ignored, "adding again changes nothing"
    for name in names:
        (box.root / "data" / name).unlink()
    box.checkout()
    assert {name: box.read(f"data/{name}") for name in names} == {name: f"content of {name}" for name in names}


def test_siblings_of_tracked_paths_stay_visible_to_git(box: Sandbox):
    box.commit("start")
    tracked = ["a?b", "[abc]", "star*", "back\\", "end "]
    others = ["axb", "a", "starry", "backx", "end", "end  "]
    for name in (*tracked, *others):
        box.write(name, name)
    box.add(*tracked)
    assert set(box.changed_in_git()) == {".gitignore", *(f"{name}.mlx" for name in tracked), *others}


def test_a_clone_gets_the_same_bytes(box: Sandbox, tmp_path: Path):
    from mlops_cli.workspace.fetching import fetch
    from mlops_cli.workspace.pushing import push

    box.remote(url=str(tmp_path / "remote"))
    fill(box.root / "data/raw")
    box.write("tool", "#!\n", mode=0o755)
    box.add("data/raw", "tool")
    before = listing(box.root / "data")
    push(box.project())
    box.commit()
    other = clone(box, tmp_path / "clone")
    assert other.states() == {"data/raw": "not_cached", "tool": "not_cached"}
    fetch(other.project())
    assert other.states() == {"data/raw": "missing", "tool": "missing"}
    other.checkout()
    assert listing(other.root / "data") == before
    assert other.clean()
    assert other.changed_in_git() == []


def test_deeply_nested_folders_come_back(box: Sandbox):
    path = "/".join(["d"] * 300)
    box.write(f"deep/{path}/file", "here")
    box.add("deep")
    shutil.rmtree(box.root / "deep")
    box.checkout()
    assert box.read(f"deep/{path}/file") == "here"


def test_names_with_dots_of_git_are_refused_by_name(box: Sandbox):
    from mlops_cli.errors import UsageError

    for number, name in enumerate((".git", ".GIT", "git~1", ".git ", ".g\u200cit")):
        folder = f"data{number}"
        box.write(f"{folder}/{name}", "x")
        with pytest.raises(UsageError, match=r"(?i)`data\d.*git") as caught:
            box.add(folder)
        assert caught.value.hint
        assert not box.exists(f"{folder}.mlx")
