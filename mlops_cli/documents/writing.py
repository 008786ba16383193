"""Writing YAML so that equal values give equal bytes on every machine.

What is plain is written at once; the rest is `yaml_writing`'s, which is imported when it is needed: PyYAML takes longer
to import than most commands to do their work. The bytes are the same either way.
"""

from __future__ import annotations

from mlops_cli.documents.document import MAX_BYTES, find_fault
from mlops_cli.documents.plain import write_plain
from mlops_cli.errors import RecordError

_STEP = 2


def dump_yaml(value: object) -> bytes:
    """Return `value` as block-style YAML: UTF-8, keys in the order given, one final newline.

    `parse_yaml` reads back an equal value; RecordError when it could not (NaN, too deep, larger than 1 MiB).
    """
    data = dump_text(value).encode()
    if len(data) > MAX_BYTES:
        raise RecordError(
            f"the file to write is larger than {MAX_BYTES >> 20} MiB ({len(data):,} bytes)",
            hint="name folders where it names many single files",
        )
    return data


def dump_text(value: object, *, step: int = _STEP, inline: bool = False) -> str:
    """Return `value` as YAML that ends in a newline, each level indented by `step`; on one line with `inline`."""
    fault = find_fault(value)
    if fault is not None:
        raise RecordError(f"the file to write cannot be read back: {fault}")
    if step == _STEP and not inline and (plain := write_plain(value)) is not None:
        return plain

    from mlops_cli.documents.yaml_writing import emit

    return emit(value, step=step, inline=inline)
