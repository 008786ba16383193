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

DIGEST = Digest("blake3:" + "0123456789abcdef" * 4)
TREE = f"mlx: 1\npath: raw\ntree: {DIGEST}\nsize: 14445097\nfiles: 70000\n".encode()
BLOB = f"mlx: 1\npath: m.joblib\nblob: {DIGEST}\nsize: 0\n".encode()

DIGESTS = st.binary(min_size=32, max_size=32).map(digest_from_raw)
SIZES = st.integers(0, MAX_INTEGER)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and ":" not in name[1:2] and "git" not in name.lower()
)
POINTERS = st.one_of(
    st.builds(Pointer, NAMES, st.just(ObjectKind.TREE), DIGESTS, SIZES, SIZES, st.just(value=False)),
    st.builds(Pointer, NAMES, st.just(ObjectKind.BLOB), DIGESTS, SIZES, st.none(), st.booleans()),
)


def test_a_pointer_is_read() -> None:
    assert read_pointer(TREE, "data/raw.mlx") == Pointer("raw", ObjectKind.TREE, DIGEST, 14445097, 70000)
    assert read_pointer(BLOB, "m.joblib.mlx") == Pointer("m.joblib", ObjectKind.BLOB, DIGEST, 0)
    assert read_pointer(BLOB + b"executable: true\n", "m.joblib.mlx").executable


@pytest.mark.parametrize("data", [TREE, BLOB, BLOB + b"executable: true\n"])
def test_bytes_survive_reading_and_writing(data: bytes) -> None:
    assert read_pointer(data, "at a revision").to_bytes() == data


@given(POINTERS)
def test_a_pointer_survives_writing_and_reading(pointer: Pointer) -> None:
    data = pointer.to_bytes()

    assert read_pointer(data, f"data/{pointer.path}.mlx") == pointer
    assert read_pointer(data, f"HEAD~1:{pointer.path}.mlx") == pointer
    assert read_pointer(data, f"{pointer.path}.mlx").to_bytes() == data


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
        (with_lines(path="12"), "2: `path` must be text, not the number `12`", 'put it in quotes: `"12"`'),
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
