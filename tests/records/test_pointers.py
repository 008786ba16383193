from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.documents import MAX_INTEGER
from mlops_cli.errors import RecordError
from mlops_cli.hashing import Digest, digest_from_raw
from mlops_cli.records.pointers import ObjectKind, Pointer, read_pointer
from mlops_cli.records.sources import RepoSource, Source, UrlSource, is_remote, is_remote_repository

DIGEST = Digest("blake3:" + "0123456789abcdef" * 4)
TREE = f"mlx: 1\npath: raw\ntree: {DIGEST}\nsize: 14445097\nfiles: 70000\n".encode()
BLOB = f"mlx: 1\npath: m.joblib\nblob: {DIGEST}\nsize: 0\n".encode()
COMMIT = "a1b2c3d4e5" * 4
FROM_URL = BLOB + f"source:\n  url: s3://bucket/raw\n  etag: abc-2\n  fetched: {DIGEST}\n".encode()
FROM_REPO = (
    TREE
    + f"source:\n  repo: https://host/data.git\n  path: raw\n  rev: v1\n  commit: {COMMIT}\n"
    f"  remote: s3://b\n  fetched: {DIGEST}\n".encode()
)

DIGESTS = st.binary(min_size=32, max_size=32).map(digest_from_raw)
SIZES = st.integers(0, MAX_INTEGER)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and ":" not in name[1:2] and "git" not in name.lower()
)
POINTERS = st.one_of(
    st.builds(Pointer, NAMES, st.just(ObjectKind.TREE), DIGESTS, SIZES, SIZES, st.just(value=False), st.none()),
    st.builds(Pointer, NAMES, st.just(ObjectKind.BLOB), DIGESTS, SIZES, st.none(), st.booleans(), st.none()),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
REVS = TEXTS.filter(lambda text: not text.startswith("-"))
COMMITS = st.text("0123456789abcdef", min_size=40, max_size=40)
SOURCES: st.SearchStrategy[Source] = st.one_of(
    st.builds(UrlSource, TEXTS.map("https://host:80/".__add__), st.none() | TEXTS, DIGESTS),
    st.builds(RepoSource, TEXTS.map("ssh://git@host/".__add__), NAMES, st.none() | REVS, COMMITS, st.none(), DIGESTS),
)


def test_a_pointer_is_read() -> None:
    assert read_pointer(TREE, "data/raw.mlx") == Pointer("raw", ObjectKind.TREE, DIGEST, 14445097, 70000)
    assert read_pointer(BLOB, "m.joblib.mlx") == Pointer("m.joblib", ObjectKind.BLOB, DIGEST, 0)
    assert read_pointer(BLOB + b"executable: true\n", "m.joblib.mlx").executable


@pytest.mark.parametrize("data", [TREE, BLOB, BLOB + b"executable: true\n", FROM_URL, FROM_REPO])
def test_bytes_survive_reading_and_writing(data: bytes) -> None:
    assert read_pointer(data, "at a revision").to_bytes() == data


@given(POINTERS)
def test_a_pointer_survives_writing_and_reading(pointer: Pointer) -> None:
    data = pointer.to_bytes()

    assert read_pointer(data, f"data/{pointer.path}.mlx") == pointer
    assert read_pointer(data, f"HEAD~1:{pointer.path}.mlx") == pointer
    assert read_pointer(data, f"{pointer.path}.mlx").to_bytes() == data


@given(POINTERS, SOURCES)
def test_a_source_survives_writing_and_reading(pointer: Pointer, source: Source) -> None:
    imported = pointer._replace(source=source)

    assert read_pointer(imported.to_bytes(), f"{pointer.path}.mlx") == imported


def test_a_source_is_read() -> None:
    assert read_pointer(FROM_URL, "m.joblib.mlx").source == UrlSource("s3://bucket/raw", "abc-2", DIGEST)
    repo = RepoSource("https://host/data.git", "raw", "v1", COMMIT, "s3://b", DIGEST)
    assert read_pointer(FROM_REPO, "raw.mlx").source == repo
    assert repo.place == "https://host/data.git raw"


@pytest.mark.parametrize(
    "repo", ["git@h:/srv/data.git", "h:data.git", "https://team@h/data.git", "ssh://git@h:22/x", "http://[::1]:80/x"]
)
def test_where_repositories_may_be(repo: str) -> None:
    lines = f"  repo: '{repo}'\n  path: x\n  commit: {'a' * 40}\n"
    source = read_pointer(source_with(lines), "m.joblib.mlx").source
    assert isinstance(source, RepoSource)
    assert source.is_remote


def source_with(lines: str) -> bytes:
    return BLOB + f"source:\n{lines}  fetched: {DIGEST}\n".encode()


@pytest.mark.parametrize(
    ("lines", "message", "hint"),
    [
        ("  url: https://ada:secret@host/x\n", "6: `url`: it holds a password", "leave it out"),
        ("  url: ../x\n", "6: `url`: `../x` is no place", None),
        ("  url: https://-oProxyCommand=x/y\n", "6: `url`: `https://-oProxyCommand=x/y` is no place", None),
        ('  url: "ssh://host -oProxyCommand=x/y"\n', "6: `url`: `ssh://host -oProxyCommand=x/y` is no place", None),
        ("  url: s3://bucket\n", "6: `url`: `s3://bucket` is no place", None),
        ('  url: s3://b/x\n  etag: ""\n', "7: `etag`: a version must not be empty", None),
        ("  url: s3://b/x\n  rev: v1\n", "7: unknown key `rev` in this source", None),
        ("  url: s3://b/x\n  repo: https://h/x\n", "5: a source has either `url` or `repo`", None),
        ("  etag: x\n", "5: a source has either `url` or `repo`", None),
        ("  repo: --upload-pack=x\n", "6: `repo`: `--upload-pack=x` is no place", None),
        ("  repo: ext::sh -c x\n", "6: `repo`: `ext::sh -c x` is no place", None),
        ("  repo: ext://x/y\n", "6: `repo`: `ext://x/y` is no place", None),
        ("  repo: ssh://-oProxyCommand=x/y\n", "6: `repo`: `ssh://-oProxyCommand=x/y` is no place", None),
        ("  repo: -x@host:y\n", "6: `repo`: `-x@host:y` is no place", None),
        ("  repo: https://ada:x@h/y\n", "6: `repo`: it holds a password", "leave it out"),
        (f"  repo: https://ghp_{'a' * 36}@h/y\n", "6: `repo`: it holds a password", "leave it out"),
        ("  repo: git@h://x\n", "6: `repo`: `git@h://x` is no place", None),
        ("  repo: git@h:x\n  path: ../x\n", "7: `path`: path `../x` must not hold", None),
        ("  repo: git@h:x\n  path: x\n  rev: --all\n", "8: `rev`: `'--all'` cannot be a revision", None),
        ("  repo: git@h:x\n  path: x\n  commit: abc\n", "8: `commit`: `abc` is not the full name", None),
        ("  repo: git@h:x\n  path: x\n", "5: `commit` is missing in this source", None),
        (f"  repo: git@h:x\n  path: x\n  commit: {'a' * 40}\n  remote: ../x\n", "9: `remote`: `../x` is no", None),
    ],
)
def test_a_wrong_source_is_refused(lines: str, message: str, hint: str | None) -> None:
    with pytest.raises(RecordError) as caught:
        read_pointer(source_with(lines), "m.joblib.mlx")

    assert caught.value.message.startswith(f"m.joblib.mlx:{message}")
    assert hint is None or (caught.value.hint or "").startswith(hint)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/x", True),
        ("S3://b/x", True),
        ("git:///x:file@ref", False),
        ("git@host:team/data", False),
        ("file:///x", False),
        ("local:///x", False),
        ("simplecache://x", False),
        ("/x", False),
        ("../x", False),
        ("ext::x", False),
    ],
)
def test_what_is_of_this_machine_is_told_apart(url: str, expected: bool) -> None:
    assert is_remote(url) is expected


@pytest.mark.parametrize(
    ("repo", "expected"),
    [
        ("https://h/x", True),
        ("git@host:team/data", True),
        ("git://h/x", True),
        ("file:///x", False),
        ("/x", False),
        ("ext::x", False),
        ("s3://b/x", False),
    ],
)
def test_a_repository_of_this_machine_is_told_apart(repo: str, expected: bool) -> None:
    assert is_remote_repository(repo) is expected


def with_lines(**changes: str | None) -> bytes:
    """Return the blob pointer with lines changed, added or (None) removed."""
    lines: dict[str, Any] = {"mlx": "1", "path": "m.joblib", "blob": str(DIGEST), "size": "12"} | changes
    return "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None).encode()


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (with_lines(path="../x"), "2: `path`: path `../x` must not hold", None),
        (with_lines(path="/etc/passwd"), "2: `path`: path `/etc/passwd` must be relative", None),
        (with_lines(path=".git/x"), "2: `path`: path `.git/x` reaches into `.git`", None),
        (with_lines(path=".GIT"), "2: `path`: path `.GIT` reaches into", None),
        (with_lines(path="git~1"), "2: `path`: path `git~1` reaches into", None),
        (with_lines(path="a/m.joblib"), "2: `path` is `a/m.joblib`, and must be a single name", "move the pointer to"),
        (
            with_lines(path="other"),
            "2: `path` is `other`, but this file is `m.joblib.mlx`",
            "rename the file to `other.mlx`",
        ),
        (with_lines(path='""'), "2: `path`: a path must not be empty", None),
        (
            with_lines(path="12"),
            "2: `path` must be text, not the number `12`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        (with_lines(blob="md5:" + "0" * 32), "3: `blob`: `md5` is not a digest algorithm mlx knows", None),
        (with_lines(blob="0" * 64), "3: `blob` must be text, not the number", None),
        (with_lines(blob="blake3:00"), "3: `blob`: `blake3:00` has 2 hexadecimal digits", None),
        (with_lines(blob="blake3:" + "A" * 64), "3: `blob`: `blake3:AAAA", None),
        (with_lines(blob=None), "1: `tree` (a folder) or `blob` (a file) is missing in this pointer", None),
        (with_lines(tree=str(DIGEST)), "3: this pointer has both `tree` and `blob`", "keep the one"),
        (with_lines(size=None), "1: `size` is missing in this pointer", None),
        (with_lines(size="-1"), "4: `size` must be from 0 to 9223372036854775807, not -1", None),
        (with_lines(size=str(1 << 63)), "4: `size` must be from 0 to", None),
        (with_lines(size="1.5"), "4: `size` must be a whole number, not the number `1.5`", None),
        (with_lines(size="true"), "4: `size` must be a whole number, not `true`", None),
        (with_lines(files="1"), "5: `files` belongs to folders, and this is a file", "remove it"),
        (with_lines(executable="1"), "5: `executable` must be `true` or `false`", None),
        (with_lines(sise="1"), "5: unknown key `sise` in this pointer", "did you mean `size`?"),
        (with_lines(pth="1"), "5: unknown key `pth` in this pointer", "did you mean `path`?"),
        (TREE.replace(b"files: 70000\n", b""), "1: `files` is missing in this pointer", None),
        (TREE + b"executable: true\n", "6: `executable` belongs to files, and this is a folder", "remove it"),
        (with_lines(mlx="2", new="1"), "1: format version 2 is newer than this mlx understands", "upgrade"),
        (with_lines(mlx=None), "1: `mlx: 1` must come first", "make `mlx: 1` the first line"),
    ],
)
def test_a_wrong_pointer_is_refused(data: bytes, message: str, hint: str | None) -> None:
    name = "data/raw.mlx" if b"tree:" in data and b"blob:" not in data else "data/m.joblib.mlx"

    with pytest.raises(RecordError) as caught:
        read_pointer(data, name)

    assert caught.value.message.startswith(f"{name}:{message}")
    assert hint is None or (caught.value.hint or "").startswith(hint)


def test_reading_pointers_imports_little() -> None:
    code = (
        "import sys\n"
        "import mlops_cli.records.pointers\n"
        "names = {name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'cython_runtime'}\n"
        "print(*sorted(name for name in names if not name.startswith('_')))\n"
        "print(*sorted({'difflib', 'tomllib', 'importlib.metadata', 'asyncio'} & sys.modules.keys()))\n"
    )

    out = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path}\n" + code],
        capture_output=True,
        text=True,
        check=True,
    )

    assert out.stdout.split("\n")[:2] == ["blake3 mlops_cli xxhash", ""]
