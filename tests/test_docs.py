"""The documentation is true: examples can be read, links lead somewhere, commands exist, and nothing is stale."""

from __future__ import annotations

import ast
import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlops_cli
from mlops_cli import errors
from mlops_cli.cli.reference import reference
from mlops_cli.documents import parse_yaml
from mlops_cli.documents.schemas import find_violations
from mlops_cli.errors import RecordError
from mlops_cli.hashing import fingerprint, hash_bytes, hash_raw
from mlops_cli.records import config, locks, pipeline, pointers
from mlops_cli.store.recipe import MOST_CHUNKS, Recipe, decode_recipe, encode_recipe
from mlops_cli.store.remote_marker import LAYOUT, layout_of
from mlops_cli.store.trees import Entry, Kind, decode_tree, encode_tree
from tests.cli.conftest import LEAVES
from tests.command_lines import calls, fault

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/*.md")])
SOURCES = sorted((ROOT / "mlops_cli").rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Yield language and body of every code block."""
    yield from re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def marked(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield what the comment before a code block says (kind and name), and the block's body."""
    for mark, body in re.findall(r"<!-- ([^>]+) -->\n```\w+\n(.*?)```", text, re.DOTALL):
        kind, _, name = mark.partition(": ")
        yield kind, name, body


# Generated pages -----------------------------------------------------------------------------------------------------


def test_the_command_reference_is_fresh() -> None:
    written = (REFERENCE / "cli.md").read_text(encoding="utf-8")

    assert written == reference(), "`python -m mlops_cli.cli.reference > docs/reference/cli.md` writes it anew"


def test_every_command_has_its_schema_listed() -> None:
    page = (REFERENCE / "json.md").read_text(encoding="utf-8")

    for path in LEAVES:
        kind = "-".join(path)
        assert f"| `mlx {' '.join(path)}` | [`mlx/{kind}/v1`](../../mlops_cli/schemas/{kind}.v1.json) |" in page


def test_every_exit_code_is_explained() -> None:
    page = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MlxError)]

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert listed == {0, 70, 130, 141} | {kind.exit_code for kind in kinds}


def test_every_setting_and_variable_is_explained() -> None:
    formats = (REFERENCE / "formats.md").read_text(encoding="utf-8")
    environment = (REFERENCE / "environment.md").read_text(encoding="utf-8")

    for setting in config._OPTIONS:
        assert f"| `{setting}` |" in formats
        assert f"| `MLX_{setting.upper().replace('.', '_')}` | `{setting}` |" in environment


def test_every_public_name_is_explained() -> None:
    page = (REFERENCE / "python.md").read_text(encoding="utf-8")

    for name in mlops_cli.__all__:
        assert re.search(rf"^\| `{name}[`(]", page, re.MULTILINE), name
        assert getattr(mlops_cli, name)
    for language, body in blocks(page):
        if language == "python":
            ast.parse(body)


def test_the_glossary_is_sorted() -> None:
    terms = re.findall(r"^\*\*(.+?)\*\* — ", (REFERENCE / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE)

    assert len(terms) > 25
    assert terms == sorted(terms)


# Links ---------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the fragments that a page's headings make, as hosting sites spell them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        if fragment:
            assert fragment in anchors(place.read_text(encoding="utf-8")), target


def test_every_page_can_be_reached() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or not page.is_file():
            continue
        reached.add(page)
        if page.suffix == ".md":
            found = re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / target).resolve() for target in found if not re.match(r"[a-z]+:", target)]

    assert [name_of(page) for page in PAGES if page not in reached and page.is_relative_to(ROOT / "docs")] == []


# Commands ------------------------------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[str]:
    """Yield the lines that a reader is to type: after `$ `, or beginning with `mlx ` in a block of shell or YAML."""
    for language, body in blocks(text):
        joined = body.replace("\\\n", " ")
        for line in joined.splitlines():
            typed = re.match(r" *\$ (.*)", line)
            if typed:
                yield typed[1]
            elif language in ("sh", "bash", "shell", "yaml", "yml"):
                found = re.match(r"(?: *- )?(?:run: )?(mlx .*)", line.strip())
                if found:
                    yield found[1]


def spoken_of(text: str) -> set[str]:
    """Return what stands in backticks and begins with `mlx `, outside code blocks."""
    return set(re.findall(r"`(mlx [^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    lines = [*command_lines(text), *spoken_of(text)]

    assert [found for line in lines for words in calls(line) if (found := fault(words)) is not None] == []


@pytest.mark.parametrize("source", SOURCES, ids=name_of)
def test_commands_in_messages_exist(source: Path) -> None:
    said: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            said |= spoken_of("".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            said |= spoken_of(node.value)

    known = (line for line in said if not re.match(r"mlx [A-Z]+\b", line))
    assert [found for line in known if (found := fault(line.split()[1:])) is not None] == []


def test_the_check_of_commands_can_fail() -> None:
    assert fault(["sttus"]) == "there is no command `mlx sttus`"
    assert fault(["remote", "nonsense"]) == "there is no command `mlx remote nonsense`"
    assert fault(["add", "--nonsense", "x"]) == "`mlx add` has no option `--nonsense`"
    assert fault(["stage", "add", "x", "-c", "mlx -x", "-d", "y"]) is None
    assert list(calls("cd x && A=1 mlx -C y status | head # mlx nonsense")) == [["-C", "y", "status"]]
    assert list(command_lines("```console\n$ mlx add \\\n    x\nmlx output\n```\n")) == ["mlx add      x"]


# Formats -------------------------------------------------------------------------------------------------------------

FORMATS = (REFERENCE / "formats.md").read_text(encoding="utf-8")
EXAMPLES = list(marked(FORMATS))


def read_record(kind: str, name: str, data: bytes) -> bytes:
    """Read an example as `mlx` does; returns what `mlx` would write for it, or the same bytes for what people write."""
    if kind == "pointer":
        return pointers.read_pointer(data, name).to_bytes()
    if kind == "lock":
        return locks.read_lock(data, name, "").to_bytes("")
    if kind == "config":
        return config.write_config(config.read_config(data, name))
    found = pipeline.read_pipeline(data, name, folder="", read_file={}.get)
    assert found.stages
    return data


RECORDS = [example for example in EXAMPLES if example[0] in ("pointer", "pipeline", "lock", "config")]
REFUSED = [example for example in EXAMPLES if example[0].startswith("refused ")]


@pytest.mark.parametrize(("kind", "name", "body"), RECORDS)
def test_an_example_of_a_record_is_valid_and_canonical(kind: str, name: str, body: str) -> None:
    assert read_record(kind, name, body.encode()).decode() == body
    assert find_violations(parse_yaml(body.encode(), name).value, kind) == []


@pytest.mark.parametrize(("kind", "name", "body"), REFUSED)
def test_an_example_of_what_is_refused_is_refused(kind: str, name: str, body: str) -> None:
    kind = kind.removeprefix("refused ")

    with pytest.raises(RecordError, match=rf"^{re.escape(name)}:\d+: "):
        read_record(kind, name, body.encode())
    assert find_violations(parse_yaml(body.encode(), name).value, kind) or "secret" in body


def test_every_kind_of_record_has_an_example() -> None:
    assert {kind for kind, _, _ in RECORDS} == {"pointer", "pipeline", "lock", "config"}
    assert {kind for kind, _, _ in REFUSED} == {"refused pointer", "refused pipeline", "refused config"}


@pytest.mark.parametrize("kind", ["pointer", "lock", "config", "pipeline"])
def test_every_key_of_a_record_is_specified(kind: str) -> None:
    schema = json.loads((ROOT / "mlops_cli" / "schemas" / f"{kind}.v1.json").read_text(encoding="utf-8"))

    def keys(part: Any) -> Iterator[str]:
        yield from part.get("properties", {})
        for inner in (*part.get("properties", {}).values(), *part.get("$defs", {}).values()):
            yield from keys(inner)
        for key in ("items", "additionalProperties"):
            if isinstance(part.get(key), dict):
                yield from keys(part[key])

    assert [key for key in keys(schema) if not re.search(rf"[`.]{key}[`:.]", FORMATS)] == []


def test_the_example_of_a_tree() -> None:
    body = next(body for kind, _, body in EXAMPLES if kind == "tree")
    data = bytes.fromhex("".join(line[:50] for line in body.splitlines()))
    empty = encode_tree([])[-1][0]

    entries = (
        Entry(b"a.txt", Kind.FILE, 6, 1, hash_bytes(b"hello\n")),
        Entry(b"empty", Kind.FOLDER, 0, 0, empty),
        Entry(b"link", Kind.SYMLINK, 5, 1, hash_bytes(b"a.txt")),
        Entry(b"run.sh", Kind.EXECUTABLE, 10, 1, hash_bytes(b"#!/bin/sh\n")),
    )
    assert encode_tree(entries) == ((hash_bytes(data), data),)
    assert decode_tree(data, hash_bytes(data)) == entries
    assert f"has the digest `{hash_bytes(data)}`" in FORMATS
    hello = hash_bytes(b"hello\n")
    assert f"| `hello\\n` | `{hello}` |" in FORMATS


def test_the_example_of_a_recipe() -> None:
    body = next(body for kind, _, body in EXAMPLES if kind == "recipe")
    data = bytes.fromhex("".join(line[:50] for line in body.splitlines()))
    digests = hash_raw(b"hell") + hash_raw(b"o\n")

    recipe = Recipe(hash_bytes(b"hello\n"), 6, array("I", [4, 2]), digests)
    assert encode_recipe(recipe) == data
    assert decode_recipe(data, recipe.digest) == recipe
    assert f"at most {MOST_CHUNKS:,}" in FORMATS


def test_the_example_of_a_fingerprint() -> None:
    _, name, body = next(example for example in EXAMPLES if example[0] == "fingerprint")
    lock = locks.Lock(
        cmd=("python train.py",),
        deps=(locks.Input("train.py", pointers.ObjectKind.BLOB, hash_bytes(b"hello\n"), 6),),
        params={"params.yaml": {"train.lr": 0.1}},
        outs=(locks.OutputRecord("model.joblib", pointers.ObjectKind.BLOB, hash_bytes(b""), 0),),
    )

    assert locks.inputs_of(lock) == json.loads(body)
    assert fingerprint(json.loads(body)) == name


def test_the_example_of_a_marker() -> None:
    body = next(body for kind, _, body in EXAMPLES if kind == "marker")
    assert layout_of(body.encode(), "remote `storage`") == LAYOUT


def test_the_example_of_ignore_rules(tmp_path: Path) -> None:
    from mlops_cli.workspace.ignore import IgnoreRules

    (tmp_path / ".mlxignore").write_text(next(body for kind, _, body in EXAMPLES if kind == "mlxignore"))
    rules = IgnoreRules().enter(tmp_path, "")

    hidden = {path for path in ("a.tmp", "keep.tmp", "x/.DS_Store", "x/a") if rules.hides(path, is_folder=False)}
    assert hidden == {"a.tmp", "x/.DS_Store"}
    assert rules.hides("scratch", is_folder=True)


@pytest.mark.parametrize(
    "body", [body for kind, _, body in marked((REFERENCE / "json.md").read_text()) if kind == "document"]
)
def test_an_example_of_a_document_is_valid(body: str) -> None:
    document = json.loads(body)

    assert find_violations(document, document["schema"].split("/")[1]) == []
