from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mlops_cli.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    Document,
    Fields,
    Inline,
    InlineList,
    check_version,
    describe,
    dump_yaml,
    flatten,
    nearest,
    parse_json,
    parse_scalar,
    parse_toml,
    parse_values,
    parse_yaml,
    suggest,
    yaml_parsing,
)
from mlops_cli.documents.plain import read_plain, write_plain
from mlops_cli.documents.yaml_parsing import parse_any_yaml
from mlops_cli.documents.yaml_writing import emit
from mlops_cli.errors import RecordError

Parser = Callable[[bytes, str], Document]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
# Text that looks like something else, or that ends a plain scalar.
TRICKY_WORDS = """
yes no On y n ~ null NULL true 1 -1 1.5 1e3 1.0e+3 .5 0x1f 0o17 017 0b1 1_000 1:30 12:30:45 2020-01-01 << = - -- --- ...
.inf .nan -.inf +1 a:b a: :a a#b #a a, [a {a &a *a !a %a @a `a ?a |a >a 'a "a a' a" ${x} a* ../x ./x é \U0001f600
"""
TRICKY = st.sampled_from(
    [
        *TRICKY_WORDS.split(),
        *("a: b", "a #b", " a", "a ", "", "a\nb", "a\nb\n", "a\n\n", "\na", " a\nb", "a \nb", "a\n b\n", "a\tb", "\t"),
        *("\x00", "\x7f", "\x85", "\xa0", "\u2028", "\u2029", "\ufeff", "\ufffe", "a\r\nb", "- a", "? a", "k: |"),
        *("2001-12-14t21:59:43.10-05:00", "2001-12-14 21:59:43.10 -5", "x" * 1100, "blake3:" + "0" * 64, "0" * 64),
    ]
)
STRINGS = st.one_of(TEXT, TRICKY)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    STRINGS,
)
KEYS = STRINGS.filter(lambda text: len(text) <= 1000)


def inline(value: object) -> object:
    """Mark every other mapping and list for one line."""
    if isinstance(value, dict):
        made = {key: inline(item) for key, item in value.items()}
        return Inline(made) if len(value) % 2 else made
    if isinstance(value, list):
        items = [inline(item) for item in value]
        return InlineList(items) if len(value) % 3 == 1 else items
    return value


VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=20,
)


def same(one: object, other: object) -> bool:
    """Whether two values are equal and of equal types, all the way down, -0.0 and order of keys included."""
    return json.dumps(one) == json.dumps(other)


# Round trips


@given(VALUES)
def test_what_is_dumped_is_read_back(value: object) -> None:
    data = dump_yaml(inline(value))

    assert same(parse_yaml(data, "x.yaml").value, value)


@given(VALUES)
def test_dumping_what_was_dumped_changes_nothing(value: object) -> None:
    data = dump_yaml(value)

    assert dump_yaml(parse_yaml(data, "x.yaml").value) == data


@given(VALUES)
def test_other_yaml_readers_agree_on_what_is_dumped(value: object) -> None:
    data = dump_yaml(inline(value))

    assert same(yaml.safe_load(data), value)
    assert same(yaml.load(data, yaml.CSafeLoader), value)


@given(VALUES)
def test_pure_python_yaml_reads_the_same(value: object) -> None:
    data = dump_yaml(inline(value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml_parsing, "_Loader", yaml.SafeLoader)
        document = parse_yaml(data, "x.yaml")

    assert document == parse_yaml(data, "x.yaml")


# What plain files are made of, and what is almost that.
PLAIN_WORDS = st.one_of(
    st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_./@+-]{0,8}\Z"),
    st.sampled_from(["mlx", "a", "b", "c", "s3://bucket/x", "blake3:" + "0" * 64, "a:b:c"]),
)
ALMOST_PLAIN = st.sampled_from(
    ["yes", "Null", "y", "True", "_1", "01", "1_0", "1:30", "-1", "1.5", "0x1f", "a b", "~", ""]
)
PLAIN_KEYS = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.-]{0,4}\Z")
PLAIN_LEAVES = st.one_of(PLAIN_WORDS, st.integers(0, 10**18 - 1), st.booleans())
PLAIN_VALUES = st.dictionaries(
    PLAIN_KEYS,
    st.recursive(PLAIN_LEAVES, lambda inner: st.dictionaries(PLAIN_KEYS, inner, min_size=1, max_size=4), max_leaves=8),
    min_size=1,
    max_size=4,
)
LOCK_SCALARS = st.one_of(PLAIN_LEAVES, st.floats(-1000, 1000).map(lambda number: round(number, 3)))
LOCK_ITEMS = st.one_of(
    LOCK_SCALARS, st.dictionaries(PLAIN_KEYS, LOCK_SCALARS, min_size=1, max_size=3).map(Inline), ALMOST_PLAIN
)
LOCK_VALUES = st.one_of(
    LOCK_SCALARS,
    st.lists(PLAIN_WORDS, min_size=2, max_size=4).map(" ".join),
    st.lists(LOCK_ITEMS, min_size=1, max_size=3),
    st.lists(LOCK_SCALARS, min_size=1, max_size=3).map(InlineList),
)
LOCK_LIKE = st.dictionaries(
    PLAIN_KEYS, st.one_of(LOCK_VALUES, st.dictionaries(PLAIN_KEYS, LOCK_VALUES, min_size=1, max_size=2)), min_size=1
).map(lambda value: dump_yaml(value).decode())
CHANGES = st.tuples(
    st.integers(0, 10**6),
    st.integers(0, 3),
    st.one_of(
        ALMOST_PLAIN, st.sampled_from([*": \n\t#'-?&*![{,%\r", "  ", "\n  ", ": ", " #", "\n\n", "# c\n", "\n  # c"])
    ),
)


def change(text: str, changes: Sequence[tuple[int, int, str]]) -> str:
    """Return `text` after each of `changes`: where, how many characters go, what comes instead."""
    for place, removed, added in changes:
        start = place % (len(text) + 1)
        text = text[:start] + added + text[start + removed :]
    return text


@given(PLAIN_VALUES.map(lambda value: emit(value, step=2, inline=False)), st.lists(CHANGES, max_size=2))
@example("a:\n  b: c\n\n  d: 1\ne:\n  f:\n    g: h\n", [])
@example("a:\nb: 1\n", [])
@example("a: b\n  c\n", [])
@example("a: b\n  c: d\n", [])
@example("a:\n  b: 1\n    c: 1\n", [])
@example("a:\n    b: 1\n", [])
@example("a: 1\na: 2\n", [])
@example("  a: 1\nb: 1\n", [])
def test_what_is_read_as_plain_is_what_the_library_reads(text: str, changes: list[tuple[int, int, str]]) -> None:
    _read_both(change(text, changes).encode())


@given(LOCK_LIKE, st.lists(CHANGES, max_size=2))
@example("a: b c\n  - d\n", [])
@example("a: b c\n# d\ne: [f, 1, true]\n", [])
@example("a:\n  - b\n  c: d\n", [])
@example("a:\n  - b\n    c: d\n", [])
@example("a:\n- b\n", [])
@example("- a\n", [])
@example("a:\n  - b\n  - {c: d, c: e}\n", [])
@example("a:\n  b:\n    - c\n  - d\n", [])
@example("a:\n  b:\n    - c\n  d:\n    - e\n    - f\n", [])
@example("a:\n\n  - b # c\n", [])
@example("a:\n  - {b: c:d, e: -0.0}\n", [])
@example("a: b: c\n", [])
@example("a: b - c -- --d=1 e:f\n", [])
def test_what_a_lock_is_made_of_is_read_as_the_library_reads_it(text: str, changes: list[tuple[int, int, str]]) -> None:
    _read_both(change(text, changes).encode())


def _read_both(data: bytes) -> None:
    plain = read_plain(data)
    if plain is not None:
        assert Document("x.yaml", plain.value, plain.lines) == parse_any_yaml(data, "x.yaml")
        assert same(plain.value, parse_any_yaml(data, "x.yaml").value)


@given(PLAIN_VALUES)
def test_plain_values_are_written_as_the_library_writes_them(value: dict[str, object]) -> None:
    written = write_plain(value)
    if any(word.lower() in ("y", "n", "yes", "no", "on", "off", "true", "false", "null") for word in _texts(value)):
        assert written is None
        return
    assert written == emit(value, step=2, inline=False)
    plain = read_plain(written.encode())
    assert plain is not None
    assert same(plain.value, value)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


@given(st.dictionaries(st.one_of(PLAIN_KEYS, KEYS), st.one_of(PLAIN_LEAVES, ALMOST_PLAIN, VALUES), max_size=3))
@example({"k" * 122: 1})
@example({"k" * 123: 1})  # the library begins a key that is so long with a `?`
@example({"a": {"k" * 128: "b"}})
def test_what_is_written_as_plain_is_what_the_library_writes(value: dict[str, object]) -> None:
    written = write_plain(value)
    assert written is None or written == emit(value, step=2, inline=False)


@pytest.mark.parametrize(
    "value",
    [
        {"mlx": 1},
        {"mlx": 1, "path": "raw.csv", "blob": "blake3:" + "5" * 64, "size": 10**9, "executable": True},
        {
            "mlx": 1,
            "core": {"remote": "s"},
            "remotes": {"s": {"url": "s3://bucket/a-b"}, "t": {"url": "https://h:80/x"}},
        },
    ],
)
def test_pointers_and_configurations_are_plain(value: dict[str, object]) -> None:
    assert write_plain(value) is not None
    assert read_plain(dump_yaml(value)) is not None


@given(VALUES)
def test_what_others_dump_is_read(value: object) -> None:
    for style in (True, False, None):
        data = yaml.safe_dump(value, default_flow_style=style, allow_unicode=True).encode()

        assert parse_yaml(data, "x.yaml").value == yaml.safe_load(data)


@given(VALUES)
def test_json_is_read_back(value: object) -> None:
    assert same(parse_json(json.dumps(value, ensure_ascii=False).encode(), "x.json").value, value)


@given(st.text(st.sampled_from("0123456789_+-.:eExobBfFaAnNiIyYtTrRuUlLsS~"), max_size=8))
def test_plain_scalars_mean_what_safe_load_makes_of_them(text: str) -> None:
    try:
        expected = yaml.safe_load(f"a: {text}")["a"]
    except (ValueError, yaml.YAMLError):
        return
    if isinstance(expected, dict | list) or (isinstance(expected, float) and not math.isfinite(expected)):
        return
    if not isinstance(expected, bool | int | float | str | None):
        expected = text  # dates stay text

    found = parse_yaml(f"a: {text}".encode(), "x.yaml").value

    assert found == {"a": expected}
    assert type(found["a"]) is type(expected)


# The look of YAML


def test_yaml_has_the_look_of_the_formats() -> None:
    value: dict[str, object] = {
        "mlx": 1,
        "cmd": "python train.py --seed 0",
        "deps": [Inline(path="data/prepared", tree="blake3:00ff", size=154683), Inline(path="a,b", size=1)],
        "params": {"params.yaml": {"lr": 1e-05, "layers": [1, 2], "name": None, "on": True}},
        "env": Inline(OMP_NUM_THREADS="2"),
        "script": "one\n  two\n\nthree\n",
        "note": "one\ntwo",
        "empty": {},
        "none": [],
        "nested": [["a", "b"], {"k": ["v"]}],
        "short": InlineList(["a", "b c"]),
    }

    assert dump_yaml(value).decode() == (
        "mlx: 1\n"
        "cmd: python train.py --seed 0\n"
        "deps:\n"
        "  - {path: data/prepared, tree: blake3:00ff, size: 154683}\n"
        '  - {path: "a,b", size: 1}\n'
        "params:\n"
        "  params.yaml:\n"
        "    lr: 1.0e-05\n"
        "    layers:\n"
        "      - 1\n"
        "      - 2\n"
        "    name: null\n"
        '    "on": true\n'
        'env: {OMP_NUM_THREADS: "2"}\n'
        "script: |\n"
        "  one\n"
        "    two\n"
        "\n"
        "  three\n"
        "note: |-\n"
        "  one\n"
        "  two\n"
        "empty: {}\n"
        "none: []\n"
        "nested:\n"
        "  - - a\n"
        "    - b\n"
        "  - k:\n"
        "      - v\n"
        "short: [a, b c]\n"
    )


def test_lines_are_never_folded() -> None:
    path = "/".join(["folder name"] * 200)

    assert dump_yaml({"deps": [Inline(path=path, size=1)]}).count(b"\n") == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": math.nan}, "`nan` is not a finite number"),
        ({"a": [math.inf]}, "`inf` is not a finite number"),
        ({1: "a"}, "key `1` is not text"),
        ({"a": {1, 2}}, "a value of type `set` has no place in a document"),
        ({"a": b"x"}, "a value of type `bytes` has no place in a document"),
        ({"a": "\ud800"}, "text holds half of a surrogate pair, which is not a character"),
        ({"\ud800": 1}, "a key holds half of a surrogate pair, which is not a character"),
        ({"a": 10**400}, "a number has more than 300 digits"),
        ({"a": [0] * 300_000}, "more than 200,000 values"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(value: object, reason: str) -> None:
    with pytest.raises(RecordError) as caught:
        dump_yaml(value)

    assert caught.value.message == f"the file to write cannot be read back: {reason}"


def test_a_value_nested_too_deep_is_not_written() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]

    assert parse_yaml(dump_yaml(value), "x.yaml").value == value
    with pytest.raises(RecordError, match="nested more than 32 levels deep"):
        dump_yaml([value])


def test_a_file_over_the_limit_is_not_written() -> None:
    entries = [Inline(path=f"data/{number:064}", size=number) for number in range(14_000)]

    with pytest.raises(RecordError, match="larger than 1 MiB") as caught:
        dump_yaml({"deps": entries})

    assert caught.value.hint == "name folders where it names many single files"


def test_a_key_too_long_for_yaml_is_refused() -> None:
    with pytest.raises(RecordError, match="longer than 1,000 characters"):
        dump_yaml({"k" * 1001: 1})


# Lines


def test_lines_are_those_of_keys_and_items() -> None:
    document = parse_yaml(b"# top\na: 1\nb:\n  - x\n  -\n    c: 2\n\nd: {e: 1,\n  f: [g]}\n", "x.yaml")

    assert document.lines == {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 1): 6,
        ("b", 1, "c"): 6,
        ("d",): 8,
        ("d", "e"): 8,
        ("d", "f"): 9,
        ("d", "f", 0): 9,
    }


def test_the_line_of_what_has_none_is_that_of_what_holds_it() -> None:
    document = parse_yaml(b"a: &a\n  b: 1\nc: *a\n", "x.yaml")

    assert document.line(("c", "b")) == 3
    assert document.line(("z",)) == 1
    assert Document("x.json", {}, {}).line(("a",)) == 1


# Anchors and merge keys


def test_anchors_aliases_and_merge_keys_work() -> None:
    data = b"""
base: &base {a: 1, b: &b [x]}
other: &other {b: 2, c: 3}
one: {<<: *base, a: 9}
two:
  <<: [*base, *other]
  d: *b
three: {"<<": kept}
"""

    document = parse_yaml(data, "x.yaml")

    assert document.value == {
        "base": {"a": 1, "b": ["x"]},
        "other": {"b": 2, "c": 3},
        "one": {"a": 9, "b": ["x"]},
        "two": {"a": 1, "b": ["x"], "c": 3, "d": ["x"]},
        "three": {"<<": "kept"},
    }
    assert document.value == yaml.safe_load(data.replace(b"kept", b"kept"))
    assert document.line(("two", "c")) == 6


def test_an_alias_to_text_may_be_a_key() -> None:
    assert parse_yaml(b"a: &k name\n*k : 1\n", "x.yaml").value == {"a": "name", "name": 1}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: *x\n", "x.yaml:1: `*x` has no `&x` before it"),
        (b"a: &x\n  b: *x\n", "x.yaml:2: `*x` stands within what it refers to"),
        (b"a: &x [*x]\n", "x.yaml:1: `*x` stands within what it refers to"),
        (b"a:\n  <<: 1\n", "x.yaml:2: `<<` takes a mapping, or a list of mappings"),
        (b"a:\n  <<: [1]\n", "x.yaml:2: `<<` takes a mapping, or a list of mappings"),
    ],
)
def test_wrong_aliases_are_named(data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_yaml(data, "x.yaml")

    assert caught.value.message == message


# Bad input

CONFLICT = "the file has merge conflict markers of Git"
BY_HAND = "keep the lines that are right, and remove those that Git added (`<<<<<<<`, `=======`, `>>>>>>>`)"


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"a: 1\nb: 2\na: 3\n", "3: key `a` is here twice, first on line 1", "keep one of them"),
        (b"a: {b: 1, b: 2}\n", "1: key `b` is here twice, first on line 1", "keep one of them"),
        (b"a:\n  b: 1\n\tc: 2\n", "3: a tab is used as indentation", "indent with spaces"),
        (b"a:\n\tb: 1\n", "2: a tab is used as indentation", "indent with spaces"),
        (b"a: {b: 1,\n\tc: 2}\n", "2: a tab is used as indentation", "indent with spaces"),
        (b"a:\n  - x\n\t\nb: 1\n", "3: a tab is used as indentation", "indent with spaces"),
        (b"a: 1\nb: 'x\nc: 3\n", "2: a quote is opened and never closed", "close it on the same line"),
        (b'a: 1\nb: "x\nc: 3\n', "2: a quote is opened and never closed", "close it on the same line"),
        (b"a: 1\nb: .nan\n", "2: `.nan` is not a finite number", "write a finite number, or put text in quotes"),
        (b"a: -.inf\n", "1: `-.inf` is not a finite number", "write a finite number, or put text in quotes"),
        (b"a: 1.0e+999\n", "1: `1.0e+999` is not a finite number", "write a finite number, or put text in quotes"),
        (b"a: " + b"9" * 400 + b":30.5\n", f"1: `{'9' * 80}` is not a finite number", None),
        (b"a: 0b_\n", "1: `0b_` is not a whole number", "write a finite number, or put text in quotes"),
        (b"a: " + b"9" * 5000, "1: a number has more than 300 digits", "write a finite number, or put text in quotes"),
        (b"a: 0x" + b"f" * 900, "1: a number has more than 300 digits", "write a finite number, or put text in quotes"),
        (b"a: 1\nb: \xff\n", "2: byte 0xff is not UTF-8", "save the file as UTF-8"),
        (b"a:\n<<<<<<< HEAD\n  b: 1\n=======\n  b: 2\n>>>>>>> other\n", f"2: {CONFLICT}", BY_HAND),
        (b"<<<<<<< HEAD\r\na: 1\r\na: 2\r\n=======\r\n>>>>>>> other\r\n", f"1: {CONFLICT}", BY_HAND),
        (b"a: 1\n>>>>>>> other\n", f"2: {CONFLICT}", BY_HAND),
        ("a: é\n".encode("latin-1"), "1: byte 0xe9 is not UTF-8", "save the file as UTF-8"),
        ("a: 1\n".encode("utf-16"), "1: byte 0xff is not UTF-8", "save the file as UTF-8"),
        (b"a: 1\nb: x\x01\n", "2: a control character stands in the text", "remove it, or write it as an escape"),
        (b"a: 1\n---\nb: 2\n", "2: a second document begins", "keep one document per file: remove the `---`"),
        (b"1: x\n", "1: key `1` is a number, and must be text", 'write it in quotes: `"1":`'),
        (b"a:\n  on: x\n", "2: key `on` is a true/false value, and must be text", 'write it in quotes: `"on":`'),
        (b"~: x\n", "1: key `~` is empty, and must be text", 'write it in quotes: `"~":`'),
        (b"[a]: x\n", "1: a key must be text, not a list or mapping", None),
        (b"? {a: 1}\n: x\n", "1: a key must be text, not a list or mapping", None),
        (b"a: !!python/object:os.system x\n", "1: tag `!!python/object:os.system` is not allowed", None),
        (b"a: !!binary aGk=\n", "1: tag `!!binary` is not allowed", None),
        (b"a: !!set {b}\n", "1: tag `!!set` is not allowed", None),
        (b"a: !mine [b]\n", "1: tag `!mine` is not allowed", None),
        (b"a: b: c\n", "1: a `:` stands where none can", None),
        (b"a:\n  b: 1\n c: 2\n", "3: this line does not fit the lines above it", None),
        (b"- a\nb: 1\n", "2: this line does not fit the list above it", "check the indentation"),
        (b"a: [1, 2\nb: 3\n", "2: a list opened with `[` is not closed", "end it with `]`"),
        (b"a:\n- [b, x ${c}]\n", "2: text with `${` within `[ ]` or `{ }` needs quotes", 'such as `["${name}"]`'),
        (b"a: {b: ${c}}\n", "1: text with `${` within `[ ]` or `{ }` needs quotes", 'such as `["${name}"]`'),
        (b"a: {b: 1\nc: 3\n", "2: a mapping opened with `{` is not closed", "end it with `}`"),
        (b"a: @x\n", "1: text cannot begin with this character", "put the text in quotes"),
        (b"a: !<x\n", "1: not valid YAML: did not find the expected '>'", None),
        (b"[" * 50_000, "1: nested more than 32 levels deep", None),
        (b"{a: " * 50_000, "1: nested more than 32 levels deep", None),
        (b"- " * 50_000, "1: nested more than 32 levels deep", None),
        (b"? " * 50_000, "1: a key must be text, not a list or mapping", None),
        (b"a: " + b"x" * (2 << 20), "1: the file is larger than 1 MiB (2,097,155 bytes)", None),
    ],
)
@pytest.mark.parametrize("loader", [yaml.CSafeLoader, yaml.SafeLoader])
def test_bad_yaml_is_refused_with_its_line(
    data: bytes, message: str, hint: str | None, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_parsing, "_Loader", loader)

    with pytest.raises(RecordError) as caught:
        parse_yaml(data, "some.yaml")

    assert caught.value.message.startswith(f"some.yaml:{message.partition(':')[0]}:")
    if loader is yaml.CSafeLoader:
        assert caught.value.message == f"some.yaml:{message}"
        assert hint is None or caught.value.hint == hint
    assert caught.value.exit_code == 2


def bomb(width: int, levels: int, leaf: bytes) -> bytes:
    repeated = (b", ".join([b"*a%d" % level] * width) for level in range(levels - 1))
    lines = (b"a%d: &a%d [%s]\n" % (level, level, inner) for level, inner in enumerate(repeated, start=1))
    return b"a0: &a0 " + leaf + b"\n" + b"".join(lines)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"[" + b"1," * 300_000 + b"]", "more than 200,000 values"),
        (bomb(9, 10, b"[lol]"), "more than 200,000 values"),
        (bomb(2, 25, b"lol"), "more than 200,000 values"),
        (b"a: &a " + b"x" * 500_000 + b"\nb: [" + b"*a, " * 100_000 + b"]\n", "more than 200,000 values"),
        (bomb(1, 40, b"[x]"), "nested more than 32 levels deep"),
        (
            b"a0: &a0 {" + b", ".join(b"k%d: v" % i for i in range(1000)) + b"}\n"
            + b"".join(b"m%d: {<<: *a0}\n" % i for i in range(2000)),
            "more than 200,000 values",
        ),
    ],
)  # fmt: skip
def test_bombs_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(RecordError, match=what):
        parse_yaml(data, "bomb.yaml")


def test_deep_nesting_does_not_crash_the_interpreter() -> None:
    code = """
from mlops_cli.documents import parse_values
from mlops_cli.errors import RecordError
STARTS = ("x.yaml", "["), ("x.yaml", "{a: "), ("x.json", "["), ("x.json", '{"a":'), ("x.toml", "a=["), ("x.toml", "[")
for name, data in STARTS:
    try:
        parse_values((data[:-1] + data[-1] * 50_000 if name == "x.toml" else data * 50_000).encode(), name)
    except RecordError as error:
        print(error.message)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 6


def test_the_largest_file_and_the_deepest_value_pass() -> None:
    filler = b"# " + b"x" * (MAX_BYTES - 8) + b"\n"
    deep = b"a: " + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"\n"

    assert parse_yaml(b"a: 1\n" + filler, "x.yaml").value == {"a": 1}
    assert parse_yaml(deep, "x.yaml").value is not None


def test_a_tab_that_is_not_indentation_is_allowed() -> None:
    data = b'a:\tb\nc: "x\ty"\nd: |\n  z\n  \ty\ne: 1\t# note\n'

    assert parse_yaml(data, "x.yaml").value == {"a": "b", "c": "x\ty", "d": "z\n\ty\n", "e": 1}


def test_a_byte_order_mark_is_passed_over() -> None:
    for parser, data in ((parse_yaml, b"a: 1"), (parse_json, b'{"a": 1}'), (parse_toml, b"a = 1")):
        assert parser(b"\xef\xbb\xbf" + data, "x").value == {"a": 1}


def test_an_empty_file_is_nothing() -> None:
    assert parse_yaml(b"", "x.yaml").value is None
    assert parse_yaml(b"# only a comment\n", "x.yaml").value is None


def test_core_tags_and_dates() -> None:
    data = b"a: !!str 12\nb: !!int '3'\nc: !!float 1\nd: 2020-01-02\ne: !!map {f: !!seq [!!null x, !!bool yes]}\n"

    assert parse_yaml(data, "x.yaml").value == {
        "a": "12",
        "b": 3,
        "c": 1.0,
        "d": "2020-01-02",
        "e": {"f": [None, True]},
    }


def test_scalars_are_parsed_alone() -> None:
    assert [parse_scalar(text) for text in ("1", "1.5", "true", "~", "a b", "1e3")] == [
        1,
        1.5,
        True,
        None,
        "a b",
        "1e3",
    ]
    with pytest.raises(ValueError, match="not a finite number"):
        parse_scalar(".nan")


# JSON and TOML


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1,\n "a": 2}', "2: key `a` is here twice, first on line 1"),
        (b'{"x": {"a": 1}, "a": [{"b": 1},\n{"b": 2, "\\u0062": 3}]}', "2: key `b` is here twice, first on line 2"),
        (b'{"a": 1,\n "b": NaN}', "2: `NaN` is not a finite number"),
        (b'{"a": "NaN",\n\n "b": [-Infinity]}', "3: `-Infinity` is not a finite number"),
        (b'{"a": 1,\n "b": 1e999}', "2: `1e999` is not a finite number"),
        (b'{"a": 1,\n}', "2: not valid JSON: expecting property name enclosed in double quotes"),
        (b'{"a": \x01}', "1: not valid JSON: expecting value"),
        (b"", "1: not valid JSON: expecting value"),
        (b'{"a":\n "\\ud800"}', "1: text holds half of a surrogate pair, which is not a character"),
        (b'{"a": \xff}', "1: byte 0xff is not UTF-8"),
        (b"[" * 50_000, "1: nested more than 32 levels deep"),
        (b"[" * 40 + b"]" * 40, "1: nested more than 32 levels deep"),
        (b'"' + b"x" * (2 << 20) + b'"', "1: the file is larger than 1 MiB (2,097,154 bytes)"),
    ],
)
def test_bad_json_is_refused_with_its_line(data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_json(data, "some.json")

    assert caught.value.message == f"some.json:{message}"


def test_a_number_of_many_digits_in_json_is_refused() -> None:
    for digits in (400, 5000):
        with pytest.raises(RecordError, match=r"^some\.json:1: "):
            parse_json(b"9" * digits, "some.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = 1\na = 2\n", "2: not valid TOML: cannot overwrite a value"),
        (b"a = 1\nb = nan\n", "2: `nan` is not a finite number"),
        (b"# nan\nbanana = 'nan'\nb = [1.0,\n-inf]\n", "4: `-inf` is not a finite number"),
        (b"a = 1\nb = 1e999\n", "2: `inf` is not a finite number"),
        (b"a = 1\nb = @\n", "2: not valid TOML: invalid value"),
        (b"a = [1\n", "2: not valid TOML: unclosed array"),
        (b"a = \xff\n", "1: byte 0xff is not UTF-8"),
        (b"a = " + b"[" * 50_000, "1: nested more than 32 levels deep"),
        (b"# 1\n" + b"a.'b'. " * 20 + b"c = 1", "2: nested more than 32 levels deep"),
        (b"[" + b"a.b." * 10 + b"c]\n" + b"a." * 20 + b"c = 1", "1: nested more than 32 levels deep"),
        (b"a = 1\nb = {" + b"x." * 500_000 + b"x = 1}", "2: nested more than 32 levels deep"),
    ],
)
def test_bad_toml_is_refused_with_its_line(data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_toml(data, "some.toml")

    assert caught.value.message == f"some.toml:{message}"


def test_toml_dates_become_text() -> None:
    data = b"a = 2020-01-02\nb = [07:30:00]\n[c]\nd = 2020-01-02T03:04:05Z\n"

    assert parse_toml(data, "x.toml").value == {
        "a": "2020-01-02",
        "b": ["07:30:00"],
        "c": {"d": "2020-01-02T03:04:05+00:00"},
    }


@pytest.mark.parametrize(
    ("name", "data"), [("a.yaml", b"a: 1"), ("a.YML", b"a: 1"), ("x/a.json", b'{"a": 1}'), ("a.toml", b"a = 1")]
)
def test_the_suffix_chooses_the_parser(name: str, data: bytes) -> None:
    assert parse_values(data, name).value == {"a": 1}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.yaml", b'a: "1\n<<<<<<< ours\n=======\n>>>>>>> theirs\n"'),
        ("a.json", b'{\n<<<<<<< ours\n"a": 1\n=======\n"a": 2\n>>>>>>> theirs\n}\n'),
        ("a.toml", b"a = 1\n<<<<<<< ours\nb = 1\n=======\nb = 2\n>>>>>>> theirs\n"),
    ],
)
def test_conflict_markers_are_named_whatever_the_parser(name: str, data: bytes) -> None:
    with pytest.raises(RecordError) as caught:
        parse_values(data, name)

    assert (caught.value.message, caught.value.hint) == (f"{name}:2: {CONFLICT}", BY_HAND)


def test_conflict_markers_within_a_line_or_a_block_are_text() -> None:
    data = b"a: <<<<<<< x\nb: |\n  <<<<<<< ours\n  =======\n  >>>>>>> theirs\n"

    assert parse_yaml(data, "x.yaml").value == {
        "a": "<<<<<<< x",
        "b": "<<<<<<< ours\n=======\n>>>>>>> theirs\n",
    }


def test_the_way_out_of_a_conflict_in_a_file_that_nobody_writes() -> None:
    with pytest.raises(RecordError) as caught:
        parse_yaml(b"<<<<<<< ours\n", "a b.yaml", after_merge="`mlx run`")

    assert caught.value.hint == (
        "`mlx resolve 'a b.yaml'` merges both sides, or says what is to be decided; then `mlx run`"
    )


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(RecordError, match=r"`a.csv` is not a file of values"):
        parse_values(b"a,b", "a.csv")


# Fields

FILE = b"""mlx: 1
name: x
size: 12
ratio: 1.5
flag: true
items: [a, b]
inner: {deep: {k: v}}
empty:
"""


@pytest.fixture
def fields() -> Fields:
    return Fields(parse_yaml(FILE, "f.yaml"))


def test_fields_read_each_type(fields: Fields) -> None:
    check_version(fields)

    assert fields.text("name") == "x"
    assert fields.integer("size") == 12
    assert fields.number("ratio") == 1.5
    assert fields.number("size") == 12
    assert fields.boolean("flag") is True
    assert fields.texts("items") == ("a", "b")
    assert fields.items("items") == ("a", "b")
    assert fields.parsed("name", str.upper) == "X"
    assert fields.raw("empty") is None
    inner = fields.mapping("inner")
    assert inner is not None
    assert inner.at == ("inner",)
    assert inner.raw("deep") == {"k": "v"}


def test_absent_keys_have_defaults(fields: Fields) -> None:
    assert fields.text("no", None) is None
    assert fields.integer("no", default=3) == 3
    assert fields.number("no", default=0.5) == 0.5
    assert fields.boolean("no", default=False) is False
    assert fields.texts("no", ()) == ()
    assert fields.items("no") == ()
    assert fields.mapping("no") is None
    assert fields.raw("no", 7) == 7
    assert not fields.has("no")


@pytest.mark.parametrize(
    ("read", "message", "hint"),
    [
        (
            lambda f: f.text("size"),
            "f.yaml:3: `size` must be text, not the number `12`",
            "put it in quotes, as it is written there: without them it is a number",
        ),
        (
            lambda f: f.text("flag"),
            "f.yaml:5: `flag` must be text, not `true`",
            "put it in quotes, as it is written there: without them it is true or false",
        ),
        (lambda f: f.text("items"), "f.yaml:6: `items` must be text, not a list", None),
        (lambda f: f.text("empty"), "f.yaml:8: `empty` must be text, not empty", None),
        (lambda f: f.text("nam"), "f.yaml:1: `nam` is missing in the file", "`name` looks like it"),
        (lambda f: f.text("zzz"), "f.yaml:1: `zzz` is missing in the file", None),
        (lambda f: f.integer("name"), "f.yaml:2: `name` must be a whole number, not text", None),
        (lambda f: f.integer("flag"), "f.yaml:5: `flag` must be a whole number, not `true`", None),
        (lambda f: f.integer("ratio"), "f.yaml:4: `ratio` must be a whole number, not the number `1.5`", None),
        (lambda f: f.integer("size", 13), "f.yaml:3: `size` must be from 13 to 9223372036854775807, not 12", None),
        (lambda f: f.integer("size", 0, 9), "f.yaml:3: `size` must be from 0 to 9, not 12", None),
        (lambda f: f.number("flag"), "f.yaml:5: `flag` must be a number, not `true`", None),
        (lambda f: f.number("ratio", 2), "f.yaml:4: `ratio` must be at least 2, not 1.5", None),
        (lambda f: f.boolean("size"), "f.yaml:3: `size` must be `true` or `false`, not the number `12`", None),
        (lambda f: f.texts("name"), "f.yaml:2: `name` must be a list (`[a, b]`), not text", None),
        (lambda f: f.items("inner"), "f.yaml:7: `inner` must be a list (`[a, b]`), not a mapping", None),
        (lambda f: f.mapping("items"), "f.yaml:6: `items` must be a mapping (`key: value`), not a list", None),
        (lambda f: f.parsed("name", int), "f.yaml:2: `name`: invalid literal for int() with base 10: 'x'", None),
        (
            lambda f: f.only(["nmae", "sized"]),
            "f.yaml:1: unknown key `mlx` in the file",
            "the keys here are: `nmae`, `sized`",
        ),
        (lambda f: f.only(["mlx", "names"]), "f.yaml:2: unknown key `name` in the file", "did you mean `names`?"),
    ],
)
def test_fields_name_line_key_and_the_nearest(
    fields: Fields, read: Callable[[Fields], object], message: str, hint: str | None
) -> None:
    with pytest.raises(RecordError) as caught:
        read(fields)

    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_list_item_of_the_wrong_type_is_named_with_its_line() -> None:
    fields = Fields(parse_yaml(b"a:\n  - x\n  - 2\n", "f.yaml"))

    with pytest.raises(RecordError) as caught:
        fields.texts("a")

    assert caught.value.message == "f.yaml:3: `a[1]` must be text, not the number `2`"


def test_text_with_a_nul_is_refused() -> None:
    with pytest.raises(RecordError, match=r"f\.yaml:1: `a` holds a NUL character"):
        Fields(parse_yaml(b'a: "x\\0"\n', "f.yaml")).text("a")


@pytest.mark.parametrize("data", [b"", b"[1]", b"text", b"12"])
def test_a_file_that_is_no_mapping_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError, match=r"f\.yaml:1: the file must be a mapping"):
        Fields(parse_yaml(data, "f.yaml"))


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"a: 1\n", "f.yaml:1: `mlx: 1` must come first", "make `mlx: 1` the first line"),
        (b"a: 1\nmlx: 1\n", "f.yaml:2: `mlx: 1` must come first", "make `mlx: 1` the first line"),
        (b"mlx: 2\n", "f.yaml:1: format version 2 is newer than this mlx understands", "upgrade: "),
        (b"mlx: 0\n", "f.yaml:1: `mlx` must be 1", "write `mlx: 1`"),
        (b"mlx: '1'\n", "f.yaml:1: `mlx` must be 1", "write `mlx: 1`"),
        (b"mlx: true\n", "f.yaml:1: `mlx` must be 1", "write `mlx: 1`"),
        (b"mlx: 1.0\n", "f.yaml:1: `mlx` must be 1", "write `mlx: 1`"),
        (b"mlx:\n", "f.yaml:1: `mlx` must be 1", "write `mlx: 1`"),
    ],
)
def test_the_version_comes_first_and_is_known(data: bytes, message: str, hint: str) -> None:
    with pytest.raises(RecordError) as caught:
        check_version(Fields(parse_yaml(data, "f.yaml")))

    assert caught.value.message.startswith(message)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


# Words


def test_the_nearest_name_ignores_case() -> None:
    assert nearest("OUTS", ["outs", "deps"]) == "outs"
    assert nearest("zzz", ["outs", "deps"]) is None


def test_a_suggestion_lists_names_when_none_is_near() -> None:
    assert suggest("out", ["outs", "deps"], "the keys are") == "did you mean `outs`?"
    assert suggest("zzz", ["outs", "deps"], "the keys are") == "the keys are: `outs`, `deps`"
    assert suggest("zzz", [str(number) for number in range(20)], "they are").endswith("`11`, …")  # type: ignore[union-attr]
    assert suggest("zzz", [], "the keys are") is None


def test_values_are_described_in_words() -> None:
    values: list[object] = [None, True, 1, "a", [], {}]

    assert [describe(value) for value in values] == [
        "empty",
        "`true`",
        "the number `1`",
        "text",
        "a list",
        "a mapping",
    ]


def test_flatten_joins_keys_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
