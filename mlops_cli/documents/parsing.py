"""Reading files of values by their suffix: YAML, JSON, TOML.

JSON and TOML are parsed by the standard library and checked after; only when something is wrong is the text searched
for the line to name. YAML that is plain is read at once; any other is `yaml_parsing`'s, imported when it is needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from mlops_cli.documents.document import MAX_DEPTH, Document, decode, find_fault, located
from mlops_cli.documents.plain import read_plain
from mlops_cli.errors import RecordError

_JSON_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TOML_NUMBER = re.compile(r"[=,\[]\s*([-+]?(?:nan|inf|\d[\d_]*(?:\.[\d_]+)?[eE][-+]?\d+))")
# A dotted key of more parts than a document has levels. tomllib takes time that grows with the square of the parts, so
# such a key is looked for beforehand, outside of strings and comments. A string without its end goes to the end of the
# line or file, so that no place is looked at twice.
_TOML_PART = r"""(?:[\w-]++|"(?:\\.|[^"\\\n])*+"?|'[^'\n]*+'?)[ \t]*+"""
_TOML_SCAN = re.compile(
    r'''"""(?:\\.|[^\\])*?(?:"""|\Z)|\'{3}.*?(?:\'{3}|\Z)|\#[^\n]*+'''
    rf"""|(?<![\w-])(?P<deep>(?:{_TOML_PART}\.[ \t]*+){{{MAX_DEPTH}}})|{_TOML_PART}""",
    re.DOTALL,
)
_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def parse_values(data: bytes, name: str) -> Document:
    """Parse `data` as the suffix of `name` says: `.yaml`, `.yml`, `.json` or `.toml`; RecordError for others."""
    suffix = name.rpartition(".")[2].lower()
    parser = {"yaml": parse_yaml, "yml": parse_yaml, "json": parse_json, "toml": parse_toml}.get(suffix)
    if parser is None:
        raise RecordError(f"`{name}` is not a file of values", hint="use a `.yaml`, `.json` or `.toml` file")
    return parser(data, name)


def parse_yaml(data: bytes, name: str, *, after_merge: str | None = None) -> Document:
    """Parse one YAML document; an empty file is None. RecordError says `name:line` and what is wrong.

    `after_merge` is for files that nobody writes by hand: what to do once a conflict in it is resolved.
    """
    plain = read_plain(data)
    if plain is not None:
        return Document(name, plain.value, plain.lines)

    from mlops_cli.documents.yaml_parsing import parse_any_yaml

    return parse_any_yaml(data, name, after_merge=after_merge)


def parse_json(data: bytes, name: str) -> Document:
    """Parse JSON strictly: no key twice, no NaN, the limits of every document; `lines` is empty."""
    text = decode(data, name)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise located(name, error.lineno, f"not valid JSON: {_lower_first(error.msg)}") from error
    except RecursionError:
        raise located(name, 1, _DEEP) from None
    except ValueError as error:  # a key that is here twice, or a number of thousands of digits
        raise _json_fault(text, name, _lower_first(str(error))) from error
    fault = find_fault(value)
    if fault is not None:
        raise _json_fault(text, name, fault)
    return Document(name, value, {})


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is here twice")
    return found


def _json_fault(text: str, name: str, fault: str) -> RecordError:
    """Return the error for `fault`; it names the first key that is here twice or number that is not finite."""
    scopes: list[dict[str, int]] = []
    previous, line, seen_to = "", 1, 0
    for match in _JSON_PIECE.finditer(text):
        piece = match.group()
        line += text.count("\n", seen_to, match.start())
        seen_to = match.start()
        if piece in ("{", "["):
            scopes.append({})
        elif piece in ("}", "]"):
            scopes.pop()
        elif piece == ":":
            key = json.loads(previous)
            if key in scopes[-1]:
                first = scopes[-1][key]
                return located(name, line, f"key `{key}` is here twice, first on line {first}", "keep one of them")
            scopes[-1][key] = line
        elif piece[0] in "-0123456789NI" and not _is_finite(piece):
            return located(name, line, f"`{piece[:80]}` is not a finite number", "JSON has no NaN or infinity")
        previous = piece
    return located(name, 1, fault)


def _is_finite(piece: str) -> bool:
    return math.isfinite(float(piece))


def parse_toml(data: bytes, name: str) -> Document:
    """Parse TOML; dates become text, `nan` and `inf` are refused, and `lines` is empty."""
    import tomllib

    text = decode(data, name)
    for match in _TOML_SCAN.finditer(text):
        if match["deep"]:
            raise located(name, text.count("\n", 0, match.start()) + 1, _DEEP)
    try:
        value = _plain_dates(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        message = str(error)[: place.start()] if place else str(error)
        raise located(name, line, f"not valid TOML: {_lower_first(message)}") from error
    except RecursionError:
        raise located(name, 1, _DEEP) from None
    except ValueError as error:
        raise located(name, 1, f"not valid TOML: {_lower_first(str(error))}") from error
    fault = find_fault(value)
    if fault is not None:
        raise located(name, _line_of_number(text) if "finite" in fault else 1, fault)
    return Document(name, value, {})


def _plain_dates(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain_dates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain_dates(item) for item in value]
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat else value


def _line_of_number(text: str) -> int:
    for match in _TOML_NUMBER.finditer(text):
        if not _is_finite(match[1].replace("_", "")):
            return text.count("\n", 0, match.start(1)) + 1
    return 1


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
