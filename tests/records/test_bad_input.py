"""What no record may hold, tried on every kind of record: the error names file, line, key and the nearest valid key."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_cli.errors import RecordError
from mlops_cli.records.config import read_config
from mlops_cli.records.locks import read_lock
from mlops_cli.records.pipeline import read_pipeline
from mlops_cli.records.pointers import read_pointer

DIGEST = "blake3:" + "0123456789abcdef" * 4

Read = Callable[[bytes], object]

# name, reader, a valid file, and a key of its own
KINDS: dict[str, tuple[str, Read, str, str]] = {
    "pointer": ("data/raw.mlx", lambda data: read_pointer(data, "data/raw.mlx"),
                f"mlx: 1\npath: raw\nblob: {DIGEST}\nsize: 1\n", "size"),
    "config": (".mlx/config.yaml", lambda data: read_config(data, ".mlx/config.yaml"),
               "mlx: 1\ncore:\n  jobs: 1\n", "cache"),
    "pipeline": ("mlx.yaml", lambda data: read_pipeline(data, "mlx.yaml", folder="", read_file=lambda _: None),
                 "mlx: 1\nstages:\n  s:\n    cmd: x\n", "metrics"),
    "lock": ("mlx.lock/s.yaml", lambda data: read_lock(data, "mlx.lock/s.yaml", ""), "mlx: 1\ncmd: x\n", "outs"),
}  # fmt: skip


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[str, Read, str, str]:
    return KINDS[request.param]


def refusal(read: Read, data: bytes) -> RecordError:
    with pytest.raises(RecordError) as caught:
        read(data)
    assert caught.value.exit_code == 2
    assert not caught.value.message.endswith(".")
    return caught.value


def test_the_valid_file_is_read(kind: tuple[str, Read, str, str]) -> None:
    _, read, valid, _ = kind

    read(valid.encode())


def test_an_unknown_key_is_named_with_the_nearest(kind: tuple[str, Read, str, str]) -> None:
    name, read, valid, key = kind

    error = refusal(read, f"{valid}{key}x: 1\n".encode())

    assert error.message.startswith(f"{name}:{valid.count(chr(10)) + 1}: unknown key `{key}x` in ")
    assert error.hint == f"did you mean `{key}`?"


def test_a_key_of_the_wrong_type_is_named(kind: tuple[str, Read, str, str]) -> None:
    name, read, valid, key = kind

    error = refusal(read, f"{valid}{key}: text\n".encode() if key != "size" else valid.replace("1\n", "x\n").encode())

    assert f"`{key}` must be" in error.message or "`mlx` must be" in error.message
    assert error.message.startswith(f"{name}:")


@pytest.mark.parametrize(
    ("spoil", "line", "words"),
    [
        (lambda text: text + "mlx: 1\n", -1, "key `mlx` is here twice, first on line 1"),
        (lambda text: text + "\tx: 1\n", -1, "a tab is used as indentation"),
        (lambda text: text + "x: 'y\n", -1, "a quote is opened and never closed"),
        (lambda text: text + "x: .NaN\n", -1, "`.NaN` is not a finite number"),
        (lambda text: text.replace("mlx: 1", "mlx: 7"), 1, "format version 7 is newer than this mlx understands"),
        (lambda text: text.replace("mlx: 1\n", ""), 1, "`mlx: 1` must come first"),
        (lambda text: text + "x: \udcff\n", -1, "byte 0xff is not UTF-8"),
        (lambda text: text + "x: " + "[" * 50_000, -1, "nested more than 32 levels deep"),
        (lambda text: text + "x: " + "y" * (2 << 20), 1, "the file is larger than 1 MiB"),
        (lambda text: text + "x: !!python/name:os.system y\n", -1, "tag `!!python/name:os.system` is not allowed"),
        (lambda text: text + "---\n" + text, -1, "a second document begins"),
        (lambda text: "- a\n- b\n", 1, "must be a mapping (`key: value`), not a list"),
        (lambda text: "", 1, "must be a mapping (`key: value`), not empty"),
    ],
)
def test_a_file_that_is_no_document_is_refused(
    kind: tuple[str, Read, str, str], spoil: Callable[[str], str], line: int, words: str
) -> None:
    name, read, valid, _ = kind

    error = refusal(read, spoil(valid).encode("utf-8", "surrogateescape"))

    assert error.message.startswith(f"{name}:{line if line > 0 else valid.count(chr(10)) + 1}: ")
    assert words in error.message


def test_an_alias_bomb_is_refused(kind: tuple[str, Read, str, str]) -> None:
    _, read, valid, _ = kind
    levels = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 9)]

    error = refusal(read, f"{valid}a0: &a0 [lol]\n{''.join(levels)}".encode())

    assert "more than 200,000 values, counting what `*` repeats" in error.message


@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=60), st.integers(0, 200))
def test_any_bytes_are_read_or_refused(name: str, noise: bytes, at: int) -> None:
    _, read, valid, _ = KINDS[name]
    data = valid.encode()

    for spoiled in (noise, data[:at] + noise + data[at:], data[:at] + noise):
        try:
            read(spoiled)
        except RecordError as error:
            assert KINDS[name][0] in error.message  # noqa: PT017  # most noise is refused, some is not
