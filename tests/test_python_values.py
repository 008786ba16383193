"""What a Python file assigns, read without running it."""

from __future__ import annotations

import pytest

from mlops_cli.documents.python_values import parse_python
from mlops_cli.errors import RecordError

SOURCE = b'''\
"""Settings."""
import os
from pathlib import Path as P

LR = 0.1
SEED: int = -3
NAMES = A = ("a", 'b' "c", None, True)
NESTED = {"x": {"y": [1, 2.5]}}
ANNOTATED: str
HOME = os.environ["HOME"]
ONCE = 1
ONCE = 2
MADE = make()
MADE = 3
SPOILT = 4
SPOILT += 1
LATER = {"a": 1}
LATER["a"] = 2
GROWN = [1]
GROWN.append(2)
RAW = b"x"
BIG = 1e999
KEYS = {1: 2}
if HOME:
    MAYBE = 1
    def inner(): LR = 5
one, two = 1, 2

@dataclass
class Model:
    """A model."""
    depth: int = 8
    width = height = 4
    layers: list = field(default_factory=list)
    class Inner:
        deep = "d"
    def fit(self):
        LR = 9

class Late:
    x = 1
Late.x = 2
Late.y.z = 3

def main():
    global LR
    LR = 7

main()
Model.register()
'''


def test_literals_are_read_and_the_rest_is_opaque() -> None:
    found = parse_python(SOURCE, "config.py")
    assert found.values == {
        "LR": 0.1,
        "SEED": -3,
        "NAMES": ["a", "bc", None, True],
        "A": ["a", "bc", None, True],
        "NESTED": {"x": {"y": [1, 2.5]}},
        "ONCE": 2,
        "MADE": 3,
        "Model": {"depth": 8, "width": 4, "height": 4, "Inner": {"deep": "d"}},
        "Late": {},
    }
    assert {name: (opaque.line, opaque.why) for name, opaque in found.opaque.items() if opaque.is_value} == {
        "HOME": (10, "is not a literal"),
        "SPOILT": (16, "is set otherwise than by `name = value`"),
        "LATER": (18, "is set otherwise than by `name = value`"),
        "GROWN": (20, "may be changed by a call"),
        "RAW": (21, "is not a literal"),
        "BIG": (22, "cannot be read: `inf` is not a finite number"),
        "KEYS": (23, "is not a literal"),
        "MAYBE": (25, "is set otherwise than by `name = value`"),
        "one": (27, "is set otherwise than by `name = value`"),
        "two": (27, "is set otherwise than by `name = value`"),
        "Model.layers": (34, "is not a literal"),
        "Late.x": (42, "is set otherwise than by `name = value`"),
        "Late.y.z": (43, "is set otherwise than by `name = value`"),
    }
    assert {name for name, opaque in found.opaque.items() if not opaque.is_value} == {
        "os",
        "P",
        "inner",
        "main",
        "Model.fit",
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a = 1\nb = (\n", "config.py:2: not valid Python: '(' was never closed"),
        (b"a = 1\0", "config.py:1: not valid Python: "),
        (b"a = '\xff'", "config.py:1: not valid Python: "),
        (b"#" * (1 << 21), "config.py:1: the file is larger than 1 MiB (2,097,152 bytes)"),
        (b"a=1\n" * 10_001, "config.py:10001: more than 10,000 statements"),
        (b"a = " + b"-" * 100_000 + b"1", "config.py:1: not readable as Python: nested too deeply"),
    ],
)
def test_what_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse_python(data, "config.py")
    assert caught.value.message.startswith(message)


def test_what_python_warns_of_is_no_error() -> None:
    assert parse_python(b"a = '\\d'\n", "config.py").values == {"a": "\\d"}
