"""The shape of records: block style with indented lists, entries that ask for one line, long text as literal blocks.

PyYAML's pure-Python emitter writes it: its C twin spells some text differently, and records are small. Digests are
plain in one-line entries too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import yaml

from mlops_cli.documents.values import Inline, InlineList
from mlops_cli.errors import RecordError

if TYPE_CHECKING:
    from yaml.emitter import ScalarAnalysis

_LONGEST_KEY = 1000  # YAML wants a key to be at most 1,024 characters
_MAP, _SEQ, _STR = (f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str"))
_DIGEST = re.compile(r"blake3:[0-9a-f]+")


def emit(value: object, *, step: int, inline: bool) -> str:
    """Return `value`, which has no fault, as YAML that ends in a newline; each level is indented by `step`."""
    text: str = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
        indent=step,
        default_flow_style=inline,
    )
    return text.removesuffix("...\n")


class _Dumper(yaml.SafeDumper):
    """PyYAML's emitter with the shape of records."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - equal values are written each time
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002 - lists are indented
        super().increase_indent(flow, False)

    def analyze_scalar(self, scalar: str) -> ScalarAnalysis:
        analysis = super().analyze_scalar(scalar)
        if _DIGEST.fullmatch(scalar):
            analysis.allow_flow_plain = True  # a colon that no space follows ends nothing
        return analysis

    def choose_scalar_style(self) -> str:
        style: str = super().choose_scalar_style()
        return '"' if style == "'" else style


def _write_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if not text.isprintable():
        style = "|" if _is_readable(text) else '"'
    return dumper.represent_scalar(_STR, str(text), style=style)


def _is_readable(text: str) -> bool:
    """Whether a literal block gives back `text` exactly and shows it as it is."""
    if "\n" not in text or text[0].isspace() or text.endswith("\n\n"):
        return False
    return all(line.isprintable() and line == line.rstrip() for line in text.split("\n"))


def _write_mapping(dumper: _Dumper, mapping: dict[str, object]) -> yaml.MappingNode:
    for key in mapping:
        if len(key) > _LONGEST_KEY:
            message = f"key `{key[:40]}…` is longer than {_LONGEST_KEY:,} characters"
            raise RecordError(message, hint="use a shorter name")
    return dumper.represent_mapping(_MAP, mapping.items(), flow_style=True if isinstance(mapping, Inline) else None)


def _write_list(dumper: _Dumper, items: Sequence[object]) -> yaml.SequenceNode:
    return dumper.represent_sequence(_SEQ, items, flow_style=True if isinstance(items, InlineList) else None)


_Dumper.add_representer(str, _write_text)
_Dumper.add_representer(dict, _write_mapping)
_Dumper.add_representer(Inline, _write_mapping)
_Dumper.add_representer(list, _write_list)
_Dumper.add_representer(tuple, _write_list)
_Dumper.add_representer(InlineList, _write_list)
